"""What can be wrong with a grader that asks a judge, beyond its fields' types."""

from collections.abc import Iterator, Sequence

from configs.errors import Problem
from configs.graders.judged import (
    InputMessage,
    JudgedGrader,
    LabelModelGrader,
    PairConfig,
    RubricGrader,
    ScoreModelGrader,
)
from rewards.judges.prompt import placeholders, texts


def check_score(cfg: ScoreModelGrader, where: str) -> list[Problem]:
    """Return what is wrong with a `score_model`."""
    problems = [*_check_votes(cfg, where), *_check_input(cfg.input, cfg.pair, where)]
    if cfg.range[0] >= cfg.range[1]:
        what = f"is {cfg.range[0]:g} to {cfg.range[1]:g}; the first must be the lower"
        problems.append(Problem(where=f"{where}.range", what=what))
    return problems


def check_label(cfg: LabelModelGrader, where: str) -> list[Problem]:
    """Return what is wrong with a `label_model`."""
    problems = [*_check_votes(cfg, where), *_check_input(cfg.input, cfg.pair, where)]
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
    problems = list(_check_votes(cfg, where))
    for field in ("question", "reference"):
        problems += _check_names(getattr(cfg, field), f"{where}.{field}", ("item", "sample"))
    if isinstance(cfg.criteria, str):
        if not placeholders(cfg.criteria):
            what = "is a text without a template"
            fix = "Write a list of criteria, or `{{ item.FIELD }}`."
            problems.append(Problem(where=f"{where}.criteria", what=what, fix=fix))
        return [*problems, *_check_names(cfg.criteria, f"{where}.criteria", ("item",))]
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


def _check_votes(cfg: JudgedGrader, where: str) -> Iterator[Problem]:
    if cfg.votes > 1 and cfg.sampling_params.temperature == 0:
        yield Problem(
            where=f"{where}.votes",
            what=f"is {cfg.votes}, but at temperature 0 all votes are the same",
            fix="Set sampling_params.temperature above 0, or votes to 1.",
        )


def _check_input(
    messages: Sequence[InputMessage], pair: PairConfig | None, where: str
) -> Iterator[Problem]:
    spaces = ("item", "sample") if pair is None else ("item", "sample", "pair")
    named: set[tuple[str, str]] = set()
    for i, message in enumerate(messages):
        for text in texts(message.content):
            yield from _check_names(text, f"{where}.input.{i}", spaces)
            named.update(placeholders(text))
    if pair is not None:
        yield from _check_names(pair.reference, f"{where}.pair.reference", ("item",))
        for place in ("first", "second"):
            if ("pair", f".{place}") not in named:
                yield Problem(
                    where=f"{where}.input",
                    what=f"nowhere has {{{{ pair.{place} }}}}",
                    fix="Show both texts of the pair, so that they can change places.",
                )
    elif not any(space == "sample" for space, _ in named):
        yield Problem(
            where=f"{where}.input",
            what="never names the answer, so every answer would be judged alike",
            fix="Put {{ sample.output_text }} where the judge is to read it.",
        )


def _check_names(template: str, where: str, spaces: Sequence[str]) -> Iterator[Problem]:
    for space, path in placeholders(template):
        if space not in spaces:
            what = f"{{{{ {space}{path} }}}} names none of {', '.join(spaces)}"
            yield Problem(where=where, what=what)
