"""Shares in loss tokens: what training reports steers how many groups come next.

How many tokens a group will have is known only once it is trained on. So each source has an
account in tokens: its share of all that was trained on, less what it had itself; groups that are
planned and not yet reported are booked at their estimated size until the report replaces it. That
is what keeps it stable when reports come steps later: what is already under way is not asked for
a second time. A step gives each source its share plus what its account is owed:

    due = share of P at estimated sizes + owed / estimated size, scaled to sum to P

and whole groups by largest remainder; the remainder is in the account by itself. What is due lies
between 0 and twice the share (or the share and one group, where that is more), and what an
account may be owed is bounded by 64 such shares, so that a source that stalled does not flood
the steps after.
"""

from collections.abc import Iterable, Mapping, Sequence
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
    groups: dict[str, float]
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


class TokenAccounts:
    """The accounts of all sources.

    Args:
        largest: most loss tokens of a group, by source: its size until one was trained on.
    """

    def __init__(self, largest: Mapping[str, int]):
        self._largest = largest
        self._owed = dict.fromkeys(largest, 0.0)
        self._tokens = dict.fromkeys(largest, 0.0)
        self._groups = dict.fromkeys(largest, 0.0)
        self._under_way: dict[int, dict[str, tuple[float, int]]] = {}
        """Share and groups of each source, by planned step."""

    def sizes(self) -> dict[str, float]:
        """Return the estimated loss tokens of a group, by source."""
        known = [name for name, groups in self._groups.items() if groups > 0]
        seen = sum(self._tokens[name] / self._groups[name] for name in known)
        filled = seen / sum(self._largest[name] for name in known) if known else 1.0
        return {
            name: max(1.0, self._tokens[name] / self._groups[name])
            if self._groups[name] > 0
            else max(1.0, filled * self._largest[name])
            for name in self._largest
        }

    def observe(self, step: int, trained: Mapping[str, Trained]) -> None:
        """Book what `step` trained on in place of what was expected of it."""
        planned = self._under_way.pop(step, {})
        total = sum(t.loss_tokens for t in trained.values())
        for name in self._owed:
            share, _ = planned.get(name, (0.0, 0))
            got = trained.get(name, Trained(0, 0, 0))
            if planned:
                self._owed[name] += share * total - got.loss_tokens
            if got.groups:
                self._tokens[name] = _MEMORY * self._tokens[name] + got.loss_tokens
                self._groups[name] = _MEMORY * self._groups[name] + got.groups

    def next_counts(
        self, step: int, due: Mapping[str, Fraction], bounds: Mapping[str, int | None]
    ) -> dict[str, int]:
        """Return the groups of each source in `step`.

        Args:
            due: groups by share alone, at the estimated sizes; their sum is P.
            bounds: most groups that each source can give.
        """
        sizes = self.sizes()
        share = {name: float(groups) for name, groups in due.items()}
        owed = self._owed_now(sizes, share)
        most = {n: _at_most(s + max(s, 1.0), bounds[n]) for n, s in share.items()}
        wanted = _scale(share, {n: owed[n] / sizes[n] for n in share}, most)
        counts = _round(wanted, most)
        units = sum(share[n] * sizes[n] for n in share)
        self._under_way[step] = {n: (share[n] * sizes[n] / units, counts[n]) for n in share}
        return counts

    def _owed_now(self, sizes: Mapping[str, float], share: Mapping[str, float]) -> dict[str, float]:
        """Return what is owed, all under way taken as given; bounded, and bounded for good."""
        expected = dict.fromkeys(self._owed, 0.0)
        for planned in self._under_way.values():
            total = sum(count * sizes[name] for name, (_, count) in planned.items())
            for name, (part, count) in planned.items():
                expected[name] += part * total - count * sizes[name]
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
            "groups": dict(self._groups),
            "under_way": {
                str(step): {name: [part, count] for name, (part, count) in planned.items()}
                for step, planned in self._under_way.items()
            },
        }

    def load_state_dict(self, state: TokensState) -> None:
        """Take up the accounts that `state_dict` returned."""
        self._owed, self._tokens = dict(state["owed"]), dict(state["tokens"])
        self._groups = dict(state["groups"])
        self._under_way = {
            int(step): {name: (part, int(count)) for name, (part, count) in planned.items()}
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


def _round(wanted: Mapping[str, float], most: Mapping[str, float]) -> dict[str, int]:
    """Return whole counts with the rounded sum of `wanted`, by largest remainder."""
    counts = {name: floor(value) for name, value in wanted.items()}
    names: Sequence[str] = sorted(wanted, key=lambda n: counts[n] - wanted[n])
    for name in names[: round(sum(wanted.values())) - sum(counts.values())]:
        counts[name] += 1
    return counts
