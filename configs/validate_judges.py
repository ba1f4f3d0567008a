"""Checks of judges and reward models: how they run, and which graders ask them."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from configs.addresses import Reach, reach_of_url
from configs.engines import ModelConfig
from configs.errors import Problem
from configs.graders.judged import JudgedGrader, RewardModelGrader
from configs.judges import (
    CalibrationConfig,
    EndpointConfig,
    JudgeConfig,
    JudgesFile,
    RewardModelConfig,
)
from configs.model_code import check_code
from configs.model_files import find_model_folder, read_model_shape
from configs.schema import RunConfig
from configs.validate_engines import check_path, check_ranks

Asking = JudgedGrader | RewardModelGrader


def asking(grader: object, where: str) -> Iterator[tuple[str, Asking]]:
    """Yield every grader within `grader` that asks a model, with its field path."""
    if isinstance(grader, JudgedGrader | RewardModelGrader):
        yield where, grader
    elif isinstance(grader, BaseModel):
        for name in type(grader).model_fields:
            yield from asking(getattr(grader, name), f"{where}.{name}")
    elif isinstance(grader, Mapping):
        for key, below in grader.items():  # pyright: ignore[reportUnknownVariableType]
            yield from asking(below, f"{where}.{key}")  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(grader, tuple):
        for i, below in enumerate(grader):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            yield from asking(below, f"{where}.{i}")  # pyright: ignore[reportUnknownArgumentType]


def check_asked(
    grader: object, where: str, judges: Mapping[str, object], models: Mapping[str, object]
) -> Iterator[Problem]:
    """Yield a problem for every model that a grader names and nobody declares."""
    for at, asks in asking(grader, where):
        known, section = (
            (models, "reward_models") if isinstance(asks, RewardModelGrader) else (judges, "judges")
        )
        if asks.model in known:
            continue
        near = difflib.get_close_matches(asks.model, list(known), n=1, cutoff=0.5)
        there = f"declared are {', '.join(known)}" if known else "none is declared"
        yield Problem(
            where=f"{at}.model",
            what=f"`{asks.model}` is not declared under `{section}`; {there}",
            fix=f"Did you mean `{near[0]}`?"
            if near
            else f"Declare `{section}.{asks.model}`; nothing is called that is not declared.",
        )


def check_judges(cfg: RunConfig) -> Iterator[Problem]:
    """Yield every problem with judges, reward models, and who asks them."""
    for source in cfg.sources:
        for reward in source.rewards:
            at = f"sources.{source.name}.rewards.{reward.name}.grader"
            yield from check_asked(reward.definition, at, cfg.judges, cfg.reward_models)
        if source.gold is not None:
            at = f"sources.{source.name}.gold.grader"
            yield from check_asked(source.gold.grader, at, cfg.judges, cfg.reward_models)
    for name, judge in cfg.judges.items():
        yield from check_judge(name, judge)
        if judge.concurrency < cfg.reward.actors.count:
            yield Problem(
                where=f"judges.{name}.concurrency",
                what=f"is {judge.concurrency}, less than one request for each of the "
                f"{cfg.reward.actors.count} reward actors",
                fix="Raise it, or lower reward.actors.count.",
            )
        if judge.calibration is not None:
            yield from _check_calibration(cfg, name, judge.calibration)
    for name, model in cfg.reward_models.items():
        yield from _check_reward_model(name, model)


def check_judge(name: str, judge: JudgeConfig) -> Iterator[Problem]:
    """Yield what is wrong with one judge by itself."""
    at = f"judges.{name}"
    if (judge.endpoint is None) == (judge.engines is None):
        both = "both" if judge.endpoint else "neither"
        yield Problem(where=at, what=f"has {both} of `endpoint` and `engines`", fix="Give one.")
    if judge.endpoint is not None:
        yield from check_address(judge.endpoint, f"{at}.endpoint")
    if judge.engines is not None:
        yield from _check_model(judge.engines.model, f"{at}.engines.model")
        yield from check_ranks(judge.engines, f"{at}.engines")
        if judge.max_tokens >= judge.engines.model.max_model_len:
            yield Problem(
                where=f"{at}.max_tokens",
                what=f"is {judge.max_tokens}, which leaves no room for a question within "
                f"engines.model.max_model_len={judge.engines.model.max_model_len}",
                fix="Lower it.",
            )
    if judge.deadline_s < judge.timeout_s:
        yield Problem(
            where=f"{at}.deadline_s",
            what=f"is {judge.deadline_s:g}, less than one try may take (timeout_s="
            f"{judge.timeout_s:g})",
        )


def check_address(endpoint: EndpointConfig, at: str) -> Iterator[Problem]:
    """Yield why an endpoint's address, as it is written, may not be called; names are checked
    again at every connection."""
    reach = reach_of_url(endpoint.base_url)
    if reach is Reach.FORBIDDEN:
        yield Problem(
            where=f"{at}.base_url",
            what=f"{endpoint.base_url} leads to a metadata or link-local address, never called",
            fix="Give the judge's own address.",
        )
    elif reach is Reach.PRIVATE and not endpoint.private:
        yield Problem(
            where=f"{at}.base_url",
            what=f"{endpoint.base_url} leads to this machine or a private network",
            fix=f"Set {at}.private to true if it is meant.",
        )
    clear = endpoint.base_url.startswith("http://")
    if clear and endpoint.api_key_env is not None and not endpoint.private:
        yield Problem(
            where=f"{at}.base_url",
            what="sends the key of api_key_env unencrypted over a public network",
            fix="Use https://.",
        )


def warn_judges(cfg: RunConfig) -> Iterator[Problem]:
    """Yield what is declared and asked by nobody."""
    graders = [r.definition for s in cfg.sources for r in s.rewards]
    graders += [s.gold.grader for s in cfg.sources if s.gold is not None]
    asked = {asks.model for grader in graders for _, asks in asking(grader, "")}
    for section, declared in (("judges", cfg.judges), ("reward_models", cfg.reward_models)):
        for name in declared:
            if name not in asked:
                yield Problem(
                    where=f"{section}.{name}",
                    what="is asked by no grader, and yet started",
                    fix="Remove it, or name it in a grader's `model`.",
                )


def check_judges_file(file: JudgesFile) -> list[Problem]:
    """Return every problem of judges and reward models that are declared outside a recipe."""
    judges = [p for name, judge in file.judges.items() for p in check_judge(name, judge)]
    models = [p for name, m in file.reward_models.items() for p in _check_reward_model(name, m)]
    return [*judges, *models]


def _check_reward_model(name: str, model: RewardModelConfig) -> Iterator[Problem]:
    yield from _check_model(model.model, f"reward_models.{name}.model")
    if model.actors.gpus > 1:
        yield Problem(
            where=f"reward_models.{name}.actors.gpus",
            what=f"is {model.actors.gpus:g}, but one copy uses one GPU",
            fix="Set it to 1, and actors.count higher.",
        )
    if model.max_tokens_per_batch < model.model.max_model_len:
        yield Problem(
            where=f"reward_models.{name}.max_tokens_per_batch",
            what=f"is {model.max_tokens_per_batch}, but one conversation may have "
            f"{model.model.max_model_len} tokens",
            fix="Raise it, or lower model.max_model_len.",
        )


def _check_model(model: ModelConfig, where: str) -> Iterator[Problem]:
    yield from check_path(model.path, f"{where}.path")
    yield from check_code(model, where)
    folder = find_model_folder(model.path)
    shape = read_model_shape(folder) if folder else None
    if shape and shape.max_positions and model.max_model_len > shape.max_positions:
        yield Problem(
            where=f"{where}.max_model_len",
            what=f"is {model.max_model_len}, but the model has {shape.max_positions} positions",
            fix=f"Lower it to {shape.max_positions} or less.",
        )


def _check_calibration(cfg: RunConfig, name: str, wanted: CalibrationConfig) -> Iterator[Problem]:
    at = f"judges.{name}.calibration"
    if not Path(wanted.anchors).expanduser().is_file():
        yield Problem(where=f"{at}.anchors", what=f"there is no file {wanted.anchors}")
    parts = {f"{s.name}/{r.name}": r.definition for s in cfg.sources for r in s.rewards}
    grader = parts.get(wanted.part)
    if grader is None:
        what = f"`{wanted.part}` is no reward part; there are {', '.join(parts)}"
        yield Problem(where=f"{at}.part", what=what)
    elif not isinstance(grader, JudgedGrader) or grader.model != name:
        what = f"the grader of `{wanted.part}` does not ask this judge itself"
        yield Problem(where=f"{at}.part", what=what, fix="Name a part whose `model` it is.")
