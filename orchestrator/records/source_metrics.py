"""One source's part of a step's metrics: what each one is a mean over, and over which samples.

`all` are the rollouts of every group that was graded for the step; `trained` are those with a
reward in the groups that were trained on. A metric names its denominator (`Over`), is computed
once from its members, and is left out where there are none: nothing averages averages.
`METRICS` is the list; docs/operate.md says what each one means, and a test compares the two.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

import numpy as np

from configs.evaluation import doublings
from mixing.slates.group_ids import parse_group_id
from rollouts.advantages import all_same
from rollouts.filters import is_zero_variance
from rollouts.pass_rates import pass_at_k
from rollouts.staleness import staleness
from rollouts.types import (
    GroupSummary,
    RolloutStats,
    RolloutStatus,
    SampleHandle,
    TextTraits,
)

T = TypeVar("T")
Reduce = Callable[[Sequence[float]], float]
ALL, TRAINED = "all", "trained"


class Pool:
    """Some graded groups of one source, and the members that a metric may be a mean over.

    Args:
        groups: at least one.
        version: the policy that trains on them.
        gated: reward parts that stand behind a gate.
        rewarded: whether anything grades; without, nothing is said of rewards and passing.
    """

    def __init__(
        self,
        kind: str,
        groups: Sequence[GroupSummary],
        *,
        pass_threshold: float,
        version: int,
        gated: Collection[str] = (),
        rewarded: bool = True,
    ):
        self.kind, self.groups, self.version, self.gated = kind, groups, version, gated
        self._threshold = pass_threshold
        self._rewarded = rewarded

    @cached_property
    def rollouts(self) -> Sequence[RolloutStats]:
        """All rollouts; of trained groups, those that were trained on."""
        found = [r for g in self.groups for r in g.rollouts]
        return found if self.kind == ALL else [r for r in found if r.reward is not None]

    @cached_property
    def valid(self) -> Sequence[RolloutStats]:
        """Rollouts with a reward."""
        return [r for r in self.rollouts if r.reward is not None]

    @cached_property
    def graded(self) -> Sequence[RolloutStats]:
        """Rollouts with a reward that says something."""
        return self.valid if self._rewarded else ()

    @cached_property
    def right(self) -> Sequence[RolloutStats]:
        """Rollouts that passed."""
        return [r for r in self.graded if reward_of(r) >= self._threshold]

    @cached_property
    def wrong(self) -> Sequence[RolloutStats]:
        """Rollouts with a reward that did not pass."""
        return [r for r in self.graded if reward_of(r) < self._threshold]

    @cached_property
    def texts(self) -> Sequence[TextTraits]:
        """Traits of the valid rollouts."""
        return [r.traits for r in self.valid if r.traits is not None]

    @cached_property
    def asked(self) -> Sequence[RolloutStats]:
        """Rollouts that the gold grader was asked about."""
        return [r for r in self.valid if r.gold is not None]

    @cached_property
    def gold(self) -> Sequence[RolloutStats]:
        """Rollouts that it gave a score."""
        return [r for r in self.asked if r.gold is not None and r.gold.score is not None]

    @cached_property
    def contrasted(self) -> Sequence[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """Rewards and lengths of each group in which both differ."""
        pairs = (
            (
                np.array(g.rewards),
                np.array([_tokens(r) for r in g.rollouts if r.reward is not None]),
            )
            for g in self.judged
        )
        return [(r, n) for r, n in pairs if not all_same(r) and not all_same(n)]

    @cached_property
    def judged(self) -> Sequence[GroupSummary]:
        """Groups with a graded rollout."""
        return self.answered if self._rewarded else ()

    @cached_property
    def answered(self) -> Sequence[GroupSummary]:
        """Groups with a valid rollout."""
        return [g for g in self.groups if g.rewards]

    @cached_property
    def greedy(self) -> Sequence[RolloutStats]:
        """Greedy rollouts, which are the others' baselines and trained on nowhere."""
        return [g.greedy for g in self.groups if g.greedy is not None]

    @cached_property
    def baselines(self) -> Sequence[RolloutStats]:
        """Greedy rollouts with a reward."""
        return [r for r in self.greedy if r.reward is not None]

    @cached_property
    def samples(self) -> Sequence[SampleHandle]:
        """What was trained on."""
        return [s for g in self.groups for s in g.samples]

    def passed(self, group: GroupSummary) -> int:
        """Return how many rollouts of the group passed."""
        return sum(reward >= self._threshold for reward in group.rewards)


def reward_of(rollout: RolloutStats) -> float:
    """Return the reward of a valid rollout."""
    assert rollout.reward is not None
    return rollout.reward


@dataclass(frozen=True, slots=True)
class Over(Generic[T]):
    """A denominator."""

    label: str
    members: Callable[[Pool], Sequence[T]]


ROLLOUTS: Over[RolloutStats] = Over("rollouts", lambda pool: pool.rollouts)
VALID: Over[RolloutStats] = Over("valid rollouts", lambda pool: pool.valid)
GRADED: Over[RolloutStats] = Over("valid rollouts", lambda pool: pool.graded)
RIGHT: Over[RolloutStats] = Over("right rollouts", lambda pool: pool.right)
WRONG: Over[RolloutStats] = Over("wrong rollouts", lambda pool: pool.wrong)
GROUPS: Over[GroupSummary] = Over("groups", lambda pool: pool.groups)
SAMPLES: Over[SampleHandle] = Over("samples", lambda pool: pool.samples)
TEXTS: Over[TextTraits] = Over("valid rollouts", lambda pool: pool.texts)
ASKED: Over[RolloutStats] = Over("rollouts that gold was asked about", lambda pool: pool.asked)
GREEDY: Over[RolloutStats] = Over("greedy rollouts", lambda pool: pool.greedy)
BASELINES: Over[RolloutStats] = Over("valid greedy rollouts", lambda pool: pool.baselines)
GOLD: Over[RolloutStats] = Over("rollouts with a gold score", lambda pool: pool.gold)
CONTRASTED: Over[Any] = Over(
    "groups in which reward and length differ", lambda pool: pool.contrasted
)
JUDGED: Over[GroupSummary] = Over("judged groups", lambda pool: pool.judged)


@dataclass(frozen=True, slots=True)
class Metric(Generic[T]):
    """One number of a pool: `reduce` over what `of` says of each member."""

    name: str
    over: Over[T]
    of: Callable[[Pool, T], float]
    reduce: Reduce = np.mean
    kinds: tuple[str, ...] = (ALL, TRAINED)

    @property
    def denominator(self) -> str:
        """What it is divided by, in words."""
        return "a count" if self.reduce is sum else self.over.label


def _quantile(q: float) -> Reduce:
    return partial(np.quantile, q=q)


def _reward(_: Pool, rollout: RolloutStats) -> float:
    return reward_of(rollout)


def _tokens(rollout: RolloutStats) -> float:
    return rollout.num_completion_tokens


def _gold(_: Pool, rollout: RolloutStats) -> float:
    assert rollout.gold is not None and rollout.gold.score is not None
    return rollout.gold.score


def _gold_failed(_: Pool, rollout: RolloutStats) -> float:
    return rollout.gold is None or rollout.gold.score is None


def _correlation(_: Pool, group: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]) -> float:
    return float(np.corrcoef(*group)[0, 1])


def _length(_: Pool, rollout: RolloutStats) -> float:
    return rollout.num_completion_tokens


def _has(status: RolloutStatus) -> Callable[[Pool, RolloutStats], float]:
    return lambda _, rollout: rollout.status is status


def _staleness(pool: Pool, group: GroupSummary) -> float:
    return staleness(group, pool.version)


def _epoch(_: Pool, group: GroupSummary) -> float:
    return parse_group_id(group.group_id)[1]


def _no_contrast(_: Pool, group: GroupSummary) -> float:
    return len(group.rewards) > 1 and is_zero_variance(group)


METRICS: tuple[Metric[Any], ...] = (
    Metric("groups", GROUPS, lambda _, group: 1, sum, kinds=(ALL,)),
    Metric("rollouts", ROLLOUTS, lambda _, rollout: 1, sum, kinds=(ALL,)),
    Metric("valid", VALID, lambda _, rollout: 1, sum, kinds=(ALL,)),
    Metric("tokens", ROLLOUTS, _length, sum, kinds=(ALL,)),
    Metric("reward/mean", GRADED, _reward),
    Metric("reward/std", GRADED, _reward, np.std),
    Metric("reward/p10", GRADED, _reward, _quantile(0.1)),
    Metric("reward/p90", GRADED, _reward, _quantile(0.9)),
    Metric("advantage/std", SAMPLES, lambda _, s: s.advantage, np.std, kinds=(TRAINED,)),
    Metric("solved_all", JUDGED, lambda pool, g: pool.passed(g) == len(g.rewards)),
    Metric("solved_none", JUDGED, lambda pool, g: pool.passed(g) == 0),
    Metric("zero_variance", JUDGED, _no_contrast),
    Metric("singleton", JUDGED, lambda _, group: len(group.rewards) == 1),
    Metric("invalid", ROLLOUTS, _has(RolloutStatus.INVALID), kinds=(ALL,)),
    Metric("truncated", ROLLOUTS, _has(RolloutStatus.TRUNCATED)),
    Metric("length/mean", ROLLOUTS, _length),
    Metric("length/p95", ROLLOUTS, _length, _quantile(0.95)),
    Metric("length/right/mean", RIGHT, _length),
    Metric("length/right/p95", RIGHT, _length, _quantile(0.95)),
    Metric("length/wrong/mean", WRONG, _length),
    Metric("length/wrong/p95", WRONG, _length, _quantile(0.95)),
    Metric("length/reward_correlation", CONTRASTED, _correlation, kinds=(ALL,)),
    Metric("text/repeated", TEXTS, lambda _, text: text.repeated, kinds=(ALL,)),
    Metric("text/looping", TEXTS, lambda _, text: text.looping, kinds=(ALL,)),
    Metric("text/well_formed", TEXTS, lambda _, text: text.well_formed, kinds=(ALL,)),
    Metric("gold/mean", GOLD, _gold, kinds=(ALL,)),
    Metric("gold/reward", GOLD, _reward, kinds=(ALL,)),
    Metric("gold/failed", ASKED, _gold_failed, kinds=(ALL,)),
    Metric("greedy/reward", BASELINES, _reward, kinds=(ALL,)),
    Metric("greedy/tokens", GREEDY, _length, sum, kinds=(ALL,)),
    Metric("tampering", VALID, lambda _, rollout: rollout.tampering, sum, kinds=(ALL,)),
    Metric("canaries_passed", VALID, lambda _, rollout: rollout.canaries_passed, sum, kinds=(ALL,)),
    Metric("generate_s", GROUPS, lambda _, group: group.generate_s, kinds=(ALL,)),
    Metric("grade_s", GROUPS, lambda _, group: group.grade_s, kinds=(ALL,)),
    Metric("staleness/mean", GROUPS, _staleness, kinds=(TRAINED,)),
    Metric("staleness/max", GROUPS, _staleness, max, kinds=(TRAINED,)),
    Metric("epoch", GROUPS, _epoch, max, kinds=(TRAINED,)),
)
"""What is reported of a pool, besides pass@k and the reward's parts."""


def pool_metrics(pool: Pool) -> Iterator[tuple[str, float]]:
    """Yield the pool's metrics by name, without those whose denominator is empty."""
    for metric in METRICS:
        members = metric.over.members(pool)
        if pool.kind in metric.kinds and members:
            value = metric.reduce([metric.of(pool, m) for m in members])
            yield metric.name, value if isinstance(value, int) else float(value)
    yield from _pass_at(pool)
    yield from _reward_parts(pool)
    yield from _teacher(pool)
    if pool.kind == ALL:
        yield from _answers(pool)


def _pass_at(pool: Pool) -> Iterator[tuple[str, float]]:
    """Yield pass@k over the groups with k or more valid rollouts."""
    for k in doublings(max(len(g.rollouts) for g in pool.groups)):
        enough = [g for g in pool.judged if len(g.rewards) >= k]
        if enough:
            chances = [pass_at_k(len(g.rewards), pool.passed(g), k) for g in enough]
            yield f"pass@{k}", float(np.mean(chances))


def _teacher(pool: Pool) -> Iterator[tuple[str, float]]:
    """Yield the reverse KL to the teacher per token, in nats (rollouts.distill)."""
    taught = [r for r in pool.rollouts if r.teacher_gap is not None]
    tokens = sum(r.num_completion_tokens for r in taught)
    if tokens:
        yield "teacher/kl", sum(r.teacher_gap or 0.0 for r in taught) / tokens


def _reward_parts(pool: Pool) -> Iterator[tuple[str, float]]:
    """Yield the metrics of every part."""
    for part in dict.fromkeys(p for r in pool.valid for p in r.reward_parts):
        for suffix, value in _of_part(pool, part):
            yield f"reward_part/{part}{suffix}", value


def _of_part(pool: Pool, part: str) -> Iterator[tuple[str, float]]:
    """Yield what one part was, before and after gates and estimator, by suffix (`PART_METRICS`)."""
    have = [r for r in pool.valid if part in r.reward_parts]
    values = [r.reward_parts[part] for r in have]
    yield "", float(np.mean(values))
    yield "/std", float(np.std(values))
    groups = [
        [r.reward_parts.get(part) for r in g.rollouts if r.reward is not None] for g in pool.judged
    ]
    compared = [np.array(g, np.float64) for g in groups if len(g) > 1 and None not in g]
    if compared:
        yield "/same", float(np.mean([all_same(g) for g in compared]))
    if part in pool.gated:
        yield "/open", float(np.mean([part not in r.closed_parts for r in have]))
    added = [r.part_advantages[part] for r in have if part in r.part_advantages]
    if added:
        yield "/advantage_rms", float(np.sqrt(np.mean(np.square(added))))


PART_METRICS = {
    "": "valid rollouts that have it",
    "/std": "valid rollouts that have it",
    "/same": "judged groups of two or more",
    "/open": "valid rollouts that have it",
    "/advantage_rms": "valid rollouts that have it",
}
"""Suffix of `reward_part/<part>` -> denominator."""


def _answers(pool: Pool) -> Iterator[tuple[str, float]]:
    """Yield how alike the answers of different tasks are, and how alike their references."""
    said = [Counter(r.traits.answer for r in g.rollouts if r.traits) for g in pool.answered]
    said = [counts for counts in said if counts]
    if not said:
        return
    weights = [{a: n / counts.total() for a, n in counts.items()} for counts in said]
    whole = _sum_by_answer(weights)
    yield "answers/distinct", len(whole) / sum(counts.total() for counts in said)
    yield "answers/top", max(whole.values()) / len(said)
    references = [{g.reference: 1.0} for g in pool.answered if g.reference is not None]
    for name, each in (("same", weights), ("reference_same", references)):
        if len(each) > 1:
            yield f"answers/{name}", _same(each)


def _same(weights: Sequence[Mapping[int, float]]) -> float:
    """Return the chance that a rollout of one group and one of another say the same."""
    groups = len(weights)
    together = sum(w * w for w in _sum_by_answer(weights).values())
    within = sum(w * w for group in weights for w in group.values())
    return max(0.0, together - within) / (groups * (groups - 1))


def _sum_by_answer(weights: Sequence[Mapping[int, float]]) -> dict[int, float]:
    whole: dict[int, float] = {}
    for group in weights:
        for answer, weight in group.items():
            whole[answer] = whole.get(answer, 0.0) + weight
    return whole
