"""From a conversation to token ids and the mask of what is learnt, by the model's chat template.

An answer's tokens are those that the policy would sample: the template's text after the prompt, up
to and including the end token; prompts, and what the template puts after the end, are context. A
template that marks answers itself (`{% generation %}`) is taken at its word. One that writes
earlier turns anew once the conversation goes on (as those that drop old thoughts do) gives a row
for each answer, as it stood when the answer was given: so every row is what the engine would see.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rollouts.conversations import Conversation
from rollouts.types import I32, Bool, Message, TrainingSample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Encoded = tuple[I32, Bool]
"""Token ids [L], and which of them are learnt [L]."""


class UnusableConversation(ValueError):
    """A conversation that the template cannot write so that it could be learnt from."""


class ConversationEncoder:
    """Encodes with one tokenizer.

    Args:
        model_path: whose generation_config.json, where there is one, names more end tokens.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", model_path: str):
        self._tokenizer = tokenizer
        self._ends = _end_ids(tokenizer, model_path)
        template = tokenizer.chat_template
        self._marked = isinstance(template, str) and bool(_GENERATION.search(template))

    def encode(self, conversation: Conversation) -> list[Encoded]:
        """Return the rows that a conversation gives; each has a token that is learnt.

        Raises:
            UnusableConversation: the template does not let answers be told from prompts.
        """
        if self._marked:
            return [self._by_marks(conversation)]
        answers = [i for i, m in enumerate(conversation.messages) if m.role == "assistant"]
        pieces = self._pieces(conversation, answers)
        if pieces is not None:
            return [self._join(pieces, conversation)]
        rows: list[Encoded] = []
        for i in answers:
            if conversation.trained[i]:
                pieces = self._pieces(conversation, [i])
                assert pieces is not None  # one answer has no earlier one to be written anew
                rows.append(self._join(pieces, conversation))
        return rows

    def whole(self, messages: Sequence[Message]) -> Encoded:
        """Return a conversation as a reward model reads it (`trainer.reward_scorer`): scored at its
        last token."""
        done: Any = self._tokenizer.apply_chat_template(
            _plain(messages), tokenize=True, return_dict=False
        )
        ids = np.array([int(i) for i in done], np.int32)
        if len(ids) < 2:
            raise UnusableConversation("the chat template makes less than two tokens of it")
        return ids, np.arange(len(ids)) == len(ids) - 1

    def _pieces(
        self, conversation: Conversation, answers: Sequence[int]
    ) -> list[tuple[str, str, bool]] | None:
        """Return (prompt, answer, trained) as text, laid end to end; None where the template wrote
        what came before an answer anew."""
        pieces: list[tuple[str, str, bool]] = []
        done = ""
        for i in answers:
            prompt = self._render(conversation.messages[:i], ask=True)
            if not prompt.startswith(done):
                return None
            whole = self._render(conversation.messages[: i + 1], ask=False)
            if not whole.startswith(prompt):
                raise UnusableConversation(
                    "the chat template writes an answer otherwise than after its prompt; mark "
                    "answers in it by {% generation %}"
                )
            answer = self._up_to_end(whole[len(prompt) :])
            pieces.append((prompt[len(done) :], answer, conversation.trained[i]))
            done = prompt + answer
        return pieces

    def _up_to_end(self, text: str) -> str:
        """Cut what the template writes after the first end token, at which an engine stops."""
        ends = [text.find(e) + len(e) for e in self._ends.values() if e in text]
        if not ends:
            raise UnusableConversation(
                "the chat template closes an answer by none of the end tokens "
                f"{', '.join(map(repr, self._ends.values()))}, so a model would not learn to stop; "
                "correct the template, or eos_token_id in generation_config.json"
            )
        return text[: min(ends)]

    def _render(self, messages: Sequence[Message], *, ask: bool) -> str:
        text: Any = self._tokenizer.apply_chat_template(
            _plain(messages), tokenize=False, add_generation_prompt=ask
        )
        return str(text)

    def _join(self, pieces: Sequence[tuple[str, str, bool]], where: Conversation) -> Encoded:
        ids: list[int] = []
        mask: list[bool] = []
        for prompt, answer, trained in pieces:
            for text, learnt in ((prompt, False), (answer, trained)):
                some = self._ids(text)
                ids += some
                mask += [learnt] * len(some)
        return _checked(ids, mask, where)

    def _ids(self, text: str) -> list[int]:
        found: Any = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(i) for i in found]

    def _by_marks(self, conversation: Conversation) -> Encoded:
        """Take the template's own marks; the n-th marked run is the n-th answer."""
        done: Any = self._tokenizer.apply_chat_template(
            _plain(conversation.messages),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, marks = list(done["input_ids"]), [bool(m) for m in done["assistant_masks"]]
        wanted = [
            trained
            for message, trained in zip(conversation.messages, conversation.trained, strict=True)
            if message.role == "assistant"
        ]
        runs = list(_runs(marks))
        if len(runs) != len(wanted):
            raise UnusableConversation(
                f"the chat template marks {len(runs)} answers of {len(wanted)}"
            )
        mask = [False] * len(ids)
        for (start, end), trained in zip(runs, wanted, strict=True):
            mask[start:end] = [trained] * (end - start)
        return _checked(ids, mask, conversation)


def _runs(marks: Sequence[bool]) -> Iterator[tuple[int, int]]:
    start: int | None = None
    for i, mark in enumerate([*marks, False]):
        if mark and start is None:
            start = i
        elif not mark and start is not None:
            yield start, i
            start = None


def _checked(ids: Sequence[int], mask: Sequence[bool], where: Conversation) -> Encoded:
    if not any(mask) or mask[0]:
        raise UnusableConversation(f"{where.name} leaves no token to learn after its prompt")
    return np.array(ids, np.int32), np.array(mask, np.bool_)


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _end_ids(tokenizer: "PreTrainedTokenizerBase", model_path: str) -> dict[int, str]:
    """Return the end tokens at which an engine stops: the tokenizer's, and those of the model's
    generation_config.json."""
    from transformers import GenerationConfig

    ids: list[Any] = [tokenizer.eos_token_id]
    if Path(model_path).is_dir() and (Path(model_path) / "generation_config.json").is_file():
        more: Any = GenerationConfig.from_pretrained(model_path).eos_token_id
        ids += more if isinstance(more, list) else [more]
    known = dict.fromkeys(int(i) for i in ids if i is not None)
    return {i: str(tokenizer.convert_ids_to_tokens(i)) for i in known}


def training_sample(encoded: Encoded, *, name: str, index: int) -> TrainingSample:
    """Return a row as the trainer takes it: nothing was sampled, so only ids and mask matter."""
    ids, mask = encoded
    zero = np.zeros(len(ids), np.float32)
    unset = np.full(len(ids), np.nan, np.float32)
    one = np.ones(len(ids), np.float32)
    return TrainingSample(
        group_id=name,
        index=index,
        token_ids=ids,
        loss_mask=mask,
        rollout_logprobs=zero,
        advantages=zero,
        loss_weight=one,
        kl_coef=zero,
        clip_low=unset,
        clip_high=unset,
        temperature=one,
    )
