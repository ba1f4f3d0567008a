"""What vLLM is told: environment variables, set before it is imported, and engine arguments."""

import os
from typing import TYPE_CHECKING, Any

from actors.vllm_plugin import OWNER
from configs.engines import EngineRun, ModelConfig
from configs.model_code import code_options

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.executor import Executor

INITIAL_VERSION = 0
"""Version of the weights that an engine reads from `model.path`."""


def set_environment(cfg: EngineRun) -> None:
    """Set what vLLM and its child processes read at import; call before importing vllm.

    On CPU: no compilation (its first request would wait for it), a bounded KV cache, and no
    pinning of threads to cores that trainers share.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ[OWNER] = str(os.getpid())
    if cfg.rollout.actors.gpus > 0:
        if cfg.deterministic:
            os.environ["VLLM_BATCH_INVARIANT"] = "1"
        return
    threads = max(1, int(cfg.rollout.actors.cpus) // workers(cfg))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(cfg.rollout.kv_cache_gib)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"


def workers(cfg: EngineRun) -> int:
    """Return the worker processes of one engine: TP x PP."""
    return cfg.rollout.tensor_parallel * cfg.rollout.pipeline_parallel


def engine_args(cfg: EngineRun, engine_index: int) -> "AsyncEngineArgs":
    """Return the arguments of one engine.

    Sampling must be the distribution that is trained: the model folder's own generation defaults
    are left out, and logprobs are those after temperature. What must be deterministic is computed
    alone on CPU, where nothing says that vLLM's kernels are batch-invariant, and without a prefix
    cache, whose hits depend on who came before.
    """
    from vllm.config import WeightTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    from actors.vllm_extension import BACKEND, EXTENSION

    rollout = cfg.rollout
    alone = cfg.deterministic and rollout.actors.gpus == 0
    return AsyncEngineArgs(
        model=cfg.model.path,
        dtype=cfg.model.dtype,
        hf_overrides={"head_dtype": "float32"} if cfg.model.fp32_head else {},
        **_code(cfg.model),
        load_format="safetensors",
        max_model_len=cfg.model.max_model_len,
        max_num_seqs=1 if alone else rollout.max_num_seqs,
        tensor_parallel_size=rollout.tensor_parallel,
        pipeline_parallel_size=rollout.pipeline_parallel,
        distributed_executor_backend=_executor(cfg),
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        enforce_eager=rollout.enforce_eager or rollout.actors.gpus == 0,
        enable_prefix_caching=not cfg.deterministic,
        generation_config="vllm",
        logprobs_mode="processed_logprobs",
        seed=cfg.seed + engine_index,
        disable_log_stats=True,
        worker_extension_cls=EXTENSION,
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
    )


def _code(model: ModelConfig) -> dict[str, Any]:
    """Return which code of the model's own runs; its tokenizer is of the same revision."""
    options = code_options(model)
    if "revision" in options:
        options["tokenizer_revision"] = options["revision"]
    return options


def _executor(cfg: EngineRun) -> "str | type[Executor]":
    """Return who runs the model: never Ray, which vLLM would choose inside a placement group.

    A single worker shares the engine core's process. By name, vLLM would still give it one of its
    own on CPU, for the sake of pinning threads, which is off here.
    """
    if workers(cfg) > 1:
        return "mp"
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return UniProcExecutor
