"""The order in which a step passes over its mini-batches."""

import pytest

from trainer.epochs import plan_passes


@pytest.mark.parametrize("seed", [0, 1, -3, 2**63])
def test_each_epoch_has_each_minibatch_once_in_an_order_of_its_own(seed: int) -> None:
    orders: set[tuple[int, ...]] = set()
    for step in range(1, 6):
        order = plan_passes(6, epochs=4, seed=seed, step=step).order
        epochs = [order[i : i + 6] for i in range(0, 24, 6)]
        assert epochs[0] == tuple(range(6)), "the first ratio is 1 only before an update"
        assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
        orders.update(epochs[1:])
        assert order == plan_passes(6, epochs=4, seed=seed, step=step).order
    assert len(orders) > 10
    assert plan_passes(1, epochs=3, seed=seed, step=1).order == (0, 0, 0)
