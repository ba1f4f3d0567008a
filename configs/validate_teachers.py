"""Checks of distillation across fields: teachers, and sources that have one in place of rewards."""

from collections.abc import Iterator

from configs.errors import Problem
from configs.model_code import check_code
from configs.model_files import find_model_folder, read_model_shape
from configs.schema import RunConfig, SourceConfig
from configs.teachers import TeacherConfig
from configs.tokenizer_files import tokenizer_difference
from configs.validate_engines import check_path


def check_teachers(cfg: RunConfig) -> Iterator[Problem]:
    """Yield what is wrong with teachers and with what sources learn from them."""
    for name, teacher in cfg.teachers.items():
        yield from _check_teacher(cfg, name, teacher)
    for source in cfg.sources:
        yield from _check_source(cfg, source)


def warn_teachers(cfg: RunConfig) -> Iterator[Problem]:
    """Yield teachers that teach nobody."""
    asked = {s.distill.teacher for s in cfg.sources if s.distill is not None}
    for name in cfg.teachers:
        if name not in asked:
            yield Problem(
                where=f"teachers.{name}",
                what="is started and teaches no source",
                fix=f"Set a source's distill.teacher to {name}, or remove it.",
            )


def same_tokenizer(cfg: RunConfig, name: str) -> Problem | None:
    """Return the problem of a teacher whose ids mean something else than the policy's; None where
    there is none, or where a model is not on this machine yet."""
    teacher = cfg.teachers[name]
    ours, theirs = find_model_folder(cfg.model.path), find_model_folder(teacher.model.path)
    if ours is None or theirs is None:
        return None
    difference = tokenizer_difference(ours, theirs)
    if difference is None:
        return None
    return Problem(
        where=f"teachers.{name}.model.path",
        what=f"{teacher.model.path} cannot score the policy's tokens: {difference}",
        fix="Give a teacher of the policy's family, or one trained from the same tokenizer; across "
        "tokenizers, sample answers of the teacher and train on them with `braid sft`.",
    )


def _check_teacher(cfg: RunConfig, name: str, teacher: TeacherConfig) -> Iterator[Problem]:
    at, longest = f"teachers.{name}", teacher.model.max_model_len
    found = check_path(teacher.model.path, f"{at}.model.path")
    unsound = [p for p in found if "no chat template" not in p.what]
    yield from unsound
    yield from check_code(teacher.model, f"{at}.model")
    if not unsound and (problem := same_tokenizer(cfg, name)) is not None:
        yield problem
    if longest < cfg.model.max_model_len:
        yield Problem(
            where=f"{at}.model.max_model_len",
            what=f"is {longest}, but one sample may have model.max_model_len="
            f"{cfg.model.max_model_len} tokens",
            fix="Raise it, or lower model.max_model_len.",
        )
    folder = find_model_folder(teacher.model.path)
    shape = read_model_shape(folder) if folder else None
    if shape and shape.max_positions and longest > shape.max_positions:
        yield Problem(
            where=f"{at}.model.max_model_len",
            what=f"is {longest}, but the model has {shape.max_positions} positions",
            fix=f"Lower it to {shape.max_positions} or less.",
        )
    if teacher.max_tokens_per_batch < longest:
        yield Problem(
            where=f"{at}.max_tokens_per_batch",
            what=f"is {teacher.max_tokens_per_batch}, but one sample may have {longest} tokens",
            fix=f"Raise it to {longest} or more, or lower {at}.model.max_model_len.",
        )
    if teacher.actors.gpus > 1:
        yield Problem(
            where=f"{at}.actors.gpus",
            what=f"is {teacher.actors.gpus:g}, but one copy uses one GPU",
            fix="Set it to 1, and actors.count higher.",
        )


def _check_source(cfg: RunConfig, source: SourceConfig) -> Iterator[Problem]:
    at = f"sources.{source.name}"
    if source.distill is not None and source.distill.teacher not in cfg.teachers:
        there = ", ".join(cfg.teachers) or "none"
        yield Problem(
            where=f"{at}.distill.teacher",
            what=f"there is no teacher `{source.distill.teacher}`",
            fix=f"Declare it under `teachers`, or name one that is: {there}.",
        )
    if source.advantage.use == "none" and source.distill is None and cfg.kl_coef(source) == 0:
        yield Problem(
            where=f"{at}.advantage",
            what="is `none`, and the source has neither a teacher nor a KL coefficient: it would "
            "train nothing",
            fix=f"Set {at}.distill, or another advantage.",
        )
    if source.distill is not None and not source.rewards:
        yield from _check_unrewarded(cfg, source)


def _check_unrewarded(cfg: RunConfig, source: SourceConfig) -> Iterator[Problem]:
    """Yield what a source without rewards cannot have: everything that reads a pass rate."""
    at, difficulty, objective = f"sources.{source.name}", source.difficulty, source.objective
    read_by = {
        f"{at}.difficulty.window": difficulty.window is not None,
        f"{at}.data.curriculum": source.data.curriculum.start is not None,
        f"{at}.gold": source.gold is not None,
        f"{at}.objective": objective != type(objective)(),
        f"{at}.eval": source.eval != type(source.eval)(),
        "eval.watch": cfg.eval.watch == source.name,
    }
    for i, stage in enumerate(cfg.stages):
        metric = stage.until.metric if stage.until else None
        read_by[f"stages.{i}.until.metric"] = (metric or "").startswith(f"eval/{source.name}/")
    for where, is_read in read_by.items():
        if is_read:
            yield Problem(
                where=where,
                what=f"needs graded answers, and `{source.name}` has no rewards",
                fix=f"Remove it, or give {at}.rewards; with {at}.advantage {{use: none}} they "
                "measure and do not train.",
            )
