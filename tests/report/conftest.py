"""Run directories made by hand, and a real headless browser to look at their pages with.

Where no browser is installed its tests are skipped, and the end of the session says so loudly.
"""

import json
import math
import random
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_reward_model, load_sft, save_config
from configs.schema import RunConfig
from mixing.ledger.events import (
    Accepted,
    Attempt,
    Dispatched,
    DispatchedGroup,
    Event,
    Rejected,
    Score,
    Trained,
    TrainedGroup,
    to_row,
)
from orchestrator.report.gather import RunReader
from orchestrator.report.page import render
from orchestrator.report.watch import page_data

ROOT = Path(__file__).parents[2]
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--window-size=1440,1000", "--hide-scrollbars"),
)
MISSING = (
    "NO BROWSER: the pages of `braid report` are NOT TESTED here. Install Debian's packages: "
    "apt-get install chromium chromium-driver"
)
BEGAN = 1_790_000_000
"""When made-up runs began, in seconds since 1970."""
PER_SOURCE = (
    *("groups", "samples", "loss_tokens", "survival", "share/target", "share/groups"),
    *("total/groups", "total/share/target", "total/share/groups", "all/groups", "all/tokens"),
    *("all/reward/mean", "all/reward/std", "all/pass@1", "all/pass@4", "all/length/mean"),
    *("all/length/p95", "all/truncated", "all/zero_variance", "all/invalid", "all/grade_s"),
    *("all/generate_s", "all/reward_part/answer", "trained/staleness/mean", "alarm/length"),
)
WHOLE = (
    *("reward/mean", "staleness/mean", "staleness/max", "completion_tokens_per_s", "sync/bytes"),
    *("train/entropy", "train/kl_ref", "train/loss", "train/grad_norm", "train/lr"),
    *("train/clip/low", "train/clip/high", "train/mismatch/kl", "train/mismatch/max_gap"),
    *("train/mismatch/ess", "time/generate", "time/train", "time/sync_send", "time/step"),
    *("ledger/dispatched", "ledger/trained", "ledger/in_flight", "sync/logprob_gap_max"),
)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if BROWSER is None or DRIVER is None:
        terminalreporter.section("browser tests skipped", red=True, bold=True)
        terminalreporter.line(MISSING)


@dataclass(kw_only=True)
class Made:
    """How a made-up run directory looks."""

    steps: int = 12
    num_steps: int | None = None
    sources: tuple[str, ...] = ("sums", "spelling")
    attempts: int = 1
    """Each but the first goes on three steps before where the one before it ended."""
    text: str = "forty-two"
    """What stands wherever a text of a model or a person may stand."""
    tokens: int = 12
    """Of each rollout; a third is prompt."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """More metrics of every step."""
    missing_steps: tuple[int, ...] = ()


def make_run(path: Path, made: Made | None = None, **how: Any) -> Path:
    """Write a run directory as `braid run` would have."""
    made = made or Made(**how)
    rng = random.Random(7)
    (path / "rollouts").mkdir(parents=True)
    save_config(_config(made), path / "config.yaml")
    (path / "run.json").write_text(json.dumps(_record(made)))
    _write(path / "metrics.jsonl", [row(made, s, rng) for s in _steps(made)])
    _write(path / "eval.jsonl", _evals(made))
    alarm = {"step": 2, "source": made.sources[0], "monitor": "length", "event": "raised"}
    _write(path / "alarms.jsonl", [{**alarm, "action": "warn", "text": made.text, "ratio": 2.5}])
    (path / "ledger.jsonl").write_bytes(b"".join(_ledger(made)))
    for step in _steps(made):
        _write(path / f"rollouts/step_{step}.jsonl", _rollouts(made, step, rng))
    (path / "log.txt").write_text(_log(made), encoding="utf-8", errors="backslashreplace")
    (path / "run.lock").write_text(f"pid 1 on {socket.gethostname()}\n")
    return path


def row(made: Made, step: int, rng: random.Random) -> dict[str, Any]:
    """Return a step's metrics."""
    names = [f"source/{s}/{n}" for s in made.sources for n in PER_SOURCE]
    found: dict[str, Any] = {n: rng.random() for n in (*WHOLE, *names)}
    return {"step": step, **found, **made.more}


def _steps(made: Made) -> list[int]:
    return [s for s in range(1, made.steps + 1) if s not in made.missing_steps]


def _config(made: Made) -> RunConfig:
    sources = [
        {
            "name": name,
            "data": {"procedural": "reasoning_gym/lcm"},
            "rewards": [{"use": "exact", "name": "answer"}],
            "instruction": made.text,
        }
        for name in made.sources
    ]
    total = made.steps if made.num_steps is None else made.num_steps
    return RunConfig.model_validate(
        {
            "name": "made",
            "num_steps": max(1, total),
            "model": {"path": "nowhere"},
            "sources": sources,
            "batch": {"groups_per_step": 4},
        }
    )


def _record(made: Made) -> dict[str, Any]:
    attempts = [
        {
            "attempt": number,
            "started": f"2026-09-21T14:{10 + number}:00+00:00",
            "host": "node-1",
            "pid": 1,
            "command": ["braid", "run", made.text],
            "git_commit": "0123456789abcdef",
            "versions": {"torch": "2.13.0"},
            "hashes": {"sources.sums.data": {"hash": "cafe", "of": made.text}},
        }
        for number in range(1, made.attempts + 1)
    ]
    latest = {"attempt": made.attempts, "attempts": attempts}
    return {"id": "made-1", "name": "made", "seed": 1, **latest}


def _evals(made: Made) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(0, made.steps + 1, 4):
        for i, source in enumerate(made.sources):
            done = step / max(1, made.steps)
            rate = 0.9 - 0.3 * done if i else 0.2 + 0.5 * done
            interval = {"pass_rate_low": rate - 0.08, "pass_rate_high": rate + 0.08}
            measured = {"items": 100, "samples": 1, "temperature": 1.0, "max_tokens": 9}
            rows.append(
                {
                    **{"step": step, "source": source, "n": 100, "invalid": 0},
                    **{"pass_rate": rate, "pass_rate_stderr": 0.04, "gap": 0.01},
                    **interval,
                    **measured,
                    "pass_threshold": 1.0,
                }
            )
    return rows


def _ledger(made: Made) -> Iterator[bytes]:
    at, offsets, step = 0, {0: 0}, 0
    share = max(1, math.ceil(made.steps / made.attempts))
    for number in range(1, made.attempts + 1):
        first = max(0, step - 3) if number > 1 else 0
        last = min(made.steps, number * share)
        events: list[Event] = [
            Attempt(time=_time(number), attempt=number, step=first, offset=offsets[first])
        ]
        for event in events:
            yield (line := to_row(event))
            at += len(line)
        for step in range(first + 1, last + 1):
            for event in _step_events(made, step, number):
                yield (line := to_row(event))
                at += len(line)
            offsets[step] = at


def _time(number: int) -> int:
    return BEGAN + 60 * number


def _step_events(made: Made, step: int, number: int) -> Iterator[Event]:
    score = Score(
        valid=4, invalid=0, truncated=0, reward=0.5, tokens=40, samples=4, loss_tokens=40,
        versions=(step - 1, step - 1),
    )  # fmt: skip
    when = _time(number) + step
    names = [f"{s}/train/{step}#e0a{number - 1}" for s in made.sources]
    groups = [DispatchedGroup(n, n.split("/")[0], 4) for n in names]
    failed = f"{made.sources[0]}/train/{1000 + step}#e0a{number - 1}"
    groups.append(DispatchedGroup(failed, made.sources[0], 4))
    yield Dispatched(time=when, step=step, version=step - 1, groups=tuple(groups))
    yield Rejected(time=when, group=failed, reason="given_up", why=made.text[:60], score=score)
    for name in names:
        yield Accepted(time=when, group=name, score=score)
    trained = tuple(TrainedGroup(n, 4, 40) for n in names)
    yield Trained(time=when, step=step, version=step, groups=trained)


def _rollouts(made: Made, step: int, rng: random.Random) -> list[dict[str, Any]]:
    prompt = made.tokens // 3
    sampled = made.tokens - prompt
    logprobs = [round(-rng.random() * 3, 5) for _ in range(sampled)]
    advantages = [round(rng.uniform(-2, 2), 4) for _ in range(sampled)]
    trainer = [round(v + 0.01 * rng.random(), 5) for v in logprobs]
    rows: list[dict[str, Any]] = []
    for source in made.sources:
        for index in range(4):
            rows.append(
                {
                    "step": step,
                    "group_id": f"{source}/train/{step}#e0a0",
                    "source": source,
                    "index": index,
                    "prompt": [{"role": "user", "content": f"question {step}: {made.text}"}],
                    "answer": made.text,
                    "completions": [f"answer {index} {made.text}", f"and {made.text}"],
                    "heard": [made.text],
                    "status": "completed",
                    "reward": index / 4,
                    "reward_parts": {"answer": index / 4, made.text[:40]: 0.5},
                    "spans": [],
                    "reward_notes": {"answer": {"why": made.text}},
                    "gold": None,
                    "tampering": 0,
                    "versions": [step - 1],
                    "completion_tokens": sampled,
                    "error": None,
                    "tokens": {
                        "text": [made.text, *("tok " for _ in range(made.tokens - 1))],
                        "sampled": [[prompt, made.tokens]],
                        "advantage": advantages,
                        "logprob": logprobs,
                        "trainer_logprob": trainer,
                    },
                }
            )
    return rows


def _log(made: Made) -> str:
    lines = [
        "INFO braid.publisher: weight sync: generation 0, broadcast over gloo, 50 tensors, 4.1 MB",
        "INFO braid.publisher: agreement at version 0: median 0.00e+00, largest 2.50e-06 over "
        "14 tokens",
        f"WARNING braid.producer: group sums/train/1 failed ({made.text})",
        "WARNING braid.publisher: silent; trying once more under a new generation",
        f"ERROR braid.run: {made.text}\nTraceback (most recent call last):\n  {made.text}",
        "INFO braid.recorder: done",
        "INFO braid.checkpoints: checkpoint of step 12 committed: x",
    ]
    return "".join(f"2026-09-21 14:11:{i:02d},000 {line}\n" for i, line in enumerate(lines))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(r) + "\n" for r in rows)  # ASCII: what is odd is escaped
    path.write_text(lines)


@pytest.fixture
def make() -> Callable[..., Path]:
    return make_run


def _add_rollback(run: Path, after: int, to: int) -> None:
    """Have the guards roll a made-up run back, as its metrics tell it."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row |= {"train/skipped": float(row["step"] == after), "guards/shrunk_for": 0.0}
        row |= {"guards/rolled_back_to": float(to)} if row["step"] == after else {}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _learn_from_rows(run: Path, recipe: str) -> None:
    """Make a made-up run directory that of `braid sft` or `braid reward-model`."""
    load = load_sft if recipe == "sft" else load_reward_model
    save_config(load(ROOT / "configs" / "recipes" / f"{recipe}.yaml"), run / "config.yaml")
    more = {} if recipe == "sft" else {"accuracy": 0.75, "margin": 1.5}
    row = {"source": "held_out", "rows": 9, "loss": 0.5, "count": 40.0, **more}
    lines = [json.dumps({"step": step, **row}) + "\n" for step in (0, 4, 8)]
    (run / "eval.jsonl").write_text("".join(lines))
    for name in ("ledger.jsonl", "alarms.jsonl"):
        (run / name).unlink()
    shutil.rmtree(run / "rollouts")


@pytest.fixture
def add_rollback() -> Callable[[Path, int, int], None]:
    return _add_rollback


@pytest.fixture
def learn_from_rows() -> Callable[[Path, str], None]:
    return _learn_from_rows


def write_page(run: Path, out: Path) -> Path:
    """Write the page of a run."""
    out.write_bytes(render(page_data(RunReader(run).read())))
    return out


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run and its page."""

    def made(**how: Any) -> Path:
        return write_page(make_run(tmp_path / "run", **how), tmp_path / "report.html")

    return made


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda run: write_page(run, tmp_path / "report.html")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    if BROWSER is None or DRIVER is None:
        pytest.skip(MISSING)
    opened = Browser(tmp_path_factory.mktemp("chromium-profile"))
    yield opened
    opened.driver.quit()


class Browser:
    """Chromium, driven by selenium."""

    def __init__(self, profile: Path):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        assert BROWSER is not None and DRIVER is not None
        options.binary_location = BROWSER
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.driver.set_page_load_timeout(60)
        self.driver.set_script_timeout(30)

    def open(self, address: str | Path, *, scheme: str = "light") -> None:
        """Open a page anew; what earlier pages logged and kept is forgotten."""
        self.driver.get("about:blank")
        self.complaints(), self.requests()
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get(address.as_uri() if isinstance(address, Path) else address)
        self.wait("return document.querySelectorAll('main section').length > 0")

    def js(self, script: str, *arguments: object) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def count(self, selector: str) -> int:
        """Return how many elements there are."""
        return self.js("return document.querySelectorAll(arguments[0]).length", selector)

    def text(self, selector: str) -> str:
        """Return an element's text."""
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def wait(self, script: str, *arguments: object, seconds: float = 20) -> None:
        """Wait until a script returns something true."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, seconds, 0.05).until(lambda _: self.js(script, *arguments))

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def complaints(self) -> list[str]:
        """Return what the console said since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since the page was opened."""
        messages = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if _is_request(m)]
        return [url for url in asked if not url.startswith(("data:", "about:"))]


def _is_request(message: Mapping[str, Any]) -> bool:
    return message["method"] == "Network.requestWillBeSent"
