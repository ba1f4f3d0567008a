"""Checks that the policy's engines share with the judges': a model's path, an engine's ranks."""

from collections.abc import Iterator
from pathlib import Path

from configs.engines import RolloutConfig
from configs.errors import Problem
from configs.model_files import check_model_folder
from configs.validate_data import HUB_NAME


def check_path(path: str, where: str) -> Iterator[Problem]:
    """Yield what is wrong with a model's folder, or what is no hub name."""
    if Path(path).expanduser().is_dir():
        yield from check_model_folder(Path(path).expanduser(), where)
    elif Path(path).exists():
        yield Problem(where=where, what=f"{path} is a file", fix="Give the model's folder.")
    elif not HUB_NAME.match(path):
        yield Problem(
            where=where,
            what=f"there is no folder {path}, and it is not a hub name (`owner/model`)",
            fix="Give a path from the current directory or from the recipe's folder.",
        )


def check_ranks(engines: RolloutConfig, at: str) -> Iterator[Problem]:
    """Yield what is wrong with an engine's GPUs and the ranks that share them."""
    ranks = engines.tensor_parallel * engines.pipeline_parallel
    gpus = engines.actors.gpus
    if gpus > 0 and ranks > 1 and gpus != ranks:
        yield Problem(
            where=f"{at}.actors.gpus",
            what=f"is {gpus:g}, but tensor_parallel x pipeline_parallel = {ranks} ranks need one "
            "GPU each",
            fix=f"Set it to {ranks}.",
        )
    if gpus > 1 and ranks == 1:
        yield Problem(
            where=f"{at}.actors.gpus",
            what=f"is {gpus:g}, but an engine of one rank uses one GPU",
            fix=f"Set {at}.tensor_parallel to {gpus:g}, or {at}.actors.gpus to 1 and "
            f"{at}.actors.count higher.",
        )
