"""Credit of steps by the formulas of docs/credit.md, token by token, on random groups of parts with
weights of either sign."""

from collections.abc import Callable

import numpy as np
import pytest

from configs.objective import CreditConfig
from rollouts.advantages import STD_EPS, estimate, grpo, grpo_process, mean_baseline, rloo
from rollouts.credit import GroupCredit, PartCredit, Steps, step_weights

AGGREGATES = ("sum", "mean", "last", "discounted", None)
PLAIN = {"grpo": grpo, "mean_baseline": mean_baseline, "rloo": rloo}


def draw(dice: np.random.Generator) -> GroupCredit:
    """Some parts have steps for some rollouts; rewards are the sum by weight, sometimes equal."""
    size = int(dice.integers(2, 5))
    lengths = dice.integers(3, 8, size)
    parts: list[PartCredit] = []
    for p in range(int(dice.integers(1, 4))):
        credit = CreditConfig(aggregate=AGGREGATES[dice.integers(5)], gamma=0.7)
        stepped = dice.random() < 0.6
        given: list[Steps | None] = []
        for n in lengths:
            count = int(dice.integers(1, 4))
            steps = Steps(
                ends=np.sort(dice.integers(0, n, count)).astype(np.int32),
                scores=dice.choice([0.0, 0.25, 1.0], count),
                weights=step_weights(count, credit),
            )
            given.append(steps if stepped and dice.random() < 0.8 else None)
        flat = dice.random() < 0.2
        values = np.full(size, 0.5) if flat else dice.choice([0.0, 0.5, 1.0, 3.0], size)
        weight = float(dice.choice([-0.5, 0.5, 1.0, 2.0]))
        parts.append(PartCredit(name=f"p{p}", weight=weight, values=values, steps=tuple(given)))
    rewards = sum((p.weight * p.values for p in parts), np.zeros(size))
    return GroupCredit(rewards=rewards, parts=tuple(parts), num_tokens=tuple(map(int, lengths)))


def flat(values: np.ndarray) -> bool:
    return len(values) < 2 or float(np.ptp(values)) < 1e-9


def normal(values: np.ndarray) -> np.ndarray:
    return 0 * values if flat(values) else (values - values.mean()) / (values.std() + STD_EPS)


def contribution(part: PartCredit, i: int, j: int) -> float:
    """u_ij (s_ij - m)."""
    known = [s for s in part.steps if s is not None]
    total = sum(
        float(w) * float(s) for k in known for w, s in zip(k.weights, k.scores, strict=True)
    )
    m = total / sum(float(k.weights.sum()) for k in known)
    own = part.steps[i]
    assert own is not None
    return float(own.weights[j] * (own.scores[j] - m))


def factor(
    f: Callable[[np.ndarray], np.ndarray],
    rewards: np.ndarray,
    parts: list[tuple[float, PartCredit]],
) -> float:
    """k: by how much f scales rewards, or where these are equal, what single steps add."""
    if flat(rewards):
        rewards = np.array(
            [
                weight * contribution(part, i, j)
                for weight, part in parts
                for i, own in enumerate(part.steps)
                if own is not None
                for j in range(len(own.ends))
            ]
        )
    return 0.0 if flat(rewards) else float(np.std(f(rewards)) / np.std(rewards))


def naive(
    group: GroupCredit, f: Callable[[np.ndarray], np.ndarray], combine: str
) -> list[list[float]]:
    """A_it of every token."""
    size = len(group.rewards)
    if combine == "normalize_then_sum":
        sums = sum((p.weight * f(p.values) for p in group.parts), np.zeros(size))
        whole = 0 * sums if flat(sums) else sums - sums.mean()
        taken = [(p.weight * factor(f, p.values, [(1.0, p)]), p) for p in group.parts]
    else:
        whole = f(group.rewards)
        k = factor(f, group.rewards, [(p.weight, p) for p in group.parts])
        taken = [(k * p.weight, p) for p in group.parts]
    return [
        [
            float(whole[i])
            - sum(
                scale * contribution(part, i, j)
                for scale, part in taken
                if (own := part.steps[i]) is not None
                for j, end in enumerate(own.ends)
                if end < t
            )
            for t in range(tokens)
        ]
        for i, tokens in enumerate(group.num_tokens)
    ]


@pytest.mark.parametrize("combine", ["weighted_sum", "normalize_then_sum"])
@pytest.mark.parametrize("name", PLAIN)
def test_reward_to_go_less_a_baseline(name: str, combine: str) -> None:
    for seed in range(100):
        group = draw(np.random.default_rng(seed))
        found = estimate(group, PLAIN[name], combine)
        wanted = naive(group, PLAIN[name], combine)
        for i, expected in enumerate(wanted):
            own = found.tokens[i]
            seen = np.full(len(expected), found.whole[i]) if own is None else own
            np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-5, err_msg=f"{seed}")


def test_process_supervision() -> None:
    """W grpo(outcome) + sum of the parts' normalised steps that are due at a token or later."""
    for seed in range(200):
        group = draw(np.random.default_rng(seed))
        outcome = [p for p in group.parts if not any(p.steps)]
        size = sum(abs(p.weight) for p in outcome)
        mixed = sum((p.weight * p.values / size for p in outcome), np.zeros(len(group.rewards)))
        whole = size * normal(mixed)
        found = estimate(group, grpo_process, "weighted_sum").tokens
        for i, tokens in enumerate(group.num_tokens):
            expected = np.full(tokens, whole[i])
            for part in (p for p in group.parts if any(p.steps)):
                due: list[tuple[int, int, float]] = []
                for k, own in enumerate(part.steps):
                    if own is None:
                        due.append((k, group.num_tokens[k] - 1, float(part.values[k])))
                    else:
                        due += [
                            (k, int(e), float(s)) for e, s in zip(own.ends, own.scores, strict=True)
                        ]
                shaped = normal(np.array([score for *_, score in due]))
                for (k, end, _), score in zip(due, shaped, strict=True):
                    if k == i:
                        expected[: end + 1] += part.weight * score
            own = found[i]
            assert own is not None
            np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5, err_msg=f"{seed}")
