"""The loss of fine-tuning is transformers' own, over answer tokens, whatever the packing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.engines import ModelConfig
from rollouts.conversations import Conversation
from rollouts.packing import assemble
from rollouts.types import Message
from trainer.batch import segments, to_device
from trainer.conversations import ConversationEncoder, training_sample
from trainer.loss import LossInputs
from trainer.model import load_policy
from trainer.supervised import cross_entropy

TINY = str(Path(__file__).parents[3] / "configs/models/tiny")
TALKS = [
    (("user", "3 + 4 ="), ("assistant", "7")),
    (("system", "Spell."), ("user", "lamp"), ("assistant", "pmal"), ("user", "tree")),
    (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "dddd")),
]


def rows() -> list[tuple[np.ndarray, np.ndarray]]:
    encoder = ConversationEncoder(AutoTokenizer.from_pretrained(TINY), TINY)
    found = []
    for said in TALKS:
        messages = tuple(Message(role=r, content=c) for r, c in said)
        trained = tuple(r == "assistant" for r, _ in said)
        found += encoder.encode(Conversation(name="x", messages=messages, trained=trained))
    return found


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_it_is_transformers_loss(packing: str):
    network = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    total, tokens = 0.0, 0
    for ids, mask in rows():
        labels = torch.from_numpy(np.where(mask, ids, -100)).long().unsqueeze(0)
        with torch.no_grad():
            loss = network(input_ids=torch.from_numpy(ids).long().unsqueeze(0), labels=labels).loss
        total += loss.item() * int(mask.sum())
        tokens += int(mask.sum())
    cfg = ModelConfig(path=TINY, dtype="float32")
    model = load_policy(cfg, packing=packing)  # type: ignore[arg-type]
    samples = [training_sample(e, name="x", index=i) for i, e in enumerate(rows())]
    b = to_device(assemble(samples, None), torch.device("cpu"))
    logprobs, entropy = model(b.token_ids, b.positions, b.cu_seqlens, b.temperature, b.loss_mask)
    out = cross_entropy(
        LossInputs(
            policy_logprobs=logprobs,
            proximal_logprobs=logprobs.detach(),
            rollout_logprobs=b.rollout_logprobs,
            ref_logprobs=None,
            advantages=b.advantages,
            loss_mask=b.loss_mask,
            segment=segments(b.cu_seqlens),
            loss_weight=b.loss_weight,
            correction=torch.ones_like(logprobs),
            kl_coef=b.kl_coef,
            clip_low=b.clip_low,
            clip_high=b.clip_high,
            entropy=entropy,
            entropy_coef=0.0,
            kl_estimator="k3",
            kl_in_loss=True,
        )
    )
    assert int(b.loss_mask.sum()) == tokens
    assert out.total.item() == pytest.approx(total, rel=1e-4)
