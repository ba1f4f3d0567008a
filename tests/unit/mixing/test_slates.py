"""Slates: places go to the first survivors in dispatch order; who is moved, and what comes back."""

import itertools
import json
import random

import numpy as np
import pytest

from mixing.slates.group_ids import Drawn, format_id, next_attempt, parse_group_id
from mixing.slates.returned import Returned
from mixing.slates.slate import Candidate, Fate, Slate, Slates, survivors
from mixing.slates.survival import Survival

R, G, D = Fate.RUNNING, Fate.GOOD, Fate.DEAD


def candidate(name: str, fate: Fate = R) -> Candidate:
    return Candidate(
        group_id=f"a/{name}#e0a0", task_id=f"a/{name}", drawn=Drawn(1, 0), version=0, fate=fate
    )


def slate(needed: int, *fates: Fate) -> Slate:
    made = Slate(needed=needed)
    for index, fate in enumerate(fates):
        made.order(candidate(str(index), fate))
    return made


def names(found: list[Candidate] | None) -> list[str] | None:
    return None if found is None else [c.task_id[2:] for c in found]


@pytest.mark.parametrize(
    ("fates", "winners"),
    [
        ((G, G, G), ["0", "1"]),
        ((D, G, G), ["1", "2"]),
        ((G, D, G, R), ["0", "2"]),
        ((R, G, G), None),
        ((G, R, G), None),
        ((G, D, D), None),
    ],
)
def test_the_first_survivors_in_dispatch_order_win(
    fates: tuple[Fate, ...], winners: list[str] | None
) -> None:
    assert names(slate(2, *fates).winners()) == winners


def test_whatever_the_order_of_finishing_the_same_ones_win_of_the_same_number() -> None:
    """Spares are ordered as soon as they are missing, and never more than turn out to be needed."""
    for seed in range(200):
        dice = random.Random(seed)
        ends = [dice.choice([G, D]) for _ in range(12)] + [G] * 3
        outcomes: set[tuple[object, ...]] = set()
        for _ in range(6):
            tried = slate(3, R, R, R, R)
            while tried.winners() is None:
                running = [c for c in tried.candidates if c.fate is R]
                chosen = dice.choice(running)
                chosen.fate = ends[int(chosen.task_id[2:])]
                while tried.missing:
                    tried.order(candidate(str(len(tried.candidates))))
            outcomes.add((len(tried.candidates), *(names(tried.winners()) or ())))
        assert len(outcomes) == 1


def test_only_what_stands_before_the_last_place_is_decided() -> None:
    decided, behind = slate(2, D, G, G, R, D, G).split()
    assert (names(decided), names(behind)) == (["0", "1", "2"], ["3", "4", "5"])
    assert survivors(decided) == (2, 3)
    decided, behind = slate(0, R, G).split()
    assert (names(decided), names(behind)) == ([], ["0", "1"])
    decided, behind = slate(3, R, G).split()
    assert (names(decided), names(behind)) == (["0", "1"], [])


def test_the_first_ones_may_be_replaced_and_the_others_have_their_last_chance() -> None:
    made = slate(2, R, R)
    made.allow_replacements(3)
    made.order(candidate("2"))
    made.order(candidate("3"))
    assert [c.last_chance for c in made.candidates] == [False, False, False, True]


def test_moved_candidates_come_before_a_slates_own_in_the_order_of_moving() -> None:
    slates = Slates()
    for step, name in ((1, "x"), (1, "y"), (2, "own")):
        slates.order(step, "a", candidate(name), places=1)
    for name in "xy":
        slates.move(slates.find(f"a/{name}#e0a0")[1], 2)
    slates.order(2, "a", candidate("later"), places=0)
    assert names(slates.at(2, "a").candidates) == ["x", "y", "own", "later"]
    assert slates.at(2, "a").joined and slates.at(1, "a").candidates == []
    assert slates.place("a/x#e0a0") == (2, "a")
    slates.rename("a/x#e0a0", "a/x#e0a1")
    assert slates.place("a/x#e0a0") is None and slates.find("a/x#e0a1")[0].step == 2
    slates.close(2)
    assert slates.place("a/x#e0a1") is None and dict(slates.of(2)) == {}


def test_state_survives_json_and_what_was_good_is_sampled_again() -> None:
    slates, other = Slates(), Slates()
    for name, fate in (("x", G), ("y", D), ("z", R)):
        slates.order(3, "a", candidate(name, fate), places=1)
    slates.at(3, "a").spares.append(Drawn(7, 2, 1))
    other.load_state_dict(json.loads(json.dumps(slates.state_dict())))
    kept = other.at(3, "a")
    assert [c.fate for c in kept.candidates] == [R, D, R]
    assert kept.spares == [Drawn(7, 2, 1)] and kept.needed == 3 and kept.ordered == 3
    assert all(c.drawn == Drawn(1, 0) for c in kept.candidates)
    other.forget("a")
    assert kept.spares == [] and all(c.drawn is None for c in kept.candidates)


def test_as_many_are_ordered_as_should_survive_up_to_the_bound() -> None:
    survival = Survival("ab", 2.0)
    assert survival.candidates("a", 6) == 6
    for _ in range(60):
        survival.observe("a", 3, 6)
        survival.observe("b", 1, 10)
    assert survival.rate("a") == pytest.approx(0.5, abs=0.02)
    assert survival.candidates("a", 6) in (11, 12)
    assert survival.candidates("b", 6) == 12
    other = Survival("ab", 1.0)
    other.load_state_dict(json.loads(json.dumps(survival.state_dict())))
    assert other.rate("b") == survival.rate("b") and other.candidates("b", 6) == 6


def test_draws_that_came_back_are_drawn_first_and_never_twice_in_a_step() -> None:
    returned, other = Returned(), Returned()
    returned.give("a", [Drawn(10, 0), Drawn(11, 0, 1), Drawn(12, 1)])
    other.load_state_dict(json.loads(json.dumps(returned.state_dict())))
    for one in (returned, other):
        assert one.count("a") == 3 and one.count("b") == 0
        assert one.take("a", avoid=[10]) == Drawn(11, 0, 1)
        may_come = np.ones(20, np.bool_)
        may_come[10] = False
        assert one.take("a", (), may_come) == Drawn(12, 1)
        assert one.count("a") == 0 and one.take("a", ()) is None
    returned.give("a", [Drawn(1, 0)])
    returned.forget("a")
    assert returned.count("a") == 0


def test_group_ids_tell_item_epoch_and_attempt_and_never_repeat() -> None:
    made = {
        format_id("s/train/1", epoch, attempt, again)
        for epoch, attempt, again in itertools.product(range(3), repeat=3)
    }
    assert len(made) == 27
    assert parse_group_id(format_id("s/train/1", 4, 2)) == ("s/train/1", 4, 2)
    assert parse_group_id(format_id("s/train/1", 4, 2, 9)) == ("s/train/1", 4, 2)
    assert next_attempt("s/train/1#e4a2") == "s/train/1#e4a3"
    assert next_attempt("s/train/1#e4r1a0") == "s/train/1#e4r1a1"
    with pytest.raises(ValueError, match="is not"):
        parse_group_id("s/train/1")
