"""Which models are refused, and with what words."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    Cohere2Config,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from configs.errors import ConfigError
from configs.schema import ModelConfig
from rollouts.packing import assemble
from trainer.model import load_hf_config, load_policy
from trainer.scorer import ReferenceModel

TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def write_tokenizer(folder: Path) -> None:
    vocab = {f"t{i}": i for i in range(32)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    Qwen2ForCausalLM(Qwen2Config(**TINY, attention_dropout=0.3)).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def config_of(folder: Path) -> ModelConfig:
    return ModelConfig(path=str(folder), dtype="float32")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "nowhere")):
        load_policy(config_of(tmp_path / "nowhere"))


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    Qwen2ForCausalLM(Qwen2Config(**TINY)).save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"bare.*has no tokenizer"):
        load_policy(config_of(tmp_path / "bare"))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "words")
    with pytest.raises(ConfigError, match=str(tmp_path / "words")):
        load_policy(config_of(tmp_path / "words"))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (Gemma2Config(**TINY), "final_logit_softcapping"),
        (Cohere2Config(**TINY, logit_scale=0.25), "logit_scale"),
        (GraniteConfig(**TINY, logits_scaling=8.0), "logits_scaling"),
    ],
)
def test_models_that_change_their_logits_are_refused(
    config: PretrainedConfig, key: str, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=key):
        load_hf_config(config_of(tmp_path))


def test_neutral_logit_scaling_is_accepted(tmp_path: Path) -> None:
    GraniteConfig(**TINY, logits_scaling=1.0).save_pretrained(tmp_path)
    assert load_hf_config(config_of(tmp_path)).logits_scaling == 1.0


def test_dropout_of_the_config_is_turned_off(tiny: Path) -> None:
    model = load_policy(config_of(tiny))
    assert model.training
    assert [layer.self_attn.attention_dropout for layer in model.network.model.layers] == [0.0]


def test_dropout_layers_are_turned_off(tmp_path: Path) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    gpt2.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    model = load_policy(config_of(tmp_path))
    rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.0}


def test_the_reference_scores_without_gradients(tiny: Path) -> None:
    reference = ReferenceModel(config_of(tiny), device=torch.device("cpu"))
    (empty,) = reference.token_logprobs([assemble([], None)])
    assert empty.shape == (0,)
