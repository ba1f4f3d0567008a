"""What the distance from the start bought, said at each evaluation."""

from typing import Any

from orchestrator.records.trust import trust_lines


def row(step: int, rate: float, kl: float | None, source: str = "a") -> dict[str, Any]:
    values = {"step": step, "source": source, "pass_rate": rate, "pass_rate_stderr": 0.02}
    return {**values, "kl_start": kl}


def test_gain_a_unit_of_distance_and_of_the_latest_stretch():
    rows = [row(0, 0.2, 0.0), row(10, 0.5, 1.0), row(20, 0.7, 4.0)]
    assert trust_lines(rows, ["a"]) == [
        "a: 4.00 nats a completion from the start (d = 2.00), held-out +50.0%, +25.0% a unit of "
        "d; since step 10 +20.0% a unit"
    ]


def test_past_the_peak_it_names_the_step_to_trust():
    rows = [row(0, 0.2, 0.0), row(10, 0.8, 4.0), row(20, 0.6, 9.0)]
    (line,) = trust_lines(rows, ["a"])
    assert line.endswith(
        "since step 10 -20.0% a unit. More distance no longer pays: trust the policy of step 10 "
        "(d = 2.00), 20.0% better"
    )
    within = [row(0, 0.2, 0.0), row(10, 0.8, 4.0), row(20, 0.79, 9.0)]
    assert "trust the policy" not in trust_lines(within, ["a"])[0]
    nearer = [row(0, 0.2, 0.0), row(10, 0.8, 4.0), row(20, 0.6, 3.0)]
    assert "trust the policy" not in trust_lines(nearer, ["a"])[0]


def test_nothing_is_said_without_a_distance():
    rows = [row(0, 0.2, 0.0), row(10, 0.5, None), row(0, 0.1, 0.0, "b"), row(10, 0.2, 1.0, "b")]
    assert trust_lines(rows, ["a"]) == []
    assert len(trust_lines(rows, ["a", "b"])) == 1
