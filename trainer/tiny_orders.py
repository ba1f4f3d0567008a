"""Procedural orders for the extraction recipe: a line of text, and what it says as JSON.

`python -m trainer.tiny_orders OUT --seed 0` teaches them to the quickstart's tiny model.

The rows of `configs/recipes/data/orders*.jsonl` are drawn from the same orders and are never
taught. As in `trainer.tiny_text`, the last lessons have careless answers: a model that often
writes a wrong letter, digit or key, or words around the JSON, and can be taught not to.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from pydantic import JsonValue
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.sft import Lesson, SftSettings, sft
from trainer.tiny_model import RECIPE, save
from trainer.tiny_text import Care, spoil

ASK = "As JSON: "
_WORDS = """lamp desk cup bowl chair sofa mirror carpet vase clock kettle pan plate fork spoon tray
bag hat coat glove shoe belt ring pen book globe"""
ITEMS = _WORDS.split()
COLORS = ["red", "blue", "green", "black", "white", "pink", "gold", "gray"]
ROWS, HELD_OUT = 40, 40
SETTINGS = SftSettings(steps=220, batch_size=48, lr=1.5e-3)
CARELESS_STEPS = 40
CARE = Care(slip=0.6, wordy=0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a customer wants."""

    text: str
    item: str
    count: int
    colors: tuple[str, ...]

    @property
    def fields(self) -> dict[str, JsonValue]:
        """The truth."""
        return {"item": self.item, "count": self.count, "colors": list(self.colors)}

    @property
    def question(self) -> str:
        """The prompt."""
        return ASK + self.text


def orders(seed: int) -> Iterator[Order]:
    """Yield orders without end."""
    rng = random.Random(seed)
    while True:
        item, count = rng.choice(ITEMS), rng.randint(2, 9)
        colors = tuple(rng.sample(COLORS, rng.randint(1, 2)))
        both = " and ".join(colors)
        text = rng.choice(
            (
                f"{count} {item}s in {both}",
                f"{both} {item}s, {count} of them",
                f"{item}: {count}, {both}",
            )
        )
        yield Order(text=text, item=item, count=count, colors=colors)


def lessons(seed: int, care: Care, banned: Collection[str] = ()) -> Iterator[Lesson]:
    """Yield an endless stream of orders and their JSON; questions in `banned` never occur."""
    rng = random.Random(seed)
    for order in orders(rng.getrandbits(31)):
        if order.question not in banned:
            answer = json.dumps(order.fields, separators=(",", ":"))
            yield Lesson(question=order.question, answer=spoil(answer, care, rng))


def rows(seed: int = 0) -> tuple[list[dict[str, JsonValue]], list[dict[str, JsonValue]]]:
    """Return the recipe's training and held-out rows: all of different questions."""
    found: dict[str, dict[str, JsonValue]] = {}
    for order in orders(seed):
        messages: JsonValue = [{"role": "user", "content": order.question}]
        found[order.question] = {"messages": messages, "order": order.fields}
        if len(found) == ROWS + HELD_OUT:
            break
    all_rows = list(found.values())
    return all_rows[:ROWS], all_rows[ROWS:]


def banned_questions(folder: Path) -> set[str]:
    """Return the prompts of the recipe's files."""
    files = (folder / "orders.jsonl", folder / "orders_held_out.jsonl")
    lines = [line for f in files for line in f.read_text(encoding="utf-8").splitlines()]
    return {json.loads(line)["messages"][0]["content"] for line in lines}


def build(out: Path, seed: int, settings: SftSettings = SETTINGS) -> None:
    """Teach the quickstart's model orders and write it to `out`."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    torch.use_deterministic_algorithms(True)
    start = RECIPE.parent.parent / "models" / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    banned = banned_questions(RECIPE.parent / "data")
    careful = (settings.steps - CARELESS_STEPS) * settings.batch_size
    stream = chain(
        islice(lessons(2 * seed, Care(), banned), careful), lessons(2 * seed + 1, CARE, banned)
    )
    started = time.monotonic()

    def report(step: int, loss: float) -> None:
        if (step + 1) % 25 == 0:
            sys.stderr.write(
                f"step {step + 1}: loss {loss:.3f}, {time.monotonic() - started:.0f} s\n"
            )

    sft(model, tokenizer, stream, settings, report)
    save(model, tokenizer, out)


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(prog="trainer.tiny_orders", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0, help="of the lessons")
    args = parser.parse_args()
    build(args.out, args.seed)


if __name__ == "__main__":
    main()
