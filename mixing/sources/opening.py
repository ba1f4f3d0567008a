"""Open the sources of a recipe, and check them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.errors import ConfigError, Problem
from configs.schema import RunConfig, SourceConfig
from configs.validate_data import check_data
from mixing.difficulty.curriculum import CurriculumSource
from mixing.sources.procedural import PREFIX, ProceduralSource, dataset_name
from mixing.sources.source import Source
from mixing.sources.table_source import TableSource, probe
from mixing.sources.vetted import VETTED


def open_source(cfg: SourceConfig) -> Source:
    """Open the source; ConfigError names every problem with its data."""
    if problems := list(check_data(cfg)):
        raise ConfigError(problems)
    if cfg.data.procedural is None:
        return TableSource(cfg)
    return ProceduralSource(cfg) if cfg.data.curriculum.start is None else CurriculumSource(cfg)


def open_sources(cfg: RunConfig) -> Mapping[str, Source]:
    """Open all sources, each once and read through; ConfigError has the problems of all."""
    sources: dict[str, Source] = {}
    problems: list[Problem] = []
    for source in cfg.sources:
        try:
            sources[source.name] = open_source(source)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return sources


def probe_sources(cfg: RunConfig) -> tuple[list[Problem], dict[str, int | None]]:
    """Return what shows in little time: problems with the data, and each source's training items,
    None where they are not known.

    Small files are read whole and large ones in part, reasoning-gym's datasets are checked by
    name, and what is on the hub is not asked for.
    """
    problems: list[Problem] = []
    items: dict[str, int | None] = {}
    for source in cfg.sources:
        items[source.name] = None
        found = list(check_data(source))
        try:
            if not found:
                items[source.name] = _probe(source)
        except ConfigError as error:
            found.extend(error.problems)
        problems.extend(found)
    return problems, items


def _probe(source: SourceConfig) -> int | None:
    if source.data.procedural is None:
        return probe(source)
    dataset_name(source)
    return source.data.size


def source_warnings(sources: Sequence[SourceConfig]) -> list[Problem]:
    """Return what is allowed but not vouched for: datasets that nobody vetted or fetched."""
    warnings: list[Problem] = []
    for source in sources:
        at, data = f"sources.{source.name}.data", source.data
        given = data.procedural or ""
        if given.startswith(PREFIX) and given.removeprefix(PREFIX) not in VETTED:
            warnings.append(
                Problem(
                    where=f"{at}.procedural",
                    what=f"{given} is not among the datasets whose scorer was checked",
                    fix="Look at some graded rollouts before trusting its reward.",
                )
            )
        if data.hub is not None and not Path(data.hub).is_dir():
            warnings.append(
                Problem(
                    where=f"{at}.hub",
                    what=f"`{data.hub}` is no local folder; it is taken for a hub name and fetched "
                    "when the run starts, and its rows are checked then",
                )
            )
    return warnings
