"""Spares: each place has its own, and what was not needed comes back first."""

import json

import numpy as np

from mixing.spares import Spares


def lent() -> Spares:
    spares = Spares()
    spares.lend(1, "a", 2, [(10, 0), (11, 0), (12, 0)])
    spares.lend(1, "b", 1, [(7, 3)])
    return spares


def test_a_place_has_spares_of_its_own_whoever_asks_first() -> None:
    for order in ((0, 0, 1, 1), (1, 0, 0, 1), (1, 1, 0, 0)):
        spares, got = lent(), {0: [], 1: []}
        for place in order:
            got[place].append(spares.take(1, "a", place))
        assert got == {0: [(10, 0), (12, 0)], 1: [(11, 0), None]}


def test_what_was_not_needed_comes_back_when_the_step_ends() -> None:
    spares = lent()
    assert spares.take(1, "a", 1) == (11, 0)
    assert spares.take_returned("a", ()) is None
    assert spares.num_returned("a") == 0
    spares.end(1)
    assert spares.num_returned("a") == 2
    assert spares.take(1, "a", 0) is None
    assert spares.take_returned("a", avoid=[10]) == (12, 0)
    assert spares.take_returned("a", ()) == (10, 0)
    assert spares.take_returned("a", ()) is None
    assert spares.take_returned("b", ()) == (7, 3)


def test_what_may_no_longer_come_is_let_go() -> None:
    spares = lent()
    spares.end(1)
    may_come = np.ones(20, np.bool_)
    may_come[[10, 11]] = False
    assert spares.take_returned("a", (), may_come) == (12, 0)
    assert spares.num_returned("a") == 0


def test_steps_and_sources_without_spares_have_none() -> None:
    assert lent().take(2, "a", 0) is None
    assert lent().take(1, "c", 0) is None
    assert lent().num_returned("c") == 0


def test_state_survives_json() -> None:
    spares, other = lent(), Spares()
    spares.take(1, "a", 0)
    spares.end(0)
    other.load_state_dict(json.loads(json.dumps(spares.state_dict())))
    for one in (spares, other):
        assert one.take(1, "a", 0) == (12, 0)
        one.end(1)
        assert one.take_returned("a", ()) == (11, 0)
