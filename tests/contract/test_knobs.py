"""The frozen list of knobs: each new, renamed or lost one is a decision that a diff shows."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from configs.messages import all_knobs, sections_of
from configs.schema import RunConfig

KNOBS = Path(__file__).with_name("knobs.txt")


def current() -> str:
    """Return all knobs, one a line, in the recipe's order."""
    return "".join(f"{knob}\n" for knob in all_knobs())


def test_the_knobs_are_the_frozen_ones():
    frozen, now = KNOBS.read_text().split(), current().split()
    new, lost = sorted(set(now) - set(frozen)), sorted(set(frozen) - set(now))
    assert (new, lost) == ([], []), (
        f"knobs added {new}, removed {lost}; if that is meant, run "
        "`python tests/contract/test_knobs.py` and commit knobs.txt with the change"
    )


def sections(
    model: type[BaseModel], seen: set[type[BaseModel]] | None = None
) -> Iterator[type[BaseModel]]:
    """Yield a section and all below it, each once."""
    seen = {model} if seen is None else seen
    yield model
    for field in model.model_fields.values():
        for below in sections_of(field.annotation):
            if below not in seen:
                seen.add(below)
                yield from sections(below, seen)


def test_every_knob_has_a_sentence():
    bare = [
        f"{section.__name__}.{name}"
        for section in sections(RunConfig)
        for name, field in section.model_fields.items()
        if not (field.description or "").rstrip().endswith(".")
    ]
    assert bare == []


if __name__ == "__main__":
    KNOBS.write_text(current())
