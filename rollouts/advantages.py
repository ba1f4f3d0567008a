"""Advantages of a group from its rewards.

An estimator is a function of rewards [G] -> [G]. One whose first parameter is called `group` is an
estimator of tokens instead: it gets a `GroupCredit` and returns [C] for each rollout.

Under an estimator f of rewards, a token t of rollout i gets

    A_it = f(r)_i - k * sum over parts p of w_p * sum over steps j done before t of u_ij (s_ij - m)

where s_ij is the score of step j, u_ij what it counts for in the part's value, m the mean of the
part's scores over the group, weighted by u, and k = std(f(r)) / std(r), the factor by which f
scales rewards. So a rollout's first tokens have the advantage of its whole reward, as without
steps, and those after a step no longer answer for it: the reward to go, less a baseline that knows
the past alone. What is optimised is still the expected reward; credit takes noise out of it. Where
rewards are equal and only their steps differ, k is what f makes of the steps' own contributions.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypeIs

from configs.errors import ConfigError, Problem
from configs.plug import PlugConfig
from configs.plugs import bind, resolve
from configs.schema import SourceConfig
from rollouts.credit import F64, GroupCredit, PartCredit, Steps
from rollouts.gae import token_rewards
from rollouts.types import F32, I32

Estimator: TypeAlias = Callable[[F64], NDArray[Any]]
TokenEstimator: TypeAlias = Callable[[GroupCredit], Sequence[NDArray[Any]]]
AnyEstimator: TypeAlias = Estimator | TokenEstimator

STD_EPS = 1e-6
"""Added to the standard deviation in `grpo`."""
SAME = 1e-9
"""Rewards whose spread is at most this, relative to the largest (or to 1), count as equal."""


def grpo(rewards: F64) -> F64:
    """Return (r - mean) / (std + STD_EPS), std over all G, not G - 1 (arXiv:2402.03300).

    A group of one, or of equal rewards, gives exactly 0.
    """
    if all_same(rewards):
        return np.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std() + STD_EPS)


def mean_baseline(rewards: F64) -> F64:
    """Return r - mean: no division by the spread (Dr. GRPO, arXiv:2503.20783).

    A group of one, or of equal rewards, gives exactly 0.
    """
    if all_same(rewards):
        return np.zeros_like(rewards)
    return rewards - rewards.mean()


def rloo(rewards: F64) -> F64:
    """Return r minus the mean of the others' rewards (RLOO, arXiv:2402.14740).

    That is G / (G - 1) times `mean_baseline`. A group of one, or of equal rewards, gives exactly 0.
    """
    if all_same(rewards):
        return np.zeros_like(rewards)
    return (rewards - rewards.mean()) * (len(rewards) / (len(rewards) - 1))


def as_is(rewards: F64) -> F64:
    """Return the rewards: REINFORCE++ (`reinforce_pp`, arXiv:2501.03262), whose mean and deviation
    are the step's (`rollouts.scopes`), and ReMax (`remax`, arXiv:2310.10505), from whose rewards
    that of the greedy rollout was taken before (`rollouts.samples`)."""
    return rewards


def gae(group: GroupCredit, *, gamma: float = 1.0, lam: float = 0.95) -> list[F64]:
    """Return the rewards of tokens, which a critic's values make advantages of (`rollouts.gae`)."""
    return token_rewards(group)


def none(rewards: F64) -> F64:
    """Return 0 for each: rewards measure and do not train, as where a teacher alone teaches."""
    return np.zeros_like(rewards)


def grpo_process(group: GroupCredit) -> list[F64]:
    """Return GRPO with process supervision (arXiv:2402.03300, section 4.1.3) besides the outcome.

    The scores of all steps of the group are normalised together, r' = (r - mean) / (std + STD_EPS),
    and a token gets the sum of those that are due at it or later. A rollout without steps, of a
    part that gave some to others, counts as one step. To that comes `grpo` of the parts without
    steps; both by the parts' weights. Longer rollouts sum more steps: see docs/credit.md.
    """
    whole = [p for p in group.parts if not any(p.steps)]
    scale = sum(abs(p.weight) for p in whole)
    advantages = [np.zeros(n) for n in group.num_tokens]
    if len(advantages) < 2:  # nobody to compare with
        return advantages
    if scale:
        outcome = scale * grpo(sum((p.weight / scale * p.values for p in whole), np.zeros(1)))
        advantages = [a + o for a, o in zip(advantages, outcome, strict=True)]
    for part in (p for p in group.parts if any(p.steps)):
        steps = [s or _one_step(part, i, group) for i, s in enumerate(part.steps)]
        shaped = part.weight * grpo(np.concatenate([s.scores for s in steps]))
        pieces = np.split(shaped, np.cumsum([len(s.scores) for s in steps])[:-1])
        for i, (step, scores) in enumerate(zip(steps, pieces, strict=True)):
            due = np.zeros(group.num_tokens[i])
            np.add.at(due, step.ends, scores)
            advantages[i] = advantages[i] + np.cumsum(due[::-1])[::-1]
    return advantages


def _one_step(part: PartCredit, i: int, group: GroupCredit) -> Steps:
    last = np.array([group.num_tokens[i] - 1], np.int32)
    return Steps(ends=last, scores=part.values[i : i + 1], weights=np.ones(1))


def all_same(rewards: F64) -> bool:
    """Whether a group's rewards, up to rounding, tell nothing apart; so for a group of one."""
    return len(rewards) < 2 or bool(np.ptp(rewards) <= SAME * max(1.0, np.abs(rewards).max()))


BUILT_IN: Mapping[str, Callable[..., Any]] = {
    "grpo": grpo,
    "mean_baseline": mean_baseline,
    "rloo": rloo,
    "grpo_process": grpo_process,
    "reinforce_pp": as_is,
    "reinforce_pp_baseline": mean_baseline,
    "remax": as_is,
    "gae": gae,
    "none": none,
}


def resolve_advantage(plug: PlugConfig, *, where: str = "") -> AnyEstimator:
    """Return the estimator with its arguments bound; ConfigError if it is not one."""
    found = resolve(plug.use, BUILT_IN, where=where)
    parameters = ("group",) if estimates_tokens(found) else ("rewards",)
    return bind(found, plug.args, parameters=parameters, use=plug.use, where=where)


def estimates_tokens(estimator: object) -> TypeIs[TokenEstimator]:
    """Whether an estimator, bound or not, takes the whole group: its first parameter is `group`."""
    if not callable(estimator):
        return False
    try:
        names = list(inspect.signature(estimator).parameters)
    except (TypeError, ValueError):  # built-ins written in C tell no signature
        return False
    return names[:1] == ["group"]


def validate_advantages(sources: Sequence[SourceConfig]) -> list[Problem]:
    """Return every problem with the sources' advantage estimators."""
    problems: list[Problem] = []
    for source in sources:
        where = f"sources.{source.name}.advantage"
        try:
            estimator = resolve_advantage(source.advantage, where=where)
        except ConfigError as error:
            problems.extend(error.problems)
            continue
        if estimates_tokens(estimator) and source.objective.combine != "weighted_sum":
            what = f"`{source.advantage.use}` combines the parts itself, by their weights, so "
            fix = "Use `grpo`, or an estimator of rewards; or remove `objective.combine`."
            problems.append(
                Problem(where=where, what=f"{what}`{source.objective.combine}` is void", fix=fix)
            )
    return problems


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAdvantages:
    """What an estimator makes of the valid rollouts of a group, in their order."""

    whole: F32
    """[G], of each rollout as a whole: what its first token has."""
    tokens: tuple[F32 | None, ...]
    """[G] of [C], over the sampled tokens; None where all have that of the whole."""
    parts: Mapping[str, F64]
    """Part -> [G], what it adds to `whole`; empty where the objective does not tell."""

    @property
    def has_signal(self) -> bool:
        """Whether any token has an advantage."""
        return bool(self.whole.any()) or any(t is not None and t.any() for t in self.tokens)


def estimate(group: GroupCredit, estimator: AnyEstimator, combine: str) -> GroupAdvantages:
    """Return the advantages of a group's valid rollouts.

    Args:
        combine: `objective.combine` of the source.

    Raises:
        ValueError: the estimator returned another shape, or a value that is not finite.
    """
    if estimates_tokens(estimator):
        return _from_tokens(group, estimator)
    estimator = cast(Estimator, estimator)
    if combine == "normalize_then_sum":
        return _decoupled(group, estimator)
    whole = _estimate(group.rewards, estimator)
    slope = _slope(group.rewards, whole)
    parts = {p.name: slope * p.weight * _centred(p.values) for p in group.parts}
    given = [_contributions(p, p.weight) for p in group.parts]
    passed = _passed(group, given, slope or _slope_of_steps(group, given, estimator))
    return GroupAdvantages(
        whole=whole.astype(np.float32),
        tokens=_tokens(whole, passed),
        parts={} if combine == "formula" else parts,
    )


def _decoupled(group: GroupCredit, estimator: Estimator) -> GroupAdvantages:
    """GDPO: each part is estimated by itself, then they are summed by weight (arXiv:2601.05242). A
    part that tells nothing apart adds 0; `rollouts.scopes` does the rest."""
    parts: dict[str, F64] = {}
    passed: list[F64] | None = None
    for part in group.parts:
        own = _estimate(part.values, estimator).astype(np.float64)
        parts[part.name] = part.weight * own
        given = [_contributions(part, 1.0)]
        slope = _slope(part.values, own) or _slope_of_steps(group, given, estimator)
        done = _passed(group, given, part.weight * slope)
        if done is not None:
            passed = done if passed is None else _sums(passed, done)
    whole = _centred(sum(parts.values(), np.zeros(len(group.rewards))))
    return GroupAdvantages(
        whole=whole.astype(np.float32), tokens=_tokens(whole, passed), parts=parts
    )


def _from_tokens(group: GroupCredit, estimator: TokenEstimator) -> GroupAdvantages:
    if len(group.rewards) == 0:
        return GroupAdvantages(whole=np.zeros(0, np.float32), tokens=(), parts={})
    tokens = tuple(np.asarray(t).astype(np.float32) for t in estimator(group))
    if [t.shape for t in tokens] != [(n,) for n in group.num_tokens] or not all(
        np.isfinite(t).all() for t in tokens
    ):
        raise ValueError(
            "the advantage estimator must return one array of finite numbers a rollout, of "
            f"{list(group.num_tokens)} tokens; returned shapes {[t.shape for t in tokens]}"
        )
    return GroupAdvantages(whole=np.array([t[0] for t in tokens]), tokens=tokens, parts={})


def _estimate(rewards: F64, estimator: Estimator) -> NDArray[Any]:
    """Return the estimator's advantages, checked; of no rewards, none."""
    if len(rewards) == 0:
        return np.zeros(0)
    found = np.asarray(estimator(rewards.copy()))
    if found.shape != rewards.shape or not np.isfinite(found.astype(np.float32)).all():
        raise ValueError(
            f"the advantage estimator must return {len(rewards)} finite numbers for the rewards "
            f"{rewards.tolist()}, returned {found.tolist()}"
        )
    return found


def _slope(rewards: F64, advantages: NDArray[Any]) -> float:
    """Return by what factor an estimator scaled rewards; 0 where they tell nothing apart."""
    return 0.0 if all_same(rewards) else float(advantages.std() / rewards.std())


def _centred(values: F64) -> F64:
    return np.zeros_like(values) if all_same(values) else values - values.mean()


Contributions: TypeAlias = Sequence[tuple[I32, F64] | None]
"""[G], for each rollout: the tokens at which its steps are due, and what each adds, centred."""


def _contributions(part: PartCredit, factor: float) -> Contributions:
    given = [s for s in part.steps if s is not None]
    weight = sum(float(s.weights.sum()) for s in given)
    mean = sum(float(s.weights @ s.scores) for s in given) / weight if given else 0.0
    return [
        None if s is None else (s.ends, factor * s.weights * (s.scores - mean)) for s in part.steps
    ]


def _slope_of_steps(
    group: GroupCredit, given: Sequence[Contributions], estimator: Estimator
) -> float:
    """Return by what factor the estimator scales what single steps add. A group of one has nobody
    to compare with: 0."""
    found = [own[1] for part in given for own in part if own is not None]
    if len(group.rewards) < 2 or not found:
        return 0.0
    pooled = np.concatenate(found)
    return _slope(pooled, _estimate(pooled, estimator))


def _passed(group: GroupCredit, given: Sequence[Contributions], factor: float) -> list[F64] | None:
    """Return, for each token of each rollout, the credit of the steps that were done before it;
    None where no part gave steps."""
    if not any(own is not None for part in given for own in part):
        return None
    passed: list[F64] = []
    for i, tokens in enumerate(group.num_tokens):
        due = np.zeros(tokens + 1)
        for part in given:
            if (own := part[i]) is not None:
                np.add.at(due, own[0] + 1, factor * own[1])
        passed.append(np.cumsum(due)[:tokens])
    return passed


def _sums(a: Sequence[F64], b: Sequence[F64]) -> list[F64]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _tokens(whole: NDArray[Any], passed: Sequence[F64] | None) -> tuple[F32 | None, ...]:
    """Take the credit of what is done from each rollout's advantage."""
    if passed is None:
        return (None,) * len(whole)
    return tuple(
        (float(advantage) - done).astype(np.float32)
        for advantage, done in zip(whole, passed, strict=True)
    )
