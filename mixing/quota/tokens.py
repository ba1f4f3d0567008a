"""Shares in loss tokens: what training reports steers how many groups come next.

How many tokens a group will have is known only once it is trained on; what is estimated is those of
one rollout, so that another group size counts at once. Each source has an account in tokens: its
share of all that was trained on, less what it had itself; groups that are planned and not yet
reported are booked at their estimated size until the report replaces it. That is what keeps it
stable when reports come steps later: what is already under way is not asked for a second time. A
step gives each source its share plus what its account is owed:

    due = share of P at estimated sizes + owed / estimated size, scaled to sum to P

and whole groups by largest remainder, or drawn at random by these numbers (`sampled`); the
remainder, and what chance gave or took, is in the account by itself. What is due lies between 0
and twice the share (or the share and one group, where that is more), and what an account may be
owed is bounded by 64 such shares, so that a source that stalled does not flood the steps after.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from math import floor
from typing import NamedTuple, TypedDict

from rollouts.types import GroupSummary

_MEMORY = 0.9
"""Weight that an earlier report keeps in the estimate at each later one."""
_MOST_OWED = 64.0


class Trained(NamedTuple):
    """What one step trained on of one source."""

    groups: int
    samples: int
    loss_tokens: int


class TokensState(TypedDict):
    """An account's state, as JSON."""

    owed: dict[str, float]
    tokens: dict[str, float]
    rollouts: dict[str, float]
    under_way: dict[str, dict[str, list[float]]]


def tally(groups: Iterable[GroupSummary]) -> dict[str, Trained]:
    """Return what was trained on, by source."""
    found: dict[str, Trained] = {}
    for group in groups:
        so_far = found.get(group.source, Trained(0, 0, 0))
        found[group.source] = Trained(
            so_far.groups + 1,
            so_far.samples + len(group.samples),
            so_far.loss_tokens + sum(s.num_loss_tokens for s in group.samples),
        )
    return found


class _UnderWay(NamedTuple):
    """One source's part of a planned step."""

    share: float
    groups: int
    group_size: int


class TokenAccounts:
    """The accounts of all sources.

    Args:
        longest: most loss tokens of a rollout, by source: its length until one was trained on.
    """

    def __init__(self, longest: Mapping[str, int]):
        self._longest = longest
        self._owed = dict.fromkeys(longest, 0.0)
        self._tokens = dict.fromkeys(longest, 0.0)
        self._rollouts = dict.fromkeys(longest, 0.0)
        """Sampled for the groups that had these tokens; invalid ones had none."""
        self._under_way: dict[int, dict[str, _UnderWay]] = {}
        """By planned step."""

    def sizes(self, group_sizes: Mapping[str, int]) -> dict[str, float]:
        """Return the estimated loss tokens of a group of each source, at these group sizes."""
        lengths = self._lengths()
        return {name: max(1.0, size * lengths[name]) for name, size in group_sizes.items()}

    def _lengths(self) -> dict[str, float]:
        """Return the estimated loss tokens of a rollout, by source."""
        seen = {n: self._tokens[n] / total for n, total in self._rollouts.items() if total > 0}
        filled = sum(seen.values()) / sum(self._longest[n] for n in seen) if seen else 1.0
        return {n: seen.get(n, filled * longest) for n, longest in self._longest.items()}

    def observe(
        self, step: int, trained: Mapping[str, Trained], group_sizes: Mapping[str, int]
    ) -> None:
        """Book what `step` trained on in place of what was expected of it.

        Args:
            group_sizes: of sources that the step had no plan for.
        """
        planned = self._under_way.pop(step, {})
        total = sum(t.loss_tokens for t in trained.values())
        for name in self._owed:
            part = planned.get(name, _UnderWay(0.0, 0, group_sizes[name]))
            got = trained.get(name, Trained(0, 0, 0))
            if planned:
                self._owed[name] += part.share * total - got.loss_tokens
            if got.groups:
                rollouts = got.groups * part.group_size
                self._tokens[name] = _MEMORY * self._tokens[name] + got.loss_tokens
                self._rollouts[name] = _MEMORY * self._rollouts[name] + rollouts

    def next_counts(
        self,
        step: int,
        due: Mapping[str, Fraction],
        bounds: Mapping[str, int | None],
        group_sizes: Mapping[str, int],
        draw: Callable[[Mapping[str, float]], Mapping[str, int]] | None = None,
    ) -> Mapping[str, int]:
        """Return the groups of each source in `step`.

        Args:
            due: groups by share alone, at the estimated sizes; their sum is P.
            bounds: most groups that each source can give.
            draw: draws whole groups by what is due with what is owed; None for largest remainder.
        """
        sizes = self.sizes(group_sizes)
        share = {name: float(groups) for name, groups in due.items()}
        owed = self._owed_now(sizes, share)
        most = {n: _at_most(s + max(s, 1.0), bounds[n]) for n, s in share.items()}
        wanted = _scale(share, {n: owed[n] / sizes[n] for n in share}, most)
        counts = _round(wanted) if draw is None else draw(wanted)
        units = sum(share[n] * sizes[n] for n in share)
        self._under_way[step] = {
            n: _UnderWay(share[n] * sizes[n] / units, counts[n], group_sizes[n]) for n in share
        }
        return counts

    def _owed_now(self, sizes: Mapping[str, float], share: Mapping[str, float]) -> dict[str, float]:
        """Return what is owed, all under way taken as given; bounded, and bounded for good."""
        expected, lengths = dict.fromkeys(self._owed, 0.0), self._lengths()
        for planned in self._under_way.values():
            tokens = {
                name: part.groups * max(1.0, part.group_size * lengths[name])
                for name, part in planned.items()
            }
            total = sum(tokens.values())
            for name, part in planned.items():
                expected[name] += part.share * total - tokens[name]
        for name, groups in share.items():
            bound = _MOST_OWED * max(groups, 1.0) * sizes[name]
            now = self._owed[name] + expected[name]
            self._owed[name] += min(max(now, -bound), bound) - now
        return {name: self._owed[name] + expected[name] for name in share}

    def state_dict(self) -> TokensState:
        """Return the accounts."""
        return {
            "owed": dict(self._owed),
            "tokens": dict(self._tokens),
            "rollouts": dict(self._rollouts),
            "under_way": {
                str(step): {name: list(part) for name, part in planned.items()}
                for step, planned in self._under_way.items()
            },
        }

    def load_state_dict(self, state: TokensState) -> None:
        """Take up the accounts that `state_dict` returned."""
        self._owed, self._tokens = dict(state["owed"]), dict(state["tokens"])
        self._rollouts = dict(state["rollouts"])
        self._under_way = {
            int(step): {
                name: _UnderWay(share, int(groups), int(size))
                for name, (share, groups, size) in planned.items()
            }
            for step, planned in state["under_way"].items()
        }


def _at_most(groups: float, bound: int | None) -> float:
    return groups if bound is None else min(groups, float(bound))


def _scale(
    share: Mapping[str, float], extra: Mapping[str, float], most: Mapping[str, float]
) -> dict[str, float]:
    """Return extra + f * share within [0, most], with the f that makes the sum that of `share`."""
    total = sum(share.values())

    def at(factor: float) -> dict[str, float]:
        return {n: min(max(extra[n] + factor * share[n], 0.0), most[n]) for n in share}

    low, high = 0.0, 1.0
    while sum(at(low).values()) > total:
        low = 2 * low - 1
    while sum(at(high).values()) < total and high < 2**40:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle).values()) < total else (low, middle)
    return at(high)


def _round(wanted: Mapping[str, float]) -> dict[str, int]:
    """Return whole counts with the rounded sum of `wanted`, by largest remainder."""
    counts = {name: floor(value) for name, value in wanted.items()}
    names: Sequence[str] = sorted(wanted, key=lambda n: counts[n] - wanted[n])
    for name in names[: round(sum(wanted.values())) - sum(counts.values())]:
        counts[name] += 1
    return counts
