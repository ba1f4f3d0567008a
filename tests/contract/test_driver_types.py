"""The driver holds summaries and references, never tokens: checked on the types it receives."""

import dataclasses
import typing

import numpy as np
import pytest

from rollouts import types

RECEIVED = [
    types.GeneratedGroup,
    types.GroupSummary,
    types.SampleHandle,
    types.RolloutStats,
    types.MicroBatchPlan,
    types.MinibatchPlan,
    types.TrainBatch,
    types.StepResult,
]


def reachable(annotation: object) -> set[object]:
    """Return every type that a value of `annotation` may hold."""
    found = {annotation}
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        for hint in typing.get_type_hints(annotation).values():
            found |= reachable(hint)
    for part in typing.get_args(annotation):
        found |= reachable(part)
    return found


@pytest.mark.parametrize("kind", RECEIVED, ids=lambda k: k.__name__)
def test_what_the_driver_receives_holds_no_array_and_no_text(kind):
    held = reachable(kind)
    assert np.ndarray not in {typing.get_origin(h) or h for h in held}
    assert types.Task not in held
    assert types.Rollout not in held


def test_the_walk_would_find_tokens():
    held = reachable(types.RolloutGroup)
    assert np.ndarray in {typing.get_origin(h) or h for h in held}


def test_all_data_types_are_frozen_slotted_and_keyword_only():
    for kind in vars(types).values():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            params = kind.__dataclass_params__
            assert params.frozen, kind
            assert "__slots__" in vars(kind), kind
            assert all(f.kw_only for f in dataclasses.fields(kind)), kind
