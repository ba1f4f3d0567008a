"""Fetch a Hugging Face dataset: a script of its own process, which imports nothing of ours.

Takes what is asked as JSON; prints one line of JSON: the Arrow files that hold the rows, or what
went wrong. Progress goes to stderr.
"""

import importlib
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

_REACH_S = 10.0
"""Seconds to wait for the hub's answer before the cache is all there is."""


class Failure(Exception):
    """What went wrong, and of which kind."""

    def __init__(self, kind: str, what: str):
        super().__init__(what)
        self.kind = kind


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Return `files`, or `error` and its `kind`."""
    try:
        if not Path(asked["name"]).is_dir():
            _reach(asked)
        return {"files": _files(_load(asked), asked)}
    except Failure as failure:
        return {"error": str(failure), "kind": failure.kind}
    except (OSError, ValueError, RuntimeError) as error:
        return {"error": _first_line(error), "kind": _kind_of(error)}


def _reach(asked: dict[str, Any]) -> None:
    """Ask the hub for the dataset; if it does not answer, start again with the cache alone.

    `datasets` itself would try some five times, for half a minute and more.
    """
    hub: Any = importlib.import_module("huggingface_hub")
    if hub.is_offline_mode():
        return
    errors: Any = importlib.import_module("huggingface_hub.errors")
    try:
        hub.HfApi().dataset_info(asked["name"], revision=asked["revision"], timeout=_REACH_S)
    except errors.RevisionNotFoundError:
        what = f"{asked['name']} has no revision {asked['revision']!r}"
        raise Failure("not_found", what) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise Failure("not_found", f"the hub has no dataset {asked['name']!r}") from None
    except errors.HfHubHTTPError as error:
        raise Failure("not_found", _first_line(error)) from None
    except Exception:  # noqa: BLE001 - whatever its HTTP client raises
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def _load(asked: dict[str, Any]) -> Any:
    datasets: Any = importlib.import_module("datasets")
    try:
        loaded = datasets.load_dataset(
            asked["name"],
            asked["config"],
            split=asked["split"],
            revision=asked["revision"],
            streaming=asked["rows"] is not None,
        )
    except datasets.exceptions.DatasetsError as error:
        raise Failure("", _first_line(error.__cause__ or error)) from error
    return loaded if asked["rows"] is None else loaded.take(asked["rows"])


def _files(dataset: Any, asked: dict[str, Any]) -> list[str]:
    """Return files that hold just the dataset's rows: its own, or a copy."""
    arrow: Any = importlib.import_module("pyarrow")
    own = [entry["filename"] for entry in getattr(dataset, "cache_files", [])]
    if own and dataset._indices is None and _count(arrow, own) == len(dataset):
        return own
    tables = iter(dataset.with_format("arrow").iter(batch_size=1024))
    first = next(tables, None)
    if first is None:
        return []
    with arrow.ipc.new_stream(asked["spool"], first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table.cast(first.schema))
    return [asked["spool"]]


def _count(arrow: Any, files: list[str]) -> int:
    return sum(
        batch.num_rows for name in files for batch in arrow.ipc.open_stream(arrow.memory_map(name))
    )


def _kind_of(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ConnectionError) or "Couldn't reach" in text:
        return "unreachable"
    if "BuilderConfig" in text or "Config name is missing" in text:
        return "config"
    return "split" if "split" in text.lower() else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))) + "\n")
    sys.stdout.flush()
    os._exit(0)  # a stream that was left in the middle has threads, which may abort a usual exit
