"""The trainer's forward, backward and step against the bare model's forward and backward.

    python benchmarks/trainer.py [--rounds 5] [--record]

One run, one process, one thread: interleaved rounds over the same long-tailed samples, medians of
CPU seconds, which on an idle machine are the clock's. The bare model is the Hugging Face network
itself with its whole logits and torch's cross-entropy, over the same micro-batches: as padded rows,
as the packed row under transformers' own mask, and as the packed row under the trainer's attention.
It makes no optimizer step. Peak memory of the output head at vocabulary 150,000 is taken in
processes of their own.
`--record` writes the figures to benchmarks/baselines/trainer.json and the page's table.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

sys.path[0] = str(Path(__file__).parents[1])  # this file has the name of the package it measures

from benchmarks.stack import ROOT, commit, markdown, write_section
from configs.data import DataConfig
from configs.schema import BatchConfig, ModelConfig, RewardConfig, RunConfig, SourceConfig
from configs.training import TrainerConfig
from rollouts.packing import assemble, plan_minibatches
from rollouts.types import MicroBatch, MinibatchPlan, SampleHandle, TrainingSample
from trainer.attention import SEGMENTS
from trainer.engine import Minibatch, PolicyEngine
from trainer.logprobs import LogprobHead

BASELINE = ROOT / "benchmarks/baselines/trainer.json"
VOCAB = 8192
BIG_VOCAB = 150_000
HEAD_TOKENS, HEAD_HIDDEN = 1024, 128
LONGEST = 2048


def make_model(folder: Path) -> None:
    """Write a random Qwen2 of 7 M parameters, with a word-level tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"t": 0}, unk_token="t"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def run_config(model: Path) -> RunConfig:
    """A recipe whose trainer is the default one."""
    source = SourceConfig(
        name="bench",
        data=DataConfig(procedural="reasoning_gym/chain_sum"),
        rewards=(RewardConfig(use="exact", name="exact"),),
    )
    return RunConfig(
        name="bench",
        num_steps=1000,
        model=ModelConfig(path=str(model), dtype="float32"),
        sources=(source,),
        batch=BatchConfig(groups_per_step=1),
        trainer=TrainerConfig(),
    )


def make_samples(count: int, seed: int = 0) -> list[TrainingSample]:
    """Samples of long-tailed lengths: prompts of 32 to 96 tokens, completions log-normal."""
    rng = np.random.default_rng(seed)
    samples: list[TrainingSample] = []
    for i in range(count):
        prompt = int(rng.integers(32, 97))
        completion = int(np.clip(rng.lognormal(5.0, 1.0), 8, LONGEST - prompt))
        length = prompt + completion
        mask = np.arange(length) >= prompt
        one = np.ones(length, np.float32)
        samples.append(
            TrainingSample(
                group_id="g",
                index=i,
                token_ids=rng.integers(0, VOCAB, length).astype(np.int32),
                loss_mask=mask,
                rollout_logprobs=np.where(mask, -9.0, 0).astype(np.float32),
                advantages=np.where(mask, rng.normal(), 0).astype(np.float32),
                loss_weight=one,
                kl_coef=0 * one,
                clip_low=np.nan * one,
                clip_high=np.nan * one,
                temperature=one,
            )
        )
    return samples


def plan(samples: Sequence[TrainingSample], dp: int, max_tokens: int) -> MinibatchPlan:
    """Plan one minibatch as the loop does."""
    handles = [
        SampleHandle(
            ref=None,
            row=i,
            num_tokens=len(s.token_ids),
            num_loss_tokens=int(s.loss_mask.sum()),
        )
        for i, s in enumerate(samples)
    ]
    (only,) = plan_minibatches(handles, dp=dp, num_minibatches=1, max_tokens=max_tokens)
    return only


def lay_out(
    samples: Sequence[TrainingSample], wanted: MinibatchPlan
) -> tuple[Minibatch, tuple[MicroBatch, ...]]:
    """Assemble rank 0's micro-batches."""
    batches = tuple(assemble([samples[h.row] for h in m.samples], None) for m in wanted.grid[0])
    minibatch = Minibatch(
        micro_batches=batches,
        num_loss_tokens=wanted.num_loss_tokens,
        num_samples=wanted.num_samples,
    )
    return minibatch, batches


def bare_loss(logits: Tensor, token_ids: Tensor, keep: Tensor) -> Tensor:
    """Next-token cross-entropy of a row or rows [B, L], summed over `keep`."""
    targets = torch.where(keep, token_ids, -100)[:, 1:]
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    return cross_entropy(flat, targets.reshape(-1), ignore_index=-100, reduction="sum")


def bare_packed(
    network: PreTrainedModel, batch: MicroBatch, lengths: tuple[int, ...] | None = None
) -> None:
    """Forward and backward over the packed row; without `lengths` under transformers' own mask."""
    ids = torch.from_numpy(batch.token_ids).long()[None]
    positions = torch.from_numpy(batch.positions).long()[None]
    extra = {} if lengths is None else {"segment_lengths": lengths}
    out = network(input_ids=ids, position_ids=positions, use_cache=False, **extra)
    bare_loss(out.logits, ids, torch.from_numpy(batch.loss_mask)[None]).backward()


def bare_segments(network: PreTrainedModel, batch: MicroBatch) -> None:
    """The same under the trainer's attention."""
    network.set_attn_implementation(SEGMENTS)
    bare_packed(network, batch, tuple(np.diff(batch.cu_seqlens).tolist()))
    network.set_attn_implementation("sdpa")


def bare_padded(network: PreTrainedModel, batch: MicroBatch) -> None:
    """Forward and backward over the same samples as right-padded rows."""
    bounds = list(pairwise(batch.cu_seqlens.tolist()))
    shape = (len(bounds), max(end - start for start, end in bounds))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    there = torch.zeros(shape, dtype=torch.bool)
    for row, (start, end) in enumerate(bounds):
        ids[row, : end - start] = torch.from_numpy(batch.token_ids[start:end]).long()
        mask[row, : end - start] = torch.from_numpy(batch.loss_mask[start:end])
        there[row, : end - start] = True
    out = network(input_ids=ids, attention_mask=there.long(), use_cache=False)
    bare_loss(out.logits, ids, mask).backward()


def padded_share(batches: Sequence[MicroBatch]) -> float:
    """Share of padding where the same micro-batches are rows as long as their longest sample."""
    lengths = [np.diff(b.cu_seqlens) for b in batches]
    return 1 - sum(int(n.sum()) for n in lengths) / sum(int(n.max()) * len(n) for n in lengths)


def balance(samples: Sequence[TrainingSample], dp: int, max_tokens: int) -> dict[str, float]:
    """How a plan over `dp` ranks spreads: padding, fill, and what ranks wait for each other."""
    from rollouts.packing import _cost  # pyright: ignore[reportPrivateUsage]

    grid = plan(samples, dp, max_tokens).grid
    cost = np.array([[sum(_cost(h.num_tokens) for h in m.samples) for m in row] for row in grid])
    tokens = np.array([[sum(h.num_tokens for h in m.samples) for m in row] for row in grid])
    dummies = int((tokens == 0).sum())  # an empty micro-batch runs one token
    return {
        "ranks": dp,
        "micro_batches": int(tokens.size),
        "padding_share": dummies / (int(tokens.sum()) + dummies),
        "fill": float(tokens.sum() / (tokens.size * max_tokens)),
        "heaviest_rank": float(cost.sum(1).max() / cost.sum(1).mean()),
        "waiting_share": float(1 - cost.sum() / (cost.max(0).sum() * dp)),
    }


def timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure_speed(args: argparse.Namespace) -> dict[str, object]:
    """Interleave trainer and bare rounds; return tokens/s, ratios, shares."""
    samples = make_samples(args.samples)
    minibatch, batches = lay_out(samples, plan(samples, 1, args.max_tokens))
    tokens = sum(len(s.token_ids) for s in samples)
    names = ("trainer", "padded", "packed", "segments")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model")
        cfg = run_config(Path(folder) / "model")
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", rank=0, world_size=1, init_method=store)
        engine = PolicyEngine(cfg, rank=0, world_size=1, total_optimizer_steps=1000)
        network = AutoModelForCausalLM.from_pretrained(
            cfg.model.path, dtype=torch.float32, use_safetensors=True
        ).train()

    def bare(run: Callable[[PreTrainedModel, MicroBatch], None]) -> None:
        network.zero_grad(set_to_none=True)
        for batch in batches:
            run(network, batch)

    for step in range(args.rounds + 1):
        taken = {
            "trainer": timed(lambda: engine.train_step(1, [minibatch])),
            "packed": timed(lambda: bare(bare_packed)),
            "padded": timed(lambda: bare(bare_padded)),
            "segments": timed(lambda: bare(bare_segments)),
        }
        print(f"round {step}: {taken}", file=sys.stderr)
        if step > 0:  # the first round warms up
            for name, value in taken.items():
                seconds[name].append(value)
    parameters = sum(p.numel() for p in network.parameters())
    dist.destroy_process_group()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "parameters": parameters,
        "vocab": VOCAB,
        "samples": len(samples),
        "tokens": tokens,
        "loss_tokens": minibatch.num_loss_tokens,
        "longest": max(len(s.token_ids) for s in samples),
        "median_length": statistics.median(len(s.token_ids) for s in samples),
        "micro_batches": len(batches),
        "max_tokens": args.max_tokens,
        "rounds": args.rounds,
        "tokens_per_s": {name: tokens / value for name, value in median.items()},
        "seconds": seconds,
        "ratio_to_padded": median["padded"] / median["trainer"],
        "ratio_to_packed": median["packed"] / median["trainer"],
        "ratio_to_segments": median["segments"] / median["trainer"],
        "padding_of_padded_rows": padded_share(batches),
    }


def head_pass(kind: str) -> None:
    """Forward and backward of the output head at a large vocabulary, in the way named."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(BIG_VOCAB, HEAD_HIDDEN, generator=generator) * 0.02)
    hidden = torch.randn(HEAD_TOKENS, HEAD_HIDDEN, generator=generator).requires_grad_()
    targets = torch.randint(0, BIG_VOCAB, (HEAD_TOKENS,), generator=generator)
    if kind == "fused":
        head = LogprobHead(weight, 256)
        head(hidden, targets, torch.ones(HEAD_TOKENS))[0].sum().backward()
    elif kind == "whole":
        logps = torch.log_softmax(hidden @ weight.t(), -1)
        logps.gather(1, targets[:, None]).sum().backward()
    else:  # what both begin and end with
        weight.grad, hidden.grad = torch.zeros_like(weight), torch.zeros_like(hidden)


def measure_memory() -> dict[str, float]:
    """Peak resident memory of each way, in MiB, each in a process of its own."""
    peaks: dict[str, float] = {}
    for kind in ("neither", "fused", "whole"):
        command = [sys.executable, __file__, "--head", kind]
        ran = subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300
        )
        peaks[kind] = float(ran.stdout.splitlines()[-1])  # DeepSpeed may have warned before
    return {
        "vocab": BIG_VOCAB,
        "tokens": HEAD_TOKENS,
        "fused_mib": peaks["fused"] - peaks["neither"],
        "whole_mib": peaks["whole"] - peaks["neither"],
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """Return the page's section: figures with their goals."""
    speed, spread, head = found["speed"], found["balance"], found["head"]
    rows = [
        ["tokens/s of forward, backward and step, to the bare padded rows", "0.9 or more",
         f"{speed['ratio_to_padded']:.2f}"],
        ["to the bare packed row, transformers' mask", "0.9 or more",
         f"{speed['ratio_to_packed']:.2f}"],
        ["to the bare packed row, the trainer's attention", "0.9 or more",
         f"{speed['ratio_to_segments']:.2f}"],
        ["padding, in a plan over 8 ranks", "under 3%", f"{spread['padding_share']:.2%}"],
        ["padding of the same micro-batches as rows", "", f"{speed['padding_of_padded_rows']:.0%}"],
        ["heaviest of 8 ranks to their mean, by cost", "", f"{spread['heaviest_rank']:.3f}"],
        ["time that 8 ranks in lockstep wait", "", f"{spread['waiting_share']:.1%}"],
        ["memory of the head at vocabulary 150,000, fused", "", f"{head['fused_mib']:,.0f} MiB"],
        ["the same with whole logits", "", f"{head['whole_mib']:,.0f} MiB"],
    ]  # fmt: skip
    return markdown(["what", "goal", "measured"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=4096)
    parser.add_argument("--record", action="store_true", help="write the baseline and the page")
    parser.add_argument("--head", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.head:
        head_pass(args.head)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    found = {
        "device": f"1 thread of {os.cpu_count()} CPU cores ({platform.machine()})",
        "commit": commit(),
        "balance": balance(make_samples(1024, seed=1), 8, args.max_tokens),
        "head": measure_memory(),
        "speed": measure_speed(args),
    }
    print(json.dumps(found, indent=1))
    if args.record:
        BASELINE.write_text(json.dumps(found, indent=1) + "\n")
        write_section("trainer", table(found))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
