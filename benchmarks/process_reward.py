"""Process reward against outcome reward on a task where guessing pays.

    python benchmarks/process_reward.py [--seeds 1 2 3] [--steps 30] [--out FOLDER]

The task: is the value of `4 - 1 - 7` even or odd? Half of all guesses are right, so the outcome
says little about how an answer came about; each line of the working can be checked by a rule.
The tiny policy is taught the format by careless examples (a short warm start, the same for all
runs), then trained on the same rows, in equal steps, under each reward:

    outcome   the last word is right
    process   and all steps are (grader `steps`), credited to the rollout as a whole
    credit    the same, credited to the tokens that wrote the steps

Held-out questions are asked of the exported policies here, outside of any run, at temperature 1:
the share of right answers, of answers all of whose steps are right, and of those that are both.
"""

import argparse
import json
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rollouts.types import Rollout, Task

ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs" / "models" / "tiny"
QUESTION = "State the final answer to the following arithmetic problem: "
STEP = re.compile(r"(-?\d+)([+-])(\d)=(-?\d+)")
FORM = r"(?:-?\d+[+-]\d=-?\d+\n){2}(?:even|odd)"
TRAIN, HELD_OUT, ASKED = 400, 200, 4
SLIP, GUESS = 0.3, 0.5
"""Share of the warm start's steps that are wrong, and of its answers that are guessed; the others
follow from the last step, wrong or right."""

Row = dict[str, object]


def step_is_right(rollout: Rollout, task: Task) -> float:
    """Pay 1 for a step that is the next one of the task, goes on from the one before, and is true.

    The turns of what is graded are the steps so far.
    """
    texts = [turn.text for turn in rollout.turns]
    return float(_right(texts, [int(n) for n in str(task.metadata["terms"]).split()]))


def _right(steps: Sequence[str], terms: Sequence[int]) -> bool:
    """Whether the last of `steps` is right after those before it."""
    found = [STEP.fullmatch(step) for step in steps]
    last = found[-1]
    if last is None or len(steps) >= len(terms):
        return False
    before = terms[0]
    if len(found) > 1:
        if (previous := found[-2]) is None:
            return False
        before = int(previous[4])
    term = int(last[3]) if last[2] == "+" else -int(last[3])
    follows = int(last[1]) == before and term == terms[len(steps)]
    return follows and before + term == int(last[4])


def make_rows() -> list[Row]:
    """Return all questions of three digits once, in a fixed random order."""
    rows: list[Row] = []
    for a in range(1, 10):
        for b in range(1, 10):
            for c in range(1, 10):
                for signs in range(4):
                    second, third = (b if signs & 1 else -b), (c if signs & 2 else -c)
                    shown = f"{a} {_sign(second)} {b} {_sign(third)} {c} ="
                    value = a + second + third
                    rows.append(
                        {
                            "prompt": QUESTION + shown,
                            "answer": parity(value),
                            "terms": f"{a} {second} {third}",
                        }
                    )
    random.Random(0).shuffle(rows)
    return rows


def parity(number: int) -> str:
    """Return the word that answers."""
    return "odd" if number % 2 else "even"


def _sign(number: int) -> str:
    return "+" if number > 0 else "-"


def careless(row: Mapping[str, object], dice: random.Random) -> str:
    """Return a worked answer with slips, and often a guess at its end."""
    terms = [int(n) for n in str(row["terms"]).split()]
    value, lines = terms[0], list[str]()
    for term in terms[1:]:
        result = value + term
        if dice.random() < SLIP:
            result += dice.choice([-2, -1, 1, 2])
        lines.append(f"{value}{_sign(term)}{abs(term)}={result}")
        value = result
    said = dice.choice(["even", "odd"]) if dice.random() < GUESS else parity(value)
    return "\n".join([*lines, said])


def warm_start(rows: Sequence[Row], out: Path, steps: int) -> None:
    """Teach the tiny policy the format on rows that no run asks, and save it to `out`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.sft import Lesson, SftSettings, sft

    torch.set_num_threads(2)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    dice = random.Random(1)

    def lessons() -> Iterator[Lesson]:
        while True:
            row = dice.choice(rows)
            yield Lesson(question=str(row["prompt"]), answer=careless(row, dice))

    sft(model, tokenizer, lessons(), SftSettings(steps=steps, batch_size=64, pieces=1, lr=2e-3))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def recipe(kind: str, data: Path, policy: Path, *, seed: int, steps: int) -> dict[str, object]:
    """Return the run of one kind of reward; all else is the same."""
    by_rule = {"type": "function", "use": "benchmarks.process_reward:step_is_right"}
    split = {"by": "regex", "pattern": r"\S+=\S+", "max_steps": 4}
    rewards: list[dict[str, object]] = [{"name": "answer", "grader": _last_word()}]
    objective: dict[str, object] = {}
    if kind != "outcome":
        verified = {"type": "steps", "split": split, "verify": by_rule}
        rewards.append({"name": "steps", "grader": verified})
        rewards.append({"name": "form", "weight": 0, "grader": {"type": "format", "pattern": FORM}})
        objective = {"gates": [{"part": "steps", "needs": "form"}]}
    if kind == "credit":
        rewards[1]["credit"] = {}
    source = {
        "name": "parity",
        "data": {
            "jsonl": str(data / "train.jsonl"),
            "held_out_file": str(data / "held_out.jsonl"),
        },
        "rewards": rewards,
        "objective": objective,
        "group_size": 8,
        "sampling": {"temperature": 1.0, "max_tokens": 32},
    }
    return {
        "name": f"process-reward-{kind}",
        "seed": seed,
        "num_steps": steps,
        "model": {"path": str(policy), "dtype": "float32", "max_model_len": 128},
        "sources": [source],
        "batch": {"groups_per_step": 16, "max_tokens_per_microbatch": 1024},
        "rollout": {"actors": {"cpus": 0.5}, "enforce_eager": True},
        "trainer": {
            "actors": {"cpus": 0.5},
            "optimizer": {"lr": 3e-4, "betas": [0.9, 0.95], "warmup_steps": 2},
        },
        "weight_sync": {"bucket_mib": 4, "verify_every": 0},
        "eval": {"at_start": False, "at_end": False},
        "checkpoint": {"every": 0},
        "logging": {"rollout_groups": 1},
    }


def _last_word() -> dict[str, object]:
    return {"type": "function", "use": "benchmarks.process_reward:last_word"}


def last_word(rollout: Rollout, task: Task) -> float:
    """Pay 1 if the answer ends in the right word."""
    words = rollout.last_text.split()
    return float(bool(words) and words[-1] == task.answer)


def train(kind: str, data: Path, policy: Path, out: Path, *, seed: int, steps: int) -> Path:
    """Run one kind of reward and export what it learnt, unless that was done."""
    import yaml

    name = f"{kind}-seed{seed}"
    file, run_dir, exported = out / f"{name}.yaml", out / name, out / f"{name}-policy"
    if exported.exists():
        return exported
    shutil.rmtree(run_dir, ignore_errors=True)
    file.write_text(yaml.safe_dump(recipe(kind, data, policy, seed=seed, steps=steps)))
    braid = [Path(sys.executable).with_name("braid")]
    with (out / f"{name}.txt").open("w") as log:
        for command in (
            [*braid, "run", file, "--run-dir", run_dir],
            [*braid, "export", run_dir, "latest", exported],
        ):
            done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False)
            if done.returncode != 0:
                raise SystemExit(f"{name} ended with {done.returncode}; see {log.name}")
    return exported


def measure(policy: Path, rows: Sequence[Row]) -> dict[str, float]:
    """Ask held-out questions; return the shares of right answers, right steps, and both."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": str(row["prompt"])}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for row in rows
    ]
    batch = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(
            **batch,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=32,
            num_return_sequences=ASKED,
        )
    texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    graded = [judge(text, rows[i // ASKED]) for i, text in enumerate(texts)]
    return {
        "answer": round(fmean(answer for answer, _ in graded), 4),
        "steps": round(fmean(steps for _, steps in graded), 4),
        "both": round(fmean(answer and steps for answer, steps in graded), 4),
    }


def judge(text: str, row: Mapping[str, object]) -> tuple[bool, bool]:
    """Return whether the answer is right, and whether all steps are there and right."""
    terms = [int(n) for n in str(row["terms"]).split()]
    words = text.split()
    steps = re.findall(r"\S+=\S+", text)
    whole = re.fullmatch(FORM, text) is not None
    right = whole and all(_right(steps[: i + 1], terms) for i in range(len(steps)))
    return bool(words) and words[-1] == row["answer"], right


def main() -> None:
    """Print one JSON object: the warm start, and each kind of reward by seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--kinds", nargs="+", default=["outcome", "process", "credit"])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-steps", type=int, default=700)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="braid-process-reward-"))
    out.mkdir(parents=True, exist_ok=True)
    rows = make_rows()
    held_out, rest = rows[:HELD_OUT], rows[HELD_OUT:]
    asked, taught = rest[:TRAIN], rest[TRAIN:]
    for name, part in (("train", asked), ("held_out", held_out)):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (out / f"{name}.jsonl").write_text(lines)
    start = out / "start"
    if not start.exists():
        warm_start(taught, start, args.warm_steps)
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, cwd=ROOT, capture_output=True, text=True, check=False)
    found: dict[str, object] = {
        "machine": platform.machine(),
        "commit": commit.stdout.strip(),
        "steps": args.steps,
        "start": measure(start, held_out),
        "runs": {},
    }
    print(json.dumps(found["start"]), file=sys.stderr, flush=True)
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in args.kinds}
    for seed in args.seeds:
        for kind in args.kinds:
            began = time.monotonic()
            policy = train(kind, out, start, out, seed=seed, steps=args.steps)
            shares = measure(policy, held_out)
            minutes = round((time.monotonic() - began) / 60, 2)
            runs[kind].append({"seed": seed, **shares, "minutes": minutes})
            print(kind, json.dumps(runs[kind][-1]), file=sys.stderr, flush=True)
    print(json.dumps({**found, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
