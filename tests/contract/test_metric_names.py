"""docs/operate.md lists every name of metrics.jsonl and the denominator of each; Prometheus and the
Grafana dashboard know the same names."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from configs.judges import PriceConfig
from configs.schema import RunConfig
from mixing.difficulty.curriculum import CurriculumSnapshot
from mixing.difficulty.feedback import SourceDifficulty
from mixing.difficulty.window import DifficultySnapshot
from mixing.ledger.events import MoveReason, Reason
from orchestrator.guards import Guards
from orchestrator.publisher import SyncReport
from orchestrator.records.run_totals import RunTotals
from orchestrator.records.source_metrics import METRICS, PART_METRICS
from orchestrator.records.step_metrics import StepBooks, TrainedStep, book_metrics, step_metrics
from orchestrator.sinks.families import Sample, sample
from orchestrator.sinks.to_prometheus import COUNTERS, STEP_SECONDS
from rewards.judges.meter import Meter, add_up
from rewards.monitors.replay import ROLLED_BACK_TO
from rewards.score import Usage
from rollouts.types import (
    Gold,
    GroupSummary,
    RolloutStats,
    RolloutStatus,
    SampleHandle,
    StepResult,
    TextTraits,
)
from tests.made_groups import made_group

PAGE = Path(__file__).parents[2] / "docs" / "operate.md"
ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<meaning>.+) \| (?P<denominator>.*?) *\|$")
NAME = "sums-1.5"
WILD = {
    "<name>": r"[\w.-]+",
    "<pool>": "(all|trained)",
    "<k>": r"\d+",
    "<part>": r"[\w.-]+",
    "<number>": r"[\w/]+",
    "<reason>": r"\w+",
    "<phase>": r"(?!step$)\w+",
    "<monitor>": r"(guards/)?\w+",
}


def documented() -> Mapping[str, str]:
    """Return the denominator of each name in the table of the Metrics section."""
    section = PAGE.read_text().split("## Metrics\n")[1].split("\n## ")[0]
    rows = [match for line in section.splitlines() if (match := ROW.match(line))]
    assert all(row["meaning"].strip() for row in rows)
    names = [row["name"] for row in rows]
    assert len(names) == len(set(names))
    return {row["name"]: row["denominator"] for row in rows}


def pattern(name: str) -> re.Pattern[str]:
    parts = re.split(r"(<\w+>)", name)
    return re.compile("".join(WILD.get(p, re.escape(p)) for p in parts) + "$")


def rollout(reward: float | None, status: RolloutStatus, tokens: int = 3) -> RolloutStats:
    return RolloutStats(
        reward=reward,
        reward_parts={} if reward is None else {"answer": reward, "style": 1.0},
        num_completion_tokens=tokens,
        status=status,
        error=None,
        part_advantages={} if reward is None else {"answer": 0.5, "style": 0.0},
        traits=TextTraits(answer=1, repeated=0.1, looping=False, well_formed=True),
        gold=Gold(score=reward),
        teacher_gap=0.5,
    )


def recipe() -> RunConfig:
    source = {
        "name": NAME,
        "data": {"procedural": "reasoning_gym/chain_sum"},
        "rewards": [{"use": "exact", "name": name} for name in ("answer", "style")],
        "objective": {"gates": [{"part": "style", "needs": "answer"}]},
        "gold": {"grader": {"type": "function", "use": "exact"}},
        "watch": {"compare": ["answer", "answer"]},
    }
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 10,
            "model": {"path": "org/model"},
            "sources": [source],
            "batch": {"groups_per_step": 1},
        }
    )


def group() -> GroupSummary:
    """Return a group with a right, a wrong and an invalid rollout."""
    return made_group(
        (
            rollout(1.0, RolloutStatus.COMPLETED),
            rollout(0.0, RolloutStatus.TRUNCATED, tokens=4),
            rollout(None, RolloutStatus.INVALID),
        ),
        group_id=f"{NAME}/train/0#e0a0",
        source=NAME,
        samples=(SampleHandle(ref=None, row=0, num_tokens=5, num_loss_tokens=3),) * 2,
        generate_s=1.0,
        grade_s=1.0,
        reference=1,
        greedy=rollout(1.0, RolloutStatus.COMPLETED),
    )


def difficulty() -> dict[str, float]:
    everything = SourceDifficulty(
        items=DifficultySnapshot(live=1, widened=1, parked=1, retired=1, unseen=1),
        curriculum=CurriculumSnapshot(level=1, top=2, recent=None),
        kept=1,
    )
    return {f"source/{NAME}/difficulty/{figure}": 1 for figure in everything.figures()}


def judges() -> dict[str, float]:
    judged = Meter(PriceConfig())
    judged.tried(1.0, Usage())
    return {f"judge/gpt-4.1/{f}": v for f, v in add_up([judged.take()]).items()}


@pytest.fixture(scope="module")
def emitted() -> set[str]:
    """Return every name of a step that has something of everything."""
    done = TrainedStep(
        step=1,
        groups=[group(), group()],
        rejected=[],
        shares={NAME: 1.0},
        result=StepResult(policy_version=1, metrics={"loss": 0.5, "clip/low": 0.0}, seconds={}),
    )
    books = StepBooks(
        sync=SyncReport(seconds={"send": 0.1}, bytes=1, gap_median=0.1, gap_max=0.2),
        wall_s=1.0,
        split={"train": 0.5, "sync": 0.5},
        ledger={
            **dict.fromkeys(("ledger/dispatched", "ledger/trained", "ledger/in_flight"), 1),
            "ledger/rolled_back": 0,
            **{f"ledger/rejected/{reason}": 0 for reason in Reason},
            **{f"ledger/moved/{reason}": 0 for reason in MoveReason},
        },
        difficulty=difficulty(),
        judges=judges(),
    )
    metrics = {**step_metrics(recipe(), done), **book_metrics(books, completion_tokens=1)}
    totals = RunTotals([NAME])
    totals.add(metrics)
    return {*metrics, *totals.metrics(), *Guards(recipe()).metrics(), ROLLED_BACK_TO}


def test_every_name_that_a_step_emits_is_documented_once(emitted: set[str]):
    patterns = {name: pattern(name) for name in documented()}
    by_name = {e: [n for n, p in patterns.items() if p.match(e)] for e in emitted}
    assert {e: found for e, found in by_name.items() if len(found) != 1} == {}


def test_every_documented_name_is_emitted(emitted: set[str]):
    silent = [n for n in documented() if not any(pattern(n).match(e) for e in emitted)]
    assert silent == []


def test_denominators_are_those_of_the_code():
    page = documented()
    for metric in METRICS:
        pool = "<pool>" if len(metric.kinds) == 2 else metric.kinds[0]
        assert page[f"source/<name>/{pool}/{metric.name}"] == metric.denominator
    for suffix, denominator in PART_METRICS.items():
        assert page[f"source/<name>/<pool>/reward_part/<part>{suffix}"] == denominator


EVALUATED = [
    f"eval/{NAME}/{figure}"
    for figure in ("pass_rate", "pass_rate_low", "pass@4", "n", "gap", "since_start", "regressed")
] + [f"eval/{figure}" for figure in ("mean", "spikiness", "spread", "regressed")]
GRAFANA = Path(__file__).parents[2] / "k8s" / "grafana"


def trainer_numbers() -> list[str]:
    """Return the names that the page lists under `train/<number>`."""
    (row,) = (
        line for line in PAGE.read_text().splitlines() if line.startswith("| `train/<number>`")
    )
    return [f"train/{name}" for name in re.findall(r"`([\w/]+)`", row)]


@pytest.fixture(scope="module")
def exported(emitted: set[str]) -> dict[str, set[str]]:
    """Return each name that Prometheus sees, with its labels."""
    found: dict[str, set[str]] = {}
    for name in (*emitted, *EVALUATED, *trainer_numbers()):
        made = sample(name, run="r")
        found.setdefault(f"ray_{made.family}", set()).update(made.labels)
    found.update({f"ray_{name}": set(labels) for name, (_, labels) in COUNTERS.items()})
    found.update({f"ray_{STEP_SECONDS}_{end}": {"run", "le"} for end in ("bucket", "sum", "count")})
    return found


def test_a_family_of_prometheus_has_one_meaning(emitted: set[str]):
    labels: dict[str, set[str]] = {}
    series: dict[tuple[str, tuple[tuple[str, str], ...]], str] = {}
    for name in sorted({*emitted, *EVALUATED}):
        made = sample(name, run="r")
        assert re.fullmatch(r"braid_[a-zA-Z0-9_]+", made.family)
        assert labels.setdefault(made.family, set(made.labels)) == set(made.labels), name
        at = (made.family, tuple(sorted(made.labels.items())))
        assert series.setdefault(at, name) == name
        assert made.family not in (*COUNTERS, STEP_SECONDS)
        assert NAME not in made.family and (NAME in made.labels.values()) == (NAME in name)


@pytest.mark.parametrize("monitor", ["kl", "guards/loss"])
def test_alarms_of_monitors_and_guards_are_one_family(monitor: str):
    whole = sample(f"alarm/{monitor}", run="r")
    assert whole == Sample("braid_alarm", {"run": "r", "monitor": monitor})
    own = sample(f"source/{NAME}/alarm/{monitor}", run="r")
    labels = {"run": "r", "source": NAME, "monitor": monitor}
    assert own == Sample("braid_source_alarm", labels)


def test_the_dashboard_asks_for_what_is_exported(exported: dict[str, set[str]]):
    text = (GRAFANA / "braid.json").read_text()
    queries = [t["expr"] for p in json.loads(text)["panels"] for t in p.get("targets", ())]
    queries += [a["expr"] for a in json.loads(text)["annotations"]["list"]]
    queries += [
        v["definition"] for v in json.loads(text)["templating"]["list"] if "definition" in v
    ]
    asked = [(q, m) for q in queries for m in re.findall(r"(\w*braid_\w+)(?:\{([^}]*)\})?", q)]
    assert len(queries) > 20 and len(asked) >= len(queries)
    for query, (name, selector) in asked:
        assert name in exported, query
        used = set(re.findall(r"(\w+)(?:=~|!=|=)\"", selector))
        grouped = {g.strip() for by in re.findall(r"by \(([^)]*)\)", query) for g in by.split(",")}
        assert used <= exported[name], query
        assert grouped <= set().union(*(exported[n] for _, (n, _) in asked if n in query)), query


def test_the_dashboard_is_one_that_grafana_loads():
    board = json.loads((GRAFANA / "braid.json").read_text())
    assert board["schemaVersion"] >= 36 and board["uid"] and board["title"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    known = {v["name"] for v in board["templating"]["list"]} | {"__all"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(board))) <= known


def test_the_dashboard_is_given_to_grafana_s_sidecar():
    made = yaml.safe_load((GRAFANA / "kustomization.yaml").read_text())["configMapGenerator"][0]
    assert all((GRAFANA / name).is_file() for name in made["files"])
    assert made["options"]["labels"] == {"grafana_dashboard": "1"}
