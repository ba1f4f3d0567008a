"""What a critic may start from, and the clipped value loss by hand."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

from configs.errors import ConfigError
from configs.schema import ModelConfig
from trainer.critic import value_loss
from trainer.critic_model import check_vocabulary, load_critic
from trainer.metrics import Mean

TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
TOKENS = torch.arange(6)
BOUNDS = torch.tensor([0, 4, 6])
PLACES = torch.tensor([0, 1, 2, 3, 0, 1])


def classifier(folder: Path, **own: object) -> ModelConfig:
    Qwen2ForSequenceClassification(Qwen2Config(**TINY, **own)).save_pretrained(folder)
    return ModelConfig(path=str(folder), dtype="float32")


def policy(folder: Path) -> ModelConfig:
    Qwen2ForCausalLM(Qwen2Config(**TINY)).save_pretrained(folder)
    return ModelConfig(path=str(folder), dtype="float32")


def test_a_causal_lm_gets_a_head_that_says_0_and_keeps_its_backbone(tmp_path: Path) -> None:
    cfg = policy(tmp_path)
    critic = load_critic(cfg)
    wanted = torch.ones(6, dtype=torch.bool)
    assert not critic(TOKENS, PLACES, BOUNDS, wanted).any()
    start = Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, weight in start.model.named_parameters():
        assert torch.equal(critic.network.get_parameter(f"model.{name}"), weight)


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_a_classifier_keeps_its_head_and_values_are_of_the_state_before(
    tmp_path: Path, packing: str
) -> None:
    torch.manual_seed(0)
    cfg = classifier(tmp_path, num_labels=1)
    critic = load_critic(cfg, packing=packing)  # type: ignore[arg-type]
    wanted = torch.tensor([True, True, False, True, True, True])
    said = critic(TOKENS, PLACES, BOUNDS, wanted)
    whole = Qwen2ForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    one = whole.score(whole.model(TOKENS[None, :4]).last_hidden_state)[0, :, 0]
    other = whole.score(whole.model(TOKENS[None, 4:]).last_hidden_state)[0, :, 0]
    by_hand = torch.stack([torch.zeros(()), one[0], torch.zeros(()), one[2]])
    torch.testing.assert_close(said[:4], by_hand, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(said[4:], torch.stack([torch.zeros(()), other[0]]))


def test_a_classifier_of_several_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"critic\.path.*classifier of 3 outputs"):
        load_critic(classifier(tmp_path, num_labels=3))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_critic(ModelConfig(path=str(tmp_path / "nowhere")))


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    def tokenizer(name: str, words: list[str]) -> ModelConfig:
        vocab = {word: i for i, word in enumerate(words)}
        made = Tokenizer(models.WordLevel(vocab, unk_token=words[0]))
        PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path / name)
        Qwen2Config(**TINY).save_pretrained(tmp_path / name)
        return ModelConfig(path=str(tmp_path / name))

    ours, same = tokenizer("ours", ["a", "b", "c"]), tokenizer("same", ["a", "b", "c"])
    check_vocabulary(ours, same)
    with pytest.raises(ConfigError, match="4 entries differ"):
        check_vocabulary(ours, tokenizer("other", ["a", "c", "b"]))


def test_the_clipped_value_loss_by_hand() -> None:
    """Token by token, with clip 0.2: unmoved; moved too far towards its return; too far away from
    it; within the clip; outside the loss."""
    values = torch.tensor([0.0, 0.9, 0.5, 0.1, 7.0], requires_grad=True)
    before = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0])
    returns = torch.tensor([1.0, 1.0, 0.0, 1.0, 9.0])
    mask = torch.tensor([True, True, True, True, False])
    total, metrics = value_loss(values, before=before, returns=returns, mask=mask, clip=0.2)
    total.backward()
    # 1; max(0.01, 0.64); max(0.25, 0.04); 0.81, halved
    assert total.item() == pytest.approx((1 + 0.64 + 0.25 + 0.81) / 2)
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([-1.0, 0.0, 0.5, -0.9, 0.0])
    clipped = metrics["clip_fraction"]
    assert isinstance(clipped, Mean)
    assert (clipped.numerator.item(), clipped.denominator.item()) == (1, 4)
    plain, _ = value_loss(values, before=before, returns=returns, mask=mask, clip=None)
    assert plain.item() == pytest.approx((1 + 0.01 + 0.25 + 0.81) / 2)
