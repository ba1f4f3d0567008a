"""Tokens as texts, by the model's own tokenizer."""

from pathlib import Path

import numpy as np
import pytest

from actors.rollout_render import ChatRenderer
from configs.engines import ModelConfig
from rollouts.types import Message

TINY = Path(__file__).parents[3] / "configs/models/tiny"


@pytest.fixture(scope="module")
def renderer() -> ChatRenderer:
    return ChatRenderer(ModelConfig(path=str(TINY), dtype="float32", max_model_len=128))


def test_pieces_are_the_text_with_its_special_tokens(renderer: ChatRenderer):
    ids = renderer.render([Message(role="user", content="Spell 😀 this: lamp\n")])
    pieces = renderer.pieces(ids)
    assert len(pieces) == len(ids)
    whole = "".join(pieces)
    assert whole.startswith("<|user|>") and "Spell 😀 this: lamp" in whole
    assert whole.endswith("<|assistant|>")
    assert renderer.pieces(np.zeros(0, np.int32)) == []
