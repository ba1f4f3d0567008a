"""A step's numbers out of its minibatches'."""

import pytest

from trainer.summary import MinibatchMetrics, summary


def test_the_loss_is_weighed_by_what_each_minibatch_divided_by() -> None:
    """Two samples of loss 1 and one, ten times as long, of loss 4: their mean is 2."""
    done = [
        MinibatchMetrics(
            loss=loss,
            denominator=samples,
            grad_norm=0.0,
            lr=0.0,
            ratio_max_deviation=0.0,
            num_loss_tokens=tokens,
            stats={},
        )
        for loss, samples, tokens in ((1.0, 2, 20), (4.0, 1, 100))
    ]
    assert summary(done)["loss"] == pytest.approx(2)
