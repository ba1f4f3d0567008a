"""Play one episode: messages in, tokens out.

The ids that the engine sampled are the truth. They are never re-tokenized: in later turns the
rendered conversation must begin with exactly the stored ids, and what follows them is new.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar, cast

import numpy as np

from environments.environment import Environment, StepOutput
from rollouts.types import (
    I32,
    Boundary,
    Completion,
    FinishReason,
    Message,
    Rollout,
    RolloutError,
    RolloutStatus,
    Sampling,
    Task,
    Turn,
)

ENVIRONMENT_TIMEOUT_S = 120.0
"""Longest that one `reset` or `step` of an environment may take."""

T = TypeVar("T")


class EngineDead(Exception):
    """The engine is gone: no matter of one rollout. Raised by `generate`, never made data."""


class GenerateFn(Protocol):
    """One call of the engine. Raises EngineDead when no further call can succeed."""

    async def __call__(self, prompt_ids: I32, sampling: Sampling) -> Completion: ...


class Renderer(Protocol):
    """The chat template and the tokenizer."""

    def render(self, messages: Sequence[Message]) -> I32:
        """Return the conversation's ids, ended by the generation prompt."""
        ...

    def decode(self, ids: I32) -> str:
        """Return the text of `ids`, special tokens left out."""
        ...

    def token_ends(self, ids: I32, text: str) -> I32:
        """Return how many characters of `text` (`ids` decoded) stand after each token [C]."""
        ...


class _Failed(Exception):
    """Carries a failure out of the episode; never leaves this module."""

    def __init__(self, boundary: Boundary, kind: str, message: str):
        super().__init__(message)
        self.error = RolloutError(boundary=boundary, kind=kind, message=message)


async def play(
    env: Environment,
    task: Task,
    *,
    index: int,
    sampling: Sampling,
    max_model_len: int,
    generate: GenerateFn,
    renderer: Renderer,
    locate_text: bool = False,
) -> Rollout:
    """Play `task` in `env` until it is done, a token limit is reached or something fails.

    Args:
        index: place in the group.
        sampling: `max_tokens` bounds each completion; `max_model_len` bounds the episode.
        locate_text: note which characters each token wrote, for credit by text.

    Returns:
        The rollout: COMPLETED, TRUNCATED, or INVALID with its error and the turns so far.

    Raises:
        EngineDead: from `generate`; and cancellation passes through too.
    """
    episode = _Episode(env, sampling, max_model_len, generate, renderer, locate_text)
    error: RolloutError | None = None
    try:
        status = await episode.run(task)
    except _Failed as failed:
        status, error = RolloutStatus.INVALID, failed.error
    return Rollout(
        index=index,
        turns=tuple(episode.turns),
        status=status,
        reward_parts=dict(episode.reward_parts),
        error=error,
    )


class _Episode:
    """The state of one play: the conversation, its ids, and the turns made of them."""

    def __init__(
        self,
        env: Environment,
        sampling: Sampling,
        max_model_len: int,
        generate: GenerateFn,
        renderer: Renderer,
        locate_text: bool,
    ):
        self._locate_text = locate_text
        self._env, self._sampling, self._max_model_len = env, sampling, max_model_len
        self._generate, self._renderer = generate, renderer
        self._ids: I32 = np.zeros(0, np.int32)
        self.turns: list[Turn] = []
        self.reward_parts: dict[str, float] = {}

    async def run(self, task: Task) -> RolloutStatus:
        messages = await _guarded(
            Boundary.ENVIRONMENT, lambda: self._reset(task), ENVIRONMENT_TIMEOUT_S
        )
        while True:
            rendered = self._render(messages)
            if len(rendered) >= self._max_model_len:
                if self.turns:
                    return RolloutStatus.TRUNCATED
                raise _Failed(
                    Boundary.RENDER,
                    "PromptTooLong",
                    f"the prompt of {task.task_id} has {len(rendered)} tokens; "
                    f"max_model_len={self._max_model_len} leaves no room for a reply",
                )
            turn = await self._reply(rendered)
            if turn.completion.finish_reason is FinishReason.LENGTH:
                return RolloutStatus.TRUNCATED
            reply = Message(role="assistant", content=turn.text)
            output: StepOutput = await _guarded(
                Boundary.ENVIRONMENT, lambda reply=reply: self._step(reply), ENVIRONMENT_TIMEOUT_S
            )
            if output.done:
                return RolloutStatus.COMPLETED
            messages += [reply, *output.messages]

    async def _reset(self, task: Task) -> list[Message]:
        return _messages(await self._env.reset(task), "reset")

    async def _step(self, reply: Message) -> StepOutput:
        output = await self._env.step(reply)
        if not isinstance(cast(object, output), StepOutput):
            raise TypeError(f"step() must return a StepOutput, returned {output!r:.100}")
        _messages(output.messages, "step")
        for name, part in output.reward_parts.items():
            self.reward_parts[name] = self.reward_parts.get(name, 0.0) + part
        return output

    def _render(self, messages: Sequence[Message]) -> I32:
        """Return the conversation's ids; they begin with exactly those already stored."""
        try:
            rendered = np.asarray(self._renderer.render(messages), np.int32)
        except Exception as error:
            raise _Failed(Boundary.RENDER, type(error).__name__, str(error)) from error
        stored = len(self._ids)
        if len(rendered) <= stored or not np.array_equal(rendered[:stored], self._ids):
            same = rendered[:stored] == self._ids[: len(rendered)]
            place = int(np.argmin(same)) if not same.all() else min(len(rendered), stored)
            raise _Failed(
                Boundary.RENDER,
                "PrefixMismatch",
                f"rendered anew for turn {len(self.turns) + 1}, the conversation "
                f"({len(rendered)} tokens) departs at token {place} from the {stored} tokens "
                "sampled so far: the chat template or the tokenizer does not keep what it is given",
            )
        return rendered

    async def _reply(self, rendered: I32) -> Turn:
        room = self._max_model_len - len(rendered)
        sampling = Sampling(
            temperature=self._sampling.temperature, max_tokens=min(self._sampling.max_tokens, room)
        )
        completion = await _guarded(
            Boundary.GENERATE, lambda: self._generate(rendered, sampling), None
        )
        _check(completion)
        try:
            text = self._renderer.decode(completion.token_ids)
            ends = None
            if self._locate_text:
                ends = self._renderer.token_ends(completion.token_ids, text)
        except Exception as error:
            raise _Failed(Boundary.RENDER, type(error).__name__, str(error)) from error
        turn = Turn(
            prompt_ids=rendered[len(self._ids) :],
            completion=completion,
            text=text,
            token_ends=ends,
        )
        self.turns.append(turn)
        self._ids = np.concatenate([rendered, completion.token_ids])
        return turn


async def _guarded(
    boundary: Boundary,
    call: Callable[[], Awaitable[T]],
    timeout_s: float | None,
) -> T:
    """Await `call()`; what it raises becomes a failure at `boundary`, but for EngineDead."""
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            return await call()
    except EngineDead:
        raise
    except Exception as error:
        if isinstance(error, TimeoutError) and deadline.expired():
            message = f"no answer within {timeout_s:g} s"
            raise _Failed(boundary, "timeout", message) from error
        raise _Failed(boundary, type(error).__name__, str(error)) from error


def _messages(given: object, by: str) -> list[Message]:
    """Return the environment's messages; TypeError if they are something else."""
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"{by}() must give a tuple of Message, gave {given!r:.100}")
    for message in cast("Sequence[object]", given):
        if not isinstance(message, Message):
            raise TypeError(f"{by}() must give a tuple of Message, one is {message!r:.100}")
    return list(cast("Sequence[Message]", given))


def _check(completion: Completion) -> None:
    """Refuse a completion that cannot be trained on."""
    tokens = len(completion.token_ids)
    if tokens == 0:
        raise _Failed(Boundary.GENERATE, "EmptyCompletion", "the engine returned no tokens")
    if len(completion.logprobs) != tokens or not np.isfinite(completion.logprobs).all():
        raise _Failed(
            Boundary.GENERATE,
            "BadLogprobs",
            f"{tokens} tokens came with {len(completion.logprobs)} logprobs, "
            f"{int(np.isfinite(completion.logprobs).sum())} of them finite",
        )
    edges = [0, *(span.end for span in completion.versions)]
    starts = [span.start for span in completion.versions]
    if starts != edges[:-1] or edges[-1] != tokens:
        raise _Failed(
            Boundary.GENERATE, "BadVersions", f"version spans do not cover {tokens} tokens"
        )
