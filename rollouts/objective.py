"""Gates between reward parts."""

from collections.abc import Mapping, Sequence

from configs.objective import GateConfig


def gate(
    parts: Mapping[str, float], gates: Sequence[GateConfig]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return each part as it counts behind its gates, and the parts of which a gate is closed.

    A gate looks at a part as that one counts itself, so gates form chains; they have no cycles.
    """
    found: dict[str, float] = {}
    closed: dict[str, None] = {}

    def value(name: str) -> float:
        if name not in found:
            shut = [g for g in gates if g.part == name and value(g.needs) < g.at_least]
            found[name] = shut[0].otherwise if shut else parts[name]
            if shut:
                closed[name] = None
        return found[name]

    return {name: value(name) for name in parts}, tuple(n for n in parts if n in closed)
