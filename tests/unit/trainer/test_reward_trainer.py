"""The network under a reward model's training gives the scores that graders read afterwards."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2ForSequenceClassification

from configs.engines import ModelConfig
from configs.errors import ConfigError
from rollouts.packing import assemble
from rollouts.types import Message
from trainer.batch import to_device
from trainer.conversations import ConversationEncoder, training_sample
from trainer.reward_scorer import RewardScorer
from trainer.reward_trainer import ScoreModel, score_config
from trainer.tiny_model import build_tokenizer

TINY = str(Path(__file__).parents[3] / "configs/models/tiny")


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_scores_are_the_graders(tmp_path: Path, packing: str):
    cfg = ModelConfig(path=TINY, dtype="float32", max_model_len=128)
    torch.manual_seed(0)
    network = Qwen2ForSequenceClassification.from_pretrained(
        TINY, config=score_config(cfg), dtype=torch.float32
    )
    torch.nn.init.normal_(network.score.weight, std=1.0)
    tokenizer = build_tokenizer()
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    talks = [
        (Message(role="user", content="q" * n), Message(role="assistant", content="a" * (9 - n)))
        for n in range(1, 9)
    ]
    encoder = ConversationEncoder(tokenizer, TINY)
    samples = [
        training_sample(encoder.whole(talk), name="r", index=i) for i, talk in enumerate(talks)
    ]
    scorer = RewardScorer(cfg.model_copy(update={"path": str(tmp_path)}))
    rows = [scorer.encode(talk) for talk in talks]
    assert [s.token_ids.tolist() for s in samples] == rows
    batch = to_device(assemble(samples, None), torch.device("cpu"))
    model = ScoreModel(network.eval(), packing=packing, path=TINY)  # type: ignore[arg-type]
    with torch.no_grad():
        scores, _ = model(
            batch.token_ids, batch.positions, batch.cu_seqlens, batch.temperature, batch.loss_mask
        )
    np.testing.assert_allclose(scores[batch.loss_mask].numpy(), scorer.score(rows), atol=1e-4)


def test_a_network_with_another_head_is_refused():
    with pytest.raises(ConfigError, match="not a linear `score`"):
        ScoreModel(torch.nn.Linear(2, 2), packing="packed", path="x")
