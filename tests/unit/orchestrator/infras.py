"""An infra file to change, and changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from configs.infra import InfraConfig
from configs.load import load_infra

ROOT = Path(__file__).parents[3]
Change = Callable[[dict[str, Any]], object]


def base() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "k8s" / "infra" / "node-of-8.yaml").read_text())


def load(data: dict[str, Any], folder: Path) -> InfraConfig:
    path = folder / "infra.yaml"
    path.write_text(yaml.safe_dump(data))
    return load_infra(path)


def groups(data: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = data["groups"]
    return found


def put(path: str, value: object) -> Change:
    """Set `a.0.b` in the data."""
    *above, last = path.split(".")

    def change(data: dict[str, Any]) -> None:
        at: Any = data
        for part in above:
            at = at[int(part)] if part.isdigit() else at.setdefault(part, {})
        at[last] = value

    return change


def more(**fields: object) -> Change:
    return lambda data: groups(data).append({"name": "more", "cpus": 4, "memory": "8Gi", **fields})


def both(*changes: Change) -> Change:
    def change(data: dict[str, Any]) -> None:
        for each in changes:
            each(data)

    return change
