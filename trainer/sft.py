"""Supervised fine-tuning of a small causal LM: padded pieces, loss on the answers' tokens alone."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token on which there is no loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One question and the answer to imitate, as text."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSettings:
    """AdamW with a linear warm-up and a cosine decay to a tenth of the rate."""

    steps: int
    batch_size: int = 96
    pieces: int = 3
    """Padded forward passes that a batch is cut into, by length."""
    lr: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SftPiece:
    """Right-padded rows. Causal attention keeps padding from being seen, so there is no mask."""

    token_ids: Tensor
    """[B, L] int64."""
    labels: Tensor
    """[B, L] int64, the token itself where it belongs to an answer, else `IGNORED`."""


def encode(
    tokenizer: PreTrainedTokenizerBase, lessons: Sequence[Lesson], pieces: int = 1
) -> list[SftPiece]:
    """Render lessons with the chat template, as a run does, and pad them piece by piece.

    Pieces hold rows of like length, so that little is padding. The loss covers the answer and
    the end token after it, which is how a policy learns to stop.
    """
    prompts = [
        str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": lesson.question}],
                tokenize=False,
                add_generation_prompt=True,
            )
        )
        for lesson in lessons
    ]
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answers = [lesson.answer + str(tokenizer.eos_token) for lesson in lessons]
    answer_ids = tokenizer(answers, add_special_tokens=False)["input_ids"]
    rows = sorted(zip(prompt_ids, answer_ids, strict=True), key=lambda row: sum(map(len, row)))
    size = -(-len(rows) // pieces)
    return [_pad(rows[i : i + size], tokenizer) for i in range(0, len(rows), size)]


def _pad(rows: list[tuple[list[int], list[int]]], tokenizer: PreTrainedTokenizerBase) -> SftPiece:
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    token_ids = torch.full((len(rows), longest), cast(int, tokenizer.pad_token_id))
    labels = torch.full((len(rows), longest), IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        token_ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return SftPiece(token_ids=token_ids, labels=labels)


def batched(lessons: Iterable[Lesson], size: int) -> Iterator[list[Lesson]]:
    """Cut a stream of lessons into lists of `size`; a shorter rest is dropped."""
    batch: list[Lesson] = []
    for lesson in lessons:
        batch.append(lesson)
        if len(batch) == size:
            yield batch
            batch = []


def answer_loss(model: PreTrainedModel, piece: SftPiece) -> Tensor:
    """Return the summed cross-entropy of the answer tokens; position t is predicted at t - 1."""
    hidden = model.base_model(input_ids=piece.token_ids, use_cache=False).last_hidden_state[:, :-1]
    targets = piece.labels[:, 1:]
    taught = targets != IGNORED
    logits = cast(nn.Module, model.get_output_embeddings())(hidden[taught])
    return functional.cross_entropy(logits.float(), targets[taught], reduction="sum")


def sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lessons: Iterable[Lesson],
    settings: SftSettings,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train `model` in place on the stream of lessons, for exactly `settings.steps` steps.

    `report` gets every step's number and loss. A stream that ends early is a ValueError.
    """
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    warmup = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1 / settings.warmup_steps, total_iters=settings.warmup_steps
    )
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer,
        T_max=max(1, settings.steps - settings.warmup_steps),
        eta_min=settings.lr / 10,
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer, [warmup, decay], milestones=[settings.warmup_steps]
    )
    batches = batched(lessons, settings.batch_size)
    for step in range(settings.steps):
        batch = next(batches, None)
        if batch is None:
            raise ValueError(
                f"the lessons ended after {step} of {settings.steps} steps of "
                f"{settings.batch_size}; give more lessons or ask for fewer steps"
            )
        pieces = encode(tokenizer, batch, settings.pieces)
        num_tokens = sum(int((piece.labels != IGNORED).sum()) for piece in pieces)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for piece in pieces:
            loss = answer_loss(model, piece) / num_tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        report(step, total)
    model.eval()
