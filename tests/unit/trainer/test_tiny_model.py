"""The quickstart's model: its text, its tokenizer, its training, and the weights in the repo."""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import reasoning_gym
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.load import load_recipe
from configs.schema import RunConfig
from mixing.sources.procedural import ProceduralSource
from trainer.sft import IGNORED, Lesson, SftSettings, answer_loss, encode, sft
from trainer.tiny_model import RECIPE, build, build_model, build_tokenizer, text
from trainer.tiny_text import (
    FILTERS,
    SUMS,
    WORDY,
    Care,
    held_out_items,
    lessons,
    spellings,
    spoil,
)


@pytest.fixture(autouse=True)
def torch_as_before() -> Iterator[None]:
    """Undo what `build` sets for its whole process."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="module")
def recipe() -> RunConfig:
    return load_recipe(RECIPE)


@pytest.fixture(scope="module")
def committed() -> Path:
    return RECIPE.parent.parent / "models" / "tiny"


def prompt_of(tokenizer: AutoTokenizer, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_held_out_items_are_those_of_a_run_and_never_in_the_text(recipe: RunConfig) -> None:
    banned = set()
    for source in recipe.sources:
        ours = [item["question"] for item in held_out_items(source.data)]
        theirs = [task.prompt[-1].content for task in ProceduralSource(source).held_out()]
        assert ours == theirs
        banned |= set(ours)
    assert len(banned) == 300
    # without the ban, 5,000 lessons have 2,000 of the 4,000 possible sums: some would be held out
    assert banned & {lesson.question for lesson in islice(lessons(0, Care()), 5000)}
    settings = SftSettings(steps=25, batch_size=200)
    drawn = text(0, settings, careless_steps=5)
    assert not banned & {lesson.question for lesson in islice(drawn, 6000)}


def test_the_text_is_drawn_from_the_recipes_datasets(recipe: RunConfig) -> None:
    args = {s.data.procedural: dict(s.data.args) for s in recipe.sources}
    assert args["reasoning_gym/chain_sum"] == dict(SUMS)
    assert args["reasoning_gym/number_filtering"] == dict(FILTERS)
    spell = args["reasoning_gym/spell_backward"]
    lengths = {len(lesson.answer) for lesson in islice(spellings(0), 500)}
    assert lengths == set(range(spell["min_word_len"], spell["max_word_len"] + 1))


def test_spellings_are_right_and_no_words() -> None:
    words = reasoning_gym.create_dataset("spell_backward", seed=1, size=1, min_word_len=3).words
    known = {word.lower() for word in words}
    for lesson in islice(spellings(3), 300):
        letters = lesson.question.rpartition(" ")[2]
        assert lesson.answer == letters[::-1]
        assert letters.lower() not in known


def test_careful_answers_are_right_by_the_datasets_own_graders(recipe: RunConfig) -> None:
    graders = [
        reasoning_gym.create_dataset("chain_sum", seed=0, size=1, **SUMS),
        reasoning_gym.create_dataset("number_filtering", seed=0, size=1, **FILTERS),
    ]
    for lesson, grader in zip(islice(lessons(7, Care()), 2), graders, strict=True):
        entry = {"answer": lesson.answer, "question": lesson.question, "metadata": {}}
        assert grader.score_answer(lesson.answer, entry) == 1.0
        assert grader.score_answer(WORDY + lesson.answer, entry) < 1.0


def test_spoiling_changes_one_character_or_adds_words() -> None:
    rng = random.Random(0)
    for answer in ("-12", "pmal", "['3', '9']"):
        assert spoil(answer, Care(), rng) == answer
        wrong = spoil(answer, Care(slip=1.0), rng)
        assert len(wrong) == len(answer)
        assert sum(a != b for a, b in zip(wrong, answer, strict=True)) == 1
        assert spoil(answer, Care(wordy=1.0), rng) == WORDY + answer
    assert spoil("[]", Care(slip=1.0), rng) == "[]"
    slips = sum(spoil("5", Care(slip=0.3), rng) != "5" for _ in range(2000))
    assert 500 < slips < 700


def test_tokenizer_round_trips_and_keeps_prompts_short(recipe: RunConfig) -> None:
    tokenizer = build_tokenizer()
    for source in recipe.sources:
        for item in held_out_items(source.data):
            ids = prompt_of(tokenizer, str(item["question"]))
            assert len(ids) <= 22
            answer = tokenizer(str(item["answer"]) + tokenizer.eos_token)["input_ids"]
            assert len(answer) <= source.sampling.max_tokens
            assert tokenizer.decode(answer, skip_special_tokens=True) == item["answer"]
    for other in ("Grüße, 世界 🙂", "  two  spaces\n\tand tabs ", "", "a + b = c"):
        assert tokenizer.decode(tokenizer(other)["input_ids"]) == other
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    ids = tokenizer("12 - 3")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["1", "2", " - ", "3"]


def test_the_chat_template_renders_every_role() -> None:
    tokenizer = build_tokenizer()
    messages = [{"role": r, "content": r[0]} for r in ("system", "user", "assistant", "tool")]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|system|>s<|end|><|user|>u<|end|><|assistant|>a<|end|><|tool|>t<|end|><|assistant|>"
    )


def test_labels_cover_the_answer_and_the_end_token_alone() -> None:
    tokenizer = build_tokenizer()
    taught = [Lesson(question="1 + 2 =", answer="3"), Lesson(question="x", answer="long one")]
    pieces = encode(tokenizer, taught, pieces=2)
    assert [len(p.token_ids) for p in pieces] == [1, 1]
    together = encode(tokenizer, taught)[0]
    answers = [tokenizer.decode(row[row != IGNORED]) for row in together.labels]
    assert sorted(answers) == ["3<|end|>", "long one<|end|>"]
    known = together.labels != IGNORED
    assert torch.equal(together.labels[known], together.token_ids[known])


def test_the_loss_does_not_depend_on_padding_or_pieces() -> None:
    tokenizer = build_tokenizer()
    model = build_model(0, len(tokenizer)).eval()
    taught = list(islice(lessons(1, Care()), 10))
    whole = sum(answer_loss(model, p) for p in encode(tokenizer, taught, pieces=1))
    alone = sum(answer_loss(model, p) for p in encode(tokenizer, taught, pieces=10))
    assert torch.allclose(whole, alone, rtol=1e-5)


def test_sft_learns_a_lesson_and_names_a_stream_that_is_too_short() -> None:
    tokenizer = build_tokenizer()
    model = build_model(0, len(tokenizer))
    lesson = Lesson(question="Who?", answer="Me")
    losses: list[float] = []
    settings = SftSettings(steps=20, batch_size=4, pieces=1, warmup_steps=2)
    sft(model, tokenizer, [lesson] * 80, settings, lambda _step, loss: losses.append(loss))
    assert len(losses) == 20
    assert losses[-1] < losses[0] / 10
    with pytest.raises(ValueError, match="ended after 1 of 20 steps"):
        sft(model, tokenizer, [lesson] * 7, settings)


def test_building_twice_gives_the_same_files(tmp_path: Path) -> None:
    settings = SftSettings(steps=3, batch_size=10, warmup_steps=1)
    for name in ("one", "two", "other"):
        build(tmp_path / name, 5 if name == "other" else 4, settings, careless_steps=1)
    one, two, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other")
    )
    assert one == two != other


def test_the_committed_model_is_small_tied_and_complete(committed: Path) -> None:
    assert sum(f.stat().st_size for f in committed.rglob("*") if f.is_file()) <= 4_000_000
    with safe_open(committed / "model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
    assert "lm_head.weight" not in names
    model = AutoModelForCausalLM.from_pretrained(committed, dtype=torch.float32)
    assert 1_000_000 <= sum(p.numel() for p in model.parameters()) <= 3_000_000
    tokenizer, made = AutoTokenizer.from_pretrained(committed), build_tokenizer()
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.chat_template == made.chat_template
    assert tokenizer.get_vocab() == made.get_vocab()
    for sample in ("12 - 3", "it's 2,000 words:\n\tGrüße 世界", "['7', '5']", "<|endoftext|>"):
        assert tokenizer(sample)["input_ids"] == made(sample)["input_ids"]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@torch.no_grad()
def test_the_committed_model_answers_some_held_out_questions(
    committed: Path, recipe: RunConfig
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(committed, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(committed, dtype=torch.float32).eval()
    torch.manual_seed(0)
    rates = {}
    for source in recipe.sources:
        grader = reasoning_gym.create_dataset(
            str(source.data.procedural).partition("/")[2], seed=0, size=1, **source.data.args
        )
        items = held_out_items(source.data)
        prompts = [prompt_of(tokenizer, str(item["question"])) for item in items]
        batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        out = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=18)
        replies = tokenizer.batch_decode(
            out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        scores = [grader.score_answer(r.strip(), i) for r, i in zip(replies, items, strict=True)]
        rates[source.name] = sum(score == 1.0 for score in scores) / len(scores)
    assert all(0.10 <= rate <= 0.60 for rate in rates.values()), rates
    assert 0.15 <= sum(rates.values()) / len(rates) <= 0.50, rates
