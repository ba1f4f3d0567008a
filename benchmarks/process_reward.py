"""Process reward against outcome reward on a task where guessing pays.

    python benchmarks/process_reward.py [--kinds outcome process] [--seeds 1 2] [--out FOLDER]

The task: is the value of `4 - 1 - 7` even or odd? Half of all guesses are right, so the outcome
says little about how an answer came about; each line of the working can be checked by a rule.
The tiny policy is taught the format by careless examples (a short warm start, the same for all
runs), then trained on the same rows, in equal steps, under each reward:

    outcome   the last word is right
    process   and all steps are (grader `steps`), credited to the rollout as a whole
    credit    the same, credited to the tokens that wrote the steps

In all of them the steps are verified by a rule; under `outcome` that is only looked at. Held-out
questions are asked of the exported policies here, outside of any run, at temperature 1: the share
of right answers, of answers all of whose steps are right, and of those that are both. Writes
`benchmarks/baselines/process_reward.json` and the plot `docs/process_reward.png`; runs that are in
the folder already are not made again.
"""

import argparse
import json
import platform
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rollouts.types import Rollout, Task

ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs" / "models" / "tiny"
BASELINE = ROOT / "benchmarks" / "baselines" / "process_reward.json"
PLOT = ROOT / "docs" / "process_reward.png"
COLOURS = {"outcome": "#e69f00", "process": "#0072b2", "credit": "#009e73"}
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
    steps_part: dict[str, object] = {
        "name": "steps",
        "weight": 0 if kind == "outcome" else 1,
        "grader": {"type": "steps", "split": split, "verify": by_rule},
    }
    if kind == "credit":
        steps_part["credit"] = {}
    last = {"type": "function", "use": "benchmarks.process_reward:last_word"}
    form = {"name": "form", "weight": 0, "grader": {"type": "format", "pattern": FORM}}
    rewards = [{"name": "answer", "grader": last}, steps_part, form]
    gates = [] if kind == "outcome" else [{"part": "steps", "needs": "form"}]
    source = {
        "name": "parity",
        "data": {
            "jsonl": str(data / "train.jsonl"),
            "held_out_file": str(data / "held_out.jsonl"),
        },
        "rewards": rewards,
        "objective": {"gates": gates},
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


def last_word(rollout: Rollout, task: Task) -> float:
    """Pay 1 if the answer ends in the right word."""
    words = rollout.last_text.split()
    return float(bool(words) and words[-1] == task.answer)


def train(kind: str, data: Path, policy: Path, out: Path, *, seed: int, steps: int) -> Path:
    """Run one kind of reward and export what it learnt, unless that was done; return the run."""
    import yaml

    name = f"{kind}-seed{seed}"
    file, run_dir, exported = out / f"{name}.yaml", out / name, out / f"{name}-policy"
    if exported.exists():
        return run_dir
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
    return run_dir


def curves(run_dir: Path) -> dict[str, list[float]]:
    """Return the shares of right answers and right steps while training, step by step."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").open()]
    at = "source/parity/all/reward_part/"
    return {part: [round(row[at + part], 4) for row in rows] for part in ("answer", "steps")}


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


def draw(runs: Mapping[str, Any], path: Path) -> None:
    """Draw what training saw: right answers and right steps, a line a run."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), dpi=120, sharey=True, layout="constrained")
    for name, run in runs.items():
        kind = name.partition(",")[0]
        for panel, part in zip(axes, ("answer", "steps"), strict=True):
            shown = [fmean(run[part][max(0, i - 2) : i + 3]) for i in range(len(run[part]))]
            panel.plot(range(1, len(shown) + 1), shown, color=COLOURS[kind], label=kind)
    titles = ("the last word is right", "all steps are right")
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step (mean of five)")
        panel.set_ylim(0, 1.02)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    figure.legend(known.values(), known.keys(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Make what runs are missing; print held-out shares; write the figures and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--kinds", nargs="+", choices=COLOURS, default=list(COLOURS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-steps", type=int, default=700)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/process_reward")
    parser.add_argument("--json", type=Path, default=BASELINE)
    parser.add_argument("--plot", type=Path, default=PLOT)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = make_rows()
    held_out, rest = rows[:HELD_OUT], rows[HELD_OUT:]
    asked, taught = rest[:TRAIN], rest[TRAIN:]
    for name, part in (("train", asked), ("held_out", held_out)):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (args.out / f"{name}.jsonl").write_text(lines)
    start = args.out / "start"
    if not start.exists():
        warm_start(taught, start, args.warm_steps)
    found: dict[str, Any] = json.loads(args.json.read_text()) if args.json.is_file() else {}
    found |= {"machine": platform.machine(), "steps": args.steps, "start": measure(start, held_out)}
    runs: dict[str, Any] = found.setdefault("runs", {})
    print("start", json.dumps(found["start"]), flush=True)
    for seed in args.seeds:
        for kind in args.kinds:
            run_dir = train(kind, args.out, start, args.out, seed=seed, steps=args.steps)
            held = measure(Path(f"{run_dir}-policy"), held_out)
            name = f"{kind}, seed {seed}"
            runs[name] = {"commit": _commit(), "held_out": held, **curves(run_dir)}
            print(name, json.dumps(held), flush=True)
            found["runs"] = dict(sorted(runs.items()))
            args.json.write_text(json.dumps(found, indent=1) + "\n")
            draw(found["runs"], args.plot)


def _commit() -> str:
    head = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(head, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
