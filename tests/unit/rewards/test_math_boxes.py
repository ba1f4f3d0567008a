"""Boxes around answers, also around boxes, and as many as a model may write to no good end."""

import pytest

from rewards.math_answers import boxed


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{4}", ["4"]),
        (r"\boxed{1} and \fbox{ 2 }", ["1", "2"]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed{\boxed{4}}", ["4"]),
        (r"\boxed{\boxed{1}, \boxed{2}}", ["2"]),
        (r"\boxed{x = \boxed{2}}", [r"x = \boxed{2}"]),
        (r"\boxed{4", []),
        (r"\boxed{\boxed{4}", []),
        ("4", []),
    ],
)
def test_what_boxes_hold(text: str, found: list[str]) -> None:
    assert boxed(text) == found


@pytest.mark.timeout(20)
@pytest.mark.parametrize("layers", [50, 1000])
def test_boxes_without_end_take_no_time_without_end(layers: int) -> None:
    (inside,) = boxed(r"\boxed{" * layers + "}" * layers)
    assert inside.startswith(r"\boxed{")
