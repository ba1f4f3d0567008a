"""What every grader written as data has."""

from typing import ClassVar

from configs.base import Config, PositiveFloat


class Grader(Config):
    """Base of the graders. Field `type` tells them apart; texts may hold templates
    (`{{ item.answer }}`, `{{ sample.output_text }}`)."""

    templates: ClassVar[tuple[str, ...]] = ()
    """Fields whose texts, at any depth, are templates."""

    name: str = ""
    """Name in metrics and in the RFT response."""
    timeout_s: PositiveFloat | None = None
    """Seconds that grading one answer may take; empty takes `reward.timeout_s`, or what the judge
    itself has where one is asked."""
