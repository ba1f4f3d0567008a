"""Which environments there are, by name."""

from collections.abc import Callable, Mapping, Sequence

from configs.errors import ConfigError, Problem
from configs.plug import PlugConfig
from configs.plugs import bind, resolve
from configs.schema import SourceConfig
from environments.environment import Environment, SingleTurn

BUILT_IN: Mapping[str, type[Environment]] = {"single_turn": SingleTurn}


def environment_factory(plug: PlugConfig, *, where: str = "") -> Callable[[], Environment]:
    """Return a function that makes a fresh environment for each rollout.

    Raises:
        ConfigError: unknown name, not an Environment, or arguments that do not fit.
    """
    found = resolve(plug.use, BUILT_IN, where=where)
    if not (isinstance(found, type) and issubclass(found, Environment)):
        raise ConfigError(
            Problem(
                where=where or repr(plug.use),
                what=f"{plug.use!r} is not a class derived from environments.environment."
                "Environment",
                fix="Derive it, and implement `async reset(task)` and `async step(reply)`.",
            )
        )
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise ConfigError(
            Problem(
                where=where or repr(plug.use),
                what=f"{plug.use!r} does not implement {', '.join(f'`{m}`' for m in missing)}",
            )
        )
    return bind(found, plug.args, parameters=(), use=plug.use, where=where)


def validate_environments(sources: Sequence[SourceConfig]) -> list[Problem]:
    """Return every problem with the sources' environments; none of them is made."""
    problems: list[Problem] = []
    for source in sources:
        try:
            environment_factory(source.environment, where=f"sources.{source.name}.environment")
        except ConfigError as error:
            problems.extend(error.problems)
    return problems
