"""Reserve room for every group before any of its actors starts, or say bundle by bundle why not."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from configs.errors import ConfigError, Problem

_NEXT_TO_NOTHING = 1024.0
"""Bytes demanded for actors that reserve neither CPU nor GPU; Ray knows no empty bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One actor's place in a bundle."""

    role: str
    index: int
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDemand:
    """Resources reserved together on one node."""

    group: str
    """Role that the placement group is named after; colocated roles sit in its bundles."""
    seats: tuple[Seat, ...]
    labels: Mapping[str, str]

    @property
    def resources(self) -> dict[str, float]:
        """Ray's resource dictionary of the bundle."""
        demand = {
            "CPU": sum(s.cpus for s in self.seats),
            "GPU": sum(s.gpus for s in self.seats),
        }
        return {k: v for k, v in demand.items() if v > 0} or {"memory": _NEXT_TO_NOTHING}


class Placement:
    """The reserved placement groups, one a group of actors."""

    def __init__(self, groups: Mapping[str, PlacementGroup], bundles: Sequence[BundleDemand]):
        self._groups = groups
        self._seats: dict[tuple[str, int], tuple[PlacementGroup, int, Seat]] = {}
        position: dict[str, int] = {}
        for bundle in bundles:
            at = position.setdefault(bundle.group, 0)
            position[bundle.group] += 1
            for seat in bundle.seats:
                self._seats[seat.role, seat.index] = (groups[bundle.group], at, seat)

    def options(self, role: str, index: int) -> dict[str, object]:
        """Return the Ray actor options that seat `role[index]` in its bundle."""
        group, at, seat = self._seats[role, index]
        return {
            "num_cpus": seat.cpus,
            "num_gpus": seat.gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=group,
                placement_group_bundle_index=at,
                placement_group_capture_child_tasks=False,
            ),
        }

    def node(self, role: str, index: int) -> str:
        """Return the address of the node on which `role[index]` is seated."""
        group, at, _ = self._seats[role, index]
        node_id = placement_group_table(group)["bundles_to_node_id"][at]
        known = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes()}
        return known.get(node_id, node_id)

    def release(self) -> None:
        """Give the reserved resources back."""
        for group in self._groups.values():
            remove_placement_group(group)


async def reserve(
    bundles: Sequence[BundleDemand], *, timeout_s: float, can_grow: bool
) -> Placement:
    """Reserve all bundles.

    Args:
        timeout_s: seconds to wait for room.
        can_grow: whether the cluster may still get nodes; if not, a demand beyond its totals
            fails at once.

    Raises:
        ConfigError: demanded against available, bundle by bundle.
    """
    if not can_grow:
        _check_totals(bundles)
    names = list(dict.fromkeys(b.group for b in bundles))
    groups: dict[str, PlacementGroup] = {}
    for name in names:
        own = [b for b in bundles if b.group == name]
        groups[name] = placement_group(
            [b.resources for b in own],
            strategy="PACK",
            bundle_label_selector=[dict(b.labels) for b in own],
        )
    placement = Placement(groups, bundles)
    deadline = time.monotonic() + timeout_s
    for name, group in groups.items():
        try:
            async with asyncio.timeout(max(0.01, deadline - time.monotonic())):
                await group.ready()
        except TimeoutError:
            problems = _explain(bundles, waiting_for=name, timeout_s=timeout_s)
            placement.release()
            raise ConfigError(problems) from None
    return placement


def _total(bundles: Sequence[BundleDemand], resource: str) -> float:
    return sum(b.resources.get(resource, 0.0) for b in bundles)


def _check_totals(bundles: Sequence[BundleDemand]) -> None:
    have = ray.cluster_resources()
    short = [r for r in ("CPU", "GPU") if _total(bundles, r) > have.get(r, 0.0) + 1e-6]
    if not short:
        return
    problems = [
        Problem(
            where=", ".join(f"{s.role}[{s.index}]" for s in b.seats),
            what=f"demands {_show(b.resources)}",
        )
        for b in bundles
    ]
    for resource in short:
        problems.append(
            Problem(
                where="cluster",
                what=f"{_total(bundles, resource):g} {resource} demanded in all, "
                f"{have.get(resource, 0.0):g} there",
                fix=f"Lower `*.actors.count` or `*.actors.{resource.lower()}s`, "
                "or join a larger cluster with `ray_address`.",
            )
        )
    raise ConfigError(problems)


def _show(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{v:g} {k}" for k, v in resources.items() if k != "memory") or "nothing"


def _explain(
    bundles: Sequence[BundleDemand], *, waiting_for: str, timeout_s: float
) -> list[Problem]:
    """Say what every bundle demands and what every node still has."""
    problems = [
        Problem(
            where=f"{b.group} bundle: " + ", ".join(f"{s.role}[{s.index}]" for s in b.seats),
            what=f"demands {_show(b.resources)}"
            + (f" on a node labelled {dict(b.labels)}" if b.labels else ""),
        )
        for b in bundles
    ]
    for node in ray.nodes():
        if node["Alive"]:
            total = {k: v for k, v in node["Resources"].items() if k in ("CPU", "GPU")}
            problems.append(
                Problem(
                    where=f"node {node['NodeManagerAddress']}",
                    what=f"has {_show(total)} in all; labels {node.get('Labels', {})}",
                )
            )
    free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
    problems.append(
        Problem(
            where="cluster",
            what=f"no room for group `{waiting_for}` within {timeout_s:g} s; "
            f"free now: {_show(free)}",
            fix="Free resources, add nodes, or lower the group's count, CPUs or GPUs.",
        )
    )
    return problems
