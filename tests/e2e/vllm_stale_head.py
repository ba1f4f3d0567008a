"""The engine's extension with the repair of tied heads turned off; imported in its workers."""

from actors.vllm_extension import BraidTransferEngine, WorkerExtension

BraidTransferEngine.repair_tied = False

__all__ = ["WorkerExtension"]
