"""Logprobs: the chunked head equals log_softmax, and packing changes nothing."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from rollouts.packing import assemble
from rollouts.types import TrainingSample
from trainer.batch import to_device
from trainer.logprobs import LogprobHead, score_tokens
from trainer.model import PolicyModel

CPU = torch.device("cpu")
VOCAB = 50


def network(*, tied: bool = True) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            initializer_range=0.2,
        )
    )


def policy(packing: str, *, tied: bool = True, chunk: int = 4) -> PolicyModel:
    return PolicyModel(
        network(tied=tied),
        packing=packing,  # type: ignore[arg-type]
        logprob_chunk=chunk,
        attention="sdpa",
    ).train()


def sample(seed: int, length: int) -> TrainingSample:
    rng = np.random.default_rng(seed)
    zeros = np.zeros(length, np.float32)
    return TrainingSample(
        group_id="g",
        index=seed,
        token_ids=rng.integers(0, VOCAB, length).astype(np.int32),
        loss_mask=np.arange(length) >= length // 3,
        rollout_logprobs=zeros,
        advantages=zeros,
        loss_weight=zeros + 1,
        kl_coef=zeros,
        clip_low=zeros,
        clip_high=zeros,
        temperature=zeros + np.float32(rng.choice([0.5, 1.0, 2.0])),
    )


SAMPLES = [sample(i, n) for i, n in enumerate((5, 1, 9, 2))]


def score(model: PolicyModel, samples: list[TrainingSample], *, only_loss: bool = False):
    b = to_device(assemble(samples, None), CPU)
    wanted = b.loss_mask if only_loss else None
    return model(b.token_ids, b.positions, b.cu_seqlens, b.temperature, wanted)


def naive(model: nn.Module, one: TrainingSample) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies of one sample from whole logits, 0 for its first token."""
    ids = torch.from_numpy(one.token_ids).long()
    logits = model(ids.unsqueeze(0)).logits[0].float()
    logp = torch.log_softmax(logits / torch.from_numpy(one.temperature).unsqueeze(1), -1)[:-1]
    scored = logp.gather(1, ids[1:].unsqueeze(1)).squeeze(1)
    zero = torch.zeros(1)
    return torch.cat([zero, scored]), torch.cat([zero, -(logp.exp() * logp).sum(-1)])


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunked_head_equals_log_softmax_in_value_and_gradient(chunk: int) -> None:
    torch.manual_seed(1)
    hidden = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    weight = nn.Parameter(torch.randn(11, 8, dtype=torch.float64))
    targets = torch.randint(0, 11, (7,))
    temperature = torch.rand(7) + 0.5
    mix = torch.randn(2, 7)

    scored = LogprobHead(weight, chunk)(hidden, targets, temperature)
    grads = torch.autograd.grad((scored * mix).sum(), [hidden, weight])

    logp = torch.log_softmax((hidden @ weight.t()) / temperature.unsqueeze(1), -1)
    expected = torch.stack([logp[torch.arange(7), targets], -(logp.exp() * logp).sum(-1)])
    wanted = torch.autograd.grad((expected * mix).sum(), [hidden, weight])
    torch.testing.assert_close(scored, expected.float(), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(grads, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_head_of_a_bfloat16_model_scores_in_float32() -> None:
    torch.manual_seed(1)
    hidden = torch.randn(4, 8).bfloat16().requires_grad_()
    weight = nn.Parameter(torch.randn(300, 8).bfloat16())
    targets = torch.tensor([0, 1, 2, 3])
    scored = LogprobHead(weight, 2)(hidden, targets, torch.ones(4))
    assert scored.dtype == torch.float32
    expected = torch.log_softmax((hidden @ weight.t()).float(), -1)[torch.arange(4), targets]
    torch.testing.assert_close(scored[0], expected)
    scored[0].sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16


def test_no_chunk_holds_more_logits_than_asked() -> None:
    """A head over many tokens makes no tensor of [T, V], in forward or backward."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    hidden = torch.randn(64, 4, requires_grad=True)
    head = LogprobHead(nn.Parameter(torch.randn(100, 4)), 8)
    with Watch():
        head(hidden, torch.zeros(64, dtype=torch.long), torch.ones(64))[0].sum().backward()
    assert largest == 8 * 100


@pytest.mark.parametrize("packing", ["packed", "padded"])
@pytest.mark.parametrize("tied", [True, False])
def test_packed_and_padded_equal_each_sample_alone(packing: str, tied: bool) -> None:
    model = policy(packing, tied=tied)
    logprobs, entropy = score(model, SAMPLES)
    reference = network(tied=tied)
    alone = [naive(reference, s) for s in SAMPLES]
    torch.testing.assert_close(logprobs, torch.cat([a[0] for a in alone]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, torch.cat([a[1] for a in alone]), rtol=1e-5, atol=1e-5)

    (logprobs.sum() + 0.3 * entropy.sum()).backward()
    sum(a[0].sum() + 0.3 * a[1].sum() for a in alone).backward()
    for (name, mine), theirs in zip(
        model.network.named_parameters(), reference.parameters(), strict=True
    ):
        scale = theirs.grad.abs().max().item()
        assert (mine.grad - theirs.grad).abs().max().item() <= 1e-5 * max(scale, 1), name


def test_attention_never_crosses_segments() -> None:
    """Changing one segment leaves the others' scores bitwise alone."""
    model = policy("packed")
    before, _ = score(model, SAMPLES)
    after, _ = score(model, [sample(77, 5), *SAMPLES[1:]])
    assert not torch.equal(before[:5], after[:5])
    torch.testing.assert_close(before[5:], after[5:], rtol=0, atol=0)


def test_first_tokens_score_zero_and_unwanted_ones_too() -> None:
    model = policy("packed")
    full, _ = score(model, SAMPLES)
    some, entropy = score(model, SAMPLES, only_loss=True)
    batch = assemble(SAMPLES, None)
    starts = batch.cu_seqlens[:-1]
    assert full[starts].tolist() == [0.0] * 4
    kept = torch.from_numpy(batch.loss_mask)
    torch.testing.assert_close(some[kept], full[kept], rtol=0, atol=0)
    assert not some[~kept].any()
    assert not entropy[~kept].any()


def test_tied_embeddings_stay_tied() -> None:
    model = policy("packed")
    names = [n for n, _ in model.network.named_parameters()]
    assert names == [n for n, _ in network().named_parameters()]
    assert model.network.get_output_embeddings().weight is model.network.model.embed_tokens.weight
    untied = policy("packed", tied=False)
    assert [n for n, _ in untied.network.named_parameters()][-1] == "lm_head.weight"


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_an_empty_micro_batch_runs_everything_and_gives_zero_gradients(packing: str) -> None:
    model = policy(packing)
    b = to_device(assemble([], None), CPU)
    logprobs, _ = model(b.token_ids, b.positions, b.cu_seqlens, b.temperature, b.loss_mask)
    assert not b.loss_mask.any()
    logprobs.sum().backward()
    for name, p in model.network.named_parameters():
        assert p.grad is not None, name
        assert not p.grad.any(), name


def test_dropout_is_off_in_training_mode() -> None:
    config = network().config
    config.attention_dropout = 0.0
    dropping = Qwen2ForCausalLM(config)
    dropping.model.embed_tokens = nn.Sequential(dropping.model.embed_tokens, nn.Dropout(0.5))
    model = PolicyModel(dropping, packing="packed", logprob_chunk=8, attention="sdpa").train()
    assert torch.equal(score(model, SAMPLES)[0], score(model, SAMPLES)[0])


def test_the_shift_reads_the_hidden_state_before() -> None:
    """A head that echoes its inputs shows which hidden state predicts which token."""

    class Echo(nn.Module):
        def forward(self, hidden: Tensor, targets: Tensor, temperature: Tensor) -> Tensor:
            return torch.stack([hidden[:, 0] * 100 + targets, temperature])

    hidden = torch.arange(5.0).unsqueeze(1)
    seen, heat = score_tokens(
        Echo(),
        hidden,
        torch.tensor([10, 11, 12, 13, 14]),
        torch.tensor([0, 3, 5]),
        torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]),
        None,
    )
    assert seen.tolist() == [0, 11, 112, 0, 314]
    assert heat.tolist() == [0, 2, 3, 0, 5]


def test_recomputation_changes_nothing() -> None:
    results: list[list[Tensor]] = []
    settings: list[Callable[[Qwen2ForCausalLM], None]] = [
        lambda n: None,
        lambda n: n.gradient_checkpointing_enable({"use_reentrant": False}),
        lambda n: n.gradient_checkpointing_enable({"use_reentrant": True}),
    ]
    for enable in settings:
        base = network()
        enable(base)
        model = PolicyModel(base, packing="packed", logprob_chunk=4, attention="sdpa").train()
        score(model, SAMPLES)[0].sum().backward()
        results.append([p.grad for p in model.network.parameters()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b)
