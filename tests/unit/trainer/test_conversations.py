"""Conversations as token ids: what is learnt, under chat templates of every habit."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rollouts.conversations import Conversation
from rollouts.types import Message
from trainer.conversations import (
    ConversationEncoder,
    Encoded,
    UnusableConversation,
    training_sample,
)
from trainer.tiny_model import build_tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
    "{% generation %}{{ m.content }}<|end|>{% endgeneration %}\n"
    "{% else %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('/')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Drops an answer's thoughts, which stand before the slash, once the conversation goes on."""
UPSIDE_DOWN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|system|>go on<|assistant|>{% endif %}"
)


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    made = build_tokenizer()
    made.chat_template = template
    return made


def conversation(*said: tuple[str, str], trained: tuple[bool, ...] | None = None) -> Conversation:
    learnt = tuple(role == "assistant" for role, _ in said) if trained is None else trained
    messages = tuple(Message(role=role, content=content) for role, content in said)
    return Conversation(name="rows.jsonl:1", messages=messages, trained=learnt)


def parts(encoded: Encoded, by: PreTrainedTokenizerFast) -> list[tuple[bool, str]]:
    """Return runs of equal mask as text."""
    ids, mask = encoded
    cuts = [0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1), len(ids)]
    return [
        (bool(mask[a]), by.decode(ids[a:b], skip_special_tokens=False))
        for a, b in itertools.pairwise(cuts)
    ]


TWO_TURNS = conversation(
    ("system", "be brief"), ("user", "a?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d")
)


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_answers_are_learnt_up_to_their_end_token_and_nothing_else_is(template: str):
    by = tokenizer(template)
    (row,) = ConversationEncoder(by, "").encode(TWO_TURNS)
    learnt = [text for mask, text in parts(row, by) if mask]
    assert learnt == ["b<|end|>", "d<|end|>"]
    whole = "".join(text for _, text in parts(row, by))
    rendered = by.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in TWO_TURNS.messages], tokenize=False
    )
    assert rendered.startswith(whole) and rendered[len(whole) :].strip() == ""


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_an_answer_of_weight_0_is_context(template: str):
    by = tokenizer(template)
    trained = (False, False, False, False, True)
    one = Conversation(name="x", messages=TWO_TURNS.messages, trained=trained)
    (row,) = ConversationEncoder(by, "").encode(one)
    assert [text for mask, text in parts(row, by) if mask] == ["d<|end|>"]
    assert "b<|end|>" in parts(row, by)[0][1]


def test_a_template_that_rewrites_the_past_gives_a_row_for_each_answer():
    by = tokenizer(FORGETFUL)
    said = conversation(
        ("user", "a?"), ("assistant", "hm/b"), ("user", "c?"), ("assistant", "oh/d")
    )
    rows = ConversationEncoder(by, "").encode(said)
    assert [parts(row, by) for row in rows] == [
        [(False, "<|user|>a?<|end|><|assistant|>"), (True, "hm/b<|end|>")],
        [
            (False, "<|user|>a?<|end|><|assistant|>b<|end|><|user|>c?<|end|><|assistant|>"),
            (True, "oh/d<|end|>"),
        ],
    ]
    last = Conversation(name="x", messages=said.messages, trained=(False, False, False, True))
    assert len(ConversationEncoder(by, "").encode(last)) == 1


def test_prompt_tokens_are_those_that_the_engine_is_given():
    """The row of a single turn begins with the very ids that a run would sample after."""
    by = build_tokenizer()
    said = conversation(("user", "Keep all numbers larger than 4"), ("assistant", "['7', '5']"))
    ((ids, mask),) = ConversationEncoder(by, "").encode(said)
    asked = by.apply_chat_template(
        [{"role": "user", "content": said.messages[0].content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=False,
    )
    assert ids[~mask].tolist() == asked
    assert ids[-1] == by.eos_token_id and mask[-1]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (CHATML.replace("<|end|>", "</s>"), "closes an answer by none of the end tokens"),
        (UPSIDE_DOWN, "writes an answer otherwise than after its prompt"),
    ],
)
def test_templates_that_cannot_be_learnt_from_are_refused(template: str, says: str):
    with pytest.raises(UnusableConversation, match=says):
        ConversationEncoder(tokenizer(template), "").encode(TWO_TURNS)


def test_end_tokens_of_the_generation_config_end_an_answer_too(tmp_path: Path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [259, 258]}')
    by = tokenizer(CHATML.replace("<|end|>", "<|tool|>"))
    ends = {by.convert_tokens_to_ids("<|tool|>"), by.eos_token_id}
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {sorted(ends)}}}')
    (row,) = ConversationEncoder(by, str(tmp_path)).encode(TWO_TURNS)
    assert [text for mask, text in parts(row, by) if mask] == ["b<|tool|>", "d<|tool|>"]


def test_a_sample_of_it_has_nothing_that_was_sampled():
    by = build_tokenizer()
    (encoded,) = ConversationEncoder(by, "").encode(TWO_TURNS)
    sample = training_sample(encoded, name="rows.jsonl:1", index=0)
    assert sample.loss_mask.tolist() == encoded[1].tolist()
    assert not sample.advantages.any() and not sample.rollout_logprobs.any()
    assert (sample.temperature == 1).all() and (sample.loss_weight == 1).all()
