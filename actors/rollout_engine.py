"""One vLLM engine: tokens in, tokens out, and new weights in between.

Invariants:
- an engine's exception is an exception here, never an empty completion;
- between a failed `receive` and the next good one the engine is stale and does not resume;
- progress is counted in tokens: an engine whose process lives but emits none while requests wait
  is stuck (vLLM's own health check calls a frozen engine healthy).
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actors import processes
from actors.errors import RunError
from actors.rollout_args import INITIAL_VERSION, engine_args, set_environment, workers
from actors.sync_plan import Manifest, SyncInit
from configs.engines import EngineRun
from configs.model_code import code_options
from environments.play import EngineDead
from rollouts.types import Completion, FinishReason, Sampling, VersionSpan

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.outputs import CompletionOutput
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger("braid.rollout")
RETRY_S = 2.0
"""Seconds between tries to start an engine."""
WATCH_S = 0.5
"""Seconds between looks at the token count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveReport:
    """One sync, as one engine saw it; times are those of its slowest worker."""

    version: int
    """Acknowledged by every worker."""
    load_s: float
    """Copying, loading into layers, finishing and verifying."""
    sampled: int
    """Tensors whose checksums were compared on receipt."""
    compared: int
    """Those that were also read back from the model, fewest over the workers."""


class RolloutEngine:
    """Wraps AsyncLLM. All methods run on one event loop, but for `progress`."""

    def __init__(self, cfg: EngineRun, engine_index: int, *, role: str = "rollout"):
        self.cfg, self.index = cfg, engine_index
        self.name = f"{role}[{engine_index}]"
        self.version = INITIAL_VERSION
        self._llm: AsyncLLM | None = None
        self._manifest: Manifest | None = None
        self._ids = itertools.count()
        self._finished_tokens = 0
        self._paused = False
        self._stale = False
        self._still_since = time.monotonic()
        self._seen = (0, 0)
        self._watch: asyncio.Task[None] | None = None
        self._syncing = asyncio.Lock()
        self.stop_ids: list[int] = []

    async def start(self) -> None:
        """Start vLLM, trying `rollout.start_attempts` times.

        Raises:
            RunError: every try failed; with the last one's reason.
        """
        set_environment(self.cfg)
        from vllm.v1.engine.async_llm import AsyncLLM

        attempts = self.cfg.rollout.start_attempts
        for attempt in range(1, attempts + 1):
            before = set(processes.descendants(processes.family()[0].pid))
            try:
                self._llm = AsyncLLM.from_engine_args(self.args())
                break
            except (RuntimeError, OSError) as error:
                # vLLM sometimes fails to start beside others, with no other word.
                processes.kill(set(processes.descendants(processes.family()[0].pid)) - before)
                log.warning(
                    "%s did not start (try %d of %d): %s",
                    self.name,
                    attempt,
                    attempts,
                    error,
                )
                if attempt == attempts:
                    raise RunError(
                        f"{self.name}: vLLM did not start in {attempts} tries: {error}"
                    ) from error
                await asyncio.sleep(RETRY_S)
        self.stop_ids = _stop_ids(self.cfg)
        await self._set_version(INITIAL_VERSION)
        self._watch = asyncio.create_task(self._watch_progress())

    def args(self) -> "AsyncEngineArgs":
        """Return what vLLM is started with."""
        return engine_args(self.cfg, self.index)

    @property
    def llm(self) -> "AsyncLLM":
        """The engine; only after `start`."""
        assert self._llm is not None, "start() was not called"
        return self._llm

    async def devices(self) -> list[dict[str, str]]:
        """Return `kind` and `uuid` of every worker's device."""
        return await self.llm.collective_rpc("braid_device")

    async def complete(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, seed: int | None = None
    ) -> Completion:
        """Sample one completion.

        Args:
            seed: of its draws alone; None draws from the engine's own stream.

        Raises:
            EngineDead: the engine died.
            ValueError: the prompt leaves no room for a token.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        room = self.cfg.model.max_model_len - len(prompt_ids)
        if room <= 0:
            raise ValueError(
                f"a prompt of {len(prompt_ids)} tokens leaves no room in model.max_model_len "
                f"{self.cfg.model.max_model_len}"
            )
        params = SamplingParams(
            temperature=sampling.temperature,
            max_tokens=min(sampling.max_tokens, room),
            logprobs=0,
            seed=seed,
            detokenize=False,
            stop_token_ids=self.stop_ids,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return _completion(await self.sample(prompt_ids, params), self.version)

    async def sample(
        self, prompt_ids: Sequence[int], params: "SamplingParams"
    ) -> "CompletionOutput":
        """Run one request to its end.

        Args:
            params: with outputs of kind FINAL_ONLY.

        Raises:
            EngineDead: the engine died.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        name = f"e{self.index}-{next(self._ids)}"
        final: CompletionOutput | None = None
        try:
            prompt: Any = {"prompt_token_ids": list(prompt_ids)}
            async for output in self.llm.generate(prompt, params, name):
                final = output.outputs[0]
        except EngineDeadError as error:
            raise EngineDead(f"{self.name}: vLLM's engine process died") from error
        if final is None or final.finish_reason not in ("stop", "length"):
            reason = None if final is None else final.finish_reason
            raise RuntimeError(f"{self.name}: vLLM ended request {name} with {reason!r}")
        self._finished_tokens += len(final.token_ids)
        return final

    async def open_sync(self, init: SyncInit, manifest: Manifest) -> None:
        """Have all workers join a generation of the weight-sync group, once a `receive` of the
        last generation is over: between its steps, it would go on with the new group."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        info = {"init": init.to_json(), "manifest": manifest.to_json()}
        async with self._syncing:
            self._manifest = manifest
            await self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info))

    async def pause(self) -> None:
        """Hold all requests where they are; new ones wait."""
        self._paused = True
        await self.llm.pause_generation(mode="keep", clear_cache=False)

    async def receive(self, version: int, manifest_hash: str) -> ReceiveReport:
        """Receive, load and verify weights, and acknowledge them as policy `version`.

        Requests in flight lose their KV and go on from it recomputed under the new weights, and
        so does the prefix cache: nothing of the old policy is attended to.

        Raises:
            RunError: a worker did not load what was sent; the engine is stale.
        """
        assert self._paused, "pause() comes before receive()"
        async with self._syncing:
            self._stale = True
            reports = await self._update(version, manifest_hash)
            self._judge(version, reports)
            if not await self.llm.reset_prefix_cache(reset_running_requests=True):
                raise RunError(f"{self.name}: vLLM did not reset its prefix cache")
            await self._set_version(version)
            self.version = version
            self._stale = False
        return ReceiveReport(
            version=version,
            load_s=max(r["load_s"] + r["finish_s"] for r in reports),
            sampled=min(r["sampled"] for r in reports),
            compared=min(r["compared"] for r in reports),
        )

    async def _update(self, version: int, manifest_hash: str) -> list[dict[str, Any]]:
        """Run vLLM's own verbs of an update; return each worker's report."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self.llm.start_weight_update()
        update = {"version": version, "manifest_hash": manifest_hash}
        await self.llm.update_weights(WeightTransferUpdateRequest(update_info=update))
        await self.llm.finish_weight_update()
        return await self.llm.collective_rpc("braid_sync_report")

    async def resume(self) -> None:
        """Let requests go on.

        Raises:
            RunError: the last `receive` failed.
        """
        if self._stale:
            raise RunError(
                f"{self.name} holds weights of a failed sync and must not generate; "
                "sync it again first"
            )
        await self.llm.resume_generation()
        self._paused = False
        self._still_since = time.monotonic()

    def progress(self) -> tuple[int, int]:
        """Return tokens emitted so far, and requests in flight. Safe from any thread."""
        if self._llm is None:
            return 0, 0
        states = list(self._llm.output_processor.request_states.values())
        live = sum(s.detokenizer.num_output_tokens() for s in states if s.detokenizer is not None)
        return self._finished_tokens + live, len(states)

    def stuck_s(self) -> float:
        """Return the seconds without a token once they exceed `rollout.no_progress_s`, else 0."""
        still = time.monotonic() - self._still_since
        return still if still > self.cfg.rollout.no_progress_s else 0.0

    async def shutdown(self) -> None:
        """End the engine and its processes."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None

    def _judge(self, version: int, reports: Sequence[Mapping[str, Any]]) -> None:
        for worker, report in enumerate(reports):
            where = f"{self.name} worker {worker}, version {version}"
            if report["version"] != version:
                raise RunError(f"{where}: acknowledged version {report['version']}")
            if report["wrong"]:
                raise RunError(
                    f"{where}: these tensors in the model are not what was sent: "
                    f"{', '.join(report['wrong'])}"
                )
            if report["not_loaded"]:
                raise RunError(
                    f"{where}: nothing was loaded into {', '.join(report['not_loaded'][:8])}"
                )
        if len(reports) != workers(self.cfg):
            raise RunError(f"{self.name}: {len(reports)} of {workers(self.cfg)} workers answered")

    async def _set_version(self, version: int) -> None:
        """Label vLLM's outputs from here on, and have it acknowledge (absent before 0.32)."""
        if not hasattr(self.llm, "update_weight_version"):
            return
        await self.llm.update_weight_version(str(version))
        acknowledged = await self.llm.get_weight_version()
        if acknowledged != str(version):
            raise RunError(
                f"{self.name}: vLLM acknowledged weights {acknowledged!r}, not {version}"
            )

    async def _watch_progress(self) -> None:
        while True:
            seen = self.progress()
            if self._paused or seen[1] == 0 or seen[0] != self._seen[0]:
                self._still_since = time.monotonic()
            self._seen = seen
            await asyncio.sleep(WATCH_S)


def _completion(output: "CompletionOutput", version: int) -> Completion:
    """Turn vLLM's output into ours.

    Args:
        version: taken for all tokens where vLLM does not label them.
    """
    tokens = np.asarray(output.token_ids, dtype=np.int32)
    rows = [row for row in output.logprobs or () if row is not None]
    if len(rows) != len(tokens):
        raise RuntimeError(f"vLLM returned {len(rows)} logprobs for {len(tokens)} sampled tokens")
    logprobs = np.asarray(
        [row[int(t)].logprob for row, t in zip(rows, tokens, strict=True)], dtype=np.float32
    )
    labelled = getattr(output, "weight_versions", None)
    spans = tuple(
        VersionSpan(version=int(s.version), start=s.start, end=s.end) for s in labelled or ()
    )
    if not spans and len(tokens):
        spans = (VersionSpan(version=version, start=0, end=len(tokens)),)
    bounds = [0, *(s.end for s in spans)]
    if [s.start for s in spans] != bounds[:-1] or bounds[-1] != len(tokens):
        raise RuntimeError(f"vLLM's version spans {spans} do not cover {len(tokens)} tokens")
    return Completion(
        token_ids=tokens,
        logprobs=logprobs,
        finish_reason=FinishReason(output.finish_reason),
        versions=spans,
    )


def _stop_ids(cfg: EngineRun) -> list[int]:
    """Return the model's own end tokens; vLLM by itself knows the tokenizer's one alone."""
    from transformers import GenerationConfig

    revision = code_options(cfg.model).get("revision", "main")
    try:
        own = GenerationConfig.from_pretrained(cfg.model.path, revision=revision).eos_token_id
    except OSError:
        return []
    return [own] if isinstance(own, int) else list(own or ())
