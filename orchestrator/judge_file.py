"""Judges and reward models for the command line: those that a grader asks, open while it grades."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from configs.errors import ConfigError
from configs.graders.union import GraderConfig
from configs.judges import JudgeConfig, JudgesFile, RewardModelConfig
from configs.load import load_judges
from configs.validate_judges import asking, check_asked
from rewards.judges.client import Judge
from rewards.judges.panel import Panel, RewardModel, close_judges, open_judges
from rewards.judges.request import Transport

_EXAMPLE = "configs/recipes/judges/judges.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What graders may ask."""

    judges: Panel[Judge]
    reward_models: Panel[RewardModel]


@asynccontextmanager
async def models_from(path: Path | None, grader: GraderConfig, where: str) -> AsyncIterator[Models]:
    """Open what a grader asks out of a file.

    Args:
        path: of the file of judges; None has none.
        where: what messages call the grader.

    Raises:
        ConfigError: what is wrong with the file, or the grader asks one that it has not.
    """
    declared = JudgesFile() if path is None else load_judges(path)
    if problems := list(check_asked(grader, where, declared.judges, declared.reward_models)):
        fix = f"Name a file that declares it: --judges {_EXAMPLE}." if path is None else ""
        raise ConfigError([replace(p, fix=fix or p.fix) for p in problems])
    async with models_of([grader], declared.judges, declared.reward_models) as models:
        yield models


@asynccontextmanager
async def models_of(
    graders: Iterable[GraderConfig],
    judges: Mapping[str, JudgeConfig],
    reward_models: Mapping[str, RewardModelConfig],
) -> AsyncIterator[Models]:
    """Open those that the graders ask, and no others."""
    asked = {asks.model for grader in graders for _, asks in asking(grader, "")}
    panel = open_judges({n: j for n, j in judges.items() if n in asked}, local_engine)
    scorers = {n: _local_model(n, m) for n, m in reward_models.items() if n in asked}
    try:
        yield Models(judges=panel, reward_models=Panel("reward_models", scorers))
    finally:
        await close_judges(panel)


def local_engine(name: str, cfg: JudgeConfig) -> Transport:
    """Return an engine of our own, started at the first question."""
    from actors.judge_local import LocalEngine  # loads Ray

    return LocalEngine(name, cfg)


def _local_model(name: str, cfg: RewardModelConfig) -> RewardModel:
    from actors.reward_model import LocalRewardModel  # loads Ray

    return LocalRewardModel(name, cfg)
