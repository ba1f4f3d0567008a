"""From weights to groups due: the unit that shares are counted in, temperature, and bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

ONE = Fraction(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one source asks of a step."""

    weight: Fraction
    """Above 0."""
    cost: Fraction = ONE
    """Units (groups, samples or loss tokens) that one of its groups has."""
    max_share: Fraction | None = None
    """Most of the step's units."""
    max_groups: int | None = None
    """Most groups that it can give to the step."""


def exact(number: float) -> Fraction:
    """Return the decimal that a number was written as."""
    return Fraction(repr(number))


def temper(weights: Mapping[str, Fraction], temperature: float) -> dict[str, Fraction]:
    """Return each weight ** (1 / temperature), to 12 digits; the weights at temperature 1."""
    largest = max(weights.values())
    if temperature == 1 or largest == 0:
        return dict(weights)
    return {
        name: Fraction(f"{float(weight / largest) ** (1 / temperature):.12g}")
        for name, weight in weights.items()
    }


def groups_due(demands: Mapping[str, Demand], groups: int) -> dict[str, Fraction] | None:
    """Split a step: shares of its units by weight, what a bound cuts off going to the others.

    Returns:
        Groups due to each source, exactly, with sum `groups`; None if the bounds leave less.
    """
    shared: set[str] = set()
    full: set[str] = set()
    while (solved := _solve(demands, groups, shared, full)) is not None:
        due, units = solved
        for name, demand in demands.items():
            if name not in full and due[name] > (demand.max_groups or due[name]):
                full.add(name)
            elif name not in shared and due[name] * demand.cost > _most(demand, units):
                shared.add(name)
                full.discard(name)
            else:
                continue
            break
        else:
            return due
    return None


def _most(demand: Demand, units: Fraction) -> Fraction:
    return units * (ONE if demand.max_share is None else demand.max_share)


def _solve(
    demands: Mapping[str, Demand], groups: int, shared: set[str], full: set[str]
) -> tuple[dict[str, Fraction], Fraction] | None:
    """Solve for the groups due, and the units of the step, given who is held at which bound.

    With U units in the step and k units for a weight of 1, a source has k w / c groups, or m U / c
    at its max_share m, or b at its max_groups b. The groups of all are P, their units U:
        k sum(w/c) + U sum(m/c) = P - sum(b)        k sum(w) - U (1 - sum(m)) = -sum(b c)
    """
    free_groups = free_units = share_groups = share = fixed_units = Fraction(0)
    rest = Fraction(groups)
    for name, d in demands.items():
        if name in full:
            assert d.max_groups is not None
            rest -= d.max_groups
            fixed_units += d.max_groups * d.cost
        elif name in shared:
            assert d.max_share is not None
            share_groups += d.max_share / d.cost
            share += d.max_share
        else:
            free_groups += d.weight / d.cost
            free_units += d.weight
    determinant = free_groups * (1 - share) + free_units * share_groups
    if free_units == 0 or determinant <= 0:
        return None  # everyone is held below what the step needs
    per_weight = (rest * (1 - share) - fixed_units * share_groups) / determinant
    units = (free_units * rest + free_groups * fixed_units) / determinant
    if per_weight < 0 or units < 0:
        return None
    due: dict[str, Fraction] = {}
    for name, d in demands.items():
        if name in full:
            due[name] = Fraction(d.max_groups or 0)
        elif name in shared:
            due[name] = (d.max_share or ONE) * units / d.cost
        else:
            due[name] = per_weight * d.weight / d.cost
    return due, units
