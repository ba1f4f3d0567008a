"""The loss of supervised fine-tuning."""

from trainer.loss import LossInputs, LossOutput, finish
from trainer.metrics import Mean


def cross_entropy(x: LossInputs) -> LossOutput:
    """-log policy of each answer token: maximum likelihood. Nothing was sampled, so advantages,
    ratios and corrections play no part."""
    x = x.filled()
    metrics = {"entropy": Mean(x.entropy, x.loss_mask)}
    return finish(x, x.policy_logprobs, metrics)
