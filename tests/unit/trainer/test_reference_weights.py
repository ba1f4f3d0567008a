"""A reference that follows the policy: exact copies, exact averages, verified, resumed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.reference_weights import Follower, WeightsDiffer, digest, write_policy

DTYPES = [torch.float32, torch.bfloat16]


@dataclass(frozen=True)
class Spec:
    name: str
    shape: tuple[int, ...]


def network(seed: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 24), nn.Linear(24, 8)).to(dtype)


def write(model: nn.Module, folder: Path, *, shard_bytes: int = 2000, writes: bool = True) -> None:
    weights = dict(model.named_parameters())

    @contextmanager
    def gathered(names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        yield {n: weights[n].data for n in names}

    folder.mkdir(exist_ok=True)
    specs = [Spec(n, tuple(p.shape)) for n, p in weights.items()]
    write_policy(specs, gathered, folder, writes=writes, shard_bytes=shard_bytes)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copy_is_the_policy_bit_for_bit(tmp_path: Path, dtype: torch.dtype):
    policy, reference, beside = (network(s, dtype) for s in (1, 2, 2))
    write(policy, tmp_path / "p")
    assert len(list((tmp_path / "p").glob("shard_*"))) > 1
    found = {
        Follower(r, average=False).follow(tmp_path / "p", decay=0.5) for r in (reference, beside)
    }
    assert len(found) == 1
    assert same(policy, reference) and same(policy, beside)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_average_is_that_of_the_formula(tmp_path: Path, dtype: torch.dtype):
    reference = network(0, dtype)
    expected = [p.detach().double() for p in reference.parameters()]
    follower = Follower(reference, average=True)
    for step in range(1, 7):
        policy = network(step, dtype)
        write(policy, tmp_path / str(step))
        follower.follow(tmp_path / str(step), decay=0.7)
        pairs = zip(expected, policy.parameters(), strict=True)
        expected = [0.7 * e + 0.3 * p.detach().double() for e, p in pairs]
    for mine, theirs in zip(reference.parameters(), expected, strict=True):
        assert mine.dtype == dtype
        assert torch.allclose(
            mine.double(), theirs, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-6
        )


@pytest.mark.parametrize("average", [True, False])
def test_saved_and_loaded_it_goes_on_as_if_it_had_not_stopped(tmp_path: Path, average: bool):
    """In bfloat16, where an average would lose what its weights cannot hold."""
    whole = network(0, torch.bfloat16)
    follower = Follower(whole, average=average)
    for step in range(1, 4):
        write(network(step, torch.bfloat16), tmp_path / str(step))
        follower.follow(tmp_path / str(step), decay=0.9)
    follower.save(tmp_path / "checkpoint")
    resumed = network(0, torch.bfloat16)
    again = Follower(resumed, average=average)
    assert again.load(tmp_path / "checkpoint") == follower.digest()
    write(network(4, torch.bfloat16), tmp_path / "4")
    digests = {f.follow(tmp_path / "4", decay=0.9) for f in (follower, again)}
    assert len(digests) == 1 and same(whole, resumed)


def test_a_policy_with_adapters_is_followed_merged(tmp_path: Path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from configs.lora import LoraConfig
    from trainer.lora import add_adapter
    from trainer.weights import PublishedWeights

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = Qwen2Config(vocab_size=32, num_attention_heads=2, num_key_value_heads=1, **shape)
    policy = Qwen2ForCausalLM(config)
    reference = Qwen2ForCausalLM(config)  # has no adapters, and other weights
    start = {n: p.detach().clone() for n, p in policy.named_parameters()}
    add_adapter(policy, LoraConfig(rank=2, alpha=4.0), seed=0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    published = PublishedWeights(policy, partitioned=False)
    (tmp_path / "p").mkdir()
    write_policy(published.specs(), published.gathered, tmp_path / "p", writes=True)
    Follower(reference, average=False).follow(tmp_path / "p", decay=0.5)
    ids = torch.arange(9)[None]
    torch.testing.assert_close(reference(ids).logits, policy(ids).logits, atol=1e-5, rtol=1e-4)
    moved = [n for n, p in reference.named_parameters() if not torch.equal(p, start[n])]
    assert moved and all("_proj.weight" in n for n in moved)


def test_a_rank_that_does_not_write_only_gathers(tmp_path: Path):
    write(network(0, torch.float32), tmp_path / "p", writes=False)
    assert list((tmp_path / "p").iterdir()) == []


def test_what_is_not_what_was_written_is_refused(tmp_path: Path):
    folder = tmp_path / "p"
    write(network(1, torch.float32), folder)
    follower = Follower(network(2, torch.float32), average=False)
    first = sorted(folder.glob("shard_*"))[0]
    whole = load_file(first)
    name = next(iter(whole))
    changed = {**whole, name: whole[name] + 2**-20}
    assert digest(changed[name]) != digest(whole[name])
    save_file(changed, first)
    with pytest.raises(WeightsDiffer, match=f"{name} is not what the trainer wrote"):
        follower.follow(folder, decay=0.0)
    first.unlink()
    with pytest.raises(WeightsDiffer, match="lacks "):
        follower.follow(folder, decay=0.0)
    other = nn.Sequential(nn.Embedding(40, 16))
    with pytest.raises(WeightsDiffer, match="other weights"):
        Follower(other, average=False).follow(folder, decay=0.0)
