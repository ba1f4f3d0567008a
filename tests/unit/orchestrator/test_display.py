import io
import math

import pytest
from rich.console import Console, RenderableType

from orchestrator.display import (
    Display,
    EvalView,
    StepView,
    duration,
    eta_s,
    render_eval_table,
    render_live,
    render_step_line,
    sparkline,
)


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


def held_out(step: int, **rates: float) -> list[EvalView]:
    return [EvalView(step=step, source=s, n=100, pass_rate=r) for s, r in rates.items()]


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


def test_the_final_table():
    shown = text_of(
        render_eval_table(held_out(0, sums=0.25, words=0.5), held_out(60, sums=0.75, words=0.4))
    )
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.split()}
    assert rows["sums"] == ["100", "25.0%", "75.0%", "+0.500"]
    assert rows["words"] == ["100", "50.0%", "40.0%", "-0.100"]
    assert rows["mean"] == ["37.5%", "57.5%", "+0.200"]
    assert "(step 0)" in shown and "(step 60)" in shown


def test_the_final_table_with_one_side_or_nan():
    shown = text_of(render_eval_table([], held_out(60, sums=math.nan)))
    assert "nan" not in shown.lower()
    assert [line.split() for line in shown.splitlines() if "sums" in line] == [
        ["sums", "100", "-", "-", "-"]
    ]


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
        display.evaluated(held_out(3, sums=0.5, words=1.0))
        display.finish(held_out(0, sums=0.1), held_out(3, sums=0.5))
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["1/100", "2/100", "3/100"]
    assert lines[3] == "held-out pass rate at step 3: sums 50.0%  words 100.0%  mean 75.0%"
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
