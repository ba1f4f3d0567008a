"""The receiving end of weight sync inside vLLM's worker processes (vLLM 0.26 to 0.33).

Named as `worker_extension_cls`, this module is imported in every worker before its model loads,
and registers the transfer engine `braid`. The engine follows vLLM's own lifecycle: init, start,
update, finish, with layerwise reload. Beyond it:
- names are compared at join, contents (checksums) after each load;
- a failed update is rolled back, so that the next one starts clean;
- tied parameters on CPU: vLLM processes only one owner of a shared parameter, and the other keeps
  a stale packed copy; both are processed after the reload.
"""

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from actors.sync_tensors import checksum
from actors.sync_transport import (
    Manifest,
    ReceiveStats,
    SyncInit,
    WeightReceiver,
)
from actors.vllm_names import NameMap

BACKEND = "braid"
EXTENSION = "actors.vllm_extension.WorkerExtension"


class _LoadsWeights(Protocol):
    """What vLLM's models can do besides being modules."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str] | None: ...


@dataclass
class BraidInit(WeightTransferInitInfo):
    """What `init_weight_transfer_engine` is given."""

    init: str
    """SyncInit as JSON, with the rank of the engine's first worker."""
    manifest: str
    """Manifest as JSON."""


@dataclass
class BraidUpdate(WeightTransferUpdateInfo):
    """What `update_weights` is given: the bytes come over the group."""

    version: int
    manifest_hash: str


@dataclass(slots=True, kw_only=True)
class LoadReport:
    """One worker's account of its last sync; sent to the front end as plain values."""

    version: int = -1
    load_s: float = 0.0
    finish_s: float = 0.0
    sampled: int = 0
    """Tensors whose checksums equalled the sender's on receipt."""
    compared: int = 0
    """Those that could also be read back from the model."""
    wrong: tuple[str, ...] = ()
    """Those whose content in the model is not what was sent."""
    not_loaded: tuple[str, ...] = ()
    """Parameters of the model that no tensor filled."""


class BraidTransferEngine(WeightTransferEngine[BraidInit, BraidUpdate]):
    """One worker's receiver and what is done with the tensors."""

    init_info_cls = BraidInit
    update_info_cls = BraidUpdate
    repair_tied = True
    """Off only in the test that shows that the agreement check notices a stale head."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.report = LoadReport()
        self._receiver: WeightReceiver | None = None
        self._manifest: Manifest | None = None
        self._names: NameMap | None = None
        self._stats: ReceiveStats | None = None
        self._loaded: set[str] | None = set()
        self._half_loaded = False

    def init_transfer_engine(self, init_info: BraidInit) -> None:
        """Compare names, then join the generation, leaving the old one."""
        self.shutdown()
        manifest = Manifest.from_json(init_info.manifest)
        tied = bool(getattr(self.model_config.hf_text_config, "tie_word_embeddings", False))
        self._names = NameMap(self.model, tied=tied)
        self._names.check(manifest)
        first = SyncInit.from_json(init_info.init)
        worker = self.parallel_config.rank
        name = f"{first.name} worker {worker}"
        init = dataclasses.replace(first, rank=first.rank + worker, name=name)
        self._manifest = manifest
        self._receiver = WeightReceiver(manifest, init, device=self.device)

    def start_weight_update(self) -> None:
        """Open all layers for loading; first take back what a failed update left half done."""
        if self._half_loaded:
            _roll_back(self.model, self.model_config)
        self._half_loaded = True
        self._stats = None
        self._loaded = set()
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and load all tensors; on CPU there is no device to wait for."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: BraidUpdate) -> None:
        """Receive all tensors and hand each to the model as it becomes whole."""
        if self._receiver is None:
            raise RuntimeError("this engine has joined no weight-sync group; call open_sync first")
        self._stats = self._receiver.receive(
            update_info.version, update_info.manifest_hash, self._load
        )

    def finish_weight_update(self) -> None:
        """Close the layers, mend tied ones, read sampled tensors back. Never raises for what it
        finds: vLLM would stay in the update; the front end judges the report."""
        began = time.perf_counter()
        finalize_layerwise_reload(self.model, self.model_config)
        self._half_loaded = False
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what was received is not the engine's share of the GPU
        if self.repair_tied and self.device.type == "cpu":
            _process_shared(self.model)
        stats = self._stats
        assert stats is not None and self._manifest is not None and self._names is not None
        wrong: list[str] = []
        compared = 0
        specs = {t.name: t for t in self._manifest.tensors}
        for name, expected in stats.checksums.items():
            view = self._names.loaded_view(specs[name], self._manifest)
            if view is not None:
                compared += 1
                wrong.extend([name] if checksum(view) != expected else [])
        not_loaded: set[str] = set()
        if self._loaded is not None:
            not_loaded = {n for n, _ in self.model.named_parameters()} - self._loaded
        self.report = LoadReport(
            version=stats.version,
            load_s=stats.load_s,
            finish_s=time.perf_counter() - began,
            sampled=len(stats.checksums),
            compared=compared,
            wrong=tuple(wrong),
            not_loaded=tuple(sorted(not_loaded)),
        )

    def shutdown(self) -> None:
        """Leave the group."""
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None

    def _load(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
        loaded = cast(_LoadsWeights, self.model).load_weights(iter(tensors))
        if loaded is None:
            self._loaded = None
        elif self._loaded is not None:
            self._loaded |= loaded


class WorkerExtension:
    """Methods that the front end calls on every worker with `collective_rpc`."""

    def braid_sync_report(self) -> dict[str, Any]:
        """Return the worker's LoadReport as plain values."""
        engine: BraidTransferEngine = self.weight_transfer_engine  # type: ignore[attr-defined]
        r = engine.report
        return {f: getattr(r, f) for f in LoadReport.__slots__}

    def braid_device(self) -> dict[str, Any]:
        """Return the worker's device kind and, for a GPU, its UUID."""
        device: torch.device = self.device  # type: ignore[attr-defined]
        uuid = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
        return {"kind": device.type, "uuid": uuid}


def _roll_back(model: nn.Module, model_config: Any) -> None:
    """Put layers that wait for tensors back as they were; those already complete stay new."""
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            info.loaded_weights.clear()
            info.load_numel = 0
    finalize_layerwise_reload(model, model_config)


def _process_shared(model: nn.Module) -> None:
    """Rebuild what was derived from parameters that several modules share."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(module)
    for sharing in owners.values():
        for module in sharing if len(sharing) > 1 else []:
            method = getattr(module, "quant_method", None)
            if isinstance(method, QuantizeMethodBase):
                method.process_weights_after_loading(module)


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, BraidTransferEngine)
