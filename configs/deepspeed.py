"""The DeepSpeed configuration of a run; the only place that knows DeepSpeed's keys."""

from typing import Literal

from pydantic import JsonValue

from configs.errors import ConfigError, Problem
from configs.model_files import find_model_folder, read_model_shape
from configs.schema import RunConfig

CUDA_BUCKET = 200_000_000
_CPU_BUCKET = 2_000_000
"""Elements of the flat buffers gradients are reduced in; DeepSpeed allocates them whole."""
_PARAM_BUFFER = 100_000_000
"""DeepSpeed's default of `offload_param.buffer_size`."""


def deepspeed_config(cfg: RunConfig, *, device: Literal["cpu", "cuda"]) -> dict[str, JsonValue]:
    """Build the ZeRO json for `cfg.trainer`.

    Gradient accumulation stays 1 here: the number of micro-batches differs from step to step, so
    the engine marks the accumulation boundary itself and scales the loss itself.
    """
    trainer, optimizer = cfg.trainer, cfg.trainer.optimizer
    on_cuda = device == "cuda"
    offload = trainer.offload != "none"
    adam: dict[str, JsonValue] = {
        "lr": optimizer.lr,
        "betas": list(optimizer.betas),
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    # DeepSpeed's own CPU Adam is for offload beside a GPU; all else runs torch's AdamW.
    if not (on_cuda and offload):
        adam["torch_adam"] = True
    if on_cuda and not offload:
        adam["fused"] = True
    built: dict[str, JsonValue] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.max_grad_norm,
        "optimizer": {"type": "AdamW", "params": adam},
        "zero_force_ds_cpu_optimizer": on_cuda and offload,
        "zero_optimization": _zero(cfg, on_cuda=on_cuda),
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    if trainer.nvme is not None and offload:
        built["aio"] = {
            "block_size": trainer.nvme.block_kib * 1024,
            "queue_depth": trainer.nvme.queue_depth,
            "intra_op_parallelism": trainer.nvme.threads,
            "single_submit": False,
            "overlap_events": True,
        }
    if cfg.model.dtype == "bfloat16":
        # fp32 master weights; a non-finite gradient skips the update on every rank.
        built["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if trainer.zero_stage > 0:
            built["data_types"] = {"grad_accum_dtype": "fp32"}
    return built


def _zero(cfg: RunConfig, *, on_cuda: bool) -> dict[str, JsonValue]:
    stage, offload = cfg.trainer.zero_stage, cfg.trainer.offload
    _check_offload(stage, offload)
    bucket = CUDA_BUCKET if on_cuda else _CPU_BUCKET
    zero: dict[str, JsonValue] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": on_cuda,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    place: dict[str, JsonValue] = {"device": "cpu", "pin_memory": on_cuda}
    nvme = cfg.trainer.nvme
    if nvme is not None:
        place |= {"device": "nvme", "nvme_path": nvme.path}
    if offload != "none":
        zero["offload_optimizer"] = (
            place if nvme is None else place | {"buffer_count": nvme.buffers}
        )
    if stage == 3:
        zero["stage3_prefetch_bucket_size"] = bucket // 4
        # On CPU even the smallest parameter is partitioned, so that tests see real gathers.
        zero["stage3_param_persistence_threshold"] = 100_000 if on_cuda else 0
        if offload == "parameters":
            zero["offload_param"] = (
                place if nvme is None else place | {"buffer_size": _param_buffer(cfg)}
            )
    return zero


def _param_buffer(cfg: RunConfig) -> int:
    """Elements of one buffer between disk and GPU: DeepSpeed's own figure, or a rank's part of
    the largest tensor where that is larger, which DeepSpeed would refuse to load."""
    folder = find_model_folder(cfg.model.path)
    shape = None if folder is None else read_model_shape(folder)
    largest = 0 if shape is None else shape.hidden * max(shape.vocab, shape.intermediate)
    return max(_PARAM_BUFFER, largest // cfg.trainer.actors.count + 1)


def _check_offload(stage: int, offload: str) -> None:
    if offload == "optimizer" and stage == 0:
        raise ConfigError(
            Problem(
                where="trainer.offload",
                what="`optimizer` needs a partitioned optimizer, but trainer.zero_stage is 0",
                fix="set trainer.zero_stage to 1, 2 or 3, or trainer.offload to none.",
            )
        )
    if offload == "parameters" and stage != 3:
        raise ConfigError(
            Problem(
                where="trainer.offload",
                what=f"`parameters` needs trainer.zero_stage 3, not {stage}",
                fix="set trainer.zero_stage to 3, or trainer.offload to optimizer.",
            )
        )
