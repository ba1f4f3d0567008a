"""Checks of how the trainer's ranks are laid out, and where they keep what."""

from collections.abc import Iterator

from configs.errors import Problem
from configs.model_files import find_model_folder, read_model_shape
from configs.schema import RunConfig


def check_sequence_parallel(cfg: RunConfig) -> Iterator[Problem]:
    """Yield why ranks cannot share rows as the recipe says."""
    size, count = cfg.trainer.sequence_parallel, cfg.trainer.actors.count
    where = "trainer.sequence_parallel"
    if size == 1:
        return
    if count % size:
        yield Problem(
            where=where,
            what=f"is {size}, which does not divide trainer.actors.count {count}",
            fix=f"Set trainer.actors.count to a multiple of {size}.",
        )
    if cfg.batch.packing == "padded":
        yield Problem(
            where=where,
            what="ranks share packed rows, but batch.packing is padded",
            fix="Set batch.packing to packed.",
        )
    folder = find_model_folder(cfg.model.path)
    shape = None if folder is None else read_model_shape(folder)
    if shape is not None and (
        shape.heads % size or (shape.kv_heads % size and size % shape.kv_heads)
    ):
        yield Problem(
            where=where,
            what=f"is {size}: the model's {shape.heads} heads and {shape.kv_heads} key-value heads "
            "cannot be split evenly",
            fix="Take a divisor of both.",
        )


def check_nvme(cfg: RunConfig) -> Iterator[Problem]:
    """Yield why nothing can be offloaded to disk as the recipe says."""
    trainer = cfg.trainer
    if trainer.nvme is None:
        return
    if trainer.offload == "none":
        yield Problem(
            where="trainer.nvme",
            what="names a disk, but trainer.offload is none",
            fix="Set trainer.offload to optimizer or parameters, or remove trainer.nvme.",
        )
    elif trainer.zero_stage != 3:
        yield Problem(
            where="trainer.nvme",
            what=f"needs trainer.zero_stage 3, not {trainer.zero_stage}: DeepSpeed moves only "
            "partitioned parameters and their optimizer states to disk",
            fix="Set trainer.zero_stage to 3, or remove trainer.nvme.",
        )
    if trainer.actors.gpus == 0:
        yield Problem(
            where="trainer.nvme",
            what="needs GPUs: on CPU the weights are in the memory that it is to spare",
            fix="Remove trainer.nvme, or give trainer.actors GPUs.",
        )
    if not trainer.nvme.path.startswith("/"):
        yield Problem(
            where="trainer.nvme.path",
            what=f"`{trainer.nvme.path}` is not absolute, and ranks start in different folders",
            fix="Give the whole path, such as /local_nvme.",
        )
