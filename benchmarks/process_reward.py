"""Process reward against outcome reward on a task where guessing pays.

    python benchmarks/process_reward.py [--kinds outcome process] [--seeds 1 2 3] [--out FOLDER]

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
`benchmarks/baselines/process_reward.json`, the plot `docs/process_reward.png` and the section of
docs/benchmarks.md, after each seed, of the seeds that are complete. What is in the folder already
is not made again, and a run that was cut off goes on: an interrupted script goes on where it was.
"""

import argparse
import json
import random
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

if __name__ == "__main__":  # a file beside this one has the name of a package that it needs
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.stack import ROOT, braid, made_on, markdown, records, write_section
from rollouts.types import Rollout, Task

TINY = ROOT / "configs" / "models" / "tiny"
BASELINE = ROOT / "benchmarks" / "baselines" / "process_reward.json"
PLOT = ROOT / "docs" / "process_reward.png"
COLOURS = {"outcome": "#e69f00", "process": "#0072b2", "credit": "#009e73"}
SHARES = {"answer": "right answers", "steps": "right steps", "both": "both"}
"""Held-out share -> what it is called."""
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
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, use_safetensors=True)
    dice = random.Random(1)

    def lessons() -> Iterator[Lesson]:
        while True:
            row = dice.choice(rows)
            yield Lesson(question=str(row["prompt"]), answer=careless(row, dice))

    sft(model, tokenizer, lessons(), SftSettings(steps=steps, batch_size=64, pieces=1, lr=2e-3))
    part = out.with_suffix(".part")
    for made in (model, tokenizer):
        made.save_pretrained(part)
    part.rename(out)


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
        "checkpoint": {"every": 10},
        "logging": {"rollout_groups": 1},
    }


def last_word(rollout: Rollout, task: Task) -> float:
    """Pay 1 if the answer ends in the right word."""
    words = rollout.last_text.split()
    return float(bool(words) and words[-1] == task.answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run came to."""

    kind: str
    seed: int
    held_out: dict[str, float]
    """Shares of right answers (`answer`), of right steps (`steps`) and of `both`."""
    answer: list[float]
    """Share of right answers while training, step by step."""
    steps: list[float]
    """And of right steps."""


def run_name(kind: str, seed: int) -> str:
    """Return what a run's files and its folder are called."""
    return f"{kind}-seed{seed}"


def train(kind: str, out: Path, held_out: Sequence[Row], *, seed: int, steps: int) -> None:
    """Run one kind of reward, export and examine what it learnt, and keep what it came to."""
    import yaml

    name = run_name(kind, seed)
    file, run_dir, policy, log = (out / f"{name}{x}" for x in (".yaml", "", "-policy", ".txt"))
    file.write_text(yaml.safe_dump(recipe(kind, out, out / "start", seed=seed, steps=steps)))
    braid("run", file, "--run-dir", run_dir, "--resume", "auto", log=log)
    shutil.rmtree(policy, ignore_errors=True)
    braid("export", run_dir, "latest", policy, log=log)
    found = Outcome(kind=kind, seed=seed, held_out=measure(policy, held_out), **curves(run_dir))
    part = out / f"{name}.part"
    part.write_text(json.dumps(asdict(found)))
    part.rename(out / f"{name}.json")


def curves(run_dir: Path) -> dict[str, list[float]]:
    """Return the shares of right answers and right steps while training, step by step."""
    rows = records(run_dir / "metrics.jsonl")
    at = "source/parity/all/reward_part/"
    return {part: [round(row[at + part], 4) for row in rows] for part in ("answer", "steps")}


def measure(policy: Path, rows: Sequence[Row]) -> dict[str, float]:
    """Ask held-out questions; return the shares of right answers, right steps, and both."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(
        policy, dtype=torch.float32, use_safetensors=True
    ).eval()
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


def outcomes(out: Path, kinds: Sequence[str], seeds: Sequence[int]) -> dict[str, list[Outcome]]:
    """Return the runs by kind, of the seeds that have all of `kinds`; other kinds as well where
    they have those seeds."""
    files = {(k, n): out / f"{run_name(k, n)}.json" for k in COLOURS for n in seeds}
    found = {at: Outcome(**json.loads(f.read_text())) for at, f in files.items() if f.exists()}
    whole = [n for n in seeds if all((kind, n) in found for kind in kinds)]
    shown = [kind for kind in COLOURS if whole and all((kind, n) in found for n in whole)]
    return {kind: [found[kind, n] for n in whole] for kind in shown}


def page_section(start: Mapping[str, float], runs: Mapping[str, Sequence[Outcome]]) -> str:
    """Return what docs/benchmarks.md says."""
    seeds = [run.seed for run in next(iter(runs.values()))]
    rows = [["start", *(f"{100 * start[share]:.1f}" for share in SHARES)]]
    for kind, own in runs.items():
        rows.append([kind, *(_with_range([r.held_out[share] for r in own]) for share in SHARES)])
    shown = f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]} alone"
    table = markdown(["", *SHARES.values()], rows)
    head = f"Held-out shares in %, mean of {shown} (lowest to highest seed):"
    picture = f"![right answers and right steps while training]({PLOT.name})\n"
    return "\n".join([f"{head}\n", table, *filter(None, [_verdict(runs)]), picture])


def _with_range(shares: Sequence[float]) -> str:
    low, high = (f"{100 * end(shares):.1f}" for end in (min, max))
    return f"{100 * fmean(shares):.1f}" + (f" ({low} to {high})" if len(shares) > 1 else "")


def _verdict(runs: Mapping[str, Sequence[Outcome]]) -> str:
    """Say what each other reward gains on the outcome alone, seed by seed."""
    lines: list[str] = []
    for kind in (k for k in runs if k != "outcome" and "outcome" in runs):
        pairs = list(zip(runs[kind], runs["outcome"], strict=True))
        for share in ("steps", "both"):
            gains = [100 * (a.held_out[share] - b.held_out[share]) for a, b in pairs]
            each = ", ".join(f"{gain:+.1f}" for gain in gains)
            count = sum(gain > 0 for gain in gains)
            lines.append(
                f"- `{kind}` against `outcome`, {SHARES[share]}: {each} points, seed by seed; "
                f"more in {count} of {len(gains)}.\n"
            )
    return "".join(lines)


def draw(runs: Mapping[str, Sequence[Outcome]], path: Path) -> None:
    """Draw what training saw, right answers and right steps: a thin line a run, a thick one their
    mean."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), dpi=120, sharey=True, layout="constrained")
    for kind, own in runs.items():
        for panel, part in zip(axes, ("answer", "steps"), strict=True):
            lines = [_smooth(getattr(run, part)) for run in own]
            mean = [fmean(values) for values in zip(*lines, strict=True)]
            at = range(1, len(mean) + 1)
            for line in lines:
                panel.plot(at, line, color=COLOURS[kind], linewidth=0.8, alpha=0.5)
            panel.plot(at, mean, color=COLOURS[kind], linewidth=2, label=kind)
    titles = ("the last word is right", "all steps are right")
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step (mean of five)")
        panel.set_ylim(0, 1.02)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path)
    plt.close(figure)


def _smooth(values: Sequence[float]) -> list[float]:
    return [fmean(values[max(0, i - 2) : i + 3]) for i in range(len(values))]


def prepare(out: Path, *, steps: int, warm_steps: int) -> tuple[dict[str, float], Sequence[Row]]:
    """Write the rows and the policy that all runs start from, unless they are there; return the
    start's shares and the held-out rows.

    Raises:
        SystemExit: what is there was made with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = make_rows()
    held_out, rest = rows[:HELD_OUT], rows[HELD_OUT:]
    asked, taught = rest[:TRAIN], rest[TRAIN:]
    settings, kept = {"steps": steps, "warm_steps": warm_steps}, out / "start.json"
    if kept.exists():
        found = json.loads(kept.read_text())
        if found["settings"] != settings:
            raise SystemExit(f"{out} was made with {found['settings']}; give another --out")
        return found["held_out"], held_out
    for name, part in (("train", asked), ("held_out", held_out)):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (out / f"{name}.jsonl").write_text(lines)
    start = out / "start"
    shutil.rmtree(start, ignore_errors=True)
    warm_start(taught, start, warm_steps)
    shares = measure(start, held_out)
    part = out / "start.part.json"
    part.write_text(json.dumps({"settings": settings, "held_out": shares}))
    part.rename(kept)
    return shares, held_out


def main() -> None:
    """Make what runs are missing; print held-out shares; write the figures, plot and page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--kinds", nargs="+", choices=COLOURS, default=["outcome", "process"])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-steps", type=int, default=700)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/process_reward")
    parser.add_argument("--json", type=Path, default=BASELINE)
    parser.add_argument("--plot", type=Path, default=PLOT)
    args = parser.parse_args()
    out = args.out.resolve()
    start, held_out = prepare(out, steps=args.steps, warm_steps=args.warm_steps)
    print("start", json.dumps(start), flush=True)
    for seed in args.seeds:
        for kind in args.kinds:
            name = run_name(kind, seed)
            if not (out / f"{name}.json").exists():
                train(kind, out, held_out, seed=seed, steps=args.steps)
            found = json.loads((out / f"{name}.json").read_text())
            print(name, json.dumps(found["held_out"]), flush=True)
        runs = outcomes(out, args.kinds, args.seeds)
        every = [run for own in runs.values() for run in own]
        record = {
            "command": f"python benchmarks/process_reward.py --steps {args.steps}",
            **made_on(out / run_name(run.kind, run.seed) for run in every),
            "steps": args.steps,
            "warm_steps": args.warm_steps,
            "start": start,
            "runs": [asdict(run) for run in every],
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")
        draw(runs, args.plot)
        if args.json == BASELINE:
            write_section("process reward", page_section(start, runs))


if __name__ == "__main__":
    main()
