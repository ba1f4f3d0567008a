"""Any causal LM: packed logprobs are the plain model's, sample by sample, or packing is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from configs.errors import ConfigError
from configs.model_types import PADDED_ONLY, check_model_type
from configs.schema import RunConfig
from trainer.attention import choose_attention
from trainer.critic_model import CriticModel
from trainer.model import PolicyModel
from trainer.packing_check import check_packing, keep_apart

VOCAB, LENGTHS = 64, (7, 3, 12, 1, 9)
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OLD: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4}
WINDOW = {**COMMON, "sliding_window": 5}
HEADS = {**COMMON, "head_dim": 8}
PACKED: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "qwen2": COMMON,
    "qwen2 window": {**WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": HEADS,
    "mistral": WINDOW,
    "gemma": HEADS,
    "gemma3_text": {**WINDOW, **HEADS, "query_pre_attn_scalar": 8},
    "gpt2": {**OLD, "n_positions": 64},
    "gpt_neox": COMMON,
    "phi": COMMON,
    "phi3": WINDOW,
    "olmo2": COMMON,
    "starcoder2": WINDOW,
    "granite": COMMON,
    "smollm3": COMMON,
    "stablelm": COMMON,
    "nemotron": COMMON,
    "glm4": HEADS,
    "gptj": {**OLD, "n_positions": 64, "rotary_dim": 4},
    "opt": {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32},
}
LEAKING: dict[str, dict[str, Any]] = {
    "bloom": OLD | {"hidden_size": 32},
    "falcon": COMMON | {"alibi": True},
    "mpt": {"vocab_size": VOCAB, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "mamba": {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "lfm2": COMMON | {"layer_types": ["conv", "full_attention", "conv"]},
    "biogpt": COMMON,
}


def build(name: str, fields: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name.split()[0]](**fields)
    for key, value in config.to_dict().items():
        if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float):
            setattr(config, key, 0.0)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)  # large enough for a leak to show
    return network.eval()


def policy_of(network: PreTrainedModel) -> PolicyModel:
    attention = choose_attention(network, on_cuda=False)
    return PolicyModel(network, packing="packed", logprob_chunk=8, attention=attention)


def samples() -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB, (n,), generator=rng) for n in LENGTHS]


def alone(network: PreTrainedModel) -> Tensor:
    """Logprobs [T] of the plain model, one sample at a time."""
    rows = []
    for ids in samples():
        logps = torch.log_softmax(network(ids[None], use_cache=False).logits[0, :-1].float(), -1)
        rows.append(torch.cat([torch.zeros(1), logps.gather(1, ids[1:, None])[:, 0]]))
    return torch.cat(rows)


def together(policy: PolicyModel) -> Tensor:
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    bounds = torch.tensor((0, *LENGTHS)).cumsum(0)
    ids = torch.cat(samples())
    logprobs: Tensor = policy(ids, positions, bounds, torch.ones(len(ids)))[0]
    return logprobs


@pytest.mark.parametrize("name", PACKED)
def test_packed_and_padded_rows_are_the_plain_models(name: str) -> None:
    network = build(name, PACKED[name])
    with torch.no_grad():
        expected = alone(network)
    policy = policy_of(network)
    check_packing(policy, policy, torch.device("cpu"))
    for packing in ("packed", "padded"):
        policy.packing = packing  # type: ignore[assignment]
        found = together(policy)
        assert (found - expected).abs().max() < 1e-4, packing
    found.sum().backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if "layers.0" in n)


@pytest.mark.parametrize("name", LEAKING)
def test_leaking_models_are_found_and_right_on_padded_rows(name: str) -> None:
    network = build(name, LEAKING[name])
    with torch.no_grad():
        expected = alone(network)
    policy = policy_of(network)
    with pytest.raises(ConfigError, match=f"a {name} model does not keep segments apart"):
        check_packing(policy, policy, torch.device("cpu"))
    assert name in PADDED_ONLY
    policy.packing = "padded"
    check_packing(policy, policy, torch.device("cpu"))
    assert (together(policy) - expected).abs().max() < 1e-4


def test_a_model_that_loses_the_segments_on_the_way_gets_transformers_mask() -> None:
    """Nemotron hands its attention no further arguments."""
    policy = policy_of(build("nemotron", PACKED["nemotron"]))
    assert policy.attention == "braid_segments"
    check_packing(policy, policy, torch.device("cpu"))
    assert policy.attention == "sdpa"


def critic_of(name: str, fields: dict[str, Any]) -> CriticModel:
    """A critic as it is at first: its head says 0, so that no value shows a leak."""
    body = build(name, fields)
    config = body.config
    config.num_labels = 1
    network = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    network.base_model.load_state_dict(body.base_model.state_dict())
    torch.nn.init.zeros_(network.score.weight)
    attention = choose_attention(network, on_cuda=False)
    return CriticModel(network, packing="packed", attention=attention)


def keep_critic_apart(critic: CriticModel) -> None:
    def trace(ids: Tensor, positions: Tensor, bounds: Tensor) -> Tensor:
        traced: Tensor = critic(ids, positions, bounds, torch.ones(len(ids)).bool(), traced=True)
        return traced

    keep_apart(trace, critic, torch.device("cpu"))


def test_a_new_critic_keeps_segments_apart_or_is_refused() -> None:
    for name, kept in (("qwen2", "braid_segments"), ("nemotron", "sdpa")):
        critic = critic_of(name, PACKED[name])
        assert critic.attention == "braid_segments"
        keep_critic_apart(critic)
        assert critic.attention == kept
    leaking = critic_of("bloom", LEAKING["bloom"])
    with pytest.raises(ConfigError, match="a bloom model does not keep segments apart"):
        keep_critic_apart(leaking)
    leaking.packing = "padded"
    keep_critic_apart(leaking)


def recipe(folder: Path, packing: str = "packed") -> RunConfig:
    source = {"name": "a", "data": {"procedural": "reasoning_gym/chain_sum"}, "rewards": []}
    fields = {
        "name": "t",
        "num_steps": 1,
        "model": {"path": str(folder)},
        "sources": [source],
        "batch": {"groups_per_step": 1, "packing": packing},
    }
    return RunConfig.model_validate(fields)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss"])
def test_mixtures_of_experts_are_refused_by_their_config(name: str, tmp_path: Path) -> None:
    CONFIG_MAPPING[name]().save_pretrained(tmp_path)
    (problem,) = check_model_type(recipe(tmp_path, "padded"))
    assert f"model_type {name}" in problem.what and "router replay" in problem.what


def test_the_plan_refuses_to_pack_what_leaks(tmp_path: Path) -> None:
    CONFIG_MAPPING["mamba"](hidden_size=32, num_hidden_layers=1).save_pretrained(tmp_path)
    (problem,) = check_model_type(recipe(tmp_path))
    assert problem.where == "batch.packing" and "mamba" in problem.what
    assert not list(check_model_type(recipe(tmp_path, "padded")))
    CONFIG_MAPPING["qwen2"](**COMMON).save_pretrained(tmp_path)
    assert not list(check_model_type(recipe(tmp_path)))
