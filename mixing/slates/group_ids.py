"""The names of groups: which item, which epoch, which time of being sampled.

<task_id>#e<epoch>a<attempt>         attempts count from 0; a failed group is tried again
<task_id>#e<epoch>r<again>a<attempt> the item had come back unused, for the `again`th time
"""

import re
from typing import NamedTuple

_GROUP_ID = re.compile(r"^(?P<task>.*)#e(?P<epoch>\d+)(?:r(?P<again>\d+))?a(?P<attempt>\d+)$")


class Drawn(NamedTuple):
    """An item that was drawn."""

    item: int
    epoch: int
    again: int = 0
    """How often it was sampled for this draw and not trained on."""


def format_id(task_id: str, epoch: int, attempt: int, again: int = 0) -> str:
    """Return the group id of one attempt at a task in an epoch."""
    return f"{task_id}#e{epoch}{f'r{again}' if again else ''}a{attempt}"


def parse_group_id(group_id: str) -> tuple[str, int, int]:
    """Return (task_id, epoch, attempt); ValueError for an id that no mixer made."""
    match = _match(group_id)
    return match["task"], int(match["epoch"]), int(match["attempt"])


def next_attempt(group_id: str) -> str:
    """Return the id of the attempt after this one."""
    match = _match(group_id)
    task, epoch, attempt = parse_group_id(group_id)
    return format_id(task, epoch, attempt + 1, int(match["again"] or 0))


def _match(group_id: str) -> re.Match[str]:
    match = _GROUP_ID.match(group_id)
    if match is None:
        raise ValueError(f"{group_id!r} is not `<task_id>#e<epoch>a<attempt>`")
    return match
