"""GAE, REINFORCE++ and ReMax worked by hand from their papers."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from configs.schema import RunConfig, SourceConfig
from rollouts.advantages import STD_EPS, resolve_advantage
from rollouts.credit import GroupCredit, PartCredit, Steps
from rollouts.gae import estimate_values, gae, moments, token_rewards
from rollouts.samples import credit_group, to_training_samples, without_baseline
from rollouts.scopes import estimator_plug, sample_handle, scale_advantages, scaled
from rollouts.types import (
    Boundary,
    Completion,
    FinishReason,
    GaeTerms,
    GroupRequest,
    GroupSummary,
    Rollout,
    RolloutError,
    RolloutGroup,
    RolloutStatus,
    Sampling,
    Task,
    TrainingSample,
    Turn,
)
from tests.made_groups import made_group

REWARDS = np.array([0.0, 0.0, 1.0])
VALUES = np.array([0.5, 0.2, 0.4])


@pytest.mark.parametrize(
    ("gamma", "lam", "advantages"),
    [
        (0.9, 0.0, [-0.32, 0.16, 0.6]),  # the temporal differences alone
        # A1 = 0.16 + 0.72 * 0.6, A0 = -0.32 + 0.72 * A1
        (0.9, 0.8, [0.10624, 0.592, 0.6]),
        (1.0, 1.0, [0.5, 0.8, 0.6]),  # rewards to go less values
        (0.5, 1.0, [-0.25, 0.3, 0.6]),  # 0.25 - 0.5, 0.5 - 0.2, 1 - 0.4
    ],
)
def test_gae_by_hand(gamma: float, lam: float, advantages: Sequence[float]) -> None:
    found, returns = gae(REWARDS, VALUES, gamma=gamma, lam=lam)
    np.testing.assert_allclose(found, advantages, atol=1e-12)
    np.testing.assert_allclose(returns, np.array(advantages) + VALUES, atol=1e-12)


def test_gae_of_one_token_and_of_none() -> None:
    found, returns = gae(np.array([2.0]), np.array([0.5]), gamma=0.9, lam=0.9)
    assert (found.tolist(), returns.tolist()) == ([1.5], [2.0])
    assert [len(a) for a in gae(np.zeros(0), np.zeros(0), gamma=1, lam=1)] == [0, 0]


def sample(
    mask: Sequence[bool], rewards: Sequence[float], *, gamma: float, lam: float, kl_coef: float = 0
) -> TrainingSample:
    size = len(mask)
    zeros = np.zeros(size, np.float32)
    return TrainingSample(
        group_id="g",
        index=0,
        token_ids=np.arange(size, dtype=np.int32),
        loss_mask=np.array(mask),
        rollout_logprobs=np.where(mask, np.float32(-1.0), 0).astype(np.float32),
        advantages=zeros,
        loss_weight=zeros,
        kl_coef=zeros,
        clip_low=zeros,
        clip_high=zeros,
        temperature=zeros + 1,
        gae=GaeTerms(rewards=np.array(rewards, np.float32), gamma=gamma, lam=lam, kl_coef=kl_coef),
    )


def test_only_sampled_tokens_are_steps() -> None:
    """Between two turns lies one step of discount, however much the environment wrote."""
    mask = [False, True, True, False, False, True, False]
    rewards = [9, 0, 0, 9, 9, 1, 9]
    values = np.array([7, 0.5, 0.2, 7, 7, 0.4, 7], np.float32)
    found, targets = estimate_values(sample(mask, rewards, gamma=0.9, lam=0.8), values, None, "k1")
    np.testing.assert_allclose(found, [0, 0.10624, 0.592, 0, 0, 0.6, 0], atol=1e-6)
    np.testing.assert_allclose(targets.returns, [0, 0.60624, 0.792, 0, 0, 1.0, 0], atol=1e-6)
    np.testing.assert_allclose(targets.values, [0, 0.5, 0.2, 0, 0, 0.4, 0])


def test_a_sample_whose_loss_was_masked_out_has_nothing() -> None:
    found, targets = estimate_values(
        sample([False] * 3, [0, 0, 1], gamma=1, lam=1), np.ones(3, np.float32), None, "k1"
    )
    assert not found.any() and not targets.returns.any()
    assert moments(found, sample([False] * 3, [0, 0, 1], gamma=1, lam=1)) == (0.0, 0.0)


def test_kl_in_the_reward_by_hand() -> None:
    """Sampler -1, reference -1.5 and -0.5: k1 of 0.5 and -0.5, charged at 0.1 before returns."""
    own = sample([False, True, True], [0, 0, 1], gamma=1.0, lam=1.0, kl_coef=0.1)
    reference = np.array([0, -1.5, -0.5], np.float32)
    values = np.array([0, 0.5, 0.25], np.float32)
    found, targets = estimate_values(own, values, reference, "k1")
    np.testing.assert_allclose(found, [0, (-0.05 + 1.05) - 0.5, 1.05 - 0.25], atol=1e-6)
    np.testing.assert_allclose(targets.returns, [0, 1.0, 1.05], atol=1e-6)
    with pytest.raises(ValueError, match="ref_logprobs"):
        estimate_values(own, values, None, "k1")


def test_rewards_of_tokens_by_hand() -> None:
    """Steps where they end, by both weights; the rest of the reward at the last token."""
    steps = Steps(
        ends=np.array([0, 2], np.int32), scores=np.array([1.0, 0.5]), weights=np.array([0.5, 0.5])
    )
    parts = (
        PartCredit(name="p", weight=2.0, values=np.array([0.75, 0.1]), steps=(steps, None)),
        PartCredit(name="q", weight=1.0, values=np.array([1.0, 0.0]), steps=(None, None)),
    )
    group = GroupCredit(rewards=np.array([2.5, 0.2]), parts=parts, num_tokens=(4, 2))
    one, other = token_rewards(group)
    np.testing.assert_allclose(one, [1.0, 0, 0.5, 1.0])
    np.testing.assert_allclose(other, [0, 0.2])


def recipe(**own: object) -> RunConfig:
    source = {
        "name": "s",
        "data": {"procedural": "reasoning_gym/lcm"},
        "rewards": [{"name": "r", "use": "exact"}],
    }
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 1,
            "model": {"path": "m"},
            "batch": {"groups_per_step": 1},
            "sources": [{**source, **own}],
        }
    )


def rollout(index: int, reward: float | None, tokens: int, *, truncated: bool = False) -> Rollout:
    status = RolloutStatus.TRUNCATED if truncated else RolloutStatus.COMPLETED
    completion = Completion(
        token_ids=np.arange(tokens, dtype=np.int32),
        logprobs=np.full(tokens, -1.0, np.float32),
        finish_reason=FinishReason.LENGTH if truncated else FinishReason.STOP,
        versions=(),
    )
    parts: Mapping[str, float] = {} if reward is None else {"r": reward}
    return Rollout(
        index=index,
        turns=(Turn(prompt_ids=np.arange(2, dtype=np.int32), completion=completion, text=""),),
        status=RolloutStatus.INVALID if reward is None else status,
        reward=reward,
        reward_parts=parts,
        error=None
        if reward is not None
        else RolloutError(boundary=Boundary.REWARD, kind="timeout", message="too slow"),
    )


def group(*rollouts: Rollout, greedy: Rollout | None = None, number: int = 0) -> RolloutGroup:
    task = Task(task_id=f"s/train/{number}", source="s", prompt=(), answer=None, metadata={})
    request = GroupRequest(
        group_id=f"{task.task_id}#e0a0",
        task=task,
        group_size=len(rollouts),
        sampling=Sampling(temperature=1.0, max_tokens=8),
        step=1,
    )
    return RolloutGroup(request=request, rollouts=rollouts, greedy=greedy, generate_s=0.0)


def samples_of(
    source: SourceConfig, played: RolloutGroup, *, kl_coef: float = 0.0, kl_in_reward: bool = False
) -> tuple[tuple[TrainingSample, ...], bool]:
    credits = credit_group(played, source, resolve_advantage(estimator_plug(source)))
    made = to_training_samples(played, source, kl_coef, credits, kl_in_reward=kl_in_reward)
    return made, credits.has_signal


def test_a_truncated_rollout_ends_like_any_other() -> None:
    """Its reward is that of what was cut off; nothing is bootstrapped after its last token."""
    (source,) = recipe(advantage={"use": "gae", "args": {"gamma": 1.0, "lam": 1.0}}).sources
    played = group(rollout(0, 1.0, 2), rollout(1, 1.0, 2, truncated=True))
    (whole, cut), _ = samples_of(source, played)
    said = np.full(4, 0.25, np.float32)
    found = [estimate_values(s, said, None, "k1")[0].tolist() for s in (whole, cut)]
    assert found == [[0, 0, 0.75, 0.75]] * 2


def test_samples_for_the_critic_hold_rewards_apart() -> None:
    (source,) = recipe(advantage={"use": "gae", "args": {"gamma": 0.9, "lam": 0.5}}).sources
    played = group(rollout(0, 0.5, 3), rollout(1, None, 2), rollout(2, 0.5, 1))
    made, signal = samples_of(source, played, kl_coef=0.1)
    assert signal, "equal rewards teach too"
    assert [s.index for s in made] == [0, 2]
    first = made[0]
    assert first.gae is not None and (first.gae.gamma, first.gae.lam) == (0.9, 0.5)
    assert first.gae.rewards.tolist() == [0, 0, 0, 0, 0.5]
    assert not first.advantages.any() and first.gae.kl_coef == 0
    assert first.kl_coef.tolist() == pytest.approx([0.1] * 5)
    (charged, _), _ = samples_of(source, played, kl_coef=0.1, kl_in_reward=True)
    assert charged.gae is not None and charged.gae.kl_coef == pytest.approx(0.1)
    assert not charged.kl_coef.any(), "the trainer must not charge it again"


def stepped(cfg: RunConfig, groups: Sequence[RolloutGroup]) -> list[list[float]]:
    """Return the advantages of each group's samples as the trainer sees them."""
    summaries: list[GroupSummary] = []
    made: list[tuple[TrainingSample, ...]] = []
    for number, played in enumerate(groups):
        own, signal = samples_of(cfg.sources[0], played)
        made.append(own)
        handles = tuple(sample_handle(s, ref=number, row=row) for row, s in enumerate(own))
        group_id = played.request.group_id
        summaries.append(
            made_group(group_id=group_id, source="s", samples=handles, has_signal=signal)
        )
    found: list[list[float]] = []
    for summary, own in zip(scale_advantages(cfg, summaries), made, strict=True):
        rows: list[float] = []
        for handle, s in zip(summary.samples, own, strict=True):
            seen = scaled(s, handle.advantage_scale, handle.advantage_shift)
            assert not seen.advantages[~seen.loss_mask].any()
            (value,) = set(seen.advantages[seen.loss_mask].tolist())
            rows.append(value)
        found.append(rows)
    return found


@pytest.mark.parametrize("scope", ["batch", "source", None])
def test_reinforce_pp_by_hand(scope: str | None) -> None:
    """(r - mean) / std over the step: groups, of equal rewards too, mean nothing (equation 8)."""
    cfg = recipe(advantage={"use": "reinforce_pp"}, advantage_scope=scope)
    groups = [
        group(rollout(0, 1.0, 1), rollout(1, 1.0, 9)),
        group(rollout(0, 0.0, 2), number=1),
        group(rollout(0, 0.0, 2), rollout(1, None, 2), number=2),
    ]
    std = 0.5 + STD_EPS  # of 1, 1, 0, 0
    wanted = [[0.5 / std] * 2, [-0.5 / std], [-0.5 / std]]
    for found, by_hand in zip(stepped(cfg, groups), wanted, strict=True):
        np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    assert all(samples_of(cfg.sources[0], g)[1] for g in groups)


def test_reinforce_pp_with_baseline_by_hand() -> None:
    """Less the group's mean, then over the step's deviation."""
    cfg = recipe(advantage={"use": "reinforce_pp_baseline"})
    groups = [
        group(rollout(0, 1.0, 1), rollout(1, 0.0, 9)),  # 0.5, -0.5
        group(rollout(0, 1.0, 2), rollout(1, 1.0, 2), number=1),  # 0, 0
    ]
    std = (0.5 / 4) ** 0.5 + STD_EPS
    one, other = stepped(cfg, groups)
    np.testing.assert_allclose(one, [0.5 / std, -0.5 / std], rtol=1e-6)
    assert other == [0.0, 0.0]
    assert [samples_of(cfg.sources[0], g)[1] for g in groups] == [True, False]


def test_remax_by_hand() -> None:
    """Each reward less that of the greedy rollout, which is no sample (arXiv:2310.10505)."""
    cfg = recipe(advantage={"use": "remax"})
    played = group(rollout(0, 1.0, 1), rollout(1, 0.25, 2), greedy=rollout(2, 0.5, 3))
    assert stepped(cfg, [played]) == [[0.5, -0.25]]
    even = group(rollout(0, 0.5, 1), greedy=rollout(1, 0.5, 3))
    assert stepped(cfg, [even]) == [[0.0]]
    assert [samples_of(cfg.sources[0], g)[1] for g in (played, even)] == [True, False]


def test_a_group_whose_greedy_rollout_failed_failed() -> None:
    played = group(rollout(0, 1.0, 1), rollout(1, None, 2), greedy=rollout(2, None, 3))
    lost = without_baseline(played)
    assert [r.status for r in lost.rollouts] == [RolloutStatus.INVALID] * 2
    assert [r.reward for r in lost.rollouts] == [None, None]
    first, second = (r.error for r in lost.rollouts)
    assert first is not None and "greedy rollout, which is the baseline, failed: too slow" in (
        first.message
    )
    assert second is not None and second.message == "too slow"
    (source,) = recipe(advantage={"use": "remax"}).sources
    assert samples_of(source, lost) == ((), False)
    kept = group(rollout(0, 1.0, 1), greedy=rollout(1, 0.0, 1))
    assert without_baseline(kept) is kept
