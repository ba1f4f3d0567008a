"""Graders that compare two texts: `string_check` and `text_similarity`."""

from collections.abc import Callable, Mapping

from configs.errors import Problem
from configs.graders.rft import StringCheckGrader, TextSimilarityGrader
from rewards.score import Score, policy_fault
from rewards.similarity import similarity
from rewards.subject import Subject
from rewards.templates import SampleFault, check_templates, parse_template

_OPERATIONS: Mapping[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "neq": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


def prepare_string_check(cfg: StringCheckGrader, where: str) -> Callable[[Subject], Score]:
    """Return the comparison, 1 or 0."""
    operation = _OPERATIONS[cfg.operation]
    return _compare(cfg, where, lambda text, reference: float(operation(text, reference)))


def prepare_text_similarity(cfg: TextSimilarityGrader, where: str) -> Callable[[Subject], Score]:
    """Return the metric; what it needs is loaded."""
    metric = cfg.evaluation_metric
    similarity(metric, "five words are here now", "five words are here then")
    return _compare(cfg, where, lambda text, reference: similarity(metric, text, reference))


def check_texts(cfg: StringCheckGrader | TextSimilarityGrader, where: str) -> list[Problem]:
    """Return what is wrong with the templates."""
    return check_templates(cfg, where)


def _compare(
    cfg: StringCheckGrader | TextSimilarityGrader, where: str, score: Callable[[str, str], float]
) -> Callable[[Subject], Score]:
    given = parse_template(cfg.input, f"{where}.input")
    reference = parse_template(cfg.reference, f"{where}.reference")

    def grade(subject: Subject) -> Score:
        try:
            texts = given.render(subject), reference.render(subject)
        except SampleFault as fault:
            return policy_fault(fault)
        return Score(value=score(*texts))

    return grade
