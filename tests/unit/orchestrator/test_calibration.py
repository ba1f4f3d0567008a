"""`braid judge calibrate`, and the check of judges before a run, against a server in a thread."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from configs.errors import ConfigError
from configs.load import load_grader
from configs.schema import RunConfig
from orchestrator.calibration import check_calibrations
from orchestrator.commands.grade import grade_one
from orchestrator.commands.judge import judge_app

KEY = "sk-thread-secret"
LABELS = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]
GRADER = {
    "type": "score_model",
    "model": "strict",
    "explain": False,
    "input": [{"role": "user", "content": "Score {{ sample.output_text }}"}],
}


@contextmanager
def server(judge: Callable[[int], float | None]) -> Iterator[str]:
    """Serve verdicts: `judge(number of the anchor)`, or an error for None."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            result = judge(int(text.split("anchor ")[1].split()[0]))
            content = json.dumps({"result": result})
            message = {"role": "assistant", "content": content}
            answer: dict[str, Any] = {"model": "m-1", "choices": [{"message": message}]}
            data = json.dumps(answer if result is not None else {"error": KEY}).encode()
            self.send_response(200 if result is not None else 401)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/v1"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join(timeout=10)


def judge_of(url: str, **more: Any) -> dict[str, Any]:
    endpoint = {"base_url": url, "model": "m", "private": True, "api_key_env": "THREAD_KEY"}
    return {"endpoint": endpoint, "retries": 0, **more}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the grader and its anchors."""
    monkeypatch.setenv("THREAD_KEY", KEY)
    (tmp_path / "grader.yaml").write_text(json.dumps(GRADER))
    rows = [{"sample": f"anchor {i} text", "label": x} for i, x in enumerate(LABELS)]
    (tmp_path / "anchors.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def calibrate(folder: Path, url: str, *more: str):
    judges = folder / "judges.yaml"
    judges.write_text(json.dumps({"judges": {"strict": judge_of(url)}}))
    grader, anchors = str(folder / "grader.yaml"), str(folder / "anchors.jsonl")
    arguments = ["calibrate", grader, "--anchors", anchors, "--judges", str(judges), *more]
    return CliRunner().invoke(judge_app, arguments)


def test_figures_are_printed_and_kept(files: Path):
    with server(lambda i: LABELS[i]) as url:
        done = calibrate(files, url, "--json", "--repeats", "2", "--min-kappa", "0.9")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["weighted_kappa"], found["agreement"], found["repeatable"]) == (1, 1, 1)
    assert found["drift"] is None and found["models"] == ["m-1"]
    (kept,) = (files / "anchors.calibrations.jsonl").read_text().splitlines()
    assert json.loads(kept)["version"] == found["version"]


def test_drift_since_the_last_version_is_shown(files: Path):
    with server(lambda i: LABELS[i]) as url:
        assert calibrate(files, url).exit_code == 0
        (files / "grader.yaml").write_text(json.dumps({**GRADER, "votes": 2}))
        assert "100.0%" in calibrate(files, url).output
    with server(lambda i: 0.0) as url:  # another address is another judge
        shown = calibrate(files, url).output
    assert "since version" in shown and "50.0% of the anchors" in " ".join(shown.split())
    assert len((files / "anchors.calibrations.jsonl").read_text().splitlines()) == 3


def test_a_judge_below_the_threshold_exits_3(files: Path):
    with server(lambda i: 1.0) as url:
        done = calibrate(files, url, "--min-kappa", "0.5")
    assert done.exit_code == 3
    assert "weighted kappa" in done.output


def test_a_grader_that_asks_nobody_or_a_stranger_is_bad_input(files: Path):
    for grader, what in (
        ({"type": "format", "pattern": "x"}, "asks no judge"),
        ({**GRADER, "model": "strikt"}, "Did you mean `strict`"),
        ({**GRADER, "range": [3, 2]}, "must be the lower"),
    ):
        (files / "grader.yaml").write_text(json.dumps(grader))
        done = calibrate(files, "http://127.0.0.1:1/v1")
        assert isinstance(done.exception, ConfigError) and what in str(done.exception)


def test_braid_grade_asks_the_judges_of_a_file(files: Path):
    grader = load_grader(files / "grader.yaml")
    judges = files / "judges.yaml"
    with server(lambda i: 0.25 if i < 9 else None) as url:
        judges.write_text(json.dumps({"judges": {"strict": judge_of(url), "other": {}}}))
        with pytest.raises(ConfigError, match="neither"):
            grade_one(grader, {}, "anchor 3 x", judges)
        judges.write_text(json.dumps({"judges": {"strict": judge_of(url)}}))
        response = grade_one(grader, {}, "anchor 3 x", judges).response()
        failed = grade_one(grader, {}, "anchor 9 x", judges).response()
    metadata: Any = response["metadata"]
    assert (response["reward"], metadata["sampled_model_name"]) == (0.25, "m-1")
    errors: Any = failed["metadata"]
    assert failed["reward"] == 0 and errors["errors"]["model_grader_server_error"] is True
    assert KEY not in json.dumps(failed)
    with pytest.raises(ConfigError, match="not declared"):
        grade_one(grader, {}, "anchor 3 x")


def run_config(folder: Path, url: str, min_kappa: float) -> RunConfig:
    wanted = {"anchors": str(folder / "anchors.jsonl"), "part": "s/r", "min_kappa": min_kappa}
    data: dict[str, Any] = {
        "name": "t",
        "num_steps": 1,
        "model": {"path": "org/model"},
        "sources": [
            {
                "name": "s",
                "data": {"procedural": "reasoning_gym/chain_sum"},
                "rewards": [{"name": "r", "grader": GRADER}],
            }
        ],
        "batch": {"groups_per_step": 1},
        "judges": {"strict": judge_of(url, calibration=wanted), "free": judge_of(url)},
    }
    return RunConfig.model_validate_json(json.dumps(data))


@pytest.mark.parametrize(
    ("judge", "min_kappa", "why"),
    [
        (lambda i: LABELS[i], 0.9, None),
        (lambda i: 1.0, 0.1, "weighted kappa 0.000"),
        (lambda i: LABELS[i] if i < 3 else None, 0.1, "agreement 100%"),
        (lambda i: None, -1.0, "no anchor was judged"),
    ],
)
def test_a_run_whose_judge_disagrees_with_people_does_not_start(
    files: Path, judge: Callable[[int], float | None], min_kappa: float, why: str | None
):
    def check(url: str) -> list[str]:
        cfg = run_config(files, url, min_kappa)
        return asyncio.run(check_calibrations(cfg, cfg.judges, _no_engines, files / "kept.jsonl"))

    with server(judge) as url:
        if why is None:
            (line,) = check(url)
            assert "weighted kappa 1.000" in line
            return
        with pytest.raises(ConfigError, match=why) as error:
            check(url)
    assert error.value.problems[0].where.startswith("judges.strict.calibration")
    assert KEY not in str(error.value)


def _no_engines(name: str, cfg: object) -> Any:
    raise AssertionError(name)
