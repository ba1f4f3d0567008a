"""`braid doctor`: whether this machine is ready, what is missing, and what to do about it.

A check is a function that returns findings; `CHECKS` is the list, and the command shows it all.
"""

import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from configs.versions import PROJECT, check_versions, installed_versions
from rewards.sandbox.result import Tier
from rewards.sandbox.tiers import Probe, probe


class Level(StrEnum):
    """How a finding stands."""

    OK = "ok"
    WARNING = "warning"
    """Something is weaker than it could be; runs go on."""
    FAILED = "failed"
    """Runs that need it will not start."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    section: str
    name: str
    level: Level
    detail: str
    remedy: str = ""


Check = Callable[[], Iterator[Finding]]


def check_sandbox() -> Iterator[Finding]:
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


def check_packages() -> Iterator[Finding]:
    """Compare what is installed with the tested versions; nothing is imported."""
    python = platform.python_version()
    good = (3, 11) <= sys.version_info < (3, 13)
    yield Finding(
        section="packages",
        name="python",
        level=Level.OK if good else Level.FAILED,
        detail=python,
        remedy="" if good else "Use Python 3.11 or 3.12.",
    )
    problems = {problem.where: problem for problem in check_versions()}
    try:
        versions = installed_versions()
    except PackageNotFoundError:
        versions = {}
    for name in sorted({*versions, *problems}):
        problem = problems.get(name)
        missing = name not in versions or name == PROJECT
        wrong = Level.FAILED if missing else Level.WARNING
        yield Finding(
            section="packages",
            name=name,
            level=Level.OK if problem is None else wrong,
            detail=versions[name] if problem is None else problem.what,
            remedy="" if problem is None else problem.fix,
        )


CHECKS: tuple[Check, ...] = (check_sandbox, check_packages)


@dataclass(frozen=True)
class Diagnosis:
    """All findings."""

    findings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing failed."""
        return all(f.level is not Level.FAILED for f in self.findings)

    def to_json(self) -> dict[str, object]:
        """Return it as JSON-ready data."""
        return {"ready": self.ready, "findings": [asdict(f) for f in self.findings]}


def diagnose(checks: tuple[Check, ...] | None = None) -> Diagnosis:
    """Run the checks, all unless told, in order."""
    chosen = CHECKS if checks is None else checks
    return Diagnosis(tuple(finding for check in chosen for finding in check()))


_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILED: "bold red"}


def render_diagnosis(found: Diagnosis) -> RenderableType:
    """Return the report as a table, with the remedies below it."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("section", "check", "state", "finding"):
        table.add_column(column, overflow="fold")
    last = ""
    for finding in found.findings:
        section = "" if finding.section == last else finding.section
        last = finding.section
        state = Text(finding.level.value, style=_STYLES[finding.level])
        table.add_row(section, finding.name, state, Text(finding.detail))
    remedies = [
        Text(f"{f.name}: {f.remedy}") for f in found.findings if f.remedy and f.level != Level.OK
    ]
    end = Text("ready", style="bold green") if found.ready else Text("not ready", style="bold red")
    heading = [Text("\nwhat to do", style="dim")] if remedies else []
    return Group(table, *heading, *remedies, Text(""), end)
