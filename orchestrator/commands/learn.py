"""`braid sft`, `braid reward-model` and `braid sample`: learning from rows, and making them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from configs.load import load_recipe, load_reward_model, load_sft
from configs.sft import LessonRecipe
from orchestrator.commands.options import (
    AcceptChanges,
    OnlyPlan,
    Overrides,
    Recipe,
    Resume,
    ResumeChoice,
    RunDirectory,
)


def sft(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, e.g. configs/recipes/sft.yaml.")],
    overrides: Overrides = None,
    run_dir: RunDirectory = None,
    resume: ResumeChoice = Resume.NEVER,
    accept_changes: AcceptChanges = False,
    only_plan: OnlyPlan = False,
) -> None:
    """Fine-tune on conversations: the trainer of a run, without engines and graders."""
    cfg = load_sft(recipe, overrides or ())
    raise typer.Exit(_learn(cfg, run_dir, resume, accept_changes, only_plan))


def reward_model(
    recipe: Annotated[
        Path, typer.Argument(help="Recipe file, e.g. configs/recipes/reward_model.yaml.")
    ],
    overrides: Overrides = None,
    run_dir: RunDirectory = None,
    resume: ResumeChoice = Resume.NEVER,
    accept_changes: AcceptChanges = False,
    only_plan: OnlyPlan = False,
) -> None:
    """Train a reward model on preferences, by the Bradley-Terry loss."""
    cfg = load_reward_model(recipe, overrides or ())
    raise typer.Exit(_learn(cfg, run_dir, resume, accept_changes, only_plan))


def _learn(
    cfg: LessonRecipe,
    run_dir: Path | None,
    resume: Resume,
    accept_changes: bool,
    only_plan: bool,
) -> int:
    """Learn from rows, or say what that would be."""
    if only_plan:
        from orchestrator.sft.plan import plan_sft

        Console().print(plan_sft(cfg), markup=False, highlight=False, soft_wrap=True)
        return 0
    from orchestrator.sft.run import execute

    path = run_dir or Path("runs") / cfg.name
    return execute(cfg, path, resume.value, accept_changes=accept_changes)


class KeepChoice(StrEnum):
    """Which answers `braid sample` keeps."""

    PASSED = "passed"
    BEST = "best"
    PAIRS = "pairs"


def sample(
    recipe: Recipe,
    out: Annotated[Path, typer.Option("--out", help="JSONL file to write; must not exist.")],
    overrides: Overrides = None,
    source: Annotated[
        str | None, typer.Option("--source", help="This source alone; default all.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples of each item.")] = 8,
    items: Annotated[
        int | None, typer.Option("--items", min=1, help="Items of each source; default all.")
    ] = None,
    keep: Annotated[
        KeepChoice,
        typer.Option(
            "--keep",
            help="passed: answers that pass; best: the highest reward; pairs: best and worst.",
        ),
    ] = KeepChoice.PASSED,
    per_item: Annotated[
        int, typer.Option("--per-item", min=1, help="Different answers kept of an item, at most.")
    ] = 1,
    min_pass: Annotated[
        float, typer.Option("--min-pass", min=0, max=1, help="Lowest pass rate of an item.")
    ] = 0.0,
    max_pass: Annotated[
        float, typer.Option("--max-pass", min=0, max=1, help="Highest pass rate of an item.")
    ] = 1.0,
) -> None:
    """Build rows to learn from: sample the starting policy, grade, and keep what passes or is
    best, or pairs of best and worst."""
    from orchestrator.commands.sample import SampleOptions, execute

    cfg = load_recipe(recipe, overrides or ())
    options = SampleOptions(
        source=source,
        n=n,
        items=items,
        keep=keep.value,
        per_item=per_item,
        min_pass=min_pass,
        max_pass=max_pass,
    )
    raise typer.Exit(execute(cfg, out, options))
