"""The `braid` command. Imports nothing heavy until a command needs it.

Exit codes: 0 done, 1 the run or the grader failed, 2 bad input, 3 `baseline` found a source that is
no-go or `judge calibrate` a judge below its threshold, 130 Ctrl-C, 143 SIGTERM.
"""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Annotated, cast

import typer
from rich.console import Console

from configs.errors import ConfigError, Problem
from configs.load import load_recipe
from configs.redact import guard_output, redact
from orchestrator.commands.import_recipe import import_app
from orchestrator.commands.judge import judge_app
from orchestrator.commands.learn import reward_model, sample, sft
from orchestrator.commands.options import (
    AcceptChanges,
    Overrides,
    Recipe,
    Resume,
    ResumeChoice,
    RunDirectory,
)
from orchestrator.commands.output import print_json
from orchestrator.commands.render import render
from orchestrator.commands.submit import logs, status, stop, submit
from orchestrator.interrupt import Signalled
from orchestrator.report.commands import diff, report, watch

app = typer.Typer(
    name="braid",
    help="RL post-training of language models on multi-environment mixes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(import_app, name="import")
app.add_typer(judge_app, name="judge")
for _command in (render, submit, status, logs, stop, report, watch, diff, sft, sample):
    app.command()(_command)
app.command("reward-model")(reward_model)
BAD_INPUT, FAILED = 2, 1


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    run_dir: RunDirectory = None,
    resume: ResumeChoice = Resume.NEVER,
    accept_changes: AcceptChanges = False,
) -> None:
    """Train: start the actors, run all steps, evaluate, and free everything."""
    if accept_changes and resume is not Resume.AUTO:
        raise ConfigError(
            Problem(
                where="--accept-changes",
                what="is given, but a new run has nothing that could have changed",
                fix="Give --resume auto with it, or leave it out.",
            )
        )
    cfg = load_recipe(recipe, overrides or ())
    from configs.validate import find_warnings, validate_run

    problems = validate_run(cfg)
    if problems:
        raise ConfigError(problems)
    for warning in find_warnings(cfg):
        _stderr().print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    from orchestrator.run import execute

    path = run_dir or Path("runs") / cfg.name
    raise typer.Exit(execute(cfg, path, resume.value, accept_changes=accept_changes))


@app.command()
def train(
    replay: Annotated[
        Path, typer.Option("--replay", metavar="RUN", help="Run with kept batches (replay.save).")
    ],
    overrides: Overrides = None,
    start: Annotated[
        int, typer.Option("--from", min=0, help="Start from the run's checkpoint of this step.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for metrics; default RUN/replays/N.")
    ] = None,
) -> None:
    """Train on the batches that a run kept, without engines or graders: with the same settings it
    gives the run's metrics, with --set algorithm.loss=... those of another loss."""
    from orchestrator.resume.replay import execute as execute_replay

    raise typer.Exit(execute_replay(replay, overrides or (), start=start, out=out))


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    gpu_gib: Annotated[
        float | None, typer.Option("--gpu-gib", min=0.1, help="Memory of one GPU, GiB.")
    ] = None,
) -> None:
    """Show what a recipe would run, its memory, and everything wrong with it; start nothing."""
    from orchestrator.planning.plan import make_plan

    made = make_plan(load_recipe(recipe, overrides or ()), gpu_gib=gpu_gib)
    if as_json:
        print_json(made.to_json())
    else:
        from orchestrator.planning.table import render_plan

        Console().print(render_plan(made))
    raise typer.Exit(BAD_INPUT if made.problems else 0)


@app.command()
def baseline(
    recipe: Recipe,
    overrides: Overrides = None,
    items: Annotated[
        int, typer.Option("--items", min=1, help="Training items sampled of each source.")
    ] = 64,
    samples: Annotated[int, typer.Option("--samples", min=2, help="Samples of each item.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Sample the starting policy: pass rates, go or no-go of each source, what to set; exit 3
    where a source is no-go."""
    from orchestrator.commands.baseline import execute

    cfg = load_recipe(recipe, overrides or ())
    raise typer.Exit(execute(cfg, items=items, samples=samples, as_json=as_json))


Grader = Annotated[
    str, typer.Argument(metavar="GRADER", help="Grader: file, or {...}; a recipe for --source.")
]
Item = Annotated[str, typer.Option("--item", metavar="JSON", help="The row, or @FILE with it.")]
Sample = Annotated[
    str | None, typer.Option("--sample", metavar="TEXT", help="The answer, or @FILE with it.")
]
Rows = Annotated[
    Path | None, typer.Option("--data", metavar="ROWS", help="Try it on rows of this JSONL file.")
]
OfSource = Annotated[
    str | None, typer.Option("--source", help="Try the reward of this source of a recipe.")
]
JudgesFile = Annotated[
    Path | None, typer.Option("--judges", help="File of judges that it may ask.")
]
Template = Annotated[
    str | None,
    typer.Option("--reference-template", help="A right answer, with {{ item.answer }} in it."),
]
Right = Annotated[
    float | None, typer.Option("--right", help="Score that a right answer must reach.")
]
Paid = Annotated[
    float,
    typer.Option("--paid", min=0, max=1, help="Share of it from which wrong answers are paid."),
]
ProbeModules = Annotated[
    list[str] | None,
    typer.Option("--probes", metavar="MODULE", help="Module with probes of yours; repeatable."),
]


@app.command()
def grade(
    grader: Grader,
    item: Item = "{}",
    sample: Sample = None,
    data: Rows = None,
    source: OfSource = None,
    judges: JudgesFile = None,
    overrides: Overrides = None,
    template: Template = None,
    items: Annotated[int, typer.Option("--items", min=1, help="Rows that are tried.")] = 32,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Gradings of an answer.")] = 3,
    right: Right = None,
    paid: Paid = 0.5,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Gradings at a time.")] = 2,
    timeout_s: Annotated[
        float | None,
        typer.Option("--timeout", min=0.1, help="Of a grading, s; 10, or the recipe's."),
    ] = None,
    probes: ProbeModules = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the RFT `graders/run` response, or the report.")
    ] = False,
) -> None:
    """Grade one answer (--sample); or try a grader on rows (--data), or a recipe's source
    (--source), with right, wrong and forged answers: exit 1 if it is exploitable."""
    if (sample is None) + (data is None) + (source is None) != 2:
        what = "exactly one of --sample, --data and --source is needed"
        raise ConfigError(Problem(where="grade", what=what, fix="Give one of them."))
    given = {
        "--item": (item != "{}", sample is not None, "--sample"),
        "--set": (bool(overrides), source is not None, "--source"),
        "--judges": (judges is not None, source is None, "--sample or --data"),
        "--reference-template": (template is not None, sample is None, "--data or --source"),
        "--timeout": (timeout_s is not None, sample is None, "--data or --source"),
        "--right": (right is not None, sample is None, "--data or --source"),
        "--probes": (bool(probes), sample is None, "--data or --source"),
    }
    _refuse_unread(given)
    if sample is not None:
        from orchestrator.commands.grade import grade_and_show

        raise typer.Exit(grade_and_show(grader, item, sample, judges, as_json=as_json))
    from orchestrator.commands.bench import BenchOptions, bench_grader, bench_source, show

    options = BenchOptions(
        items=items,
        template=template,
        right=right,
        paid=paid,
        repeats=repeats,
        workers=workers,
        timeout_s=timeout_s,
        modules=tuple(probes or ()),
        judges=judges,
    )
    if source is not None:
        found = bench_source(Path(grader), overrides or (), source, options)
    else:
        found = bench_grader(grader, cast(Path, data), options)
    raise typer.Exit(show(found, as_json=as_json))


def _refuse_unread(options: Mapping[str, tuple[bool, bool, str]]) -> None:
    """Raise a ConfigError for options that were given and would not be read.

    Args:
        options: whether each was given, whether it is read, and with which others alone it is.
    """
    unread = [
        Problem(where=name, what=f"is read with {reads} alone", fix="Remove it.")
        for name, (is_given, is_read, reads) in options.items()
        if is_given and not is_read
    ]
    if unread:
        raise ConfigError(unread)


@app.command()
def mix(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SOURCE.weight=W", help="New weight; repeatable."),
    ] = None,
    unsets: Annotated[
        list[str] | None,
        typer.Option("--unset", metavar="SOURCE.weight", help="Give it back to the recipe."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Show weights and edits.")] = False,
) -> None:
    """Change a run's mix while it runs: taken at the next step that it plans."""
    from orchestrator.commands.mix import ask_edit, render_mix

    if sets or unsets:
        Console().print(ask_edit(run_dir, sets or (), unsets or ()), markup=False, soft_wrap=True)
    if show or not (sets or unsets):
        Console().print(render_mix(run_dir))


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    step: Annotated[str, typer.Argument(help="Step of a checkpoint, or `latest`.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the LoRA adapter alone, not merged.")
    ] = False,
) -> None:
    """Write a checkpoint as Hugging Face safetensors, which transformers and vLLM load."""
    from orchestrator.commands.export import export_command

    raise typer.Exit(_call(export_command(run_dir, step, out, adapter=adapter)))


@app.command()
def ledger(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    item: Annotated[
        str | None, typer.Option("--item", help="Tell the life of this item: its id or number.")
    ] = None,
    source: Annotated[str | None, typer.Option("--source", help="This source alone.")] = None,
) -> None:
    """Account for every group of a run, live or ended; exit 1 if it does not add up."""
    from orchestrator.commands.ledger import read_life, read_report, to_json
    from orchestrator.commands.ledger_table import render_life, render_report

    if item is not None:
        life = read_life(run_dir, item, source)
        show, shown, code = to_json(life), render_life(item, life), 0
    else:
        report = read_report(run_dir, source)
        show, shown, code = to_json(report), render_report(report), int(not report.balanced)
    if as_json:
        sys.stdout.write(show + "\n")
    else:
        Console().print(shown)
    raise typer.Exit(code)


@app.command()
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Also check what it needs.")
    ] = None,
    overrides: Overrides = None,
    judges: Annotated[
        Path | None, typer.Option("--judges", help="File of judges to ask a question each.")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Where the run will write; default runs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine, and what a recipe needs of it: packages, GPUs, memory, ports, disk,
    models, access, judges, sandbox; exit 1 if it is not ready."""
    from orchestrator.doctor.diagnose import diagnose, patient_of
    from orchestrator.doctor.findings import render_diagnosis

    cfg = None if recipe is None else load_recipe(recipe, overrides or ())
    found = diagnose(patient_of(cfg, judges, run_dir))
    if as_json:
        print_json(found.to_json())
    else:
        Console().print(render_diagnosis(found))
    raise typer.Exit(0 if found.ready else FAILED)


@app.command("tiny-model")
def tiny_model(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Seed of its weights and texts.")] = 0,
    lists: Annotated[
        bool, typer.Option("--lists", help="Teach it JSON of lists, for json_extraction.yaml.")
    ] = False,
    code: Annotated[
        bool, typer.Option("--code", help="Teach it functions of one line, for code_tests.yaml.")
    ] = False,
) -> None:
    """Make the quickstart's tiny model from procedurally generated text."""
    if lists and code:
        what = "--lists and --code are two models"
        raise ConfigError(Problem(where="tiny-model", what=what, fix="Give one of them."))
    module = (
        "trainer.tiny_lists" if lists else "trainer.tiny_code" if code else "trainer.tiny_model"
    )
    raise typer.Exit(_call([sys.executable, "-m", module, str(out), "--seed", str(seed)]))


def main() -> None:
    """Entry point: run a command and turn what ends it into a message and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    guard_output()
    if isinstance(sys.stdout, TextIOWrapper):  # half a character, as judges may write it, is shown
        sys.stdout.reconfigure(errors="backslashreplace")  # as its escape
    sys.path.insert(0, os.getcwd())  # for `module:name` plugs that lie where braid is run
    sys.exit(_main(sys.argv[1:]))


def _main(arguments: list[str]) -> int:
    try:
        app(arguments)
        return 0
    except SystemExit as done:  # typer's way of ending, with usage errors already shown
        return done.code if isinstance(done.code, int) else FAILED
    except ConfigError as error:
        show_problems(error, _stderr())
        return BAD_INPUT
    except Signalled as stop:
        _stderr().print(f"stopped by {signal.Signals(stop.number).name}")
        return 128 + stop.number
    except Exception as error:
        if not _is_run_error(error):
            raise
        kind = type(error).__name__
        _stderr().print(redact(f"{kind}: {error}"), style="red", markup=False, soft_wrap=True)
        return FAILED


def show_problems(error: ConfigError, console: Console) -> None:
    """Print every problem of a ConfigError, and no stack trace."""
    count = len(error.problems)
    head = "1 problem" if count == 1 else f"{count} problems"
    console.print(f"{head} with the input; nothing was started.", style="bold")
    for problem in error.problems:
        console.print(_lines(problem), markup=False, highlight=False, soft_wrap=True)


def _lines(problem: Problem) -> str:
    return f"  {problem}"


def _stderr() -> Console:
    return Console(stderr=True)


_NAMED_FAILURES = (
    ("actors.errors", "RunError"),
    ("orchestrator.records.checkpoints", "CheckpointError"),
    ("mixing.ledger.ledger", "LedgerError"),
    ("mixing.quota.allocator", "MixExhausted"),
    ("rewards.score", "GradeFailed"),
    ("rewards.process", "GraderStartError"),
)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def _is_run_error(error: Exception) -> bool:
    """Whether a run failed in a way that it names itself, as a full disk does wherever it is met;
    anything else keeps its traceback.

    A module that was never imported cannot have raised: so nothing heavy is imported to ask.
    """
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return True
    return any(
        module in sys.modules and isinstance(error, getattr(sys.modules[module], name))
        for module, name in _NAMED_FAILURES
    )


def _call(command: list[str]) -> int:
    """Run one of our modules in a process of its own, which has this one's terminal."""
    child: subprocess.Popen[bytes] | None = None
    try:
        with _signals_held_back():  # one that came within Popen would leave its child to nobody
            child = subprocess.Popen(command)
        return child.wait()
    except BaseException:
        if child is not None:
            _end(child)
        raise


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let SIGINT and SIGTERM that come meanwhile come at the end of it."""
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda came, _: caught.append(came))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _stop(number: int, frame: FrameType | None) -> None:
    raise Signalled(number)
