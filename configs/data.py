"""The section that says where a source's tasks come from."""

from typing import Annotated, Literal, cast

from pydantic import BeforeValidator, JsonValue

from configs.base import Config, PositiveInt, Share
from configs.difficulty import CurriculumConfig


def _one_or_more(given: object) -> object:
    """Take one path for a list of one."""
    if isinstance(given, str):
        return (given,)
    return tuple(cast("list[object]", given)) if isinstance(given, list) else given


Paths = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
"""One path or glob, or a list of them."""


class ColumnsConfig(Config):
    """Which column of a row holds what; a dotted name reaches into a nested value."""

    prompt: str | None = None
    """Column with the prompt as text; with `messages` empty too, rows have either by its name."""
    messages: str | None = None
    """Column with the prompt as a list of messages, each with `role` and `content`."""
    answer: str | None = None
    """Column with the reference answer; empty takes `answer` for rows, and none for rft."""
    id: str | None = None
    """Column whose value names the item in ids and ledger; empty takes the row's number."""
    metadata: tuple[str, ...] | None = None
    """Columns that reach graders as metadata; empty takes all that are not mapped above."""


class DataConfig(Config):
    """Where a source's items come from: exactly one of procedural, jsonl, parquet and hub."""

    procedural: str | None = None
    """`reasoning_gym/<dataset>`: items made on the fly from a seed."""
    jsonl: Paths | None = None
    """Path or glob of JSONL files, or a list of them."""
    parquet: Paths | None = None
    """Path or glob of Parquet files, or a list of them."""
    hub: str | None = None
    """Hugging Face dataset: a name, or a local folder of files or of `save_to_disk`."""
    config: str | None = None
    """Hub: the dataset's configuration."""
    split: str = "train"
    """Hub: the split that is trained on."""
    revision: str | None = None
    """Hub: branch, tag or commit; give a commit for a run that others can repeat."""
    streaming: bool = False
    """Hub: read the first `size` rows and download no more than that."""
    format: Literal["rows", "rft"] = "rows"
    """`rows`: a prompt and an answer; `rft`: `messages`, and free keys that graders see."""
    columns: ColumnsConfig = ColumnsConfig()
    """Which column holds what."""
    where: dict[str, JsonValue] = {}
    """Rows taken: column to a value, a list of values, or `{min:, max:}`; all must hold."""
    fraction: Share = 1.0
    """Share of the training prompts taken, chosen by hash."""
    max_prompts: PositiveInt | None = None
    """Most training prompts taken, chosen by hash; empty for all."""
    size: PositiveInt = 1000
    """Procedural: how many distinct training items an epoch has; streaming: rows read."""
    seed: int = 0
    """Procedural: seed of the training items; held-out items use another stream of it."""
    args: dict[str, JsonValue] = {}
    """Procedural: the dataset's own parameters."""
    curriculum: CurriculumConfig = CurriculumConfig()
    """Procedural: levels of difficulty that follow the policy."""
    held_out: PositiveInt = 100
    """Held-out prompts, split off by hash; with a held-out split of its own, at most so many."""
    held_out_where: dict[str, JsonValue] = {}
    """Rows held out, written as in `where`, in place of the split by hash."""
    held_out_file: Paths | None = None
    """Held-out rows in files of their own, of the same kind and columns."""
    held_out_split: str | None = None
    """Hub: the split that is held out."""
