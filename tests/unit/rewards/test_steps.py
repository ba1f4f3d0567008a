"""Step verification: where steps are, what verdicts come to, and that padding does not pay."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.graders.steps import StepsGrader, StepSplit
from configs.graders.union import GRADER
from configs.schema import RewardGroupConfig
from rewards.evaluate import evaluate
from rewards.registry import check_grader, leaves, load_prepare
from rewards.score import GradeFailed, Score, Usage
from rewards.standalone import Grading
from rewards.steps import process_value, split_steps
from rewards.subject import Subject

RULES = '''
import re

def arithmetic(rollout, task):
    """Pay 1 for `a+b=c` that is true and starts where the step before it ended."""
    found = re.fullmatch(r"(-?\\d+)([+-])(\\d+)=(-?\\d+)", rollout.last_text)
    if not found: return 0.0
    a, sign, b, c = found.groups()
    before = [t.text for t in rollout.turns[:-1]]
    follows = not before or before[-1].split("=")[-1] == a
    return float(follows and int(a) + (int(b) if sign == "+" else -int(b)) == int(c))

def seven(rollout, task):
    return 7.0
'''


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "step_rules_for_test.py").write_text(RULES)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "step_rules_for_test"


def steps_grader(use: str, **more: object) -> StepsGrader:
    found = GRADER.validate_python(
        {
            "type": "steps",
            "split": {"by": "lines", "until": "answer"},
            "verify": {"type": "function", "use": use},
            **more,
        }
    )
    assert isinstance(found, StepsGrader)
    return found


class Here:
    """Grades in this process, and counts."""

    def __init__(self, grader: StepsGrader):
        self.graders = {p: load_prepare(g.type)(g, p) for p, g in leaves(grader, "g")}
        self.seen: list[tuple[str, Subject]] = []

    async def compute(self, path: str, subject: Subject) -> Score:
        self.seen.append((path, subject))
        value = self.graders[path](subject)
        return value if isinstance(value, Score) else Score(value=float(value))  # type: ignore[arg-type]


def score(
    grader: StepsGrader, text: str, item: Mapping[str, object] | None = None
) -> tuple[Score, Here]:
    here = Here(grader)
    subject = Subject.of_text(item or {"answer": "x"}, text)  # type: ignore[arg-type]
    return asyncio.run(evaluate(grader, subject, here, "g")), here  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("split", "text", "steps"),
    [
        ({"by": "lines"}, " a \n\n\tb\n   \nc", ["a", "b", "c"]),
        ({"by": "lines", "until": "^Answer:"}, "a\nAnswer: b\nc", ["a"]),
        ({"by": "lines"}, "", []),
        ({"by": "numbered"}, "1. a\nmore\n2) b 3. c\n10. d", ["1. a\nmore", "2) b 3. c", "10. d"]),
        ({"by": "numbered"}, "no number", []),
        ({"by": "tags"}, "x<step>a\nb</step>y<step> </step><step>c</step>z", ["a\nb", "c"]),
        ({"by": "tags"}, "<step>open", []),
        (
            {"by": "sentences"},
            "One is 1.5 big. Two? Yes!\nRest",
            ["One is 1.5 big.", "Two?", "Yes!", "Rest"],
        ),
        ({"by": "regex", "pattern": r"\[(.*?)\]"}, "[a] b [c]", ["a", "c"]),
        ({"by": "regex", "pattern": r"\d+"}, "1 x 22", ["1", "22"]),
        ({"by": "regex", "pattern": r"(x)|y"}, "x y", ["x"]),
    ],
)
def test_where_steps_are(split: dict[str, object], text: str, steps: list[str]) -> None:
    found = list(split_steps(text, StepSplit.model_validate(split)))
    assert [text[a:b] for a, b in found] == steps


@given(st.text(alphabet="ab1.) \n<step>/!?", max_size=80))
def test_steps_are_in_order_apart_and_not_blank(text: str) -> None:
    for by in ("lines", "numbered", "tags", "sentences"):
        found = list(split_steps(text, StepSplit(by=by)))
        ends = [0, *(end for _, end in found)]
        for (start, end), before in zip(found, ends, strict=False):
            assert before <= start < end
            assert text[start:end] == text[start:end].strip()


def test_a_step_sees_the_steps_before_it_the_item_and_the_answer(rules: str) -> None:
    found, here = score(steps_grader(f"{rules}:arithmetic"), "1+2=3\n3-5=-2\nanswer x", {"n": 4})
    verified = [s for path, s in here.seen if path == "g.verify"]
    assert [s.sample["output_text"] for s in verified] == ["1+2=3", "3-5=-2"]
    assert verified[1].sample["step"] == "3-5=-2"
    assert verified[1].sample["steps"] == ["1+2=3", "3-5=-2"]
    assert verified[1].sample["answer_text"] == "1+2=3\n3-5=-2\nanswer x"
    assert verified[1].item == {"n": 4}
    assert [t.text for t in verified[1].rollout.turns] == ["1+2=3", "3-5=-2"]
    assert found.value == 1.0
    assert [(s.turn, s.start, s.end, s.score) for s in found.spans] == [(0, 0, 5, 1), (0, 6, 12, 1)]
    assert found.notes == {"steps": [1.0, 1.0], "first_error": None}


@pytest.mark.parametrize(
    ("aggregate", "value", "spans"),
    [
        ("min", 0.0, [1, 0, 1, 1]),
        ("mean", 0.75, [1, 0, 1, 1]),
        ("first_error", 0.25, [1, 0, 0, 0]),
        ("last", 1.0, [1, 0, 1, 1]),
    ],
)
def test_what_verdicts_come_to(
    rules: str, aggregate: str, value: float, spans: list[float]
) -> None:
    text = "1+2=3\n3+3=7\n7+1=8\n8-8=0"
    found, _ = score(steps_grader(f"{rules}:arithmetic", aggregate=aggregate), text)
    assert found.value == value
    assert [s.score for s in found.spans] == spans
    assert found.notes["first_error"] == 1


RIGHT, WRONG = "1+2=3\n3+3=6", "1+2=4\n4+3=6"


@pytest.mark.parametrize("aggregate", ["min", "mean", "first_error", "last"])
def test_right_by_right_steps_then_right_then_wrong(rules: str, aggregate: str) -> None:
    grader = steps_grader(
        f"{rules}:arithmetic",
        aggregate=aggregate,
        outcome={"type": "format", "pattern": ".*answer x"},
    )
    sound, lucky, unlucky, poor = (
        score(grader, f"{steps}\nanswer {answer}")[0]
        for steps, answer in ((RIGHT, "x"), (WRONG, "x"), (RIGHT, "y"), (WRONG, "y"))
    )
    assert sound.value == 1.0 > lucky.value > unlucky.value > poor.value == 0.0
    assert lucky.parts == {"steps": 0.0, "outcome": 1.0}
    assert unlucky.parts == {"steps": 1.0, "outcome": 0.0}
    # spans carry the steps' share of the value
    assert sum(s.score for s in sound.spans) / 2 == pytest.approx(0.3)


@given(
    st.lists(st.floats(0, 1), max_size=12),
    st.lists(st.just(1.0), max_size=12),
    st.integers(0, 12),
)
def test_padding_with_right_steps_never_pays_under_min(
    steps: list[float], padding: list[float], place: int
) -> None:
    grader = steps_grader("exact")
    padded = [*steps[:place], *padding, *steps[place:]]
    if steps:
        assert process_value(grader, padded) <= process_value(grader, steps)


def test_no_steps_and_too_many(rules: str) -> None:
    assert score(steps_grader(f"{rules}:arithmetic"), "answer x")[0] == Score(
        value=0.0, parts={"steps": 0.0}, notes={"steps": [], "first_error": None}
    )
    split = {"by": "lines", "max_steps": 2}
    grader = steps_grader(f"{rules}:arithmetic", split=split, aggregate="mean")
    found, here = score(grader, "1+1=2\n2+1=3\n3+1=4\n4+1=5")
    assert found.value == 0.5 and [s.score for s in found.spans] == [1, 1, 0, 0]
    assert sum(path == "g.verify" for path, _ in here.seen) == 2


def test_a_step_that_cannot_be_judged_fails_the_whole(rules: str) -> None:
    with pytest.raises(GradeFailed, match=r"scored 7; scale its grader to \[0, 1\]"):
        score(steps_grader(f"{rules}:seven"), "1+1=2")


def test_judges_usage_is_added_up() -> None:
    grader = steps_grader("exact")

    class Judge(Here):
        async def compute(self, path: str, subject: Subject) -> Score:
            if path.endswith("split"):
                return await super().compute(path, subject)
            return Score(value=1.0, usage={"judge": Usage(prompt_tokens=3, completion_tokens=1)})

    judge = Judge(grader)
    subject = Subject.of_text({}, "a\nb\nc")
    found = asyncio.run(evaluate(grader, subject, judge, "g"))  # type: ignore[arg-type]
    assert found.usage == {"judge": Usage(prompt_tokens=9, completion_tokens=3)}


def test_what_is_wrong_is_told_at_its_field() -> None:
    wrong = {"type": "function", "use": "exac"}
    grader = steps_grader("nosuch", split={"by": "regex", "until": "("}, outcome=wrong)
    found = {p.where: f"{p.what} {p.fix}" for p in check_grader(grader, "r")}
    assert set(found) == {"r.split.pattern", "r.split.until", "r.verify", "r.outcome"}
    assert "Did you mean `exact`?" in found["r.outcome"]
    with pytest.raises(ValueError, match="belongs to `outcome`"):
        steps_grader("exact", outcome_share=0.8)
    with pytest.raises(ValueError, match=r"greater than 0\.5"):
        steps_grader("exact", outcome={"type": "function", "use": "exact"}, outcome_share=0.5)


def test_in_a_real_process_a_hanging_pattern_costs_one_answer(rules: str) -> None:
    slow = {"by": "regex", "pattern": r"(?:a+)+$"}
    grader = steps_grader(f"{rules}:arithmetic", split=slow)
    plain = steps_grader(f"{rules}:arithmetic")

    async def both() -> tuple[Score, str]:
        async with Grading(plain) as grading:
            good = await grading.score(Subject.of_text({}, "1+2=3\n3+4=7"))
        limits = RewardGroupConfig(workers=1, timeout_s=1.0, retries=0)
        async with Grading(grader, limits) as grading:
            with pytest.raises(GradeFailed) as failed:
                await grading.score(Subject.of_text({}, "a" * 60 + "b"))
        return good, failed.value.kind

    good, kind = asyncio.run(both())
    assert good.value == 1.0 and len(good.spans) == 2
    assert kind == "timeout"


def test_a_resolved_grader_loads_again() -> None:
    grader = steps_grader("exact", outcome={"type": "format", "pattern": "x"}, outcome_share=0.6)
    for known in (grader, steps_grader("exact")):
        assert GRADER.validate_python(known.model_dump(mode="json")) == known


def test_what_graders_noted_of_steps_and_outcome_is_kept() -> None:
    verify = {"type": "math", "input": "\\boxed{ {{ sample.step }} }", "reference": "3"}
    grader = steps_grader(
        "exact", verify=verify, outcome={"type": "json_fields", "reference": '{"a": 1}'}
    )
    found, _ = score(grader, "3\n3\nanswer x")
    assert found.notes["verify"] == [{"answer": "3"}] * 2
    outcome = found.notes["outcome"]
    assert isinstance(outcome, dict) and outcome["policy_fault"] == "sample_parse_error"
