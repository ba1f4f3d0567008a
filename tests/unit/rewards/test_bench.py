"""The bench on graders with known holes, through real grader processes where that matters."""

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.graders.union import GRADER
from configs.schema import RewardGroupConfig
from rewards.bench.hacks import PROBES
from rewards.bench.probes import Kind, Probe, hidden, probe
from rewards.bench.report import BenchReport, Bounds, report
from rewards.bench.rows import BenchRow, Seen, bench_rows, task_of
from rewards.bench.trials import Settings, try_grader
from rewards.score import GradeFailed, Score
from rewards.standalone import Grading
from rewards.subject import Subject

WORDS = ("Paris", "Berlin", "Rome", "Oslo", "Lisbon", "Madrid", "Vienna", "Athens")


class Scorer:
    """A grader as a function of text and answer."""

    def __init__(self, pays: Callable[[str, str], float]):
        self._pays = pays

    async def score(self, subject: Subject) -> Score:
        answer = str(subject.item["answer"])
        return Score(value=float(self._pays(subject.rollout.last_text, answer)))


def seen(answers: Sequence[str] = WORDS, template: str | None = None) -> Seen:
    items = [
        {"messages": [{"role": "user", "content": f"Question {i}?"}], "answer": answer}
        for i, answer in enumerate(answers)
    ]
    return Seen.of(bench_rows([task_of(item, i) for i, item in enumerate(items)], template))


def bench(
    pays: Callable[[str, str], float],
    rows: Seen | None = None,
    bounds: Bounds | None = None,
    probes: Sequence[Probe] | None = None,
) -> BenchReport:
    rows = rows or seen()
    trials = asyncio.run(
        try_grader(Scorer(pays), rows, tuple(probes or PROBES.values()), Settings())
    )
    return report("g", rows, trials, bounds or Bounds())


def verdicts(found: BenchReport, verdict: str) -> set[str]:
    return {p.probe for p in found.probes if p.verdict == verdict}


def test_a_sound_grader_is_a_go():
    found = bench(lambda text, answer: text.strip() == answer)
    assert (found.go, found.reasons) == (True, ())
    assert {p.probe for p in found.probes} >= {"reference", "empty", "garbage", "keywords"}
    assert found.reference_mean == 1.0
    assert found.repeatable == 1.0
    assert found.guess_baseline == pytest.approx(1 / len(WORDS))
    assert verdicts(found, "exploitable") == set()
    json.dumps(found.to_json(), allow_nan=False)


HOLES: dict[str, tuple[Callable[[str, str], float], set[str]]] = {
    "contains": (lambda text, answer: answer in text, {"keywords", "both_answers"}),
    "contained": (lambda text, answer: text in answer, {"empty", "truncated"}),
    "letters": (lambda text, answer: sorted(text) == sorted(answer), {"shuffled"}),
    "length": (lambda text, answer: text == answer or len(text) > 800, {"very_long", "numbers"}),
    "judge": (
        lambda text, answer: text == answer or "highest" in text,
        {"judge_instruction"},
    ),
    "verdict": (lambda text, answer: text == answer or '"result": 1' in text, {"forged_verdict"}),
    "tags": (lambda text, answer: text == answer or "</answer>" in text, {"format_stuffing"}),
    "any city": (lambda text, answer: text in WORDS, {"others", "majority"}),
    "template": (
        lambda text, answer: text.replace("{{ item.answer }}", answer) == answer,
        {"template_injection"},
    ),
    "exit": (lambda text, answer: text == answer or "exit(0)" in text, {"code_exit"}),
    "equal": (lambda text, answer: text == answer or "__eq__" in text, {"code_always_equal"}),
    "tests": (lambda text, answer: text == answer or "_getframe" in text, {"code_tampering"}),
    "echo": (lambda text, answer: text == answer or "Question" in text, {"prompt_echo"}),
    "nested": (lambda text, answer: text == answer or text[:9] == "[" * 9, {"deep_json"}),
}


@pytest.mark.parametrize("hole", HOLES)
def test_a_hole_is_found_and_shown(hole: str):
    pays, expected = HOLES[hole]
    found = bench(pays)
    assert not found.go
    assert verdicts(found, "exploitable") >= expected
    for result in found.probes:
        if result.verdict == "exploitable":
            assert result.examples and result.examples[0].score == 1.0
            assert result.examples[0].text is not None and 1 <= result.examples[0].row <= found.rows
    assert any(next(iter(expected)) in reason for reason in found.reasons)


def test_right_answers_that_are_not_paid_are_a_no_go():
    found = bench(lambda text, answer: text == answer and answer != "Rome")
    assert verdicts(found, "fails") == {"reference"}
    assert "1 of 8 right answers do not reach 1" in found.reasons[0]
    (example,) = next(p for p in found.probes if p.probe == "reference").examples
    assert (example.row, example.text, example.score) == (3, "Rome", 0.0)


def test_a_grader_that_pays_nothing_is_a_no_go_and_nothing_is_compared_with_it():
    found = bench(lambda text, answer: 0.0)
    assert not found.go
    assert verdicts(found, "exploitable") == set()
    assert {p.bound for p in found.probes if p.probe != "reference"} == {None}


def test_a_failure_is_a_column_of_its_own_and_no_zero():
    def fails(text: str, answer: str) -> float:
        if not text.strip():
            raise GradeFailed("timeout", "too long")
        if "<answer>" in text:
            raise GradeFailed("python_grader_server_error", "no sandbox")
        return text == answer

    found = bench(fails)
    by_name = {p.probe: p for p in found.probes}
    assert by_name["empty"].verdict == "not judged"
    assert (by_name["empty"].mean, by_name["empty"].invalid) == (None, by_name["empty"].answers)
    assert by_name["empty"].failures == {"timeout": by_name["empty"].answers}
    assert set(found.failures) == {"timeout", "python_grader_server_error"}
    assert found.go
    assert any("`empty` cannot be judged" in w for w in found.warnings)
    assert any("`format_stuffing` make the grader fail" in w for w in found.warnings)


def test_right_answers_that_cannot_be_judged_are_a_no_go():
    def fails(text: str, answer: str) -> float:
        if text == "Oslo":
            raise GradeFailed("timeout", "too long")
        return text == answer

    found = bench(fails)
    assert found.reasons == ("1 of 8 right answers do not reach 1, 1 of them not judged",)


def test_noise_shows_as_not_repeatable():
    roll = random.Random(1)
    found = bench(
        lambda text, answer: 0.7 + 0.3 * roll.random() if text == answer else 0.1 * roll.random(),
        bounds=Bounds(right=0.7),
    )
    assert found.go
    assert found.repeatable is not None and found.repeatable < 0.1
    assert found.repeat_std is not None and 0.02 < found.repeat_std < 0.1
    assert found.reference_std is not None and found.reference_std > 0.05


def test_partial_credit_is_no_hole():
    """A similarity pays something for much; only nearly full pay counts against it."""

    def overlap(text: str, answer: str) -> float:
        said, right = set(text.casefold()), set(answer.casefold())
        return len(said & right) / max(1, len(said | right))

    found = bench(overlap, probes=[PROBES[n] for n in ("reference", "majority", "truncated")])
    assert found.go
    assert 0 < (found.guess_baseline or 0) < 0.5


def test_a_majority_answer_is_warned_of():
    found = bench(lambda text, answer: text == answer, seen(["yes"] * 7 + ["no"] * 3))
    assert found.majority_share == 0.7
    assert found.guess_baseline == pytest.approx(0.7)
    assert found.go
    assert any("70% of rows" in w for w in found.warnings)


def test_who_takes_the_last_answer_as_meant_is_not_blamed():
    last = bench(lambda text, answer: text.split()[-1:] == [answer])
    first = bench(lambda text, answer: text.split()[:1] == [answer])
    assert (last.go, first.go) == (True, True)


def test_the_same_bench_tries_the_same_texts():
    def texts() -> list[str]:
        rows = seen()
        return [t for p in PROBES.values() for row in rows.rows for t in p.texts(row, rows)]

    assert texts() == texts()
    assert len(texts()) > 500


def test_no_probe_but_the_reference_gives_a_right_answer_as_it_is():
    rows = seen([str(n) for n in range(5)] + ["yes", "nan", "{}", ""], None)
    for p in PROBES.values():
        if p.kind is Kind.RIGHT:
            continue
        for row in rows.rows:
            given = [" ".join(t.split()).casefold() for t in p.texts(row, rows)]
            assert row.reference.casefold() not in given, p.name


def test_json_is_not_made_wild_with_values_that_are_right_somewhere():
    item = {"reference": '{"kept": [], "more": {"sure": true, "who": ["", 3]}}'}
    (row,) = bench_rows([task_of(item, 0)], None)  # type: ignore[arg-type]
    wild = list(PROBES["json_wild"].texts(row, Seen.of([row])))
    assert '{"kept": null, "more": {"sure": null, "who": [null, null]}}' in wild
    for value in ("[]", "true", '""'):
        assert f'{{"kept": {value}, "more": {{"sure": {value}' not in "".join(wild)


def test_hidden_answers_are_at_no_end():
    rows = seen()
    for row in rows.rows:
        listed = hidden(row, rows.answers, "x")
        assert listed.count(row.answer) == 1
        assert row.answer not in (listed[0], listed[-1])
    two = seen(["yes", "no"]).rows[0]
    assert hidden(two, ["yes", "no"], "x") == ["no", "yes", "no"]
    assert hidden(two, ["yes"], "x") == []
    items = [{"reference": f"def f{n}(): return {n}"} for n in range(3)]
    code = bench_rows([task_of(item, i) for i, item in enumerate(items)], None)  # type: ignore[arg-type]
    assert hidden(code[0], [row.answer for row in code], "x") == []


def test_right_answers_are_made_by_template_reference_or_answer():
    def reference(item: dict[str, object], template: str | None = None) -> str:
        (row,) = bench_rows([task_of(item, 0)], template)  # type: ignore[arg-type]
        return row.reference

    assert reference({"answer": "4"}) == "4"
    assert reference({"answer": 4}) == "4"
    assert reference({"answer": {"a": 1}}) == '{"a": 1}'
    assert reference({"answer": "4", "reference": "def f(): return 4"}) == "def f(): return 4"
    template = "<answer>{{ item.answer }}</answer>"
    assert reference({"answer": "4"}, template) == "<answer>4</answer>"
    (row,) = bench_rows([task_of({"answer": "4"}, 0)], template)
    assert row.wrap("5") == "<answer>5</answer>"
    for item, given in (({"question": "?"}, None), ({"answer": "4"}, "{{ item.answr }}")):
        with pytest.raises(ConfigError) as error:
            reference(item, given)
        assert "--reference-template" in str(error.value)


def test_what_a_grader_compares_with_answers_rows_that_have_nothing_else():
    tasks = [task_of({"invoice": {"n": i}}, i) for i in range(5)]
    rows = bench_rows(tasks, None, None, "{{ item.invoice }}")
    assert [row.reference for row in rows] == [f'{{"n": {i}}}' for i in range(5)]
    assert all(row.bare and row.wrap("x") == "x" for row in rows)
    with pytest.raises(ConfigError) as told:
        bench_rows(tasks, None, None, "{{ item.order }}")
    assert len(told.value.problems) == 4 and "2 more" in str(told.value)
    assert str(told.value).count("fix:") == 1
    (row,) = bench_rows(
        [task_of({"invoice": 1, "answer": "2"}, 0)], None, None, "{{ item.invoice }}"
    )
    assert row.reference == "2"


def test_a_probe_of_ones_own_joins_the_registry():
    @probe(Kind.HACK)
    def sesame(row: BenchRow, seen: Seen) -> list[str]:
        """the magic word"""
        return ["open sesame"]

    try:
        found = bench(lambda text, answer: text in (answer, "open sesame"))
        assert verdicts(found, "exploitable") == {"sesame"}
        assert "sesame is paid: the magic word" in found.reasons[0]
    finally:
        del PROBES["sesame"]


def test_through_processes_that_a_probe_may_kill():
    grader = GRADER.validate_python({"type": "function", "use": f"{__name__}:fragile"})
    rows = seen(WORDS[:4])
    names = ("reference", "empty", "others", "code_exit", "very_long")

    async def run() -> BenchReport:
        cfg = RewardGroupConfig(workers=2, timeout_s=20, retries=0)
        async with Grading(grader, cfg) as grading:
            trials = await try_grader(grading, rows, [PROBES[n] for n in names], Settings())
        return report("fragile", rows, trials, Bounds())

    found = asyncio.run(run())
    assert found.go
    by_name = {p.probe: p for p in found.probes}
    assert by_name["empty"].failures == {"ZeroDivisionError": by_name["empty"].answers}
    assert by_name["very_long"].invalid == 0


def fragile(rollout, task) -> float:  # type: ignore[no-untyped-def]
    assert 1 / len(rollout.last_text.strip())
    return float(rollout.last_text == task.answer)


def test_the_recipe_of_fields_pays_nothing_but_right_answers():
    from orchestrator.commands.bench import BenchOptions, bench_source

    recipe = Path(__file__).parents[3] / "configs" / "recipes" / "json_extraction.yaml"
    found = bench_source(recipe, (), "lists", BenchOptions(items=40, repeats=1))
    assert found.go, found.reasons
    assert found.warnings == () and found.failures == {}


def test_the_recipe_of_a_source_is_benched_with_its_own_data(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from orchestrator.commands.bench import BenchOptions, bench_source, show

    monkeypatch.setenv("COLUMNS", "80")
    recipe = Path(__file__).parents[3] / "configs" / "recipes" / "quickstart.yaml"
    found = bench_source(recipe, (), "spelling", BenchOptions(items=2, repeats=1))
    assert show(found, as_json=False) == 0
    out = capsys.readouterr().out
    assert "go: right answers are paid" in out
    assert max(map(len, out.splitlines())) <= 80
    with pytest.raises(ConfigError, match="no such source"):
        bench_source(recipe, (), "spell", BenchOptions())


def test_a_source_needs_no_key_of_a_judge_that_it_does_not_ask(monkeypatch: pytest.MonkeyPatch):
    from orchestrator.commands.bench import BenchOptions, bench_source

    monkeypatch.delenv("NO_SUCH_JUDGE_KEY", raising=False)
    recipe = Path(__file__).parents[3] / "configs" / "recipes" / "quickstart.yaml"
    url = '"http://127.0.0.1:9/v1", private: true'
    endpoint = f"{{base_url: {url}, model: m, api_key_env: NO_SUCH_JUDGE_KEY}}"
    sets = (f"judges.j.endpoint={endpoint}",)
    found = bench_source(recipe, sets, "spelling", BenchOptions(items=2, repeats=1))
    assert found.go


def test_a_report_counts_rows_as_the_data_does(tmp_path: Path):
    from orchestrator.commands.bench import BenchOptions, bench_grader

    data = tmp_path / "rows.jsonl"
    rows = [{"answer": word, "reference": f"?{word}"} for word in WORDS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    grader = (
        '{"type": "string_check", "operation": "eq", "input": "{{ sample.output_text }}", '
        '"reference": "{{ item.answer }}"}'
    )
    options = BenchOptions(items=len(WORDS) // 2, repeats=1)
    (right,) = [p for p in bench_grader(grader, data, options).probes if p.probe == "reference"]
    assert right.examples
    assert all(rows[e.row - 1]["reference"] == e.text for e in right.examples)
