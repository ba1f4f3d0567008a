"""The gold grader beside the reward, with real processes; what graders note of tampering."""

import asyncio
from collections.abc import Callable

from configs.monitors import GoldConfig
from configs.schema import RewardConfig, RewardGroupConfig, SourceConfig
from rewards.pool import GraderPool
from rollouts.types import Gold, Rollout, RolloutStatus, Task

NOTING = """
from rewards.score import Score

def noting(rollout, task):
    noted = {"tampering": ["ptrace", "fork"], "canary_passed": 1}
    return Score(value=1.0, notes={"sub": noted, "why": "x"})
"""


def test_gold_is_asked_apart_from_the_reward(
    source: Callable[..., SourceConfig],
    rollout: Callable[..., Rollout],
    task: Callable[..., Task],
    grader_module: str,
    tmp_path,
):
    (tmp_path / "noting_for_test.py").write_text(NOTING)
    strict = {"type": "function", "use": f"{grader_module}:by_text"}
    loose = RewardConfig(name="loose", use="noting_for_test:noting")
    cfg = source(loose).model_copy(
        update={"gold": GoldConfig.model_validate({"grader": strict, "weight": 2.0})}
    )

    async def main() -> tuple[Rollout, list[Gold]]:
        pool = GraderPool(RewardGroupConfig(retries=0), [cfg])
        await pool.start()
        try:
            graded = await pool.grade(rollout("raise"), task())
            golds = [await pool.gold(rollout(text), task()) for text in ("fine", "raise", "nan")]
        finally:
            await pool.close()
        return graded, golds

    graded, (fine, raised, nan) = asyncio.run(main())
    assert (graded.reward, graded.status) == (1.0, RolloutStatus.COMPLETED)
    assert graded.gold is None  # not asked
    assert (graded.tampering, graded.canaries_passed) == (2, 1)
    assert fine == Gold(score=2.0)
    assert raised.score is None and "cannot judge" in raised.failure
    assert nan.score is None and nan.failure
