"""Settings of every test: hypothesis has no deadline (a timing assertion by another name), and what
braid keeps between runs goes to a folder that ends with the tests."""

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("braid", deadline=None)
settings.load_profile("braid")


@pytest.fixture(autouse=True, scope="session")
def own_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BRAID_CACHE_DIR"] = folder
        yield
        del os.environ["BRAID_CACHE_DIR"]
