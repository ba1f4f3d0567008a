"""What a tracker of a run can take."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from rewards.monitors.alarms import Alarm

Row = Mapping[str, JsonValue]
"""One line of a file in `rollouts/`."""


class Sink:
    """A tracker. Each method may raise: the run goes on without the sink."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take flat metrics of one step, or of its evaluation."""
        raise NotImplementedError

    def samples(self, rows: Sequence[Row], step: int) -> None:
        """Take some rollouts of one step; nothing, unless the sink can show texts."""

    def alarm(self, alarm: Alarm) -> None:
        """Take what a monitor raised or cleared; nothing, unless the sink can tell people."""

    def close(self) -> None:
        """Write out what is held."""


def by_section(name: str) -> str:
    """Return a metric's name with its source first, so that trackers that group by what stands
    before the first slash make one section a source: `source-sums/trained/reward/mean`."""
    head, _, rest = name.partition("/")
    source, slash, own = rest.partition("/")
    if head == "source" and slash:
        return f"source-{source}/{own}"
    if head == "eval" and slash:
        return f"source-{source}/held_out/{own}"
    return name
