"""Settings of every test: hypothesis has no deadline (a timing assertion by another name), and what
braid keeps between runs goes to a folder that ends with the tests. With `pytest -n 2`, tests that
start engines and trainers stay on one worker, one after the other, and each other file on one."""

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("braid", deadline=None)
settings.load_profile("braid")
HEAVY = ("tests/e2e/", "tests/distributed/", "tests/report/")
"""Folders whose tests keep more than one core busy."""


class ByWeight(LoadScopeScheduling):
    """A unit of work is a file of light tests, or all that is heavy."""

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
