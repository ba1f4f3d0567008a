"""A short course for the quickstart's tiny model: some careful lessons, then careless ones.

The model ends up knowing what a recipe asks for and often doing otherwise, which leaves something
to learn that fits into minutes on two cores.
"""

import json
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from trainer.sft import Lesson, SftSettings, sft
from trainer.tiny_model import RECIPE, build_tokenizer, save
from trainer.tiny_text import Care

Lessons = Callable[[int, Care, Collection[str]], Iterator[Lesson]]
"""`(seed, care, banned)`: lessons without end, none of them a question in `banned`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What is taught, and how carelessly in the end."""

    lessons: Lessons
    files: tuple[str, ...]
    """Rows of the recipe, in `configs/recipes/data`, whose questions are never taught."""
    settings: SftSettings
    careless_steps: int
    care: Care

    def banned(self, folder: Path) -> set[str]:
        """Return the prompts of the recipe's files."""
        lines = [x for f in self.files for x in (folder / f).read_text("utf-8").splitlines()]
        return {json.loads(line)["messages"][0]["content"] for line in lines}

    def build(self, out: Path, seed: int) -> None:
        """Teach the quickstart's model and write it to `out`."""
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        start = RECIPE.parent.parent / "models" / "tiny"
        tokenizer = build_tokenizer()
        model = AutoModelForCausalLM.from_pretrained(
            start, dtype=torch.float32, use_safetensors=True
        )
        banned = self.banned(RECIPE.parent / "data")
        careful = (self.settings.steps - self.careless_steps) * self.settings.batch_size
        stream = chain(
            islice(self.lessons(2 * seed, Care(), banned), careful),
            self.lessons(2 * seed + 1, self.care, banned),
        )
        started = time.monotonic()

        def report(step: int, loss: float) -> None:
            if (step + 1) % 10 == 0:
                seconds = time.monotonic() - started
                sys.stderr.write(f"step {step + 1}: loss {loss:.3f}, {seconds:.0f} s\n")

        sft(model, tokenizer, stream, self.settings, report)
        save(model, tokenizer, out)
