import math
from collections.abc import Mapping

import pytest
from pydantic import JsonValue

from configs.schema import RunConfig
from orchestrator.records.spikiness import out_of_patience, reports, spikiness, standings


def row(step: int, source: str, rate: float | None, **other: JsonValue) -> dict[str, JsonValue]:
    return {
        "step": step,
        "source": source,
        "pass_rate": rate,
        "pass_rate_stderr": 0.0,
        "pass_rate_low": 0.0,
        "pass_rate_high": 1.0,
        "items": 100,
        "samples": 1,
        **other,
    }


def history(**rates: Mapping[int, float]) -> list[dict[str, JsonValue]]:
    """Return the rows of eval.jsonl, in the order of a run."""
    rows = [row(step, name, rate) for name, own in rates.items() for step, rate in own.items()]
    return sorted(rows, key=lambda r: int(str(r["step"])))


def config(every: int = 10, **evaluation: object) -> RunConfig:
    own = evaluation.pop("own", {})
    assert isinstance(own, dict)
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 100,
            "model": {"path": "org/model"},
            "sources": [
                {
                    "name": name,
                    "data": {"procedural": "reasoning_gym/chain_sum"},
                    "rewards": [{"use": "exact", "name": "right"}],
                    "eval": own.get(name, {}),
                }
                for name in ("a", "b")
            ],
            "batch": {"groups_per_step": 4},
            "eval": {"every": every, **evaluation},
        }
    )


def test_the_report_by_hand():
    rows = history(
        a={0: 0.2, 10: 0.5, 20: 0.4},
        b={0: 0.6, 10: 0.5, 20: 0.3},
        c={0: 0.1, 10: 0.2, 20: 0.9},
    )
    found = standings(rows)
    assert [s.source for s in found] == ["b", "a", "c"]  # the worst regression first
    report = spikiness(20, found, 0.2)
    assert report == pytest.approx(
        {
            "step": 20,
            "eval/spikiness": 0.3,
            "eval/spread": 0.8 - (-0.3),
            "eval/mean": 1.6 / 3,
            "eval/regressed": 1,
            "eval/a/since_start": 0.2,
            "eval/a/since_best": -0.1,
            "eval/a/best": 0.5,
            "eval/a/best_step": 10,
            "eval/a/regressed": 0,
            "eval/b/since_start": -0.3,
            "eval/b/since_best": -0.3,
            "eval/b/best": 0.6,
            "eval/b/best_step": 0,
            "eval/b/regressed": 1,
            "eval/c/since_start": 0.8,
            "eval/c/since_best": 0.0,
            "eval/c/best": 0.9,
            "eval/c/best_step": 20,
            "eval/c/regressed": 0,
        }
    )
    assert math.copysign(1, report["eval/spikiness"]) == 1


def test_the_first_evaluation_is_flat():
    report = spikiness(0, standings(history(a={0: 0.2}, b={0: 0.9})), 0.1)
    assert (report["eval/spikiness"], report["eval/spread"]) == (0, 0)
    assert math.copysign(1, report["eval/spikiness"]) == 1  # not -0.0


def test_the_alarm_counts_beyond_the_standard_error_of_both():
    def fell(drop: float, now: float, then: float, bound: float | None) -> bool:
        rows = [
            row(0, "a", 0.8, pass_rate_stderr=then),
            row(10, "a", 0.8 - drop, pass_rate_stderr=now),
        ]
        return standings(rows)[0].has_regressed(bound)

    assert fell(0.16, 0.03, 0.04, 0.1)  # 0.16 - hypot(0.03, 0.04) = 0.11
    assert not fell(0.14, 0.03, 0.04, 0.1)
    assert not fell(0.14, 0.03, 0.04, None)
    assert fell(0.06, 0.03, 0.04, 0.0)
    assert not fell(0.5, math.nan, 0.0, 0.1)  # one item: no standard error, no alarm


def test_sources_evaluated_at_other_steps_keep_their_latest_figures():
    rows = history(a={0: 0.2, 10: 0.5, 20: 0.1}, b={0: 0.5, 20: 0.6})
    at_ten = next(r for r in reports(rows, 0.1) if r["step"] == 10)
    assert at_ten["eval/mean"] == 0.5
    assert at_ten["eval/b/since_start"] == 0
    assert [r["step"] for r in reports(rows, 0.1)] == [0, 10, 20]


def test_an_evaluation_without_a_valid_rollout_is_left_out():
    rows = [row(0, "a", 0.4), row(10, "a", None), row(10, "b", None)]
    assert [(s.source, s.now.step) for s in standings(rows)] == [("a", 0)]
    assert spikiness(10, standings([row(10, "b", None)]), 0.1) == {"step": 10}


def test_rows_measured_otherwise_are_not_compared():
    rows = [row(0, "a", 0.9, temperature=0.0), row(10, "a", 0.3, temperature=1.0)]
    rows.append(row(20, "a", 0.4, temperature=1.0))
    (standing,) = standings(rows)
    assert (standing.start.rate, standing.best.rate, standing.fall) == (0.3, 0.4, 0)


@pytest.mark.parametrize(
    ("rates", "patience", "stops"),
    [
        ([0.1, 0.2, 0.3, 0.4], 1, None),
        ([0.1, 0.2, 0.2], 1, 20),  # equal is no improvement
        ([0.1, 0.3, 0.2, 0.2], 2, 30),
        ([0.1, 0.3, 0.2, 0.31, 0.2], 2, None),
        ([0.5, 0.4, 0.4, 0.4], 3, 30),
        ([0.5, 0.4, 0.4, 0.4], 4, None),
        ([0.5, 0.4, 0.4, 0.4], 0, None),
        ([], 1, None),
    ],
)
def test_patience_over_a_history(rates: list[float], patience: int, stops: int | None):
    """Replayed row by row, as a run sees it: it stops when it should and not before."""
    cfg = config(patience=patience)
    stopped = None
    for n in range(len(rates)):
        rows = history(
            a={10 * i: r + 0.1 for i, r in enumerate(rates[: n + 1])},
            b={10 * i: r - 0.1 for i, r in enumerate(rates[: n + 1])},
        )
        if stopped is None and out_of_patience(cfg, rows) is not None:
            stopped = 10 * n
    assert stopped == stops


def test_what_is_said():
    rows = history(a={0: 0.2, 10: 0.5, 20: 0.4, 30: 0.4}, b={0: 0.2, 10: 0.5, 20: 0.5, 30: 0.6})
    assert out_of_patience(config(patience=2), rows[:-2]) is None
    assert out_of_patience(config(patience=2, watch="a"), rows) == (
        "stopping after step 30: a's held-out pass rate has not risen above its 50.0% of step 10 "
        "in 2 evaluations (eval.patience=2)"
    )
    assert out_of_patience(config(patience=2, watch="b"), rows) is None


def test_patience_of_the_mean_waits_for_every_source():
    """`a` is evaluated twice as often; its extra evaluations do not use patience up."""
    cfg = config(patience=2, own={"b": {"every": 20}})
    rows = history(a={0: 0.5, 10: 0.4, 20: 0.4, 30: 0.4, 40: 0.4}, b={0: 0.5, 20: 0.6, 40: 0.7})
    assert out_of_patience(cfg, rows[:-1]) is None
    assert out_of_patience(cfg, rows) is None  # means 0.5, 0.5, 0.55
    worse = history(a={0: 0.5, 10: 0.6, 20: 0.4, 30: 0.4, 40: 0.4}, b={0: 0.5, 20: 0.5, 40: 0.5})
    assert out_of_patience(cfg, worse) is not None


def test_patience_does_not_wait_for_a_source_that_is_never_evaluated_in_between():
    cfg = config(patience=2, own={"b": {"every": 0}})
    rows = history(a={0: 0.5, 10: 0.4, 20: 0.4}, b={0: 0.5})
    assert out_of_patience(cfg, rows) is not None
