"""Judges for the command line: those of a file that a grader asks, open as long as it grades."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from configs.errors import ConfigError
from configs.graders.union import GraderConfig
from configs.judges import JudgeConfig
from configs.load import load_judges
from configs.validate_judges import asking, check_asked
from rewards.judges.client import Judge
from rewards.judges.panel import Panel, close_judges, open_judges
from rewards.judges.request import Transport


@asynccontextmanager
async def judges_from(
    path: Path | None, grader: GraderConfig, where: str
) -> AsyncIterator[Panel[Judge]]:
    """Open the judges that a grader asks.

    Args:
        path: of the file of judges; None has none.
        where: what messages call the grader.

    Raises:
        ConfigError: what is wrong with the file, or the grader asks one that it has not.
    """
    judges = {} if path is None else load_judges(path)
    if problems := list(check_asked(grader, where, judges, {})):
        raise ConfigError(problems)
    asked = {asks.model for _, asks in asking(grader, where)}
    panel = open_judges({n: j for n, j in judges.items() if n in asked}, local_engine)
    try:
        yield panel
    finally:
        await close_judges(panel)


def local_engine(name: str, cfg: JudgeConfig) -> Transport:
    """Return an engine of our own, started at the first question."""
    from actors.judge_local import LocalEngine  # loads Ray

    return LocalEngine(name, cfg)
