"""Which tier is chosen, and what is said where it cannot be."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.sandbox import SandboxConfig
from rewards.sandbox import launch, shared, tiers
from rewards.sandbox.inside import landlock
from rewards.sandbox.jail import Sandbox
from rewards.sandbox.result import MB, Script, Tier, Verdict
from rewards.sandbox.tiers import Probe, choose_tier, probe


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Probe anew in each test that changes what there is, and after it."""
    yield
    probe.cache_clear()


def stand(monkeypatch: pytest.MonkeyPatch, *standing: Tier) -> None:
    """Let these tiers hold and no other."""

    def found(tier: Tier) -> Probe:
        works = tier in standing
        return Probe(
            tier=tier, works=works, detail="fine" if works else "broken", remedy="Mend it."
        )

    monkeypatch.setattr(tiers, "probe", found)


def test_the_strongest_that_holds_is_chosen(monkeypatch: pytest.MonkeyPatch):
    stand(monkeypatch, Tier.BWRAP, Tier.LANDLOCK, Tier.RLIMITS)
    assert choose_tier("any").tier is Tier.BWRAP
    stand(monkeypatch, Tier.LANDLOCK, Tier.RLIMITS)
    assert choose_tier("landlock").tier is Tier.LANDLOCK
    stand(monkeypatch, Tier.RLIMITS)
    assert choose_tier("any").tier is Tier.RLIMITS


@pytest.mark.parametrize(
    ("require", "standing"),
    [
        ("bwrap", (Tier.LANDLOCK, Tier.RLIMITS)),
        ("landlock", (Tier.RLIMITS,)),
        ("any", ()),
    ],
)
def test_weaker_than_required_is_refused(
    monkeypatch: pytest.MonkeyPatch, require: str, standing: tuple[Tier, ...]
):
    stand(monkeypatch, *standing)
    with pytest.raises(ConfigError) as error:
        choose_tier(require)
    (problem,) = error.value.problems
    assert problem.where == "reward.sandbox.require"
    assert "bwrap: broken" in problem.what
    assert "Mend it." in problem.fix


def test_without_bubblewrap_its_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    probe.cache_clear()
    found = probe(Tier.BWRAP)
    assert not found.works
    assert "`bubblewrap`" in found.remedy


def test_a_bubblewrap_that_may_not_make_namespaces_is_not_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    program = tmp_path / "bwrap"
    program.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    probe.cache_clear()
    found = probe(Tier.BWRAP)
    assert not found.works
    assert "does not start" in found.detail


def test_a_kernel_without_landlock_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    probe.cache_clear()
    found = probe(Tier.LANDLOCK)
    assert (found.works, found.detail) == (False, "no Landlock")
    assert "Linux 5.13" in found.remedy


def test_a_machine_without_a_filter_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiers.platform, "machine", lambda: "riscv64")
    probe.cache_clear()
    assert "riscv64" in probe(Tier.LANDLOCK).detail


def test_the_self_test_sees_a_tier_that_does_not_hold(monkeypatch: pytest.MonkeyPatch):
    """Limits alone, put to the attacks that a boundary must stop, lose some."""
    monkeypatch.setattr(launch, "_open_to_all", lambda paths: True)
    with Sandbox(Tier.RLIMITS, tiers._LIMITS) as jail:
        held = tiers._attack(jail, boundary=True)
    assert held["endless loop"] and held["memory"] and held["environment"]
    assert not held["read a file"]


def test_two_sandboxes_have_two_users():
    (one, first), (two, second) = launch.claim_user(), launch.claim_user()
    one.close()
    two.close()
    assert first != second


def test_the_shared_sandbox_has_the_configured_limits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shared, "_chosen", [SandboxConfig()])
    shared.configure(SandboxConfig(require="any", cpu_s=0.5, memory_mb=64, output_kb=1))
    monkeypatch.setattr(shared, "_made", {})
    jail = shared.sandbox()
    try:
        assert (jail.limits.cpu_s, jail.limits.wall_s, jail.limits.memory) == (0.5, 2.0, 64 * MB)
        assert jail.run(Script(code="print('x' * 2000)")).verdict is Verdict.OUTPUT
        assert shared.sandbox() is jail
    finally:
        jail.close()
