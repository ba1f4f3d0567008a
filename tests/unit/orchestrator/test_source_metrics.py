"""Every number worked by hand: two sources of different scale, with rollouts that failed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from configs.schema import RunConfig
from mixing.ledger.events import score_of
from orchestrator.publisher import SyncReport
from orchestrator.records.source_metrics import ALL, METRICS, TRAINED
from orchestrator.records.step_metrics import StepBooks, TrainedStep, book_metrics, step_metrics
from rollouts.types import (
    GroupSummary,
    RolloutStats,
    RolloutStatus,
    SampleHandle,
    StepResult,
)
from tests.made_groups import made_group, made_rollout


def rollout(
    reward: float | None, length: int = 10, *, truncated: bool = False, **parts: float
) -> RolloutStats:
    valid = RolloutStatus.TRUNCATED if truncated else RolloutStatus.COMPLETED
    status = RolloutStatus.INVALID if reward is None else valid
    return made_rollout(reward, length, reward_parts=parts, status=status)


def group(
    source: str,
    rollouts: Sequence[RolloutStats],
    *,
    item: int = 0,
    epoch: int = 0,
    version: int = 4,
    seconds: float = 1.0,
) -> GroupSummary:
    valid = [r for r in rollouts if r.reward is not None]
    handles = (
        SampleHandle(
            ref=None,
            row=i,
            num_tokens=r.num_completion_tokens + 3,
            num_loss_tokens=r.num_completion_tokens,
            advantage=(r.reward or 0.0) - 0.5,
        )
        for i, r in enumerate(valid)
    )
    return made_group(
        rollouts,
        group_id=f"{source}/train/{item}#e{epoch}a0",
        source=source,
        version=version,
        newest=4,
        samples=handles,
        step=5,
        generate_s=seconds,
        grade_s=seconds / 2,
    )


def config(**sources: dict[str, object]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 10,
            "model": {"path": "org/model"},
            "sources": [
                {
                    "name": name,
                    "data": {"procedural": "reasoning_gym/chain_sum"},
                    "rewards": [{"use": "exact", "name": "right"}],
                    **extra,
                }
                for name, extra in sources.items()
            ],
            "batch": {"groups_per_step": 4},
        }
    )


def step(
    groups: Sequence[GroupSummary], rejected: Sequence[GroupSummary] = (), **shares: float
) -> TrainedStep:
    return TrainedStep(
        step=5,
        groups=groups,
        rejected=rejected,
        shares=shares,
        result=StepResult(policy_version=5, metrics={"loss": 0.5}, seconds={}),
    )


def books(rejected: Sequence[GroupSummary] = ()) -> StepBooks:
    return StepBooks(
        sync=SyncReport(seconds={"send": 0.25}, bytes=100, gap_median=None, gap_max=None),
        wall_s=2.0,
        split={"train": 1.0, "sync": 0.5, "idle": 0.5},
        ledger={"ledger/rejected/failed": len(rejected)},
        difficulty={},
        judges={},
    )


# Of `sums`, 1 is a pass. Of `essay`, whose rewards go to 100, 60 is one.
SUMS_A = group(
    "sums",
    [rollout(1.0, 2), rollout(0.0, 4), rollout(1.0, 6), rollout(None, 9)],
    epoch=2,
    version=1,
    seconds=3.0,
)
SUMS_B = group(
    "sums", [rollout(0.0, 8), rollout(0.0, 8, truncated=True)] * 2, item=1, epoch=1, version=3
)
SUMS_LOST = group("sums", [rollout(None, 0)] * 4, item=2, seconds=5.0)
ESSAY_A = group("essay", [rollout(100.0, 1000), rollout(80.0, 500)])
ESSAY_B = group("essay", [rollout(20.0, 100), rollout(None, 50)], item=1)


@pytest.fixture
def metrics() -> dict[str, float]:
    cfg = config(sums={}, essay={"eval": {"pass_threshold": 60.0}}, idle={})
    done = step([SUMS_A, ESSAY_A, SUMS_B, ESSAY_B], [SUMS_LOST], sums=0.45, essay=0.35, idle=0.2)
    metrics = step_metrics(cfg, done)
    tokens = metrics["completion_tokens"]
    return {**metrics, **book_metrics(books([SUMS_LOST]), completion_tokens=tokens)}


def under(metrics: dict[str, float], prefix: str) -> dict[str, float]:
    return {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}


def test_all_rollouts_of_a_source(metrics: dict[str, float]):
    rewards = np.array([1, 0, 1, 0, 0, 0, 0])
    assert under(metrics, "source/sums/all/") == pytest.approx(
        {
            "groups": 3,
            "rollouts": 12,
            "valid": 7,
            "tokens": 2 + 4 + 6 + 9 + 32,
            "reward/mean": 2 / 7,  # a mean of group means would be (2/3 + 0) / 2
            "reward/std": rewards.std(),
            "reward/p10": 0.0,
            "reward/p90": 1.0,
            "solved_all": 0.0,
            "solved_none": 1 / 2,  # of two groups with a valid rollout, not of three
            "zero_variance": 1 / 2,
            "singleton": 0.0,
            "invalid": 5 / 12,
            "truncated": 2 / 12,
            "length/mean": 53 / 12,
            "length/p95": 8.45,  # between the 11th and the 12th of 0 0 0 0 2 4 6 8 8 8 8 9
            "length/right/mean": 4.0,
            "length/right/p95": 5.8,
            "length/wrong/mean": 36 / 5,
            "length/wrong/p95": 8.0,
            "length/reward_correlation": 0.0,  # of one group: in the other all rewards are equal
            "tampering": 0,
            "canaries_passed": 0,
            "generate_s": 3.0,
            "grade_s": 1.5,
            "pass@1": (2 / 3 + 0) / 2,
            "pass@2": (1 + 0) / 2,  # of three with two passes, any two hold one
            "pass@4": 0.0,  # one group has four valid rollouts
        }
    )


def test_trained_samples_of_a_source(metrics: dict[str, float]):
    assert under(metrics, "source/sums/trained/") == pytest.approx(
        {
            "reward/mean": 2 / 7,
            "reward/std": np.array([1, 0, 1, 0, 0, 0, 0]).std(),
            "reward/p10": 0.0,
            "reward/p90": 1.0,
            "solved_all": 0.0,
            "solved_none": 0.5,
            "zero_variance": 0.5,
            "singleton": 0.0,
            "advantage/std": (2 / 7 * 5 / 7) ** 0.5,  # two of seven right
            "truncated": 2 / 7,  # the invalid one was not trained on
            "length/mean": 44 / 7,
            "length/p95": 8.0,
            "length/right/mean": 4.0,
            "length/right/p95": 5.8,
            "length/wrong/mean": 36 / 5,
            "length/wrong/p95": 8.0,
            "staleness/mean": 2.0,  # trained by version 4, sampled by 1 and 3
            "staleness/max": 3,
            "epoch": 2,
            "pass@1": 1 / 3,
            "pass@2": 0.5,
            "pass@4": 0.0,
        }
    )


def test_a_source_of_another_scale_has_its_own_bound_and_is_not_mixed_in(
    metrics: dict[str, float],
):
    own = under(metrics, "source/essay/all/")
    assert own["reward/mean"] == pytest.approx(200 / 3)
    assert own["reward/p10"] == pytest.approx(32.0)
    assert own["reward/p90"] == pytest.approx(96.0)
    assert (own["solved_all"], own["solved_none"]) == (0.5, 0.5)
    assert (own["singleton"], own["zero_variance"]) == (0.5, 0.0)
    assert own["pass@1"] == 0.5
    assert own["pass@2"] == 1.0  # the group with one valid rollout has no pass@2
    assert own["length/right/mean"] == 750
    assert own["length/wrong/mean"] == 100


def test_shares_in_every_unit(metrics: dict[str, float]):
    tokens = 12 + 32 + 1500 + 100
    assert {
        k: v
        for k, v in metrics.items()
        if k.startswith("source/sums/") and "/all/" not in k and "/trained/" not in k
    } == pytest.approx(
        {
            "source/sums/groups": 2,
            "source/sums/samples": 7,
            "source/sums/loss_tokens": 44,
            "source/sums/survival": 2 / 3,
            "source/sums/share/target": 0.45,
            "source/sums/share/groups": 1 / 2,
            "source/sums/share/samples": 7 / 10,
            "source/sums/share/loss_tokens": 44 / tokens,
        }
    )


def test_a_source_without_groups_has_its_shares_and_no_means(metrics: dict[str, float]):
    assert under(metrics, "source/idle/") == {
        "groups": 0,
        "samples": 0,
        "loss_tokens": 0,
        "share/target": 0.2,
        "share/groups": 0,
        "share/samples": 0,
        "share/loss_tokens": 0,
    }


def test_a_source_whose_groups_were_all_rejected():
    lost = step_metrics(config(sums={}, essay={}), step([ESSAY_A], [SUMS_LOST], essay=1.0))
    own = under(lost, "source/sums/")
    assert own["survival"] == 0 and own["share/target"] == 0
    assert own["all/invalid"] == 1.0
    absent = {"all/reward/mean", "all/solved_none", "all/zero_variance", "all/pass@1"}
    assert not absent & own.keys()
    assert not [k for k in own if k.startswith("trained/")]


def test_parts_of_a_reward_are_over_the_rollouts_that_have_them():
    own = [rollout(1.0, answer=1.0, brevity=0.5), rollout(0.0, answer=0.0), rollout(None, answer=9)]
    found = step_metrics(config(sums={}), step([group("sums", own)], sums=1.0))
    assert found["source/sums/all/reward_part/answer"] == 0.5
    assert found["source/sums/all/reward_part/brevity"] == 0.5


def test_parts_before_and_after_gates_and_estimator():
    gates = [{"part": "style", "needs": "right"}]
    one = [
        replace(rollout(1.5, right=1.0, style=0.5), part_advantages={"right": 3.0, "style": 0.0}),
        replace(
            rollout(0.0, right=0.0, style=0.5),
            part_advantages={"right": -1.0, "style": 0.0},
            closed_parts=("style",),
        ),
        rollout(None, right=9.0, style=9.0),
    ]
    other = [rollout(1.0, right=1.0, style=0.0), rollout(2.0, right=1.0, style=1.0)]
    alone = [rollout(1.0, right=1.0, style=0.0)]
    groups = [group("sums", g, item=i) for i, g in enumerate((one, other, alone))]
    cfg = config(sums={"objective": {"gates": gates}})
    found = under(step_metrics(cfg, step(groups, sums=1.0)), "source/sums/all/reward_part/")
    assert found["right"] == pytest.approx(4 / 5) and found["style"] == pytest.approx(2 / 5)
    assert found["right/std"] == pytest.approx(0.4)
    assert found["right/same"] == 0.5 and found["style/same"] == 0.5  # of two groups of two
    assert found["style/open"] == pytest.approx(4 / 5) and "right/open" not in found
    assert found["right/advantage_rms"] == pytest.approx(5**0.5)
    assert found["style/advantage_rms"] == 0.0


def test_equal_rewards_by_different_parts_are_a_contrast_where_they_have_an_advantage():
    rollouts = [rollout(1.0), rollout(1.0)]
    for signal, rate in ((None, 1), (False, 1), (True, 0)):
        told = replace(group("sums", rollouts), has_signal=signal)
        found = step_metrics(config(sums={}), step([told], sums=1.0))
        assert found["source/sums/all/zero_variance"] == rate


def test_equal_rewards_up_to_rounding_are_no_contrast():
    near = group("sums", [rollout(0.1 + 0.2), rollout(0.3)])
    found = step_metrics(config(sums={}), step([near], sums=1.0))
    assert found["source/sums/all/zero_variance"] == 1


def test_pass_at_goes_up_to_the_group_size():
    six = group("sums", [rollout(1.0)] + [rollout(0.0)] * 5)
    found = under(step_metrics(config(sums={}), step([six], sums=1.0)), "source/sums/trained/pass@")
    assert found == pytest.approx({"1": 1 / 6, "2": 2 / 6, "4": 4 / 6, "6": 1.0})


def test_the_whole_step(metrics: dict[str, float]):
    assert metrics["completion_tokens"] == 53 + 1500 + 150
    assert metrics["completion_tokens_per_s"] == (53 + 1500 + 150) / 2
    assert metrics["staleness/max"] == 3
    assert metrics["reward/mean"] == pytest.approx((2 + 200) / 10)
    assert metrics["train/loss"] == 0.5
    assert metrics["time/sync_send"] == 0.25 and metrics["time/sync_verify"] == 0.25
    assert metrics["ledger/rejected/failed"] == 1
    assert "sync/logprob_gap_max" not in metrics


def test_greedy_rollouts_are_counted_apart() -> None:
    """A baseline's reward and tokens are told, and in no other figure of its source; the ledger has
    its tokens and says how many there were."""
    plain = group("a", [rollout(1.0, 10), rollout(0.0, 20)])
    based = replace(plain, greedy=rollout(0.5, 7))
    failed = replace(plain, greedy=rollout(None, 3))
    without = step_metrics(config(a={}), step([plain, plain]))
    found = step_metrics(config(a={}), step([based, failed]))
    changed = {n for n in found if found[n] != without.get(n)}
    greedy = {"source/a/all/greedy/reward": 0.5, "source/a/all/greedy/tokens": 10}
    assert {n: found[n] for n in greedy} == greedy
    assert changed == {*greedy, "completion_tokens"}
    assert found["completion_tokens"] == without["completion_tokens"] + 10
    one, other = score_of(plain), score_of(based)
    assert other == replace(one, tokens=one.tokens + 7, greedy=1)


def test_names_are_unique_and_pools_are_the_two():
    names = [m.name for m in METRICS]
    assert len(names) == len(set(names))
    assert {kind for m in METRICS for kind in m.kinds} == {ALL, TRAINED}
