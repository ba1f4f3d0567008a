"""Draws: each epoch a permutation, nothing lost or repeated, put-off items come later."""

import json
import sys

from hypothesis import given
from hypothesis import strategies as st

from mixing.sources.cursor import Cursor

ORDER = [7, 1, 0, 6, 4, 5, 2, 3, 0, 7, 5, 4, 1, 3, 2, 6]


def take(cursor: Cursor) -> tuple[int, int]:
    drawn = cursor.take(avoid=())
    assert drawn is not None
    return drawn


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 5))
def test_every_epoch_has_every_item_once(size: int, epochs: int, seed: int) -> None:
    cursor = Cursor("s", size, seed)
    draws = [take(cursor) for _ in range(size * epochs)]
    assert cursor.taken == size * epochs and cursor.epoch == epochs
    assert sorted(draws) == sorted((item, epoch) for item in range(size) for epoch in range(epochs))


def test_the_order_depends_on_seed_source_and_epoch() -> None:
    def order(name: str, seed: int) -> list[int]:
        cursor = Cursor(name, 50, seed)
        return [take(cursor)[0] for _ in range(100)]

    assert order("a", 1) == order("a", 1)
    assert len({tuple(order("a", 1)[:50]), tuple(order("a", 1)[50:])}) == 2
    assert order("a", 1) != order("a", 2) and order("a", 1) != order("b", 1)


@given(st.integers(2, 10), st.integers(0, 5), st.lists(st.integers(1, 9), max_size=12))
def test_steps_avoid_their_own_items_and_lose_none(size: int, seed: int, steps: list[int]) -> None:
    cursor = Cursor("s", size, seed)
    seen: list[tuple[int, int]] = []
    for count in steps:
        used: list[int] = []
        for _ in range(count):
            drawn = cursor.take(avoid=used)
            assert (drawn is None) == (len(used) == size)
            if drawn is not None:
                assert drawn[0] not in used
                used.append(drawn[0])
                seen.append(drawn)
    assert len(set(seen)) == len(seen)
    waiting = size * 2
    for _ in range(waiting):  # what was put off comes as soon as nothing forbids it
        seen.append(take(cursor))
    complete = (len(seen) - 2 * size) // size
    wanted = {(item, epoch) for item in range(size) for epoch in range(max(0, complete))}
    assert wanted <= set(seen)


@given(st.integers(1, 9), st.lists(st.integers(0, 8), max_size=30), st.integers(0, 30))
def test_state_goes_on_as_if_never_stopped(size: int, avoids: list[int], cut: int) -> None:
    whole, stopped, resumed = (Cursor("s", size, 3) for _ in range(3))
    for avoid in avoids[:cut]:
        assert whole.take({avoid}) == stopped.take({avoid})
    resumed.load_state_dict(stopped.state_dict())
    rest = [*avoids[cut:], 0, 1, 2]
    assert [whole.take({a}) for a in rest] == [resumed.take({a}) for a in rest]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 40), st.integers(0, 5))
def test_other_items_come_in_epochs_that_no_item_was_drawn_in(
    size: int, new_size: int, draws: int, seed: int
) -> None:
    before = Cursor("s", size, seed)
    drawn = [d for _ in range(draws) if (d := before.take({seed % size})) is not None]
    after = Cursor("s", new_size, seed)
    after.skip_epoch(before.state_dict())
    first = max((epoch for _, epoch in drawn), default=-1) + 1
    fresh = [after.take(()) for _ in range(new_size)]
    assert sorted(fresh) == [(item, first) for item in range(new_size)]


@given(st.integers(1, 9), st.integers(1, 4), st.lists(st.integers(0, 8), max_size=40))
def test_an_end_gives_each_item_as_often_as_there_are_epochs(
    size: int, epochs: int, avoids: list[int]
) -> None:
    cursor = Cursor("s", size, 1)
    drawn = [cursor.take({avoid}, end=size * epochs) for avoid in avoids]
    while (last := cursor.take((), end=size * epochs)) is not None:
        drawn.append(last)
    given = sorted(d for d in drawn if d is not None)
    assert given == sorted((item, epoch) for item in range(size) for epoch in range(epochs))


def test_the_order_of_a_key_is_the_same_on_every_machine() -> None:
    """A change here would make every checkpoint go on with other items."""
    cursor = Cursor("arith", 8, seed=1)
    assert [take(cursor)[0] for _ in range(16)] == ORDER


def test_a_million_items_take_megabytes_and_their_place_takes_bytes() -> None:
    cursor = Cursor("s", 1_000_000, 1)
    for _ in range(1000):
        take(cursor)
    (permutation,) = cursor._permutations.values()
    assert sys.getsizeof(permutation) < 4_100_000
    assert len(json.dumps(cursor.state_dict())) < 100
