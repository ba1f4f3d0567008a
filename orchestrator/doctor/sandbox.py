"""Which sandbox this machine can have, by attacking each."""

from collections.abc import Iterator

from orchestrator.doctor.findings import Finding, Level, Patient
from rewards.sandbox.result import Tier
from rewards.sandbox.tiers import Probe, probe


def check_sandbox(patient: Patient) -> Iterator[Finding]:
    """Attack every tier, and say which of them hold."""
    probes = [probe(tier) for tier in Tier]
    for found in probes:
        if found.works:
            level = Level.WARNING if found.tier is Tier.RLIMITS else Level.OK
        else:
            level = Level.WARNING
        yield Finding(
            section="sandbox",
            name=found.tier.value,
            level=level,
            detail=_shown(found),
            remedy=found.remedy,
        )
    best = next((p for p in probes if p.works), None)
    if best is None or best.tier is Tier.RLIMITS:
        yield Finding(
            section="sandbox",
            name="chosen",
            level=Level.FAILED,
            detail="no tier that is a boundary holds here",
            remedy="Install `bubblewrap`, or set reward.sandbox.require: any and trust the model.",
        )
    else:
        yield Finding(
            section="sandbox",
            name="chosen",
            level=Level.OK,
            detail=f"{best.tier}; recorded in runs",
        )


def _shown(found: Probe) -> str:
    held = sum(found.held.values())
    return f"{found.detail}; stops {held} of {len(found.held)} attacks" if held else found.detail
