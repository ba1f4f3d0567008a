"""What a check finds, and how it is shown."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from configs.judges import JudgeConfig
from configs.schema import RunConfig
from orchestrator.planning.plan import plan_bundles


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


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What is looked at: this machine, and what is to run on it."""

    recipe: RunConfig | None = None
    """Without one, what only a recipe can ask for is left out."""
    judges: Mapping[str, JudgeConfig] = field(default_factory=dict[str, JudgeConfig])
    """Judges of the recipe, or of a file of their own."""
    run_dir: Path = Path("runs")
    """Folder in which run directories are made, or one of them."""

    @property
    def gpus(self) -> float:
        """GPUs that the recipe takes on this machine; 0 where it joins another cluster."""
        if self.recipe is None or self.recipe.ray_address is not None:
            return 0.0
        return sum(m.gpus for b in plan_bundles(self.recipe) for m in b.members)


Check = Callable[[Patient], Iterator[Finding]]
"""A check yields one finding a line of the report."""


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
