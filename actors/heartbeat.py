"""What an actor answers when asked whether it lives."""

from dataclasses import dataclass

import ray
from ray.util import get_node_ip_address

from actors.processes import ProcessId, family


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """A sign of life, and where it came from."""

    progress: int
    """Any count that grows while the actor works."""
    stuck_s: float
    """Seconds without progress while work waits, past the actor's own bound; 0 otherwise."""
    processes: tuple[ProcessId, ...]
    """The actor's process and those below it."""
    node: str
    """Address of its node."""
    node_id: str


def beat(progress: int, stuck_s: float = 0.0) -> Heartbeat:
    """Return this process's heartbeat; call inside an actor."""
    return Heartbeat(
        progress=progress,
        stuck_s=stuck_s,
        processes=family(),
        node=get_node_ip_address(),
        node_id=ray.get_runtime_context().get_node_id(),
    )
