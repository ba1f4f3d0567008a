"""What samples of the starting policy say of a source: pass rates, and what to set from them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import comb, prod

import numpy as np

from configs.evaluation import eval_settings
from configs.schema import RunConfig, SourceConfig

BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Edges of the pass-rate histogram; its first and last bar are the items at exactly 0 and 1."""
MAX_ZERO_VARIANCE = 0.2
"""Share of groups without a difference in reward up to which a group size is large enough."""
LARGEST_GROUP = 64
MIN_MIXED = 0.1
"""Share of groups with a difference in reward below which a source is no-go."""
MAX_TRUNCATED = 0.5
"""Share of truncated completions above which a source is no-go."""
TRUNCATED_WARN = 0.1
"""Share of truncated completions worth a warning."""
MAJORITY_WARN = 0.5
"""Share of the most frequent answer above which a source can be guessed."""

_ROUNDING = 1e-9
_DIGITS = 9
"""Rewards that agree to so many decimals are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemSamples:
    """What the samples of one training item came to."""

    task_id: str
    rewards: tuple[float, ...]
    """Of the valid samples."""
    truncated: int
    invalid: int
    tokens: tuple[int, ...]
    """Completion tokens of every sample."""
    error: str | None = None
    """Why its first invalid sample is."""

    def passes(self, threshold: float) -> int:
        """Count the samples whose reward is `threshold` or more."""
        return sum(r >= threshold for r in self.rewards)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Items of the histogram whose pass rate is above `low` and below `high`; where both are the
    same, those at exactly that rate."""

    low: float
    high: float
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceBaseline:
    """One source under the starting policy."""

    source: str
    go: bool
    reason: str
    """Why it is go or no-go."""
    warnings: tuple[str, ...]
    items: int
    samples: int
    histogram: tuple[Bar, ...]
    pass_rate: float | None
    """Of the valid samples; None without any, as are the next four."""
    reward_mean: float | None
    solved_none: float | None
    """Share of items none of whose samples passed."""
    solved_all: float | None
    zero_variance: float | None
    """Expected share of groups of the recipe's size whose rewards are all equal."""
    truncated: float
    """Share of all samples, as is `invalid`."""
    invalid: float
    tokens_mean: float
    tokens_p95: float
    majority_share: float | None
    """Share of training items whose reference answer is the most frequent one; None without
    answers."""
    majority_answer: str | None
    group_size: int
    """The recipe's."""
    suggested_group_size: int | None
    """Smallest with zero variance below MAX_ZERO_VARIANCE; None if not even LARGEST_GROUP has."""
    suggested_window: tuple[float, float]
    in_window: float | None
    """Share of items whose pass rate lies in the suggested window."""


def describe(
    cfg: RunConfig,
    source: SourceConfig,
    items: Sequence[ItemSamples],
    answers: Sequence[str | None],
) -> SourceBaseline:
    """Work out a source's figures.

    Args:
        answers: reference answers of training items, more than were sampled.
    """
    threshold = eval_settings(cfg, source).pass_threshold
    samples = sum(len(i.tokens) for i in items)
    graded = [i for i in items if i.rewards]
    rates = [i.passes(threshold) / len(i.rewards) for i in graded]
    rewards = [r for i in graded for r in i.rewards]
    tokens = [t for i in items for t in i.tokens]
    majority = majority_answer(answers)
    low, high = informative_window(source.group_size)
    known = bool(graded)
    zero = zero_variance(graded, source.group_size, threshold) if known else None
    found = SourceBaseline(
        source=source.name,
        go=True,
        reason="",
        warnings=(),
        items=len(items),
        samples=samples,
        histogram=histogram(rates),
        pass_rate=_mean([float(r >= threshold) for r in rewards]),
        reward_mean=_mean(rewards),
        solved_none=_mean([float(r == 0) for r in rates]),
        solved_all=_mean([float(r == 1) for r in rates]),
        zero_variance=zero,
        truncated=sum(i.truncated for i in items) / samples,
        invalid=sum(i.invalid for i in items) / samples,
        tokens_mean=float(np.mean(tokens)),
        tokens_p95=float(np.quantile(tokens, 0.95)),
        majority_share=None if majority is None else majority[1],
        majority_answer=None if majority is None else majority[0],
        group_size=source.group_size,
        suggested_group_size=suggest_group_size(graded, threshold) if known else None,
        suggested_window=(low, high),
        in_window=_mean([float(low <= r <= high) for r in rates]),
    )
    return judge(cfg, source, found, next((i.error for i in items if i.error), None))


def judge(
    cfg: RunConfig, source: SourceConfig, found: SourceBaseline, error: str | None
) -> SourceBaseline:
    """Return the figures with go or no-go, the reason, and what is worth a warning."""
    no_go = _why_not(cfg, source, found, error)
    mixed = 1 - (found.zero_variance or 0.0)
    return replace(
        found,
        go=no_go is None,
        reason=no_go or f"rewards differ within {mixed:.0%} of groups of {source.group_size}",
        warnings=tuple(_warnings(source, found, error)),
    )


def _why_not(
    cfg: RunConfig, source: SourceConfig, found: SourceBaseline, error: str | None
) -> str | None:
    limit = cfg.reward.max_error_rate
    if found.zero_variance is None:
        return f"no sample has a reward: {error or 'every one is invalid'}"
    if found.invalid > limit:
        return (
            f"{found.invalid:.0%} of samples are invalid, more than reward.max_error_rate="
            f"{limit:g}: {error}"
        )
    if found.truncated > MAX_TRUNCATED:
        return (
            f"{found.truncated:.0%} of completions end at sampling.max_tokens="
            f"{source.sampling.max_tokens}: raise it"
        )
    mixed = 1 - found.zero_variance
    if mixed >= MIN_MIXED:
        return None
    few = f"rewards differ within only {mixed:.0%} of groups of {source.group_size}"
    if found.solved_none is not None and found.solved_all is not None:
        if found.solved_all > 0.5:
            return f"too easy: {found.solved_all:.0%} of items are always solved; {few}"
        if found.solved_none > 0.5:
            return f"too hard: {found.solved_none:.0%} of items are never solved; {few}"
    return few


def _warnings(source: SourceConfig, found: SourceBaseline, error: str | None) -> Iterator[str]:
    if found.majority_share is not None and found.majority_share > MAJORITY_WARN:
        yield (
            f"{found.majority_share:.0%} of the answers are {found.majority_answer!r:.60}: saying "
            "so without looking is right as often"
        )
    if found.invalid > 0 and error is not None:
        yield f"{found.invalid:.1%} of samples are invalid, for example: {error}"
    if found.truncated > TRUNCATED_WARN:
        yield f"{found.truncated:.0%} of completions are truncated"
    suggested = found.suggested_group_size
    if suggested is not None and suggested > source.group_size:
        yield (
            f"group_size is {source.group_size}; {suggested} is the smallest with less than "
            f"{MAX_ZERO_VARIANCE:.0%} of groups without a difference"
        )


def histogram(rates: Sequence[float]) -> tuple[Bar, ...]:
    """Count pass rates: those at exactly 0, five ranges between, those at exactly 1.

    A rate on an inner edge counts below it.
    """
    inner = [r for r in rates if 0 < r < 1]
    return (
        Bar(low=0.0, high=0.0, items=sum(r == 0 for r in rates)),
        *(
            Bar(low=low, high=high, items=sum(low < r <= high for r in inner))
            for low, high in pairwise(BINS)
        ),
        Bar(low=1.0, high=1.0, items=sum(r == 1 for r in rates)),
    )


def majority_answer(answers: Sequence[str | None]) -> tuple[str, float] | None:
    """Return the most frequent answer and its share; None where items have no answers."""
    known = Counter(a.strip() for a in answers if a is not None)
    if not known:
        return None
    answer, count = min(known.items(), key=lambda pair: (-pair[1], pair[0]))
    return answer, count / known.total()


def zero_variance(items: Sequence[ItemSamples], group_size: int, threshold: float) -> float:
    """Estimate Z(G), the share of groups of G samples whose rewards are all equal.

    An item with k >= G rewards, n_v of them of value v, gives the unbiased estimate
    sum_v C(n_v, G) / C(k, G): the share of its subsets of G that are all equal. Z(G) is the mean
    over such items. Where fewer than half of the items have G rewards, pass rates are taken to be
    Beta(a, b), fitted to the pass counts c of k by their moments m1 = E[c / k] and
    m2 = E[c (c - 1) / (k (k - 1))], with a + b = (m1 - m2) / (m2 - m1^2) and a = m1 (a + b):
    Z(G) = prod_{j<G} (a + j) / (a + b + j) + prod_{j<G} (b + j) / (a + b + j).
    """
    enough = [i.rewards for i in items if len(i.rewards) >= group_size]
    if 2 * len(enough) >= len(items):
        return float(np.mean([_equal_subsets(rewards, group_size) for rewards in enough]))
    counts = [(i.passes(threshold), len(i.rewards)) for i in items if len(i.rewards) > 1]
    return _beta_zero_variance(counts, group_size) if counts else 1.0


def _equal_subsets(rewards: Sequence[float], group_size: int) -> float:
    values = Counter(round(r, _DIGITS) for r in rewards).values()
    return sum(comb(n, group_size) for n in values) / comb(len(rewards), group_size)


def _beta_zero_variance(counts: Sequence[tuple[int, int]], group_size: int) -> float:
    first = float(np.mean([c / k for c, k in counts]))
    second = float(np.mean([c * (c - 1) / (k * (k - 1)) for c, k in counts]))
    spread = second - first**2
    if first - second <= 0:  # every item always passes or never does
        return 1.0
    if spread <= 0:  # all items alike
        return first**group_size + (1 - first) ** group_size
    total = (first - second) / spread
    a, b = first * total, (1 - first) * total
    return sum(prod((x + j) / (total + j) for j in range(group_size)) for x in (a, b))


def suggest_group_size(items: Sequence[ItemSamples], threshold: float) -> int | None:
    """Return the smallest G from 2 to LARGEST_GROUP with Z(G) < MAX_ZERO_VARIANCE, or None."""
    bound = MAX_ZERO_VARIANCE - _ROUNDING
    sizes = range(2, LARGEST_GROUP + 1)
    return next((g for g in sizes if zero_variance(items, g, threshold) < bound), None)


def informative_window(group_size: int) -> tuple[float, float]:
    """Return the pass rates at which a group of G is mixed at least half as often as at 1/2.

    A group at pass rate p is mixed with probability 1 - p^G - (1 - p)^G, at most 1 - 2^(1 - G);
    the window is [x, 1 - x] with 1 - x^G - (1 - x)^G = (1 - 2^(1 - G)) / 2, x to two digits.
    """
    if group_size < 2:
        return 0.0, 1.0
    enough = (1 - 2.0 ** (1 - group_size)) / 2
    low, high = 0.0, 0.5
    for _ in range(50):
        middle = (low + high) / 2
        mixed = 1 - middle**group_size - (1 - middle) ** group_size
        low, high = (low, middle) if mixed >= enough else (middle, high)
    return round(high, 2), round(1 - round(high, 2), 2)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
