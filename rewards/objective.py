"""What a source's parts come to: the one reward by which rollouts pass and are shown."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from configs.errors import ConfigError, Problem
from configs.schema import SourceConfig
from rewards.formula import compile_formula
from rollouts.objective import gate

Total = Callable[[Mapping[str, float]], float]
"""Parts by name -> reward; raises GradeFailed where a formula has no value."""


def prepare_total(source: SourceConfig) -> Total:
    """Return how the source's parts, each as it was graded, make its reward.

    Raises:
        ConfigError: the formula is none.
    """
    objective = source.objective
    if objective.combine == "formula":
        formula = compile_formula(objective.formula, _names(source), where=_where(source))
        return lambda parts: formula(gate(parts, objective.gates)[0])
    weights = [(part.name, part.weight) for part in source.rewards]
    if not objective.gates:
        return lambda parts: sum(weight * parts[name] for name, weight in weights)

    def total(parts: Mapping[str, float]) -> float:
        values, _ = gate(parts, objective.gates)
        return sum(weight * values[name] for name, weight in weights)

    return total


def validate_objectives(sources: Sequence[SourceConfig]) -> list[Problem]:
    """Return every problem with the sources' formulas."""
    return [problem for source in sources for problem in _check(source)]


def _check(source: SourceConfig) -> Iterator[Problem]:
    if source.objective.combine != "formula" or not source.objective.formula:
        return
    try:
        prepare_total(source)
    except ConfigError as error:
        yield from error.problems
        return
    needed = {g.needs for g in source.objective.gates}
    for name in _names(source):
        if name not in needed and _compiles(source, without=name):
            yield Problem(
                where=_where(source),
                what=f"does not use the part `{name}`, which then cannot matter",
                fix=f"Use it, or remove the part `{name}`.",
            )


def _compiles(source: SourceConfig, *, without: str) -> bool:
    names = [name for name in _names(source) if name != without]
    try:
        compile_formula(source.objective.formula, names)
    except ConfigError:
        return False
    return True


def _names(source: SourceConfig) -> list[str]:
    return [part.name for part in source.rewards]


def _where(source: SourceConfig) -> str:
    return f"sources.{source.name}.objective.formula"
