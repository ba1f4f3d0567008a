"""What can be wrong with a grader that asks a judge, beyond its fields' types."""

from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from configs.errors import ConfigError, Problem
from configs.graders.judged import (
    JudgedGrader,
    LabelModelGrader,
    RubricGrader,
    ScoreModelGrader,
)
from rewards.judges.prompt import texts
from rewards.judges.rubric import criteria_of
from rewards.score import GradeFailed
from rewards.subject import Subject
from rewards.templates import check_templates, parse_template


def check_score(cfg: ScoreModelGrader, where: str) -> list[Problem]:
    """Return what is wrong with a `score_model`."""
    problems = [*_check_votes(cfg, where), *_check_input(cfg, where)]
    if cfg.range[0] >= cfg.range[1]:
        what = f"is {cfg.range[0]:g} to {cfg.range[1]:g}; the first must be the lower"
        problems.append(Problem(where=f"{where}.range", what=what))
    return problems


def check_label(cfg: LabelModelGrader, where: str) -> list[Problem]:
    """Return what is wrong with a `label_model`."""
    problems = [*_check_votes(cfg, where), *_check_input(cfg, where)]
    known = set(cfg.labels)
    named = {"passing_labels": cfg.passing_labels, "mirror": [*cfg.mirror, *cfg.mirror.values()]}
    for field, labels in named.items():
        for label in sorted(set(labels) - known):
            what = f"`{label}` is none of the labels ({', '.join(cfg.labels)})"
            problems.append(Problem(where=f"{where}.{field}", what=what))
    if len(known) < len(cfg.labels):
        problems.append(Problem(where=f"{where}.labels", what="has a label twice"))
    elif known == set(cfg.passing_labels):
        what = "has all labels, so every answer would pass"
        problems.append(Problem(where=f"{where}.passing_labels", what=what))
    return problems


def check_rubric(cfg: RubricGrader, where: str) -> list[Problem]:
    """Return what is wrong with a `rubric`."""
    problems = [*_check_votes(cfg, where), *check_templates(cfg, where)]
    if isinstance(cfg.criteria, str):
        problems += _check_own(cfg.criteria, f"{where}.criteria")
        if "{{" not in cfg.criteria:
            what = "is a text without a template"
            fix = "Write a list of criteria, or `{{ item.FIELD }}`."
            problems.append(Problem(where=f"{where}.criteria", what=what, fix=fix))
        return problems
    if cfg.normalise == "positive_points" and all(c.points <= 0 for c in cfg.criteria):
        what = "has no positive points, which normalise=positive_points divides by"
        fix = "Add a criterion with positive points, or set normalise to abs or sum."
        problems.append(Problem(where=f"{where}.criteria", what=what, fix=fix))
    elif all(c.points == 0 for c in cfg.criteria):
        problems.append(Problem(where=f"{where}.criteria", what="all points are 0"))
    names = [c.name for c in cfg.criteria if c.name]
    for name in sorted({n for n in names if names.count(n) > 1}):
        problems.append(
            Problem(where=f"{where}.criteria", what=f"two criteria are called `{name}`")
        )
    if cfg.clip is not None and cfg.clip[0] >= cfg.clip[1]:
        problems.append(Problem(where=f"{where}.clip", what="the first bound must be the lower"))
    return problems


def check_rubric_row(cfg: RubricGrader, item: Mapping[str, JsonValue], where: str) -> list[Problem]:
    """Return what is wrong with the rubric that a row brings along."""
    try:
        criteria_of(cfg, Subject.of_text(item, ""))
    except GradeFailed as failed:
        return [Problem(where=f"{where}.criteria", what=failed.message)]
    return []


def _check_votes(cfg: JudgedGrader, where: str) -> Iterator[Problem]:
    if cfg.votes > 1 and cfg.sampling_params.temperature == 0:
        yield Problem(
            where=f"{where}.votes",
            what=f"is {cfg.votes}, but at temperature 0 all votes are the same",
            fix="Set sampling_params.temperature above 0, or votes to 1.",
        )


def _check_input(cfg: ScoreModelGrader | LabelModelGrader, where: str) -> Iterator[Problem]:
    problems = check_templates(cfg, where)
    if problems:
        yield from problems
        return
    variables = [
        variable
        for message in cfg.input
        for text in texts(message.content)
        for variable in parse_template(text).variables
    ]
    if cfg.pair is None:
        if not any(v.space == "sample" for v in variables):
            yield Problem(
                where=f"{where}.input",
                what="never names the answer, so every answer would be judged alike",
                fix="Put {{ sample.output_text }} where the judge is to read it.",
            )
        return
    yield from _check_own(cfg.pair.reference, f"{where}.pair.reference")
    for place in ("first", "second"):
        if not any(v.steps == ("pair", place) for v in variables):
            yield Problem(
                where=f"{where}.input",
                what=f"nowhere has {{{{ pair.{place} }}}}",
                fix="Show both texts of the pair, so that they can change places.",
            )


def _check_own(template: str, where: str) -> Iterator[Problem]:
    """Yield what is wrong with a template of the row alone."""
    try:
        variables = parse_template(template, where).variables
    except ConfigError as error:
        yield from error.problems
        return
    for variable in variables:
        if variable.space != "item":
            what = f"`{{{{ {variable.text} }}}}` is not of the row (`item`)"
            yield Problem(where=where, what=what)
