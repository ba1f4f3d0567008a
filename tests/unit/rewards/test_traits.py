"""What the monitors are told of a text."""

import numpy as np
import pytest

from rewards.monitors.traits import (
    answer_hash,
    count_noted,
    find_answer,
    in_slice,
    is_looping,
    repeated_share,
    text_traits,
)
from rollouts.types import Completion, FinishReason, Rollout, RolloutStatus, TextTraits, Turn

PROSE = (
    "We first add the two smaller numbers, which gives eleven. Then the third one is taken away, "
    "so that what is left must be below ten; checking by hand shows that this is so. Another way "
    "would be to look at the parity of each term and to argue from there, yet it is longer. "
)


def rollout(text: str | None, status: RolloutStatus = RolloutStatus.COMPLETED) -> Rollout:
    nothing = np.zeros(0, np.int32)
    done = Completion(
        token_ids=nothing,
        logprobs=np.zeros(0, np.float32),
        finish_reason=FinishReason.STOP,
        versions=(),
    )
    turns = () if text is None else (Turn(prompt_ids=nothing, completion=done, text=text),)
    return Rollout(index=0, turns=turns, status=status, reward_parts={})


def traits(text: str, status: RolloutStatus = RolloutStatus.COMPLETED) -> TextTraits:
    found = text_traits(rollout(text, status))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4", "4"),
        ("So it is\n 4 \n\n", " 4"),
        ("<answer>3</answer> no: <answer>4</answer> done", "4"),
        ("<answer>4", "4"),
        (r"\boxed{3} or \boxed{\frac{1}{2}} then", r"\frac{1}{2}"),
        (r"\boxed{\frac{1}{2}", r"\frac{1}{2}"),
        ("bla #### 17\nmore", "17"),
        ("", ""),
    ],
)
def test_the_answer_is_found(text: str, answer: str):
    assert find_answer(text) == answer


def test_white_space_case_and_a_full_stop_make_no_other_answer():
    same = {
        answer_hash(t) for t in ("Paris", " paris.", "thinking\nPARIS", "<answer>Paris</answer>")
    }
    assert len(same) == 1
    assert answer_hash("Rome") not in same


def test_repetition_is_told_from_prose():
    assert repeated_share(PROSE) < 0.1
    assert repeated_share("yes " * 50) > 0.9
    assert repeated_share("a b") == repeated_share("") == 0.0
    assert not is_looping(PROSE * 2)
    assert not is_looping("hm " * 20)  # too short to tell
    assert is_looping("so the answer is four " * 100)
    assert is_looping(PROSE + "答案是四。" * 200)
    assert not is_looping("".join(chr(0x4E00 + n) for n in range(0, 3000, 7)))


@pytest.mark.parametrize(
    ("text", "formed"),
    [
        ("4", True),
        ("Größe: 4 µm\n\t→ ok", True),
        ("", False),
        (" \n", False),
        ("4\x00", False),
        ("4\ufffd", False),
        ("4\ue000", False),
        ("thinking\x1b[31m", False),
    ],
)
def test_well_formed(text: str, formed: bool):
    assert traits(text).well_formed is formed
    assert traits(text, RolloutStatus.TRUNCATED).well_formed is False


def test_no_completion_has_no_traits():
    assert text_traits(rollout(None)) is None


def test_tampering_is_counted_at_any_depth():
    assert count_noted({}, "tampering") == 0
    assert count_noted({"tampering": 2}, "other") == 0
    assert count_noted({"tampering": 2}, "tampering") == 2
    assert count_noted({"tampering": ["ptrace", "fork"]}, "tampering") == 2
    notes = {"a": {"tampering": ["x"]}, "b": [{"tampering": 3}], "c": "tampering"}
    assert count_noted(notes, "tampering") == 4


def test_the_slice_is_the_same_each_time_and_as_large_as_asked():
    keys = [f"s/train/{i}#e0a0/{i % 8}" for i in range(20_000)]
    taken = [k for k in keys if in_slice(k, 0.1)]
    assert taken == [k for k in keys if in_slice(k, 0.1)]
    assert len(taken) / len(keys) == pytest.approx(0.1, abs=0.01)
    assert set(taken) <= {k for k in keys if in_slice(k, 0.5)}
    assert all(in_slice(k, 1.0) for k in (*keys, "half a character: \ud800"))


@pytest.mark.parametrize(
    "text",
    ["a" * 2_000_000, "<answer>" * 250_000, "\\boxed{" * 300_000, "#" * 2_000_000],
    ids=["letters", "tags", "boxes", "marks"],
)
@pytest.mark.timeout(60)
def test_no_text_takes_long(text: str):
    """Who took quadratic time would be here for hours."""
    assert 0 <= traits(text).repeated <= 1
