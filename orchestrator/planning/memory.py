"""How much memory each actor will take, by DeepSpeed's and vLLM's own formulas; no torch here.

All figures are GiB of one actor. They are estimates before the fact: model states and KV cache
are exact formulas, activations are a count of the tensors that a Llama-like layer keeps.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from configs.deepspeed import CUDA_BUCKET
from configs.model_files import ModelShape, find_model_folder, read_model_shape
from configs.schema import RunConfig
from configs.validate import is_judge, judge_role, reward_model_role, teacher_role

GIB = 2**30
_PROCESS_GIB = {"trainer": 0.36, "reference": 0.36, "critic": 0.36, "rollout": 0.95}
"""Resident size of the process before any model, as measured on the CPU stack: torch with
DeepSpeed; vLLM's engine core without its KV cache, and its front end."""
_CONTEXT_GIB = 0.5
"""CUDA's own memory of one process, with the kernels that torch loads; not measured here. An
engine's share of its GPU does not hold it: vLLM counts from after it is there."""
_HOST_BUFFER_FACTOR = 1.5
"""DeepSpeed's `additional_buffer_factor`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPart:
    """One thing that takes memory."""

    name: str
    gib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCache:
    """Size of an engine's key-value cache."""

    bytes_per_token: int
    """Over all ranks of the engine."""
    block_tokens: int
    blocks: int | None
    """None where it depends on the size of a GPU that was not given."""
    tokens: int | None
    full_length_sequences: float | None
    """Sequences of max_model_len tokens that fit at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """What one actor of a role takes."""

    role: str
    device: str
    """`gpu`: parts are GPU memory of one rank; `cpu`: host memory of the process."""
    parts: tuple[MemoryPart, ...]
    total_gib: float | None
    """Sum of the parts; None where the model's size is unknown."""
    host_gib: float | None = None
    """Host memory beside a GPU: DeepSpeed's figure at load time or for offload."""
    kv: KVCache | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStates:
    """Bytes of parameters, gradients and optimizer of one rank."""

    device_bytes: int
    host_bytes: int
    """Of this rank's share of its node."""


def zero_model_states(
    *,
    stage: int,
    params: int,
    largest_layer_params: int,
    world: int,
    offload: str = "none",
    bytes_per_param: int = 2,
) -> ModelStates:
    """Apply DeepSpeed's estimate to one rank; all ranks are taken to be on one node.

    Stages 2 and 3 are `estimate_zero2_model_states_mem_needs` in
    deepspeed/runtime/zero/stage_1_and_2.py and `estimate_zero3_model_states_mem_needs` (with
    zero_init=False) in deepspeed/runtime/zero/stage3.py of 0.19.8. Per parameter they count
    2 (16-bit weights) everywhere and 18 partitioned: 2 + 4 (gradients, 16 and 32 bit), 4 (fp32
    master), 8 (Adam's moments). Stage 1 keeps the 16-bit gradients whole, and the fp32 ones too
    unless the optimizer is offloaded (`BF16_Optimizer`), stage 0 everything.
    With fp32 weights each 16-bit 2 becomes a 4.
    """
    w = bytes_per_param
    whole, split = {0: (2 * w + 16, 0), 1: (2 * w, 16), 2: (w, w + 16), 3: (0, w + 16)}[stage]
    if stage == 1 and w == 2:
        whole, split = 2 * w + 4, 12
    device = whole * params + int(split * params / world)
    host_per_rank = 2 * w * params * _HOST_BUFFER_FACTOR
    if stage == 3:
        largest = 2 * w * largest_layer_params
        device = largest + int((w + 16) * params / world)
        if offload == "optimizer":
            device = largest + int(w * params / world)
            host_per_rank = params * max(2 * w * world, w + 14) * _HOST_BUFFER_FACTOR / world
        elif offload == "parameters":
            device = largest
            host_per_rank = params * max(2 * w * world, w + 16) * _HOST_BUFFER_FACTOR / world
    elif offload == "optimizer":
        device = (w if stage == 2 else 2 * w) * params
        host_per_rank = params * max(2 * w * world, w + 14) * _HOST_BUFFER_FACTOR / world
    return ModelStates(device_bytes=device, host_bytes=int(host_per_rank))


def kv_bytes_per_token(shape: ModelShape, bytes_per_number: int) -> int:
    """Bytes that one token keeps in all layers: key and value of each KV head.

    vLLM's page size over its block size (vllm/v1/kv_cache_interface.py, FullAttentionSpec).
    """
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * bytes_per_number


def activation_bytes(
    shape: ModelShape, *, tokens: int, bytes_per_number: int, checkpointing: bool
) -> int:
    """Bytes that one forward pass keeps for the backward.

    Counts a layer's kept tensors, after Korthikanti et al. (arXiv:2205.05198) for a gated MLP and
    attention that keeps no [T, T] matrix: 8 of width h, 2 of the KV width, 4 of the MLP's.
    With checkpointing each layer keeps its input, and one layer at a time is whole.
    """
    per_layer = 8 * shape.hidden + 2 * shape.kv_heads * shape.head_dim + 4 * shape.intermediate
    numbers = shape.layers * per_layer
    if checkpointing:
        numbers = shape.layers * shape.hidden + per_layer
    return tokens * numbers * bytes_per_number


def logit_chunk_bytes(shape: ModelShape, *, chunk: int) -> int:
    """Bytes of one chunk of logits and of its log-softmax, fp32 [chunk, V] each."""
    return 2 * 4 * chunk * shape.vocab


def estimate_memory(
    cfg: RunConfig, shape: ModelShape | None, *, gpu_gib: float | None
) -> tuple[MemoryEstimate, ...]:
    """Estimate one actor of each role that holds a model.

    Args:
        shape: of the policy; None where it is not on this machine.
        gpu_gib: memory of one GPU, which bounds an engine's KV cache; None if not known.
    """
    made = {
        "trainer": lambda shape: _trainer(cfg, shape),
        "rollout": lambda shape: _rollout(cfg, shape, gpu_gib),
        "reference": lambda shape: _reference(cfg, shape),
        "critic": lambda shape: _critic(cfg, shape),
    }
    if not cfg.needs_reference:
        del made["reference"]
    if not cfg.needs_critic:
        del made["critic"]
    return (
        *(_or_unknown(role, _device(cfg, role), shape, make) for role, make in made.items()),
        *_judges(cfg, gpu_gib),
        *_reward_models(cfg),
        *_teachers(cfg),
    )


def _or_unknown(
    role: str,
    device: str,
    shape: ModelShape | None,
    make: Callable[[ModelShape], MemoryEstimate],
) -> MemoryEstimate:
    """Estimate a role whose model is known, or say that it is not."""
    if shape is not None and shape.params is not None:
        return make(shape)
    why = shape.counted_from if shape else "unknown until the model's files are on this machine"
    return MemoryEstimate(role=role, device=device, parts=(), total_gib=None, note=why)


def _judges(cfg: RunConfig, gpu_gib: float | None) -> Iterator[MemoryEstimate]:
    """Yield what an engine of each judge takes: as one of the policy's, without weight sync."""
    for name, judge in cfg.judges.items():
        if judge.engines is None:
            continue
        own = cfg.model_copy(update={"model": judge.engines.model, "rollout": judge.engines})
        role, device = judge_role(name), _device(own, "rollout")

        def make(shape: ModelShape, own: RunConfig = own, role: str = role) -> MemoryEstimate:
            return replace(_rollout(own, shape, gpu_gib, synced=False), role=role)

        yield _or_unknown(role, device, _shape(judge.engines.model.path), make)


def _reward_models(cfg: RunConfig) -> Iterator[MemoryEstimate]:
    for name, model in cfg.reward_models.items():
        device = "gpu" if model.actors.gpus > 0 else "cpu"
        width = 4 if model.model.dtype == "float32" else 2
        role = reward_model_role(name)

        def make(
            shape: ModelShape, role: str = role, device: str = device, width: int = width
        ) -> MemoryEstimate:
            parts = {"weights": float(width * (shape.params or 0))}
            return _estimate(role, device, parts, note="without activations")

        yield _or_unknown(role, device, _shape(model.model.path), make)


def _teachers(cfg: RunConfig) -> Iterator[MemoryEstimate]:
    """Yield what an actor of each teacher takes: as a reference, with a model of its own."""
    for name, teacher in cfg.teachers.items():
        role, device = teacher_role(name), "gpu" if teacher.actors.gpus > 0 else "cpu"
        own = cfg.model_copy(update={"model": teacher.model})
        tokens = teacher.max_tokens_per_batch

        def make(
            shape: ModelShape,
            own: RunConfig = own,
            role: str = role,
            device: str = device,
            tokens: int = tokens,
        ) -> MemoryEstimate:
            return _estimate(role, device, _scorer_parts(own, shape, tokens))

        yield _or_unknown(role, device, _shape(teacher.model.path), make)


def _shape(path: str) -> ModelShape | None:
    folder = find_model_folder(path)
    return read_model_shape(folder) if folder else None


def _device(cfg: RunConfig, role: str) -> str:
    groups = {
        "trainer": cfg.trainer,
        "rollout": cfg.rollout,
        "reference": cfg.reference,
        "critic": cfg.critic,
    }
    return "gpu" if groups[role].actors.gpus > 0 else "cpu"


def _bytes_per_number(cfg: RunConfig) -> int:
    return 4 if cfg.model.dtype == "float32" else 2


def _estimate(
    role: str,
    device: str,
    parts: dict[str, float],
    *,
    host: float | None = None,
    kv: KVCache | None = None,
    note: str = "",
) -> MemoryEstimate:
    """Put together parts in bytes; a CPU actor also has its process, and host bytes with it."""
    if device == "cpu":
        if host:
            parts["offloaded"] = host
        kind = "rollout" if is_judge(role) else role
        parts["process"] = _PROCESS_GIB.get(kind, _PROCESS_GIB["reference"]) * GIB
    else:
        parts["CUDA context"] = _CONTEXT_GIB * GIB
    listed = tuple(MemoryPart(name=n, gib=round(b / GIB, 3)) for n, b in parts.items() if b > 0)
    return MemoryEstimate(
        role=role,
        device=device,
        parts=listed,
        total_gib=round(sum(parts.values()) / GIB, 3),
        host_gib=round(host / GIB, 3) if host is not None and device == "gpu" else None,
        kv=kv,
        note=note,
    )


def _trainer(cfg: RunConfig, shape: ModelShape) -> MemoryEstimate:
    more = {
        "logit chunk": float(logit_chunk_bytes(shape, chunk=cfg.trainer.logprob_chunk)),
        "sync buckets": 2 * cfg.weight_sync.bucket_mib * 2**20,
    }
    return _trained("trainer", cfg, shape, more)


def _critic(cfg: RunConfig, shape: ModelShape) -> MemoryEstimate:
    """The head counts for nothing; the output head that is not there stays counted."""
    note = "taken to be as large as the policy" if cfg.critic.path else ""
    return replace(_trained("critic", cfg.of_critic, shape, {}), note=note)


def _trained(
    role: str, cfg: RunConfig, shape: ModelShape, more: Mapping[str, float]
) -> MemoryEstimate:
    """Estimate a rank under ZeRO, as the section `trainer` of `cfg` has it."""
    assert shape.params is not None and shape.largest_layer_params is not None
    width = _bytes_per_number(cfg)
    device = "gpu" if cfg.trainer.actors.gpus > 0 else "cpu"
    states = zero_model_states(
        stage=cfg.trainer.zero_stage,
        params=shape.params,
        largest_layer_params=shape.largest_layer_params,
        world=cfg.trainer.actors.count,
        offload=cfg.trainer.offload,
        bytes_per_param=width,
    )
    note = ""
    if cfg.trainer.lora is not None:
        states = _frozen_states(cfg, shape.params, 2 * width * shape.largest_layer_params)
        note = "without the adapter's own states"
    parts: dict[str, float] = {
        "model states": states.device_bytes,
        "activations": activation_bytes(
            shape,
            tokens=-(-cfg.batch.max_tokens_per_microbatch // cfg.trainer.sequence_parallel),
            bytes_per_number=width,
            checkpointing=cfg.trainer.gradient_checkpointing,
        ),
        **more,
    }
    if device == "gpu":
        parts["reduction buckets"] = _reduction_buckets(cfg, width)
    offloaded = cfg.trainer.offload != "none"
    host = states.host_bytes if device == "gpu" or offloaded else None
    return _estimate(role, device, parts, host=host, note=note)


def _reduction_buckets(cfg: RunConfig, width: int) -> float:
    """Return what DeepSpeed's flat gradient buffers take: two below stage 3, where reducing one
    overlaps with filling the other."""
    buffers = {0: 0, 1: 2, 2: 2, 3: 1}[cfg.trainer.zero_stage]
    return float(buffers * CUDA_BUCKET * width)


def _frozen_states(cfg: RunConfig, params: int, gathered: int) -> ModelStates:
    """What weights that are not trained take: whole, or a rank's part and the layer in use."""
    weights = _bytes_per_number(cfg) * params
    if cfg.trainer.zero_stage < 3:
        return ModelStates(device_bytes=weights, host_bytes=0)
    part = weights // cfg.trainer.actors.count
    if cfg.trainer.offload == "parameters":
        return ModelStates(device_bytes=gathered, host_bytes=part)
    return ModelStates(device_bytes=gathered + part, host_bytes=0)


def _scorer_parts(cfg: RunConfig, shape: ModelShape, tokens: int) -> dict[str, float]:
    """Return what a forward pass of `tokens` without gradients takes."""
    assert shape.params is not None
    width = _bytes_per_number(cfg)
    kept = activation_bytes(shape, tokens=tokens, bytes_per_number=width, checkpointing=False)
    return {
        "weights": width * shape.params,
        "activations": kept / shape.layers,
        "logit chunk": logit_chunk_bytes(shape, chunk=cfg.trainer.logprob_chunk),
    }


def _reference(cfg: RunConfig, shape: ModelShape) -> MemoryEstimate:
    parts = _scorer_parts(cfg, shape, cfg.batch.max_tokens_per_microbatch)
    note = "taken to be as large as the policy" if cfg.reference.path else ""
    return _estimate("reference", _device(cfg, "reference"), parts, note=note)


def _rollout(
    cfg: RunConfig, shape: ModelShape, gpu_gib: float | None, *, synced: bool = True
) -> MemoryEstimate:
    assert shape.params is not None
    width, device = _bytes_per_number(cfg), _device(cfg, "rollout")
    ranks = cfg.rollout.tensor_parallel * cfg.rollout.pipeline_parallel
    weights = width * shape.params / ranks
    actors = cfg.rollout.actors
    reads_the_trainer_s = actors.colocate_with == "trainer" and actors.count == 1
    buckets = 2 * cfg.weight_sync.bucket_mib * 2**20
    if not synced or (device == "gpu" and reads_the_trainer_s):
        buckets = 0
    per_token = kv_bytes_per_token(shape, width)
    longest = cfg.model.max_model_len
    if device == "cpu":
        cache: float | None = cfg.rollout.kv_cache_gib * GIB
        parts = {"weights": weights * ranks, "KV cache": cache, "sync buckets": buckets}
        kv = _kv(per_token, 128, cache, longest)  # vllm/platforms/cpu.py: 128 tokens a block
        return _estimate("rollout", device, parts, kv=kv)
    if gpu_gib is None:
        parts = {"weights": weights, "KV cache": per_token * longest / ranks}
        note = (
            f"at least: a KV cache for one sequence of {longest} tokens. The engine takes "
            f"{cfg.rollout.gpu_memory_utilization:.0%} of its GPU; give its size by --gpu-gib"
        )
        return _estimate("rollout", device, parts, kv=_kv(per_token, 16, None, longest), note=note)
    taken = cfg.rollout.gpu_memory_utilization * gpu_gib * GIB
    cache = max(0.0, taken - weights)
    kv = _kv(per_token, 16, cache * ranks, longest)
    note = "the KV cache takes what is left, less vLLM's own activation peak"
    parts = {"weights": weights, "KV cache": cache, "sync buckets": buckets}
    return _estimate("rollout", device, parts, kv=kv, note=note)


def _kv(per_token: int, block_tokens: int, cache: float | None, longest: int) -> KVCache:
    blocks = None if cache is None else int(cache // (per_token * block_tokens))
    tokens = None if blocks is None else blocks * block_tokens
    return KVCache(
        bytes_per_token=per_token,
        block_tokens=block_tokens,
        blocks=blocks,
        tokens=tokens,
        full_length_sequences=None if tokens is None else round(tokens / longest, 2),
    )
