"""A real vLLM engine under weight sync: agreement with Hugging Face, requests in flight, faults."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import actors.vllm_extension
from actors import processes
from actors.errors import RunError
from actors.rendezvous import Rendezvous
from actors.rollout_engine import WATCH_S, RolloutEngine
from actors.sync_plan import Bucket, Manifest, SyncInit, WeightSyncError
from actors.sync_transport import WeightSender
from configs.schema import RunConfig
from environments.play import EngineDead
from rollouts.types import Completion, Sampling
from trainer.tiny_model import build_tokenizer

pytestmark = pytest.mark.timeout(300)
T = TypeVar("T")
PROMPTS = [list(range(3 + i, 15 + 2 * i)) for i in range(4)]
SAMPLING = Sampling(temperature=0.8, max_tokens=40)


def build_model(folder: Path, *, tied: bool) -> Qwen2ForCausalLM:
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer) + 3,  # no multiple of vLLM's padding
            hidden_size=128,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            eos_token_id=tokenizer.eos_token_id,
            dtype=torch.float32,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def config(path: Path, *, tensor_parallel: int = 1) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "engine-test",
            "num_steps": 1,
            "model": {"path": str(path), "dtype": "float32", "max_model_len": 256},
            "sources": [
                {
                    "name": "s",
                    "data": {"procedural": "reasoning_gym/chain_sum"},
                    "rewards": [{"use": "x:y", "name": "r"}],
                }
            ],
            "batch": {"groups_per_step": 1},
            "rollout": {
                "max_num_seqs": 16,
                "tensor_parallel": tensor_parallel,
                "no_progress_s": 3.0,
            },
        }
    )


@dataclass
class Lab:
    """An engine, a trainer's model, and a loop to run them on."""

    engine: RolloutEngine
    model: Qwen2ForCausalLM
    rendezvous: Rendezvous
    loop: asyncio.Runner
    version: int = 0
    sender: WeightSender | None = None
    manifest: Manifest | None = None
    dropped: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 100) -> T:
        return self.loop.run(asyncio.wait_for(work, timeout_s))

    def perturb(self) -> None:
        """Change every weight, far more than a training step would."""
        g = torch.Generator().manual_seed(self.version)
        with torch.no_grad():
            for p in self.model.parameters():
                p.add_(torch.randn(p.shape, generator=g) * (0.3 * float(p.std()) + 0.02))

    async def join(self, *, transport: Literal["broadcast", "shared"] = "broadcast") -> None:
        named = {
            self.renamed.get(n, n): p
            for n, p in self.model.named_parameters()
            if n not in self.dropped
        }
        specs = [(n, tuple(p.shape), "float32") for n, p in named.items()]
        self.manifest = Manifest.from_specs(specs, bucket_bytes=128 * 1024)
        size = 1 + self.engine.cfg.rollout.tensor_parallel
        generation = self.rendezvous.new_generation(size)
        host, port = self.rendezvous.address()

        def init(rank: int, name: str) -> SyncInit:
            return SyncInit(
                generation=generation,
                store_host=host,
                store_port=port,
                rank=rank,
                world_size=size,
                backend="gloo",
                transport=transport,
                timeout_s=20,
                name=name,
            )

        @contextlib.contextmanager
        def gather(names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
            yield {n: named[n] for n in names}

        manifest = self.manifest
        joined = asyncio.create_task(self.engine.open_sync(init(1, "rollout[0]"), manifest))
        opening = asyncio.create_task(
            asyncio.to_thread(lambda: WeightSender(manifest, gather, init(0, "trainer[0]")))
        )
        await asyncio.gather(joined, opening)
        self.sender = opening.result()

    async def sync(self) -> Any:
        """Publish the model's weights as the next version."""
        assert self.sender is not None and self.manifest is not None
        self.version += 1
        await self.engine.pause()
        received, _ = await asyncio.gather(
            self.engine.receive(self.version, self.manifest.hash),
            asyncio.to_thread(self.sender.send, self.version, 100),
        )
        await self.engine.resume()
        return received

    async def sample(self, sampling: Sampling = SAMPLING) -> list[tuple[list[int], Completion]]:
        done = await asyncio.gather(*(self.engine.complete(p, sampling) for p in PROMPTS))
        return list(zip(PROMPTS, done, strict=True))

    def gaps(self, sampled: list[tuple[list[int], Completion]]) -> np.ndarray:
        """|engine - Hugging Face| logprob of the engine's own tokens."""
        gaps = []
        for prompt, completion in sampled:
            ids = torch.tensor([prompt + completion.token_ids.tolist()])
            with torch.no_grad():
                logits = self.model(ids).logits[0, len(prompt) - 1 : -1] / SAMPLING.temperature
            own = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
            gaps.append(np.abs(own.numpy() - completion.logprobs))
        return np.concatenate(gaps)

    def assert_agreement(self) -> None:
        sampled = self.run(self.sample())
        assert {s.version for _, c in sampled for s in c.versions} == {self.version}
        gaps = self.gaps(sampled)
        assert len(gaps) > 20
        assert np.median(gaps) < 1e-4, np.median(gaps)
        assert gaps.max() < 1e-3, gaps.max()


OpenLab = Callable[..., Lab]


@pytest.fixture(scope="module")
def open_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenLab]:
    labs: list[Lab] = []
    rendezvous = Rendezvous("127.0.0.1")

    def open_one(*, tied: bool, tensor_parallel: int = 1) -> Lab:
        folder = tmp_path_factory.mktemp("model")
        model = build_model(folder, tied=tied)
        engine = RolloutEngine(config(folder, tensor_parallel=tensor_parallel), 0)
        lab = Lab(engine, model, rendezvous, asyncio.Runner())
        labs.append(lab)
        lab.run(engine.start(), 250)
        return lab

    yield open_one
    for lab in labs:
        if lab.sender is not None:
            lab.sender.close()
        lab.run(lab.engine.shutdown())
        lab.loop.close()


@pytest.fixture(scope="module")
def tied(open_lab: OpenLab) -> Lab:
    return open_lab(tied=True)


def test_agreement_after_ten_syncs(tied: Lab) -> None:
    tied.run(tied.join())
    tied.assert_agreement()
    for _ in range(10):
        tied.perturb()
        before = tied.gaps(tied.run(tied.sample()))
        assert np.median(before) > 0.01, "the change must be one that the check would see"
        report = tied.run(tied.sync())
        assert report.version == tied.version
        assert report.sampled == len(tied.manifest.tensors)
        assert report.compared >= 8, "norms, biases and the embedding can be read back on CPU"
    tied.assert_agreement()


def test_shared_memory_sync_agrees(tied: Lab) -> None:
    tied.run(tied.join(transport="shared"))
    for _ in range(2):
        tied.perturb()
        tied.run(tied.sync())
        tied.assert_agreement()


def test_requests_in_flight_survive_and_carry_both_versions(tied: Lab) -> None:
    tied.run(tied.join())
    long = Sampling(temperature=1.0, max_tokens=200)

    async def through() -> list[Completion]:
        tied.perturb()  # the engine has weights of its own
        running = [
            asyncio.create_task(tied.engine.complete(PROMPTS[i % 4] + [20 + i], long))
            for i in range(8)
        ]
        while tied.engine.progress()[0] < start + 8 * 5:
            await asyncio.sleep(0.002)
        await tied.sync()
        return await asyncio.gather(*running)

    eos = tied.engine.stop_ids
    tied.engine.stop_ids = []
    with torch.no_grad():  # make the end improbable, so that all are in flight at the sync
        tied.model.model.embed_tokens.weight[eos].zero_()
    try:
        tied.run(tied.sync())
        start = tied.engine.progress()[0]
        done = tied.run(through())
    finally:
        tied.engine.stop_ids = eos
    both = (tied.version - 1, tied.version)
    split = [c for c in done if tuple(s.version for s in c.versions) == both]
    assert len(split) >= 6, [c.versions for c in done]
    for c in done:
        assert c.versions[0].start == 0 and c.versions[-1].end == len(c.token_ids)
        assert np.isfinite(c.logprobs).all() and (c.logprobs <= 0).all()
    prompts = [PROMPTS[i % 4] + [20 + i] for i in range(8)]
    new = []
    for prompt, c in zip(prompts, done, strict=True):
        if len(c.versions) == 2:
            ids = torch.tensor([prompt + c.token_ids.tolist()])
            with torch.no_grad():
                logits = tied.model(ids).logits[0, len(prompt) - 1 : -1]
            own = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()
            new.append(np.abs(own - c.logprobs)[c.versions[-1].start :])
    assert np.concatenate(new).max() < 1e-3, "after the sync nothing of the old weights is left"


def test_a_failed_transfer_leaves_a_stale_engine_that_the_next_sync_mends(tied: Lab) -> None:
    tied.run(tied.join())
    tied.perturb()

    async def fail_half_way() -> None:
        assert tied.sender is not None and tied.manifest is not None
        sender, posted = tied.sender, tied.sender._post

        def post(bucket: Bucket, tensors: Any) -> None:
            if bucket.index == 3:
                sender.close()
                raise WeightSyncError("the trainer dies here")
            posted(bucket, tensors)

        sender._post = post
        await tied.engine.pause()
        receiving = asyncio.create_task(tied.engine.receive(tied.version + 1, tied.manifest.hash))
        with pytest.raises(WeightSyncError, match="dies here"):
            await asyncio.to_thread(sender.send, tied.version + 1, 4)
        with pytest.raises(Exception, match=r"weight sync, generation .* receiving bucket"):
            await receiving

    tied.run(fail_half_way())
    with pytest.raises(RunError, match="must not generate"):
        tied.run(tied.engine.resume())
    tied.run(tied.join())
    tied.run(tied.sync())
    tied.assert_agreement()


def test_a_receive_of_a_failed_generation_is_over_before_the_next_is_joined(
    tied: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver tries again as soon as one peer fails; an engine may be before its transfer."""
    tied.run(tied.join())
    tied.perturb()
    started, go_on = asyncio.Event(), asyncio.Event()
    start = tied.engine.llm.start_weight_update

    async def start_late() -> None:
        await start()
        started.set()
        await go_on.wait()

    async def retried_meanwhile() -> Any:
        assert tied.sender is not None and tied.manifest is not None
        await tied.engine.pause()
        late = asyncio.create_task(tied.engine.receive(tied.version + 1, tied.manifest.hash))
        await started.wait()
        tied.sender._group.abandon("fails before it sends")
        joining = asyncio.create_task(tied.join())
        await asyncio.sleep(0.5)
        assert not joining.done()
        go_on.set()
        with pytest.raises(Exception, match="weight sync, generation"):
            await late
        await joining
        return await tied.sync()

    monkeypatch.setattr(tied.engine.llm, "start_weight_update", start_late)
    assert tied.run(retried_meanwhile()).version == tied.version
    tied.assert_agreement()


@pytest.mark.parametrize(
    ("dropped", "renamed", "message"),
    [
        ({"model.layers.1.self_attn.k_proj.weight"}, {}, "missing model.layers.1.self_attn.k_proj"),
        ({"model.norm.weight"}, {}, "missing model.norm.weight"),
        (set(), {"model.norm.weight": "model.final.weight"}, "unexpected model.final.weight"),
    ],
)
def test_names_are_compared_at_join(
    tied: Lab, dropped: set[str], renamed: dict[str, str], message: str
) -> None:
    tied.dropped, tied.renamed = dropped, renamed
    try:
        with pytest.raises(Exception, match="do not fit vLLM's Qwen2ForCausalLM") as caught:
            tied.run(tied.join())
        assert message in str(caught.value)
    finally:
        tied.dropped, tied.renamed = set(), {}


def test_a_prompt_too_long_says_so(tied: Lab) -> None:
    with pytest.raises(ValueError, match="leaves no room"):
        tied.run(tied.engine.complete([5] * 256, SAMPLING))


def test_a_frozen_engine_is_stuck_and_a_killed_one_is_lost(tied: Lab) -> None:
    tied.run(asyncio.sleep(2 * WATCH_S))  # it watches only while the loop runs
    assert tied.engine.stuck_s() == 0
    cores = processes.descendants(os.getpid())
    core = max(cores, key=lambda p: _rss(p.pid))

    async def frozen_then_killed() -> float:
        task = asyncio.create_task(
            tied.engine.complete(PROMPTS[0], Sampling(temperature=1.0, max_tokens=200))
        )
        await asyncio.sleep(0)
        os.kill(core.pid, signal.SIGSTOP)
        try:
            while tied.engine.stuck_s() == 0 and not task.done():
                await asyncio.sleep(0.1)
            stuck = tied.engine.stuck_s()
        finally:
            processes.kill([core])
        with pytest.raises(EngineDead):
            await task
        return stuck

    assert tied.run(frozen_then_killed()) > 3.0


def _rss(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return 0


def test_untied_head_agrees(open_lab: OpenLab) -> None:
    lab = open_lab(tied=False)
    lab.run(lab.join())
    for _ in range(2):
        lab.perturb()
        lab.run(lab.sync())
    lab.assert_agreement()


def test_the_check_would_notice_a_stale_head(
    open_lab: OpenLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(actors.vllm_extension, "EXTENSION", "vllm_stale_head.WorkerExtension")
    lab = open_lab(tied=True)
    lab.run(lab.join())
    lab.perturb()
    lab.run(lab.sync())
    with pytest.raises(AssertionError):
        lab.assert_agreement()


def test_two_tensor_parallel_workers_agree(open_lab: OpenLab) -> None:
    lab = open_lab(tied=True, tensor_parallel=2)
    lab.run(lab.join())
    for _ in range(2):
        lab.perturb()
        report = lab.run(lab.sync())
        assert report.compared > 0, "replicated tensors are read back under TP too"
    lab.assert_agreement()
