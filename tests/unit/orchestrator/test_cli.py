import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from configs.load import save_config
from configs.schema import RunConfig
from orchestrator.commands.export import export_command
from orchestrator.records.checkpoints import CheckpointStore

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "configs" / "recipes" / "one_gpu.yaml"


def braid(*arguments: str, before: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, after the code in `before`."""
    code = before + "\nfrom orchestrator.cli import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
    )


def stand_in(execute: str) -> str:
    """Code that puts another `execute` in place of the real run, which needs Ray and vLLM."""
    body = textwrap.indent(textwrap.dedent(execute), "    ")
    return (
        "import sys, types\n"
        "module = types.ModuleType('orchestrator.run')\n"
        f"def execute(cfg, run_dir, resume, *, accept_changes):\n{body}\n"
        "module.execute = execute\n"
        "sys.modules['orchestrator.run'] = module\n"
    )


def test_plan_as_tables():
    done = braid("plan", str(RECIPE), "--gpu-gib", "80")
    assert done.returncode == 0, done.stderr
    for part in (
        "one-gpu: 200 steps",
        "trainer + rollout + reference [0]",
        "knights",
        "ready to run",
    ):
        assert part in done.stdout
    assert "\x1b" not in done.stdout


def test_plan_as_json_with_overrides():
    done = braid("plan", str(RECIPE), "--json", "--set", "num_steps=7", "--set", "seed=3")
    assert json.loads(done.stdout)["num_steps"] == 7


def test_plan_with_problems_exits_2_and_shows_all():
    done = braid(
        "plan",
        str(RECIPE),
        "--set",
        "batch.num_minibatches=99",
        "--set",
        "trainer.offload=parameters",
    )
    assert done.returncode == 2
    assert "batch.num_minibatches" in done.stdout and "trainer.offload" in done.stdout
    assert "2 problem(s): this recipe does not run" in done.stdout


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([str(RECIPE), "--set", "batch.groups_per_stp=3"], "Did you mean `groups_per_step`?"),
        ([str(RECIPE), "--set", "num_steps=many"], "must be a whole number"),
        (["nowhere.yaml"], "there is no such file"),
    ],
)
def test_bad_input_is_a_message_and_exit_2(command: str, arguments: list[str], says: str):
    done = braid(command, *arguments)
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) < 24
    assert "\x1b" not in done.stderr


def test_grade_refuses_options_that_it_would_not_read():
    options = ("--source", "sums", "--judges", "judges.yaml", "--item", "{}x")
    done = braid("grade", str(RECIPE), *options)
    assert done.returncode == 2
    assert "--judges: is read with --sample or --data alone" in done.stderr
    assert "--item: is read with --sample alone" in done.stderr


def test_a_bad_option_exits_2():
    done = braid("run", str(RECIPE), "--resume", "maybe")
    assert done.returncode == 2
    assert "maybe" in done.stderr and "Traceback" not in done.stderr


def test_run_passes_what_it_was_given(tmp_path: Path):
    show = "print(cfg.name, cfg.seed, run_dir, resume, accept_changes)\nreturn 0"
    done = braid("run", str(RECIPE), "--set", "seed=5", before=stand_in(show))
    expected = "one-gpu 5 runs/one-gpu never False\n"
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    options = ["--run-dir", "/x/y", "--resume", "auto", "--accept-changes"]
    done = braid("run", str(RECIPE), *options, before=stand_in(show))
    assert done.stdout == "one-gpu 1 /x/y auto True\n"


def test_a_new_run_has_nothing_to_accept():
    done = braid(
        "run",
        str(RECIPE),
        "--accept-changes",
        before=stand_in("raise AssertionError('started')"),
    )
    assert done.returncode == 2
    assert "--accept-changes" in done.stderr and "--resume auto" in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--items", "0"], "--items"),
        (["--samples", "1"], "--samples"),
        (["--set", "sources.knights.rewards=[]"], "sources.knights.rewards"),
        (["--set", "batch.groups_per_stp=3"], "Did you mean `groups_per_step`?"),
    ],
)
def test_bad_baselines_start_nothing(options: list[str], says: str):
    done = braid("baseline", str(RECIPE), *options)
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_run_shows_cross_field_problems_before_anything_starts():
    done = braid(
        "run",
        str(RECIPE),
        "--set",
        "batch.num_minibatches=99",
        before=stand_in("raise AssertionError('started')"),
    )
    assert done.returncode == 2
    assert "batch.num_minibatches" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("body", "code", "last"),
    [
        (
            "from mixing.ledger.ledger import LedgerError\n"
            "raise LedgerError('ledger.jsonl does not add up')",
            1,
            "LedgerError: ledger.jsonl does not add up",
        ),
        ("return 130", 130, None),
        ("return 143", 143, None),
        ("raise KeyboardInterrupt", 130, None),
        (
            "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(5)",
            143,
            "stopped by SIGTERM",
        ),
        (
            "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)",
            130,
            "stopped by SIGINT",
        ),
        (
            "from configs.errors import ConfigError, Problem\n"
            "raise ConfigError(Problem(where='cluster', what='8 GPU demanded, 0 there'))",
            2,
            "  cluster: 8 GPU demanded, 0 there",
        ),
        (
            "from actors.errors import ActorFailure\n"
            "raise ActorFailure(actor='rollout[0]', node='10.0.0.1', doing='generate', "
            "cause='it was killed')",
            1,
            "ActorFailure: rollout[0] on 10.0.0.1, generate: it was killed",
        ),
        (
            "from orchestrator.records.checkpoints import CheckpointError\n"
            "raise CheckpointError('checkpoint of step 3: disk full')",
            1,
            "CheckpointError: checkpoint of step 3: disk full",
        ),
        (
            "raise OSError(28, 'No space left on device', 'runs/mine/metrics.jsonl')",
            1,
            "OSError: [Errno 28] No space left on device: 'runs/mine/metrics.jsonl'",
        ),
        (
            "from mixing.quota.allocator import MixExhausted\n"
            "raise MixExhausted('step 4 cannot be filled', step=4, wanted=False)",
            1,
            "MixExhausted: step 4 cannot be filled",
        ),
    ],
)
def test_how_a_run_ends(body: str, code: int, last: str | None):
    done = braid("run", str(RECIPE), before=stand_in(body))
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if last is not None:
        assert done.stderr.splitlines()[-1] == last


def test_a_bug_keeps_its_traceback_with_the_cause_last():
    done = braid("run", str(RECIPE), before=stand_in("return 1 / 0"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_problems_may_hold_brackets():
    done = braid("plan", str(RECIPE), "--set", "rollout.actors.labels=[a]")
    assert "rollout.actors.labels" in done.stderr and "a list of 1" in done.stderr


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory with checkpoints of steps 3 and 6."""
    source = {
        "name": "s",
        "data": {"procedural": "reasoning_gym/lcm"},
        "rewards": [{"use": "exact", "name": "e"}],
    }
    cfg = RunConfig.model_validate(
        {
            "name": "small",
            "num_steps": 9,
            "model": {"path": "org/model"},
            "sources": [source],
            "batch": {"groups_per_step": 1},
        }
    )
    path = tmp_path / "run"
    store = CheckpointStore(path / "checkpoints", keep=2, attempt=1)
    for step in (3, 6):
        (store.begin(step) / "trainer" / "rank_0.bin").write_text(str(step))
        store.write_driver(step, {})
        store.commit(step)
    save_config(cfg, path / "config.yaml")
    return path


@pytest.mark.parametrize(("step", "folder"), [("3", "step_3"), ("latest", "step_6")])
def test_export_reads_the_checkpoint_asked_for(
    run_dir: Path, tmp_path: Path, step: str, folder: str
):
    command = export_command(run_dir, step, tmp_path / "out")
    trainer = run_dir / "checkpoints" / folder / "trainer"
    assert command[1:] == ["-m", "trainer.export", str(trainer), "org/model", str(tmp_path / "out")]


def test_export_refuses_what_it_cannot_do(run_dir: Path, tmp_path: Path):
    out = str(tmp_path / "out")
    assert "steps: 3, 6" in braid("export", str(run_dir), "4", out).stderr
    assert "no run directory" in braid("export", str(tmp_path), "3", out).stderr
    assert "not empty" in braid("export", str(run_dir), "3", str(run_dir)).stderr
    assert "trained all weights" in braid("export", str(run_dir), "3", out, "--adapter").stderr
    (run_dir / "checkpoints" / "step_6" / "trainer" / "rank_0.bin").write_text("7")
    done = braid("export", str(run_dir), "6", out)
    assert done.returncode == 2
    assert "trainer/rank_0.bin: sha256" in done.stderr
    assert "step_3" in export_command(run_dir, "latest", tmp_path / "out")[3]


KILLED_WITHIN_POPEN = """
class Popen(subprocess.Popen):
    def __init__(self, command):
        super().__init__(command)
        print(self.pid, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
subprocess.Popen, script = Popen, 'import time; time.sleep(60)'
"""


@pytest.mark.parametrize("before", ["", KILLED_WITHIN_POPEN], ids=["waiting", "within Popen"])
def test_a_child_command_is_ended_with_its_parent(before: str):
    code = (
        "import os, signal, subprocess, sys, orchestrator.cli as cli\n"
        "script = 'import time, os; print(os.getpid(), flush=True); time.sleep(60)'\n"
        f"{before}"
        "signal.signal(signal.SIGTERM, cli._stop)\n"
        "cli._call([sys.executable, '-c', script])"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    if not before:
        parent.send_signal(signal.SIGTERM)
    parent.wait(timeout=30)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
