"""Text metrics are bounded, know a text from one that shares nothing; some are symmetric."""

import typing
from itertools import pairwise, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.graders.rft import TextMetric
from rewards.matching import best_assignment, best_in_order
from rewards.score import GradeFailed
from rewards.similarity import similarity

METRICS = typing.get_args(TextMetric)
SYMMETRIC = ("fuzzy_match", "gleu", "cosine", "rouge_1", "rouge_2", "rouge_l")
VOCABULARY = ("a", "b", "cat", "cats", "the", "The", "mat", "3", "é", "猫", ".", "!")
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=9)
TEXTS = WORDS.map(" ".join) | st.text(max_size=20)


def score(metric: str, text: str, reference: str) -> float | None:
    try:
        return similarity(metric, text, reference)
    except GradeFailed as failed:
        assert metric.startswith("rouge")
        assert failed.kind == "other_error"
        return None


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(METRICS), TEXTS, TEXTS)
def test_every_metric_is_between_0_and_1(metric: str, text: str, reference: str):
    found = score(metric, text, reference)
    assert found is None or 0 <= found <= 1


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SYMMETRIC), TEXTS, TEXTS)
def test_symmetric_metrics_are(metric: str, text: str, reference: str):
    there, back = score(metric, text, reference), score(metric, reference, text)
    if there is not None and back is not None and text.strip() and reference.strip():
        assert there == pytest.approx(back)


@pytest.mark.parametrize("metric", METRICS)
def test_a_text_is_most_like_itself_and_unlike_what_shares_nothing(metric: str):
    text = "five words stand here now"
    most = 1 - 0.5 / 5**3 if metric == "meteor" else 1
    assert similarity(metric, text, text) == pytest.approx(most)
    assert similarity(metric, "xyz", text) <= (0.15 if metric == "fuzzy_match" else 0)
    assert similarity(metric, "", text) == 0
    assert similarity(metric, "", " ") == 1


MATRICES = st.integers(1, 4).flatmap(
    lambda n: st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=n, max_size=n),
        min_size=1,
        max_size=4,
    )
)


@settings(max_examples=200, deadline=None)
@given(MATRICES)
def test_matching_is_the_best_of_all(scores: list[list[float]]):
    rows, columns = len(scores), len(scores[0])
    wide = scores if rows <= columns else [list(c) for c in zip(*scores, strict=True)]
    best = max(
        sum(row[j] for row, j in zip(wide, chosen, strict=True))
        for chosen in permutations(range(len(wide[0])), len(wide))
    )
    assert best_assignment(scores) == pytest.approx(best)
    in_order = max(
        sum(scores[i][j] for i, j in enumerate(chosen) if j >= 0)
        for chosen in product(range(-1, columns), repeat=rows)
        if _rises([j for j in chosen if j >= 0])
    )
    assert best_in_order(scores) == pytest.approx(in_order)


def _rises(values: list[int]) -> bool:
    return all(a < b for a, b in pairwise(values))


def test_matching_many_items_is_quick_and_finds_the_same_ones():
    same = [[float(i == (j * 5) % 301) for j in range(301)] for i in range(301)]
    assert best_assignment(same) == 301
