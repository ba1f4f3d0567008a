"""`braid doctor`, and the sandbox that a recipe asks for."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from configs.errors import ConfigError
from configs.schema import RunConfig
from orchestrator import cli, sandboxing
from orchestrator.doctor import diagnose as all_checks
from orchestrator.doctor import packages, sandbox
from orchestrator.doctor.diagnose import diagnose
from orchestrator.doctor.findings import Diagnosis, Finding, Level, Patient, render_diagnosis
from orchestrator.doctor.packages import check_packages
from orchestrator.doctor.sandbox import check_sandbox
from orchestrator.records.run_dir import RunDir
from orchestrator.sandboxing import describe, find_tier, needs_sandbox, validate_sandbox
from rewards.sandbox import tiers
from rewards.sandbox.result import Tier
from rewards.sandbox.tiers import Probe


def config(grader: dict[str, Any], require: str = "landlock", rows: str = "x") -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "small",
            "num_steps": 1,
            "model": {"path": "org/model"},
            "sources": [
                {
                    "name": "code",
                    "data": {"jsonl": "x"},
                    "rewards": [{"name": "r", "grader": grader}],
                }
            ],
            "batch": {"groups_per_step": 1},
            "reward": {"sandbox": {"require": require}},
        }
    )


CODE = {"type": "code_tests"}
PATTERN = {"type": "format", "pattern": "x"}


def stand(monkeypatch: pytest.MonkeyPatch, *standing: Tier) -> None:
    """Let these tiers hold and no other."""

    def found(tier: Tier) -> Probe:
        works = tier in standing
        held = {"network": True} if works else {}
        remedy = "" if works else f"Install {tier}."
        return Probe(tier=tier, works=works, detail=f"{tier} here", remedy=remedy, held=held)

    monkeypatch.setattr(tiers, "probe", found)
    monkeypatch.setattr(sandbox, "probe", found)


def test_a_boundary_makes_the_machine_ready(monkeypatch: pytest.MonkeyPatch):
    stand(monkeypatch, Tier.LANDLOCK, Tier.RLIMITS)
    found = diagnose(Patient(), (check_sandbox,))
    assert found.ready
    levels = {f.name: f.level for f in found.findings}
    assert levels["bwrap"] is Level.WARNING
    assert levels["landlock"] is Level.OK
    assert found.findings[-1].detail.startswith("landlock")


def test_limits_alone_do_not(monkeypatch: pytest.MonkeyPatch):
    stand(monkeypatch, Tier.RLIMITS)
    found = diagnose(Patient(), (check_sandbox,))
    assert not found.ready
    assert "bubblewrap" in found.findings[-1].remedy


def test_wrong_versions_are_told(monkeypatch: pytest.MonkeyPatch):
    from configs.errors import Problem

    wrong = Problem(where="ray", what="9.9 is installed; tested with ==2.60.0", fix="Install it.")
    monkeypatch.setattr(packages, "check_versions", lambda: [wrong])
    monkeypatch.setattr(packages, "installed_versions", lambda: {"ray": "9.9", "torch": "2.13.0"})
    levels = {f.name: f.level for f in check_packages(Patient())}
    assert (levels["ray"], levels["torch"]) == (Level.WARNING, Level.OK)
    monkeypatch.setattr(packages, "installed_versions", lambda: {})
    assert {f.name: f.level for f in check_packages(Patient())}["ray"] is Level.FAILED


def test_the_table_holds_findings_and_remedies():
    found = Diagnosis(
        (
            Finding(section="sandbox", name="bwrap", level=Level.OK, detail="fine"),
            Finding(
                section="disk", name="room", level=Level.FAILED, detail="full", remedy="Empty."
            ),
        )
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_diagnosis(found))
    text = console.export_text()
    for part in ("bwrap", "fine", "full", "room: Empty.", "not ready"):
        assert part in text


@pytest.mark.parametrize(("standing", "code"), [((Tier.BWRAP,), 0), ((), 1)])
def test_the_command_says_whether_the_machine_is_ready(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    standing: tuple[Tier, ...],
    code: int,
):
    stand(monkeypatch, *standing)
    monkeypatch.setattr(all_checks, "CHECKS", (check_sandbox,))
    assert cli._main(["doctor", "--json"]) == code
    shown = json.loads(capsys.readouterr().out)
    assert shown["ready"] is (code == 0)
    assert shown["findings"][0]["name"] == "bwrap"


def test_only_graders_that_run_code_need_a_sandbox(monkeypatch: pytest.MonkeyPatch):
    stand(monkeypatch)
    assert not needs_sandbox(config(PATTERN))
    assert find_tier(config(PATTERN)) is None
    assert validate_sandbox(config(PATTERN)) == []
    assert needs_sandbox(config(CODE))
    assert needs_sandbox(config({"type": "python", "source": "def grade(s, i): return 1.0"}))


def test_weaker_than_required_is_a_problem_of_the_recipe(monkeypatch: pytest.MonkeyPatch):
    stand(monkeypatch, Tier.LANDLOCK)
    assert validate_sandbox(config(CODE, "landlock")) == []
    (problem,) = validate_sandbox(config(CODE, "bwrap"))
    assert problem.where == "reward.sandbox.require"
    assert problem.fix == "Install bwrap."
    with pytest.raises(ConfigError):
        find_tier(config(CODE, "bwrap"))


def test_a_run_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from orchestrator import run

    stand(monkeypatch, Tier.RLIMITS)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "p", "tests": ["assert f(1) == 1"]}) + "\n")
    with pytest.raises(ConfigError) as error:
        run.check(config(CODE, rows=str(rows)))
    assert "reward.sandbox.require" in [p.where for p in error.value.problems]


def test_the_tier_stands_in_the_record_of_the_run(tmp_path: Path):
    with RunDir.open(tmp_path / "run", config(PATTERN), "never", sandbox="bwrap (fine)"):
        pass
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["attempts"][0]["sandbox"] == "bwrap (fine)"


def test_limits_alone_are_called_what_they_are():
    weak = Probe(tier=Tier.RLIMITS, works=True, detail="limits alone")
    assert "no code that means harm" in describe(weak)
    assert {"python", "code_tests"} == sandboxing.SANDBOXED
