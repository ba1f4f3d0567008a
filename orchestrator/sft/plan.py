"""What a recipe of supervised fine-tuning would run; starts nothing, loads nothing heavy."""

from dataclasses import dataclass

from configs.errors import ConfigError
from configs.model_files import find_model_folder, read_model_shape
from configs.schema import RunConfig
from configs.sft import LessonRecipe, training_run
from configs.validate_sft import validate_sft, warn_sft
from mixing.tables.conversations import RowFile, num_steps, open_lessons
from orchestrator.planning.memory import estimate_memory
from orchestrator.planning.plan import plan_bundles
from rollouts.conversations import Lesson


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A checked recipe, and what it comes to."""

    cfg: LessonRecipe
    run: RunConfig
    """As trainer, placement and records see it."""
    training: RowFile[Lesson]
    held_out: RowFile[Lesson]


def prepare(cfg: LessonRecipe) -> Prepared:
    """Check a recipe and read its rows through.

    Raises:
        ConfigError: every problem found; nothing was started.
    """
    problems = validate_sft(cfg)
    if problems:
        raise ConfigError(problems)
    training, held_out = open_lessons(cfg)
    per_step = cfg.batch.rows_per_step
    steps = num_steps(len(training), epochs=cfg.epochs, rows_per_step=per_step)
    run = training_run(cfg, cfg.num_steps or steps)
    return Prepared(cfg=cfg, run=run, training=training, held_out=held_out)


def plan_sft(cfg: LessonRecipe) -> str:
    """Return the plan in words; ConfigError with everything wrong with it."""
    made = prepare(cfg)
    folder = find_model_folder(cfg.model.path)
    shape = read_model_shape(folder) if folder else None
    rows, steps = len(made.training), made.run.num_steps
    (memory,) = (m for m in estimate_memory(made.run, shape, gpu_gib=None) if m.role == "trainer")
    total = memory.total_gib
    parts = ", ".join(f"{p.name} {p.gib:g}" for p in memory.parts if p.name != "sync buckets")
    bundles = plan_bundles(made.run, ("trainer",))
    lines = [
        f"{cfg.name}: {rows} rows, {len(made.held_out)} held out; {steps} steps of "
        f"{cfg.batch.rows_per_step} rows ({steps * cfg.batch.rows_per_step / rows:.2f} epochs)",
        f"trainer: {len(bundles)} x {bundles[0].cpus:g} CPU, {bundles[0].gpus:g} GPU; ZeRO stage "
        f"{cfg.trainer.zero_stage}",
        f"memory of a rank: {memory.note}" if total is None else f"memory of a rank, GiB: {parts}",
        *(f"warning: {w}" for w in warn_sft(cfg, steps)),
    ]
    return "\n".join(lines)
