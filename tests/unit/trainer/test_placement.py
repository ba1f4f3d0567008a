"""Where the trainer keeps what, and how its head multiplies."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import nn
from transformers import Qwen2Config

from configs.deepspeed import deepspeed_config
from configs.schema import RunConfig
from configs.validate_trainer import check_nvme, check_sequence_parallel
from trainer.logprobs import LogprobHead

NVME = {"path": "/local", "buffers": 6, "threads": 2}


def recipe(model: str = "org/model", packing: str = "packed", **trainer: Any) -> RunConfig:
    source = {"name": "a", "data": {"procedural": "reasoning_gym/chain_sum"}, "rewards": []}
    fields = {
        "name": "t",
        "num_steps": 1,
        "model": {"path": model},
        "sources": [source],
        "batch": {"groups_per_step": 1, "packing": packing},
        "trainer": trainer,
    }
    return RunConfig.model_validate(fields)


@pytest.mark.parametrize("offload", ["optimizer", "parameters"])
def test_nvme_takes_the_place_of_cpu_memory(offload: str) -> None:
    cfg = recipe(zero_stage=3, offload=offload, nvme=NVME, actors={"gpus": 1})
    built: Any = deepspeed_config(cfg, device="cuda")
    zero = DeepSpeedZeroConfig(**built["zero_optimization"])
    assert zero.offload_optimizer is not None
    assert zero.offload_optimizer.device == "nvme"
    assert str(zero.offload_optimizer.nvme_path) == "/local"
    assert zero.offload_optimizer.buffer_count == 6
    assert (zero.offload_param is not None) == (offload == "parameters")
    if zero.offload_param is not None:
        assert zero.offload_param.device == "nvme"
        assert str(zero.offload_param.nvme_path) == "/local"
    assert built["aio"]["intra_op_parallelism"] == 2
    assert built["aio"]["block_size"] == 1 << 20
    without: Any = deepspeed_config(recipe(zero_stage=3, offload=offload), device="cuda")
    assert "aio" not in without
    assert without["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_a_disk_s_buffers_hold_a_rank_s_part_of_the_embedding(tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 28, "num_hidden_layers": 28, "vocab_size": 152_064}
    sizes |= {"hidden_size": 3584, "intermediate_size": 18944}
    (tmp_path / "config.json").write_text(json.dumps(sizes))

    def elements(ranks: int, model: str = str(tmp_path)) -> int:
        actors = {"gpus": 1, "count": ranks}
        cfg = recipe(model, zero_stage=3, offload="parameters", nvme=NVME, actors=actors)
        built: Any = deepspeed_config(cfg, device="cuda")
        zero = DeepSpeedZeroConfig(**built["zero_optimization"])
        assert zero.offload_param is not None
        return zero.offload_param.buffer_size

    assert elements(2) >= 152_064 * 3584 / 2
    assert elements(8) == elements(8, "org/model") == 100_000_000


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"zero_stage": 3}, ["offload is none"]),
        ({"zero_stage": 2, "offload": "optimizer"}, ["needs trainer.zero_stage 3, not 2"]),
        ({"zero_stage": 3, "offload": "optimizer", "actors": {}}, ["needs GPUs"]),
        (
            {"zero_stage": 3, "offload": "optimizer", "nvme": {"path": "disk"}},
            ["`disk` is not absolute"],
        ),
        ({"nvme": {"path": "disk"}, "actors": {}}, ["offload is none", "GPUs", "absolute"]),
        ({"zero_stage": 3, "offload": "optimizer"}, []),
    ],
)
def test_what_cannot_go_to_disk_is_refused(knobs: dict[str, Any], words: list[str]) -> None:
    problems = list(check_nvme(recipe(**{"nvme": NVME, "actors": {"gpus": 1}, **knobs})))
    assert len(problems) == len(words)
    assert all(w in p.what for w, p in zip(words, problems, strict=True))


@pytest.mark.parametrize(
    ("count", "size", "packing", "words"),
    [
        (4, 2, "packed", []),
        (8, 4, "packed", []),  # two key-value heads, each on two of four ranks
        (3, 2, "packed", ["does not divide"]),
        (4, 2, "padded", ["padded"]),
        (3, 3, "packed", ["6 heads and 2 key-value heads"]),
        (5, 5, "padded", ["padded", "6 heads"]),
        (3, 1, "padded", []),
    ],
)
def test_rows_that_cannot_be_shared_are_refused(
    count: int, size: int, packing: str, words: list[str], tmp_path: Path
) -> None:
    heads = 6 if size % 2 else 8
    Qwen2Config(hidden_size=48, num_attention_heads=heads, num_key_value_heads=2).save_pretrained(
        tmp_path
    )
    cfg = recipe(str(tmp_path), packing, actors={"count": count}, sequence_parallel=size)
    problems = list(check_sequence_parallel(cfg))
    assert len(problems) == len(words)
    assert all(w in p.what for w, p in zip(words, problems, strict=True))
    assert not words or problems[0].where == "trainer.sequence_parallel"


@pytest.mark.parametrize("fp32", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_the_head_in_fp32_is_that_of_the_widened_weights(fp32: bool, biased: bool) -> None:
    torch.manual_seed(2)
    hidden = torch.randn(9, 8).bfloat16().requires_grad_()
    weight = nn.Parameter(torch.randn(40, 8).bfloat16())
    bias = nn.Parameter(torch.randn(40).bfloat16()) if biased else None
    targets, temperature = torch.randint(0, 40, (9,)), torch.rand(9) + 0.5
    mix = torch.randn(2, 9)
    leaves = [hidden, weight, *([] if bias is None else [bias])]
    head = LogprobHead(weight, 4, bias=bias, fp32=fp32)
    scored = head(hidden, targets, temperature)
    grads = torch.autograd.grad((scored * mix).sum(), leaves)

    wide = [leaf.detach().float().requires_grad_() for leaf in leaves]
    logits = nn.functional.linear(wide[0], wide[1], wide[2] if biased else None)
    logp = torch.log_softmax(logits / temperature[:, None], -1)
    expected = torch.stack([logp[torch.arange(9), targets], -(logp.exp() * logp).sum(-1)])
    wanted = torch.autograd.grad((expected * mix).sum(), wide)
    gap = (scored - expected).abs().max()
    assert gap < 1e-5 if fp32 else 1e-4 < gap < 0.2
    for mine, theirs in zip(grads, wanted, strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.float(), theirs, rtol=0.05, atol=0.05)


def test_a_frozen_head_gives_no_gradient_and_passes_one_on() -> None:
    hidden = torch.randn(3, 8, requires_grad=True)
    head = LogprobHead(nn.Parameter(torch.randn(10, 8), requires_grad=False), 2)
    head(hidden, torch.arange(3), torch.ones(3))[0].sum().backward()
    assert head.weight.grad is None
    assert hidden.grad is not None and hidden.grad.abs().max() > 0
