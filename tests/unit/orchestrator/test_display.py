import io
import math

import pytest
from pydantic import JsonValue
from rich.console import Console, RenderableType

from orchestrator.records.display import (
    Display,
    EvalView,
    StepView,
    duration,
    eta_s,
    render_changes,
    render_eval_line,
    render_eval_table,
    render_live,
    render_step_line,
    sparkline,
)
from orchestrator.records.spikiness import Standing, spikiness, standings


def view(step: int, sums: float | None = 0.5) -> StepView:
    return StepView(
        step=step,
        num_steps=100,
        rewards={"sums": sums, "words": 0.25},
        seconds={"generate": 1.5, "train": 0.5, "idle": 0.0},
        wall_s=2.0,
        tokens_per_s=12345.6,
    )


def text_of(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(renderable)
    return console.export_text()


def evaluated(step: int, invalid: int = 0, **rates: float) -> list[EvalView]:
    return [EvalView(step=step, source=s, pass_rate=r, invalid=invalid) for s, r in rates.items()]


def standing(
    source: str, *rates: tuple[int, float], low: float = 0.0, high: float = 1.0, gap: float = 0.0
) -> Standing:
    """Make the standing of a source from its (step, pass rate) history."""
    rows: list[dict[str, JsonValue]] = [
        {
            "step": step,
            "source": source,
            "pass_rate": rate,
            "pass_rate_low": low,
            "pass_rate_high": high,
            "items": 100,
            "gap": gap if step else None,
        }
        for step, rate in rates
    ]
    return standings(rows)[0]


def cells(shown: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.split()}


def test_the_plain_line():
    line = render_step_line([view(9), view(10)])
    assert line == (
        "step 10/100  reward: sums 0.500  words 0.250  2.0s (generate 1.5 train 0.5)  "
        "12,346 tok/s  eta 3m00s"
    )


def test_a_source_without_groups_has_a_dash():
    assert "sums -" in render_step_line([view(1, None)])
    assert "sums -" in render_step_line([view(1, math.nan)])


def test_the_live_view_shows_everything():
    shown = text_of(render_live([view(1, 0.0), view(2, None), view(3, 1.0)], "evaluating"))
    for part in (
        "step 3/100",
        "12,346 tokens/s",
        "eta 3m14s",
        "evaluating",
        "sums",
        "1.000",
        "▁ █",
        "generate 1.5s 75%",
        "train 0.5s 25%",
    ):
        assert part in shown, part
    assert "idle" not in shown


def test_the_live_view_before_the_first_step():
    assert "starting" in text_of(render_live([], "starting"))


def test_the_line_of_an_evaluation():
    assert render_eval_line(evaluated(3, sums=0.5, words=1.0)) == (
        "held-out pass rate at step 3: sums 50.0%  words 100.0%  mean 75.0%"
    )
    assert render_eval_line(evaluated(3, invalid=2, sums=math.nan)) == (
        "held-out pass rate at step 3: sums - (2 invalid)"
    )


def test_the_lines_of_what_changed():
    found = [
        standing("words", (0, 0.5), (10, 0.75), (20, 0.375), gap=0.25),
        standing("sums", (0, 0.5), (20, 0.75), gap=-0.125),
        standing("new", (20, 0.5)),
    ]
    assert render_changes(found, spikiness(20, found, 0.1)) == (
        "  since the start, worst first: words -0.125 (0.375 below its best, step 10)  "
        "sums +0.250; spikiness 0.375, spread 0.375",
        "  training minus held-out reward: words +0.250  sums -0.125",
    )
    first = [standing("sums", (0, 0.5))]
    assert render_changes(first, spikiness(0, first, 0.1)) == ()


def test_the_final_table():
    shown = text_of(
        render_eval_table(
            {
                "sums": standing("sums", (0, 0.25), (60, 0.75), low=0.657, high=0.825),
                "words": standing("words", (0, 0.5), (20, 0.6), (60, 0.4)),
            }
        )
    )
    rows = cells(shown)
    assert rows["sums"] == ["100", "25.0%", "75.0%", "66%", "to", "82%", "+0.500", "75.0%", "@60"]
    assert rows["words"] == ["100", "50.0%", "40.0%", "0%", "to", "100%", "-0.100", "60.0%", "@20"]
    assert rows["mean"] == ["37.5%", "57.5%", "+0.200"]
    assert "(step 0)" in shown and "(step 60)" in shown


def test_the_final_table_of_sources_evaluated_at_different_steps():
    shown = text_of(
        render_eval_table(
            {
                "sums": standing("sums", (0, 0.25), (60, 0.75)),
                "slow": standing("slow", (0, 0.5), (40, 0.5)),
                "broken": None,
            }
        )
    )
    rows = cells(shown)
    assert rows["sums"][1:5] == ["25.0%", "@0", "75.0%", "@60"]
    assert rows["slow"][1:5] == ["50.0%", "@0", "50.0%", "@40"]
    assert rows["broken"] == ["-"] * 5
    assert "(step" not in shown
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80


def test_the_final_table_of_one_evaluation():
    shown = text_of(render_eval_table({"sums": standing("sums", (0, 0.25))}))
    assert cells(shown)["sums"] == ["100", "25.0%", "-", "0%", "to", "100%", "-", "25.0%", "@0"]
    assert text_of(render_eval_table({"sums": None})).count("-") >= 5


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([], ""),
        ([None, math.nan], ""),
        ([1.0, 1.0], "▅▅"),
        ([0.0, 0.5, 1.0], "▁▅█"),
        ([0.0, None, 1.0], "▁ █"),
        ([-1.0, 1.0], "▁█"),
    ],
)
def test_sparkline(values: list[float | None], drawn: str):
    assert sparkline(values) == drawn


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (59.6, "1m00s"), (185, "3m05s"), (7800, "2h10m"), (-1, "0s")]
)
def test_duration(seconds: float, shown: str):
    assert duration(seconds) == shown


def test_eta_is_of_the_latest_steps():
    slow = StepView(step=1, num_steps=12, rewards={}, seconds={}, wall_s=1000.0, tokens_per_s=0.0)
    fast = [
        StepView(step=s, num_steps=12, rewards={}, seconds={}, wall_s=1.0, tokens_per_s=0.0)
        for s in range(2, 12)
    ]
    assert eta_s([slow, *fast]) == 1.0
    assert eta_s([]) == 0.0


def test_one_line_a_step_where_there_is_no_terminal():
    out = io.StringIO()
    with Display(Console(file=out, width=60, force_terminal=False)) as display:
        display.state("starting")
        for step in (1, 2, 3):
            display.step(view(step))
        moved = standing("sums", (0, 0.1), (3, 0.5))
        display.finish({"sums": moved})
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["1/100", "2/100", "3/100"]
    assert "\x1b" not in out.getvalue()
    assert "+0.400" in out.getvalue()


def test_a_live_view_in_a_terminal_that_ends_on_an_error():
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    with pytest.raises(ZeroDivisionError), Display(console) as display:
        display.step(view(1))
        display.say("a [plain] word")
        raise ZeroDivisionError
    assert "step 1/100" in out.getvalue() and "a [plain] word" in out.getvalue()
    assert "\x1b[?25h" in out.getvalue()  # the cursor is back
