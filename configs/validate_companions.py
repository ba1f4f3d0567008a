"""Checks of the models that read the policy's tokens beside it: reference and critic."""

from collections.abc import Iterator

from configs.errors import Problem
from configs.model_files import find_model_folder, read_model_shape
from configs.model_types import PADDED_ONLY, model_type
from configs.schema import RunConfig
from configs.tokenizer_files import tokenizer_difference
from configs.validate_engines import check_path


def check_companion(cfg: RunConfig, path: str, where: str) -> Iterator[Problem]:
    """Yield why the model at `path` cannot read what the policy writes; what is not on this
    machine yet is found out when it is loaded."""
    yield from (p for p in check_path(path, where) if "no chat template" not in p.what)
    ours, theirs = find_model_folder(cfg.model.path), find_model_folder(path)
    if theirs is None:
        return
    difference = None if ours is None else tokenizer_difference(ours, theirs, ends=False)
    if difference is not None:
        yield Problem(
            where=where,
            what=f"{path} would read other text than the policy wrote: {difference}",
            fix="Give a model with the policy's tokenizer, or leave it empty.",
        )
    shape, longest = read_model_shape(theirs), cfg.model.max_model_len
    if shape and shape.max_positions and longest > shape.max_positions:
        yield Problem(
            where=where,
            what=f"{path} has {shape.max_positions} positions, but one sample may have "
            f"model.max_model_len={longest} tokens",
            fix="Give another model, or lower model.max_model_len.",
        )
    kind = model_type(theirs)
    if cfg.batch.packing == "packed" and kind in PADDED_ONLY:
        yield Problem(
            where=where,
            what=f"layers of a {kind} model see past the start of a segment, and batch.packing is "
            "packed",
            fix="Set batch.packing to padded, or give another model.",
        )
