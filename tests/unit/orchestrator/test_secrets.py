"""Ten planted secrets appear in nothing that a run writes, shows or sends."""

import json
import logging
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.errors import ActorFailure, RunError
from actors.reward import _append
from configs.errors import ConfigError, Problem
from configs.load import load_recipe
from configs.redact import HIDDEN, RedactingFormatter, is_secret_name, redact, redact_data
from configs.schema import RunConfig
from configs.validate_secrets import check_secrets
from orchestrator import cli
from orchestrator.records.metrics import MetricSinks
from orchestrator.records.run_dir import RunDir
from orchestrator.report.gather import RunReader
from orchestrator.report.page import render
from orchestrator.report.watch import page_data
from rewards.process import _environment
from rollouts.record import record
from rollouts.types import (
    Boundary,
    GroupRequest,
    Message,
    Rollout,
    RolloutError,
    RolloutGroup,
    RolloutStatus,
    Sampling,
    Task,
)

SAMPLING = Sampling(temperature=1.0, max_tokens=8)
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Planted:
    """One secret, and where it was put."""

    where: str
    value: str


PLANTED = (
    Planted("OPENAI_API_KEY", "sk-proj-planted-aaaaaaaaaaaa"),
    Planted("hugging face's token file", "hf_plantedBBBBBBBBBBBBBBBB"),
    Planted("W&B's key in .netrc", "planted-cccc-wandb-key-cccccccccccccccccccc"),
    Planted("MYJUDGE, which a judge's api_key_env names", "planted dddd / judge + key"),
    Planted("user and password of an address", "planted-user:planted-eeee"),
    Planted("a header", "planted0ffff0bearer0token"),
    Planted("text of an exception", "AKIAPLANTEDGGGGGGGGG"),
    Planted("environment of a grader, GRADER_PASSWORD", "planted-hhhh-grader"),
    Planted("path of a data set", "ghp_plantediiiiiiiiiiiiiiiiiiii"),
    Planted("a recipe, by mistake", "planted-jjjj-api-key"),
)
VALUES = [p.value for p in PLANTED]


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "huggingface" / "token").write_text(VALUES[1] + "\n")
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {VALUES[2]}\n")
    for name in ("HF_HOME", "HF_TOKEN_PATH", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("OPENAI_API_KEY", VALUES[0])
    monkeypatch.setenv("MYJUDGE", VALUES[3])
    monkeypatch.setenv("GRADER_PASSWORD", VALUES[7])
    return home


MESSAGE = (
    f"asked with {VALUES[0]}, {VALUES[1]}, {VALUES[2]} and {VALUES[3]} through "
    f"http://{VALUES[4]}@proxy:3128/x; Authorization: Bearer {VALUES[5]}; {VALUES[6]}; "
    f"{VALUES[7]}; /data/{VALUES[8]}/rows.jsonl; the rest stands"
)
"""Everything but what only a recipe can hold."""


def leaked(text: str) -> list[str]:
    return [p.where for p in PLANTED if p.value in text or json.dumps(p.value)[1:-1] in text]


def recipe(folder: Path, **changes: Any) -> RunConfig:
    data = yaml.safe_load((ROOT / "configs/recipes/quickstart.yaml").read_text())
    data["model"]["path"] = str(ROOT / "configs/models/tiny")
    judge = {"base_url": "https://judge.example/v1", "model": "m", "api_key_env": "MYJUDGE"}
    data["judges"] = {"j": {"endpoint": judge}}
    data["logging"] = {"wandb": "offline"}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**data, **changes}))
    return load_recipe(path)


def group() -> RolloutGroup:
    task = Task(
        task_id="sums/train/0",
        source="sums",
        prompt=(Message(role="user", content="1+1?"),),
        answer="2",
        metadata={},
    )
    request = GroupRequest(
        group_id="sums/train/0#e0a0", task=task, step=1, group_size=1, sampling=SAMPLING
    )
    error = RolloutError(boundary=Boundary.REWARD, kind="ValueError", message=MESSAGE)
    rollout = Rollout(
        index=0,
        turns=(),
        status=RolloutStatus.INVALID,
        reward_parts={},
        error=error,
        reward_notes={"judge": f"said {VALUES[0]}"},
    )
    return RolloutGroup(request=request, rollouts=(rollout,), generate_s=1.0)


def test_nothing_that_a_run_writes_holds_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    cfg = recipe(tmp_path)
    monkeypatch.setattr(sys, "argv", ["braid", "run", "x.yaml", f"--set=a=http://{VALUES[4]}@h"])
    run_dir = tmp_path / "run"
    with (
        pytest.raises(RuntimeError),
        RunDir.open(run_dir, cfg, "never") as directory,
        MetricSinks(cfg, directory) as sinks,
    ):
        logging.getLogger("braid.x").warning("%s", MESSAGE)
        lines = [json.dumps(row, ensure_ascii=False) for row in record(group(), 10)]
        _append(directory.rollouts_path(10), lines)
        sinks.log({"step": 10, "train/loss": 1.0})
        raise RuntimeError(MESSAGE)
    files = [p for p in run_dir.rglob("*") if p.is_file()]
    assert {"log.txt", "run.json", "config.yaml", "metrics.jsonl", "step_10.jsonl"} <= {
        p.name for p in files
    }
    assert any(p.suffix == ".wandb" for p in files)
    for path in files:
        text = path.read_bytes().decode("utf-8", "replace")
        assert leaked(text) == [], path
    log = (run_dir / "log.txt").read_text()
    assert "RuntimeError" in log and log.count("the rest stands") == 2
    assert "the rest stands" in (run_dir / "rollouts" / "step_10.jsonl").read_text()
    page = render(page_data(RunReader(run_dir).read())).decode()
    assert leaked(page) == [] and "the rest stands" in page
    shown = capfd.readouterr()
    assert leaked(shown.out + shown.err) == []


def test_errors_hold_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe(tmp_path)  # which tells that MYJUDGE is a key
    problem = Problem(where=MESSAGE, what=MESSAGE, fix=MESSAGE)
    failure = ActorFailure(actor="rollout[0]", node="n", doing="start", cause=MESSAGE)
    for error in (problem, ConfigError(problem), RunError(MESSAGE), failure):
        assert leaked(str(error)) == [] and leaked(repr(error)) == []
        assert "the rest stands" in str(error)
    cli.show_problems(ConfigError(problem), cli._stderr())
    assert leaked(capsys.readouterr().err) == []


@pytest.mark.parametrize("value", [VALUES[0], VALUES[6], VALUES[8], VALUES[1]])
def test_one_in_a_recipe_is_refused_without_being_told(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe(tmp_path)
    for place in ("sources.sums.instruction", "name", "logging.wandb_project", "model.path"):
        text = f"x-{value}" if place == "name" else f"/data/{value}/rows"
        given = f"--set={place}={text}"
        assert cli._main(["plan", str(tmp_path / "recipe.yaml"), given]) == 2
        shown = capsys.readouterr()
        assert leaked(shown.out + shown.err) == [], place


def test_the_recipe_s_own_words_are_found_and_named(tmp_path: Path):
    cfg = recipe(tmp_path)
    assert list(check_secrets(cfg)) == []
    sources = [s.model_dump(mode="json", exclude_unset=True) for s in cfg.sources]
    sources[0]["rewards"][0]["args"] = {"api_key": VALUES[9]}
    with pytest.raises(ConfigError) as refused:
        recipe(tmp_path, sources=sources)
    (found,) = refused.value.problems
    assert found.where.endswith("args.api_key") and "name of its field" in found.what
    assert "environment variable" in found.fix and leaked(str(found)) == []


def test_a_grader_s_process_sees_none(planted: Path):
    assert leaked(json.dumps(_environment())) == []
    code = "import os; print(dict(os.environ))"
    told = subprocess.run(
        [sys.executable, "-c", code], env=_environment(), capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0 and leaked(told.stdout) == []


def test_what_goes_to_trackers_holds_none():
    data = redact_data({"a": [MESSAGE, {"b": (MESSAGE,)}], MESSAGE: 1, "n": 2.5, "none": None})
    assert leaked(json.dumps(data)) == [] and data["n"] == 2.5 and data["none"] is None


def test_a_last_traceback_holds_none(planted: Path):
    code = "from configs.redact import guard_output as g; g(); raise ValueError(open(0).read())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=MESSAGE,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "the rest stands" in done.stderr
    assert [v for v in (*VALUES[:3], *VALUES[4:9]) if v in done.stderr] == []


def test_ordinary_words_stay():
    text = "eos_token: <|endoftext|> at https://example.com/a@b sk-ill 8 tokens, key=value"
    assert redact(text) == text
    assert HIDDEN in redact("https://user:pass@host/x") and "host/x" in redact("https://u:p@host/x")


@pytest.mark.parametrize("name", ["HF_TOKEN", "MY_API_KEY", "PASSWORD_2", "AWS_SECRET_ACCESS_KEY"])
def test_names_of_secrets(name: str):
    assert is_secret_name(name)
    assert not is_secret_name("TOKENIZERS_PARALLELISM") and not is_secret_name("SSH_AUTH_SOCK")


def test_the_formatter_cuts_tracebacks_too():
    try:
        raise ValueError(MESSAGE)
    except ValueError:
        record = logging.LogRecord("x", 30, "f", 1, "m", None, sys.exc_info())
    line = RedactingFormatter("%(message)s").format(record)
    assert "Traceback" in line and not re.search("|".join(map(re.escape, VALUES[4:7])), line)
