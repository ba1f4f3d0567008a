"""Settings of every test: hypothesis has no deadline (a timing assertion by another name), and what
braid keeps between runs goes to a folder that ends with the tests. With `pytest -n 2`, tests that
start engines and trainers stay on one worker, one after the other, and each other file on one."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("braid", deadline=None)
settings.load_profile("braid")
HEAVY = frozenset({"e2e", "distributed", "report"})
"""Folders whose tests keep more than one core busy."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(here)
        group = "heavy" if path.parts[0] in HEAVY else str(path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True, scope="session")
def own_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BRAID_CACHE_DIR"] = folder
        yield
        del os.environ["BRAID_CACHE_DIR"]
