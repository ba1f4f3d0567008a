"""Checks of recipes of `braid sft` and `braid reward-model` across fields: all problems at once."""

from collections.abc import Iterator

from configs.data_files import missing
from configs.errors import Problem
from configs.sft import LessonRecipe, LessonsConfig, RewardModelRecipe, training_run
from configs.validate import find_warnings, validate_run


def validate_sft(cfg: LessonRecipe) -> list[Problem]:
    """Return every cross-field problem; empty when there is none."""
    shared = validate_run(training_run(cfg, cfg.num_steps or 1))
    return [*_check_data(cfg), *_check_actors(cfg), *_own(shared)]


def warn_sft(cfg: LessonRecipe, num_steps: int) -> list[Problem]:
    """Return what is allowed and probably not meant."""
    return _own(find_warnings(training_run(cfg, num_steps)))


def _own(problems: list[Problem]) -> list[Problem]:
    """Keep those of sections that this recipe has."""
    ours = set(LessonsConfig.model_fields) - {"eval"}
    return [p for p in problems if p.where.split(".")[0] in ours]


def _check_data(cfg: LessonRecipe) -> Iterator[Problem]:
    data = cfg.data
    if (data.jsonl is None) == (data.parquet is None):
        both = "both" if data.jsonl else "neither"
        yield Problem(where="data", what=f"has {both} of `jsonl` and `parquet`", fix="Give one.")
    for field in ("jsonl", "parquet", "held_out_file"):
        for path in missing(getattr(data, field) or ()):
            yield Problem(
                where=f"data.{field}",
                what=f"there is no file {path}",
                fix="Give a path from the current directory or from the recipe's folder.",
            )
    if data.held_out and data.held_out_file:
        yield Problem(
            where="data.held_out",
            what="is set beside held_out_file, which holds the held-out rows",
            fix="Remove one of them.",
        )
    if cfg.eval.every and not (data.held_out or data.held_out_file):
        yield Problem(
            where="eval.every",
            what=f"is {cfg.eval.every}, but no rows are held out",
            fix="Set data.held_out or data.held_out_file, or remove the line.",
        )


def _check_actors(cfg: LessonRecipe) -> Iterator[Problem]:
    if isinstance(cfg, RewardModelRecipe):
        yield from _check_whole(cfg)
    if (other := cfg.trainer.actors.colocate_with) is not None:
        yield Problem(
            where="trainer.actors.colocate_with",
            what=f"`{other}` is not started: this recipe has the trainer alone",
            fix="Remove the line.",
        )


def _check_whole(cfg: RewardModelRecipe) -> Iterator[Problem]:
    """Yield what a reward model's training cannot have: its head is new, and read at one token."""
    if cfg.trainer.lora is not None:
        yield Problem(
            where="trainer.lora",
            what="trains adapters alone, but a reward model's head is new and must be learnt",
            fix="Remove it.",
        )
    if cfg.trainer.sequence_parallel > 1:
        yield Problem(
            where="trainer.sequence_parallel",
            what=f"is {cfg.trainer.sequence_parallel}, but no ranks share a row of a reward model",
            fix="Set it to 1.",
        )
