"""The recipes of the runs under test."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from tests.e2e.runs import ROOT
from trainer.tiny_model import build_tokenizer

TINY = {"path": str(ROOT / "configs/models/tiny"), "dtype": "float32", "max_model_len": 128}


def source(
    name: str,
    dataset: str,
    args: dict[str, object],
    *,
    more: Sequence[object] = (),
    **own: object,
) -> dict[str, object]:
    """Return a source of reasoning-gym, with `more` parts of its reward."""
    return {
        **own,
        "name": name,
        "group_size": 4,
        "data": {
            "procedural": f"reasoning_gym/{dataset}",
            "size": 500,
            "held_out": 8,
            "args": args,
        },
        "sampling": {"max_tokens": 12},
        "rewards": [{"name": "answer", "use": "reasoning_gym"}, *more],
        "gold": {"grader": {"type": "function", "use": "exact"}, "fraction": 0.5},
    }


def recipe(
    folder: Path, *, rewards: Sequence[object] = (), taught: bool = False, **overrides: object
) -> Path:
    """Write a small mix of two sources on the tiny model, each with an objective of its own.

    Args:
        rewards: more parts for the source `spell`.
        taught: whether the model that the run starts from teaches `spell`, beside the rewards.
    """
    teacher = {"model": TINY, "actors": {"cpus": 0}, "max_tokens_per_batch": 512}
    lessons = {"distill": {"teacher": "start", "coef": 0.01}} if taught else {}
    narrow = {"advantage_scope": "source", "clip_low": 0.1, "clip_high": 0.3}
    sums = source("sums", "chain_sum", {"min_terms": 2, "max_terms": 2}, weight=2.0, **narrow)
    words = {"max_word_len": 6}
    spell = source("spell", "spell_backward", words, more=rewards, loss_weight=0.5, **lessons)
    data = {
        "name": "e2e",
        "num_steps": 6,
        "model": TINY,
        "sources": [sums, spell],
        "teachers": {"start": teacher} if taught else {},
        "batch": {"groups_per_step": 6, "max_tokens_per_microbatch": 2048},
        "algorithm": {"kl": {"coef": 0.001}},
        "trainer": {"optimizer": {"lr": 1e-4}},
        "rollout": {"max_num_seqs": 64},
        "weight_sync": {
            "bucket_mib": 1,
            "verify_every": 1,
            "max_logprob_gap_median": 1e-4,
            "max_logprob_gap_max": 1e-3,
        },
        "checkpoint": {"every": 2, "keep": 2},
        "logging": {"tensorboard": True, "wandb": "offline", "trainer_logprobs": True},
        "health": {"start_s": 240, "silence_s": 30},
        **overrides,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def judged(folder: Path) -> dict[str, object]:
    """Return a recipe's sources, judges and reward models: a part judged by the tiny model and one
    by a random classifier, neither of which counts."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    classifier = Qwen2ForSequenceClassification(Qwen2Config(num_labels=1, **size, **heads))
    classifier.save_pretrained(folder / "classifier")
    tokenizer.save_pretrained(folder / "classifier")
    (folder / "anchors.jsonl").write_text(
        "".join(
            json.dumps({"prompt": "Spell lamp.", "sample": text, "label": label}) + "\n"
            for text, label in (("pmal", 1), ("lamp", 0), ("The answer is pmal", 0.5))
        )
    )
    tiny = {**TINY, "max_model_len": 1024}
    score = {
        "type": "score_model",
        "model": "tiny",
        "votes": 2,
        "input": [{"role": "user", "content": "How good? {{ sample.output_text }}"}],
        "sampling_params": {"temperature": 0.7, "max_completions_tokens": 400},
    }
    rubric = {
        "type": "rubric",
        "model": "tiny",
        "criteria": [{"criterion": "It is one word.", "points": 1}],
        "sampling_params": {"temperature": 0},
    }
    idle = {"count": 1, "cpus": 0}
    parts = {
        "score": score,
        "rubric": rubric,
        "classifier": {"type": "reward_model", "model": "rm"},
    }
    return {
        "rewards": [{"name": n, "weight": 0.0, "grader": g} for n, g in parts.items()],
        "judges": {
            "tiny": {
                "engines": {"model": tiny, "actors": idle, "max_num_seqs": 32, "max_chars": 30},
                "max_tokens": 100,
                "calibration": {
                    "anchors": str(folder / "anchors.jsonl"),
                    "part": "spell/rubric",
                    "min_kappa": -1,
                },
            }
        },
        "reward_models": {
            "rm": {
                "model": {"path": str(folder / "classifier"), "dtype": "float32"},
                "actors": idle,
            }
        },
    }
