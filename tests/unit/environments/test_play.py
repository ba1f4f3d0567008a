"""One episode: sampled ids are the truth, limits truncate, failures become data."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from environments.environment import Environment, SingleTurn, StepOutput
from environments.play import EngineDead, play
from rollouts.types import (
    I32,
    Boundary,
    Completion,
    FinishReason,
    Message,
    Rollout,
    RolloutStatus,
    Sampling,
    Task,
    VersionSpan,
)

EOS, START = 0, 1
TASK = Task(
    task_id="s/train/0",
    source="s",
    prompt=(Message(role="user", content="hi"),),
    answer=None,
    metadata={},
)


class CharRenderer:
    """One token a character: START role-letter text EOS for each message."""

    def render(self, messages: Sequence[Message]) -> I32:
        ids: list[int] = []
        for m in messages:
            ids += [START, ord(m.role[0]), *map(ord, m.content), EOS]
        return np.array([*ids, START, ord("a")], np.int32)

    def decode(self, ids: I32) -> str:
        return "".join(chr(i) for i in ids if i > 1)

    def token_ends(self, ids: I32, text: str) -> I32:
        return np.cumsum(ids > 1).astype(np.int32)


class Forgetful(CharRenderer):
    """A template that strips the thoughts of earlier turns, as some do."""

    def render(self, messages: Sequence[Message]) -> I32:
        kept = [Message(role=m.role, content=m.content.replace("think", "")) for m in messages]
        return super().render(kept)


class Scripted:
    """An engine that says what it is told, and remembers what it was asked."""

    def __init__(self, *replies: Completion | BaseException):
        self.replies = list(replies)
        self.prompts: list[I32] = []
        self.samplings: list[Sampling] = []

    async def __call__(self, prompt_ids: I32, sampling: Sampling) -> Completion:
        self.prompts.append(prompt_ids)
        self.samplings.append(sampling)
        reply = self.replies.pop(0)
        if isinstance(reply, BaseException):
            raise reply
        return reply


def say(text: str, *, eos: bool = True, version: int = 3) -> Completion:
    ids = np.array([*map(ord, text), *([EOS] if eos else [])], np.int32)
    return Completion(
        token_ids=ids,
        logprobs=np.full(len(ids), -0.5, np.float32),
        finish_reason=FinishReason.STOP if eos else FinishReason.LENGTH,
        versions=(VersionSpan(version=version, start=0, end=len(ids)),) if len(ids) else (),
    )


class Echo(Environment):
    """Answers `turns - 1` times, then ends."""

    def __init__(self, turns: int = 2):
        self.left = turns
        self.heard: list[str] = []

    async def reset(self, task: Task) -> tuple[Message, ...]:
        return task.prompt

    async def step(self, reply: Message) -> StepOutput:
        self.heard.append(reply.content)
        self.left -= 1
        said = Message(role="user", content=f"re {reply.content}")
        return StepOutput(messages=(said,), done=self.left == 0, reward_parts={"turns": 1.0})


def run(
    env: Environment,
    engine: Scripted,
    *,
    renderer: CharRenderer | None = None,
    max_tokens: int = 8,
    max_model_len: int = 200,
) -> Rollout:
    return asyncio.run(
        play(
            env,
            TASK,
            index=5,
            sampling=Sampling(temperature=0.7, max_tokens=max_tokens),
            max_model_len=max_model_len,
            generate=engine,
            renderer=renderer or CharRenderer(),
        )
    )


def assert_invalid(rollout: Rollout, boundary: Boundary, kind: str) -> None:
    assert rollout.status is RolloutStatus.INVALID
    assert rollout.reward is None
    assert rollout.error is not None
    assert (rollout.error.boundary, rollout.error.kind) == (boundary, kind)


def test_single_turn_keeps_the_sampled_ids_and_the_sampled_eos() -> None:
    engine = Scripted(say("ok"))
    rollout = run(SingleTurn(), engine)
    assert rollout.status is RolloutStatus.COMPLETED and rollout.index == 5
    (turn,) = rollout.turns
    assert turn.prompt_ids.tolist() == CharRenderer().render(TASK.prompt).tolist()
    assert turn.completion.token_ids.tolist() == [ord("o"), ord("k"), EOS]
    assert turn.text == "ok" and rollout.versions == (3,)
    assert engine.samplings == [Sampling(temperature=0.7, max_tokens=8)]


def test_later_turns_hold_only_what_is_new() -> None:
    engine = Scripted(say("a"), say("b"), say("c"))
    env = Echo(turns=3)
    rollout = run(env, engine)
    assert rollout.status is RolloutStatus.COMPLETED and env.heard == ["a", "b", "c"]
    merged = np.concatenate(
        [x for t in rollout.turns for x in (t.prompt_ids, t.completion.token_ids)]
    )
    conversation = [*TASK.prompt]
    for said, answered in [("a", "re a"), ("b", "re b")]:
        conversation += [
            Message(role="assistant", content=said),
            Message(role="user", content=answered),
        ]
    whole = [*CharRenderer().render(conversation), ord("c"), EOS]
    assert merged.tolist() == whole
    assert engine.prompts[2].tolist() == whole[:-2]
    assert rollout.reward_parts == {"turns": 3.0}


def test_a_template_that_changes_earlier_turns_makes_the_rollout_invalid() -> None:
    rollout = run(Echo(), Scripted(say("think 4"), say("b")), renderer=Forgetful())
    assert_invalid(rollout, Boundary.RENDER, "PrefixMismatch")
    assert len(rollout.turns) == 1


def test_sampled_ids_that_do_not_survive_retokenizing_make_it_invalid() -> None:
    class Merging(CharRenderer):
        """Renders the pair `ab` as one token, though the engine may sample two."""

        def render(self, messages: Sequence[Message]) -> I32:
            return super().render(
                [Message(role=m.role, content=m.content.replace("ab", "\u0100")) for m in messages]
            )

    rollout = run(Echo(), Scripted(say("ab"), say("x")), renderer=Merging())
    assert_invalid(rollout, Boundary.RENDER, "PrefixMismatch")
    assert rollout.error is not None and "token 7" in rollout.error.message


def test_a_length_limit_truncates_and_the_environment_is_not_asked() -> None:
    env = Echo()
    rollout = run(env, Scripted(say("abc", eos=False)))
    assert rollout.status is RolloutStatus.TRUNCATED
    assert env.heard == [] and rollout.turns[0].completion.token_ids.tolist() == [97, 98, 99]


def test_max_model_len_bounds_each_completion_and_then_the_episode() -> None:
    prompt = len(CharRenderer().render(TASK.prompt))
    engine = Scripted(say("ab"))
    rollout = run(Echo(), engine, max_model_len=prompt + 3)
    assert engine.samplings[0].max_tokens == 3
    assert rollout.status is RolloutStatus.TRUNCATED and len(rollout.turns) == 1


def test_a_prompt_without_room_for_a_reply_is_invalid() -> None:
    prompt = len(CharRenderer().render(TASK.prompt))
    rollout = run(SingleTurn(), Scripted(), max_model_len=prompt)
    assert_invalid(rollout, Boundary.RENDER, "PromptTooLong")


def test_an_empty_completion_is_invalid() -> None:
    rollout = run(SingleTurn(), Scripted(say("", eos=False)))
    assert_invalid(rollout, Boundary.GENERATE, "EmptyCompletion")


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_logprobs_that_are_not_finite_are_invalid(bad: float) -> None:
    reply = say("ab")
    reply.logprobs[1] = bad
    assert_invalid(run(SingleTurn(), Scripted(reply)), Boundary.GENERATE, "BadLogprobs")


def test_version_spans_must_cover_the_completion() -> None:
    good = say("abcd")
    spans = (VersionSpan(version=1, start=0, end=2), VersionSpan(version=2, start=2, end=5))
    halves = Completion(
        token_ids=good.token_ids,
        logprobs=good.logprobs,
        finish_reason=good.finish_reason,
        versions=spans,
    )
    assert run(SingleTurn(), Scripted(halves)).versions == (1, 2)
    gap = Completion(
        token_ids=good.token_ids,
        logprobs=good.logprobs,
        finish_reason=good.finish_reason,
        versions=spans[1:],
    )
    assert_invalid(run(SingleTurn(), Scripted(gap)), Boundary.GENERATE, "BadVersions")


def test_exceptions_become_data_at_their_boundary() -> None:
    class Breaks(SingleTurn):
        async def step(self, reply: Message) -> StepOutput:
            raise KeyError("door")

    class BreaksEarly(SingleTurn):
        async def reset(self, task: Task) -> tuple[Message, ...]:
            raise OSError("no world")

    class BadTemplate(CharRenderer):
        def render(self, messages: Sequence[Message]) -> I32:
            raise ValueError("template")

    broken = run(Breaks(), Scripted(say("a")))
    assert_invalid(broken, Boundary.ENVIRONMENT, "KeyError")
    assert broken.last_text == "a"
    assert_invalid(run(BreaksEarly(), Scripted()), Boundary.ENVIRONMENT, "OSError")
    assert_invalid(
        run(SingleTurn(), Scripted(), renderer=BadTemplate()), Boundary.RENDER, "ValueError"
    )
    assert_invalid(
        run(SingleTurn(), Scripted(RuntimeError("refused"))), Boundary.GENERATE, "RuntimeError"
    )


def test_an_environment_that_hangs_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hangs(SingleTurn):
        async def step(self, reply: Message) -> StepOutput:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr("environments.play.ENVIRONMENT_TIMEOUT_S", 0.05)
    assert_invalid(run(Hangs(), Scripted(say("a"))), Boundary.ENVIRONMENT, "timeout")


def test_a_dead_engine_and_cancellation_are_no_data() -> None:
    with pytest.raises(EngineDead):
        run(SingleTurn(), Scripted(EngineDead("gone")))
    with pytest.raises(asyncio.CancelledError):
        run(SingleTurn(), Scripted(asyncio.CancelledError()))
