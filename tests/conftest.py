"""Settings of every test: hypothesis has no deadline (a timing assertion by another name), and what
braid keeps between runs goes to a folder that ends with the tests. No call of Ray's starts a
cluster by itself. With `pytest -n 2`, worlds of trainer ranks and browsers start one after the
other; whole runs come last, two at a time."""

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # read when ray is imported
settings.register_profile("braid", deadline=None)
settings.load_profile("braid")
HEAVY = ("tests/distributed/", "tests/report/")
"""Folders whose tests keep both cores busy."""


class ByWeight(LoadScopeScheduling):
    """A unit of work is a file, or all that is heavy; the largest ones come first."""

    def _split_scope(self, nodeid: str) -> str:
        return "heavy" if nodeid.startswith(HEAVY) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByWeight:
    """Schedule the tests of `pytest -n 2`."""
    return ByWeight(config, log)


@pytest.fixture(autouse=True, scope="session")
def own_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BRAID_CACHE_DIR"] = folder
        yield
        del os.environ["BRAID_CACHE_DIR"]
