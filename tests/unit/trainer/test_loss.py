"""Finding a loss by name, and metrics that reduce with their own denominators."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist

from configs.errors import ConfigError
from configs.plug import PlugConfig
from trainer.loss import LossInputs, LossOutput
from trainer.metrics import Max, Mean, Reduced, Sum, reduce_metrics
from trainer.objectives import resolve_loss

CPU = torch.device("cpu")


@pytest.fixture
def single_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/meet")
    yield
    dist.destroy_process_group()


def tokens(n: int) -> LossInputs:
    zeros = torch.zeros(n)
    return LossInputs(
        policy_logprobs=zeros.clone().requires_grad_(),
        proximal_logprobs=zeros,
        rollout_logprobs=zeros,
        ref_logprobs=None,
        advantages=zeros + 1,
        loss_mask=torch.ones(n, dtype=torch.bool),
        segment=torch.zeros(n, dtype=torch.int64),
        correction=zeros + 1,
        loss_weight=zeros + 1,
        kl_coef=zeros,
        clip_low=zeros + torch.nan,
        clip_high=zeros + torch.nan,
        entropy=zeros,
        entropy_coef=0.0,
        kl_estimator="k3",
        kl_in_loss=True,
    )


def test_the_built_in_loss_takes_its_arguments() -> None:
    loss = resolve_loss(PlugConfig(use="ppo_clip", args={"clip_high": 0.5}))
    assert loss(tokens(3)).total.item() == -3


def test_a_loss_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_losses")

    def reinforce(x: LossInputs, *, scale: float = 1.0) -> LossOutput:
        total = -(scale * x.policy_logprobs.exp() * x.advantages)[x.loss_mask].sum()
        return LossOutput(total=total, metrics={"adv": Mean(x.advantages, x.loss_mask)})

    module.reinforce = reinforce  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_losses", module)
    loss = resolve_loss(PlugConfig(use="my_losses:reinforce", args={"scale": 2.0}))
    assert loss(tokens(3)).total.item() == -6


@pytest.mark.parametrize(
    ("plug", "said"),
    [
        (PlugConfig(use="ppo_clip", args={"clip_hi": 0.3}), "clip_hi"),
        (PlugConfig(use="ppo_clop"), "ppo_clop"),
        (PlugConfig(use="math:pi"), "not a function"),
    ],
)
def test_a_loss_that_cannot_be_called_is_refused(plug: PlugConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve_loss(plug)


def test_metrics_keep_their_own_denominators(single_rank: None) -> None:
    """A mean of means would give 4; the mean over the three counted tokens is 3."""
    yes, no = torch.tensor([True]), torch.tensor([False])
    parts = [
        {
            "mean": Mean(torch.tensor([1.0, 2.0]), torch.tensor([True, True])),
            "sum": Sum(torch.tensor([1.0, 2.0]), torch.tensor([True, True])),
            "max": Max(torch.tensor([1.0, -9.0]), torch.tensor([True, True])),
        },
        {
            "mean": Mean(torch.tensor([6.0, float("nan")]), torch.tensor([True, False])),
            "sum": Sum(torch.tensor([10.0]), yes),
            "max": Max(torch.tensor([99.0]), no),
        },
    ]
    reduced = reduce_metrics(parts, CPU)
    assert {n: r.result for n, r in reduced.items()} == {"mean": 3.0, "sum": 13.0, "max": 1.0}


def test_metrics_without_any_token_have_no_result(single_rank: None) -> None:
    none = torch.tensor([False])
    value = torch.tensor([5.0])
    reduced = reduce_metrics([{"mean": Mean(value, none), "max": Max(value, none)}], CPU)
    assert [r.result for r in reduced.values()] == [None, None]
    empty = torch.zeros(0)
    assert Max(empty, empty.bool()).value.item() == -float("inf")


def test_metrics_must_agree_between_micro_batches(single_rank: None) -> None:
    mask = torch.tensor([True])
    value = torch.tensor([1.0])
    with pytest.raises(ValueError, match="'b'"):
        reduce_metrics([{"a": Sum(value, mask)}, {"b": Sum(value, mask)}], CPU)
    with pytest.raises(TypeError, match="a changes its kind"):
        reduce_metrics([{"a": Sum(value, mask)}, {"a": Mean(value, mask)}], CPU)


def test_reduced_metrics_merge_over_minibatches() -> None:
    first, second = (Reduced(kind=Mean, value=v, weight=w) for v, w in ((2.0, 1.0), (1.0, 2.0)))
    assert first.merge(second).result == 1.0
    with pytest.raises(TypeError, match="Mean with Max"):
        first.merge(Reduced(kind=Max, value=1.0, weight=1.0))
