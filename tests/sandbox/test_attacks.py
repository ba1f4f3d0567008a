"""No attack wins in a tier that is a boundary, as ourselves and, where we are root, as nobody."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rewards.sandbox.result import Tier
from rewards.sandbox.tiers import probe

pytestmark = pytest.mark.timeout(240)


def load(name: str) -> ModuleType:
    """Import a program that lies beside this file."""
    spec = importlib.util.spec_from_file_location(
        f"sandbox_{name}", Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


matrix: Any = load("matrix")
WALLS = [matrix.Fighter(t, u) for t in (Tier.BWRAP, Tier.LANDLOCK) for u in matrix.users()]


@pytest.fixture(scope="module")
def fights() -> Iterator[dict[Any, "Future[dict[str, str]]"]]:
    """Let all fight, two at a time: most attacks wait for a limit."""
    with ThreadPoolExecutor(2) as threads:
        chosen = [f for f in WALLS if probe(f.tier).works]
        yield {fighter: threads.submit(matrix.fight_in, fighter) for fighter in chosen}


@pytest.mark.parametrize("fighter", WALLS, ids=str)
def test_no_attack_wins(fighter: Any, fights: "dict[Any, Future[dict[str, str]]]"):
    if fighter not in fights:
        pytest.skip(f"{fighter.tier} does not stand here: {probe(fighter.tier).detail}")
    results = entered(lambda: fights[fighter].result(timeout=220))
    matrix.write_matrix({str(fighter): results})
    assert len(results) >= 130
    assert {name: why for name, why in results.items() if why} == {}


def entered(fight: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Return the results; skip where this machine lets nobody be another user."""
    try:
        return fight()
    except matrix.NoArena as error:
        pytest.skip(str(error))


def weak() -> Any:
    """Return as whom limits alone can be attacked without harm to anybody else."""
    return matrix.Fighter(Tier.RLIMITS, matrix.users()[-1])


def test_the_arena_sees_what_limits_alone_let_through():
    harmless = ("answer file", "answer by link", "tcp", "udp", "unix socket", "abstract socket")
    options = ("--families", "secrets", "network", "--only", *harmless)
    results = entered(lambda: matrix.fight_in(weak(), *options))
    lost = {name.partition(": ")[2] for name, why in results.items() if why}
    assert lost == set(harmless)


def test_limits_alone_hold_what_they_promise():
    results = entered(lambda: matrix.fight_in(weak(), "--families", "resources", "verdicts"))
    lost = {name: why for name, why in results.items() if why}
    assert lost.keys() <= {
        "resources: memory in System V segments",
        "resources: fill shared memory",
    }
    assert len(results) > 60
