"""Credit of steps: where it falls due, that it changes no expectation, and what never changes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.data import DataConfig
from configs.objective import CreditConfig, ObjectiveConfig
from configs.schema import RewardConfig, SourceConfig
from rollouts.advantages import AnyEstimator, estimate, grpo, grpo_process, mean_baseline
from rollouts.credit import (
    GroupCredit,
    PartCredit,
    Steps,
    aggregate,
    check_spans,
    locate,
    step_weights,
)
from rollouts.packing import apply_kl_to_advantages, assemble
from rollouts.samples import credit_group, to_training_samples
from rollouts.types import (
    Completion,
    FinishReason,
    GroupRequest,
    Rollout,
    RolloutGroup,
    RolloutStatus,
    Sampling,
    SpanScore,
    Task,
    TrainingSample,
    Turn,
    VersionSpan,
)

END = "$"
"""Stands for the sampled end token, which writes nothing."""
CREDIT = CreditConfig(aggregate="mean")
AGGREGATES = (
    CREDIT,
    CreditConfig(aggregate="sum"),
    CreditConfig(aggregate="last"),
    CreditConfig(aggregate="discounted", gamma=0.7),
)
ESTIMATORS: tuple[AnyEstimator, ...] = (grpo, mean_baseline, grpo_process)


def turn(pieces: Sequence[str]) -> Turn:
    """Return a turn of one token a piece; `$` writes nothing."""
    texts = [piece.replace("$", "") for piece in pieces]
    return Turn(
        prompt_ids=np.array([1, 2], np.int32),
        completion=Completion(
            token_ids=np.arange(3, 3 + len(pieces), dtype=np.int32),
            logprobs=np.full(len(pieces), -0.5, np.float32),
            finish_reason=FinishReason.STOP,
            versions=(VersionSpan(version=0, start=0, end=len(pieces)),),
        ),
        text="".join(texts),
        token_ends=np.cumsum([len(t) for t in texts]).astype(np.int32),
    )


def graded(*turns: Turn, index: int = 0) -> Rollout:
    return Rollout(
        index=index, turns=turns, status=RolloutStatus.COMPLETED, reward=0.0, reward_parts={}
    )


def credited_source(credit: CreditConfig | None, combine: str = "weighted_sum") -> SourceConfig:
    """Return a source with the parts `answer` and `p`, whose steps `credit` hands out."""
    return SourceConfig(
        name="s",
        data=DataConfig(jsonl="x"),
        rewards=(
            RewardConfig(name="answer", use="exact"),
            RewardConfig(name="p", use="exact", weight=0.5, credit=credit),
        ),
        objective=ObjectiveConfig.model_validate({"combine": combine}),
    )


def group_of(random: Random, *, size: int, credit: CreditConfig = CREDIT) -> RolloutGroup:
    """Return a graded group of random rollouts with one to four steps each, over two turns."""
    dice = np.random.default_rng(random.getrandbits(32))
    rollouts = tuple(_rollout(dice, i, credit) for i in range(size))
    task = Task(task_id="s/train/0", source="s", prompt=(), answer=None, metadata={})
    request = GroupRequest(
        group_id="s/train/0#e0a0",
        task=task,
        group_size=size,
        sampling=Sampling(temperature=1.0, max_tokens=99),
        step=1,
    )
    return RolloutGroup(request=request, rollouts=rollouts, generate_s=0.0)


def _rollout(dice: np.random.Generator, index: int, credit: CreditConfig) -> Rollout:
    turns: list[Turn] = []
    spans: list[SpanScore] = []
    for number in range(dice.integers(1, 3)):
        pieces = [*("abc"[: dice.integers(0, 4)] for _ in range(dice.integers(2, 6))), "x", "$"]
        turns.append(turn(pieces))
        text = turns[-1].text
        cuts = sorted({*dice.integers(1, len(text) + 1, size=2).tolist(), len(text)})
        for start, end in zip([0, *cuts], cuts, strict=False):
            score = float(dice.integers(0, 3)) / 2
            spans.append(SpanScore(turn=number, start=start, end=end, score=score, part="p"))
    parts = {"answer": float(dice.integers(0, 2)), "p": aggregate(spans, credit)}
    return Rollout(
        index=index,
        turns=tuple(turns),
        status=RolloutStatus.COMPLETED,
        reward=parts["answer"] + 0.5 * parts["p"],
        reward_parts=parts,
        spans=tuple(spans),
    )


def rows(
    group: RolloutGroup, source: SourceConfig, estimator: AnyEstimator, kl_coef: float = 0.0
) -> tuple[TrainingSample, ...]:
    credits = credit_group(group, source, estimator)
    return to_training_samples(group, source, kl_coef, credits)


def span(start: int, end: int, score: float = 1.0, turn: int = 0, **more: object) -> SpanScore:
    return SpanScore(turn=turn, start=start, end=end, score=score, part="p", **more)  # type: ignore[arg-type]


def test_spans_fall_due_at_the_token_that_finishes_them() -> None:
    # tokens: "ab" "c" "" "de" END; a second turn "x" "yz" END
    rollout = graded(turn(["ab", "c", "", "de", END]), turn(["x", "yz", END]))
    due = {(0, 1): 0, (0, 2): 0, (0, 3): 1, (1, 4): 3, (3, 5): 4, (0, 5): 4}
    for (start, end), token in due.items():
        found = locate(replace(rollout, spans=(span(start, end),)), "p", CREDIT)
        assert found is not None and found.ends.tolist() == [token], (start, end)
    second = (span(0, 1, turn=1), span(0, 3, turn=1), span(2, 3, turn=0))
    found = locate(replace(rollout, spans=second), "p", CREDIT)
    assert found is not None and found.ends.tolist() == [1, 5, 7]


def test_spans_of_tokens_and_of_an_empty_text() -> None:
    rollout = graded(turn(["ab", "c", END]), turn([END]))
    spans = (span(0, 2, unit="tokens"), span(0, 0, turn=1))
    found = locate(replace(rollout, spans=spans), "p", CREDIT)
    assert found is not None and found.ends.tolist() == [1, 3]
    assert locate(replace(rollout, spans=spans), "other", CREDIT) is None


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (span(0, 1, turn=2), "has 2 turns"),
        (span(0, 1, turn=-1), "has 2 turns"),
        (span(-1, 1), "has 3 characters"),
        (span(0, 4), "has 3 characters"),
        (span(2, 1), "has 3 characters"),
        (span(1, 1), "is empty"),
        (span(0, 4, unit="tokens"), "has 3 tokens"),
        (span(0, 1, unit="tokens"), "in characters and in tokens"),
    ],
)
def test_spans_that_lie_nowhere_are_told(wrong: SpanScore, why: str) -> None:
    rollout = graded(turn(["ab", "c", END]), turn(["x", END]))
    assert why in str(check_spans((span(0, 1), wrong), rollout))
    assert check_spans((span(0, 1), span(0, 1, turn=1, unit="tokens")), rollout) is None


def test_a_turn_sampled_without_ends_is_told() -> None:
    rollout = graded(turn(["ab", "c", END]))
    bare = replace(rollout, turns=(replace(rollout.turns[0], token_ends=None),))
    assert locate(replace(bare, spans=(span(0, 3),)), "p", CREDIT) is not None  # to the text's end
    with pytest.raises(ValueError, match="token_ends"):
        locate(replace(bare, spans=(span(0, 1),)), "p", CREDIT)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(AGGREGATES))
def test_the_value_is_the_weighted_sum_of_the_located_scores(
    random: Random, credit: CreditConfig
) -> None:
    rollout = group_of(random, size=1).rollouts[0]
    steps = locate(rollout, "p", credit)
    assert steps is not None
    assert aggregate(rollout.spans, credit) == pytest.approx(float(steps.weights @ steps.scores))
    assert (np.diff(steps.ends) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from(AGGREGATES),
    st.sampled_from(["weighted_sum", "normalize_then_sum"]),
)
def test_first_tokens_have_the_advantage_of_the_whole_reward(
    random: Random, credit: CreditConfig, combine: str
) -> None:
    group = group_of(random, size=5, credit=credit)
    whole, tokens = [
        rows(group, credited_source(to, combine=combine), grpo) for to in (None, credit)
    ]
    for plain, credited in zip(whole, tokens, strict=True):
        first = int(np.argmax(plain.loss_mask))
        assert credited.advantages[first] == pytest.approx(plain.advantages[first], abs=1e-5)
        assert not credited.advantages[~credited.loss_mask].any()


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from((grpo, mean_baseline)))
def test_without_credit_or_without_spans_each_bit_is_that_of_the_rewards_alone(
    random: Random, estimator: Callable[[np.ndarray], np.ndarray]
) -> None:
    group = group_of(random, size=4)
    bare = replace(group, rollouts=tuple(replace(r, spans=()) for r in group.rollouts))
    advantages = estimator(np.array([r.reward for r in group.rollouts])).astype(np.float32)
    for graded_group, credit in ((group, None), (bare, None), (bare, CREDIT)):
        for i, sample in enumerate(rows(graded_group, credited_source(credit), estimator)):
            plain = np.where(sample.loss_mask, advantages[i], np.float32(0))
            assert sample.advantages.tobytes() == plain.tobytes()


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(ESTIMATORS), st.sampled_from(AGGREGATES))
def test_order_of_the_group_and_invalid_rollouts_change_nothing(
    random: Random, estimator: AnyEstimator, credit: CreditConfig
) -> None:
    group = group_of(random, size=5, credit=credit)
    source = credited_source(credit)
    known = {s.index: s.advantages for s in rows(group, source, estimator)}
    broken = replace(
        group.rollouts[0], index=99, status=RolloutStatus.INVALID, reward=1e6, spans=()
    )
    shuffled: list[Rollout] = [*group.rollouts, broken]
    random.shuffle(shuffled)
    for sample in rows(replace(group, rollouts=tuple(shuffled)), source, estimator):
        np.testing.assert_allclose(sample.advantages, known[sample.index], atol=1e-5)
        assert sample.index != 99


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(ESTIMATORS))
def test_packing_and_the_kl_in_reward_leave_credit_alone(
    random: Random, estimator: AnyEstimator
) -> None:
    group = group_of(random, size=4)
    samples = rows(group, credited_source(CREDIT), estimator, kl_coef=0.1)
    refs = [np.full(len(s.token_ids), -0.3, np.float32) for s in samples]
    together = apply_kl_to_advantages(assemble(samples, refs), estimator="k3")
    without = [replace(s, advantages=np.zeros_like(s.advantages)) for s in samples]
    kl_alone = apply_kl_to_advantages(assemble(without, refs), estimator="k3")
    alone = np.concatenate([assemble([s], None).advantages for s in samples])
    np.testing.assert_allclose(together.advantages - kl_alone.advantages, alone, atol=1e-5)
    backward = assemble(samples[::-1], None)
    pieces = np.split(backward.advantages, backward.cu_seqlens[1:-1])
    for piece, sample in zip(pieces, samples[::-1], strict=True):
        assert piece.tolist() == sample.advantages.tolist()


def expected_gradient(
    probability: float, scores: Sequence[float], credit: CreditConfig | None, size: int
) -> np.ndarray:
    """Return the expectation, over all groups of two-token rollouts whose step t scores
    `scores[a_t]`, of each token's summed score-function gradient d log p(a_t) A_t."""
    total = np.zeros(2)
    for actions in product(product((0, 1), repeat=2), repeat=size):
        chance = np.prod([probability if a else 1 - probability for r in actions for a in r])
        values = np.array([sum(scores[a] for a in rollout) for rollout in actions])
        given_steps = tuple(
            None
            if credit is None
            else Steps(
                ends=np.array([0, 1], np.int32),
                scores=np.array([scores[a] for a in rollout]),
                weights=step_weights(2, credit),
            )
            for rollout in actions
        )
        part = PartCredit(name="p", weight=1.0, values=values, steps=given_steps)
        group = GroupCredit(rewards=values, parts=(part,), num_tokens=(2,) * size)
        found = estimate(group, mean_baseline, "weighted_sum")
        for i, rollout in enumerate(actions):
            own = found.tokens[i]
            advantages = np.full(2, found.whole[i]) if own is None else own
            log_gradients = [1 / probability if a else -1 / (1 - probability) for a in rollout]
            total += chance * np.array(log_gradients) * advantages
    return total / size


@pytest.mark.parametrize("probability", [0.2, 0.5, 0.9])
def test_credit_keeps_the_expected_gradient(probability: float) -> None:
    """All groups of three enumerated: the gradient of E[r] at each token, up to the factor that a
    baseline with oneself in it has: 1 - 1/G, and + t/(G T) of the steps' mean."""
    scores = [0.3, 1.0]
    true = scores[1] - scores[0]  # d E[score of a step] / d probability
    whole = expected_gradient(probability, scores, None, 3)
    np.testing.assert_allclose(whole, true * (1 - 1 / 3), atol=1e-5)
    credited = expected_gradient(probability, scores, CreditConfig(aggregate="sum"), 3)
    factors = np.array([1 - 1 / 3, 1 - 1 / 3 + 1 / 6])
    np.testing.assert_allclose(credited, true * factors, atol=1e-5)


def test_credit_takes_noise_out() -> None:
    """Twenty independent steps: the spread of advantages at late tokens falls."""
    random = np.random.default_rng(0)
    scores = (random.random((256, 20)) < 0.5).astype(float)
    values = scores.sum(1)
    part = PartCredit(
        name="p",
        weight=1.0,
        values=values,
        steps=tuple(
            Steps(ends=np.arange(20, dtype=np.int32), scores=row, weights=np.ones(20))
            for row in scores
        ),
    )
    group = GroupCredit(rewards=values, parts=(part,), num_tokens=(20,) * 256)
    tokens = np.array(estimate(group, mean_baseline, "weighted_sum").tokens)
    spread = tokens.std(0)
    np.testing.assert_allclose(spread[0], values.std(), rtol=1e-5)
    assert spread[19] < 0.35 * spread[0]


def test_a_users_estimator_of_tokens() -> None:
    def last_token(group: GroupCredit) -> list[np.ndarray]:
        return [np.eye(n)[-1] * r for n, r in zip(group.num_tokens, group.rewards, strict=True)]

    def short(group: GroupCredit) -> list[np.ndarray]:
        return [np.zeros(1) for _ in group.num_tokens]

    group = GroupCredit(rewards=np.array([1.0, 2.0]), parts=(), num_tokens=(2, 3))
    found = estimate(group, last_token, "weighted_sum")
    assert [t.tolist() for t in found.tokens if t is not None] == [[0, 1], [0, 0, 2]]
    assert found.has_signal
    with pytest.raises(ValueError, match=r"of \[2, 3\] tokens"):
        estimate(group, short, "weighted_sum")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_group_of_one_and_equal_steps_have_no_advantage(estimator: AnyEstimator) -> None:
    random = Random(3)
    for size, scores in ((1, None), (4, 0.5)):
        group = group_of(random, size=size)
        if scores is not None:
            rollouts = tuple(
                replace(
                    r,
                    reward=1.0,
                    reward_parts={"answer": 0.75, "p": 0.5},
                    spans=tuple(replace(s, score=scores) for s in r.spans[:1]),
                )
                for r in group.rollouts
            )
            group = replace(group, rollouts=rollouts)
        credits = credit_group(group, credited_source(CREDIT), estimator)
        assert not credits.advantages.has_signal
        assert not any(s.advantages.any() for s in rows(group, credited_source(CREDIT), estimator))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_rewards_by_different_steps_have_signal(estimator: AnyEstimator) -> None:
    early = graded(turn(["a", "b", "$"]))
    rollouts = tuple(
        replace(
            early,
            index=i,
            reward=0.25,
            reward_parts={"answer": 0.0, "p": 0.5},
            spans=(span(0, 1, first), span(1, 2, 1 - first)),
        )
        for i, first in enumerate((1.0, 0.0))
    )
    group = replace(group_of(Random(0), size=2), rollouts=rollouts)
    assert credit_group(group, credited_source(CREDIT), estimator).advantages.has_signal
    assert not credit_group(group, credited_source(None), estimator).advantages.has_signal
