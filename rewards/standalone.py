"""One grader outside of a run, with what it needs: for `braid grade` and the bench."""

from types import TracebackType
from typing import Self

from configs.errors import ConfigError
from configs.graders.union import GraderConfig
from configs.schema import RewardGroupConfig
from rewards.compute import ComputePool
from rewards.evaluate import evaluate
from rewards.judges.client import Judge
from rewards.judges.panel import NO_JUDGES, NO_REWARD_MODELS, Panel, RewardModel
from rewards.registry import check_grader, leaves
from rewards.score import Score
from rewards.subject import Subject

ROOT = "grader"
"""Path of the grader itself; those that it is made of stand below it."""


class Grading:
    """Grades answers with one grader: `async with Grading(grader) as grading`.

    Use from one event loop; answers may be graded at the same time.
    """

    def __init__(
        self,
        grader: GraderConfig,
        reward: RewardGroupConfig | None = None,
        *,
        judges: Panel[Judge] = NO_JUDGES,
        reward_models: Panel[RewardModel] = NO_REWARD_MODELS,
    ):
        """Start nothing yet.

        Args:
            reward: processes, time limit and retries; by default one process and no retry.
            judges: those that it may ask; the caller closes them.

        Raises:
            ConfigError: every problem with the grader.
        """
        problems = check_grader(grader, ROOT)
        if problems:
            raise ConfigError(problems)
        self._grader = grader
        self.judges, self.reward_models = judges, reward_models
        rules = dict(leaves(grader, ROOT))
        cfg = reward or RewardGroupConfig(workers=1, timeout_s=120, retries=0)
        self._pool = ComputePool(cfg, rules) if rules else None

    async def __aenter__(self) -> Self:
        if self._pool is not None:
            await self._pool.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            await self._pool.close()

    async def score(self, subject: Subject) -> Score:
        """Return the score of one answer.

        Raises:
            GradeFailed: it cannot be judged.
            GraderStartError: a killed worker could not be replaced.
        """
        return await evaluate(self._grader, subject, self, ROOT)

    async def compute(self, path: str, subject: Subject) -> Score:
        """Have a COMPUTE grader grade (`rewards.services`)."""
        if self._pool is None:
            raise LookupError(f"{path} is no COMPUTE grader")
        return await self._pool.compute(path, subject)
