"""What unit tests of several folders share."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def outside_ray() -> Iterator[None]:
    """Let an actor's class start in this process, as if on a node."""
    node = SimpleNamespace(get_node_id=lambda: "node")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.get_runtime_context", lambda: node)
        yield
