"""What a large source costs the driver: memory, time to open, tasks a second.

    python benchmarks/sources.py [--rows 1000000] [--kinds jsonl parquet hub] [--reads 50000]

Writes files of maths-like rows (prompt, answer, id, three more columns), opens each kind in a
process of its own as the driver does, its difficulty window with the pass rates of a column
(`pool_s`), and reads tasks in random order. Memory is growth of the
resident set over that process with everything of ours imported and nothing opened: `after_open`,
`after_reads`, and the highest seen. `hub` is a folder written by `datasets`. Prints one JSON
object.
"""

import argparse
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from configs.data import ColumnsConfig, DataConfig
from configs.difficulty import DifficultyConfig
from configs.schema import RewardConfig, SourceConfig
from mixing.difficulty.feedback import open_pool
from mixing.sources.opening import open_source

_BATCH = 20_000


def rows(count: int) -> Iterator[dict[str, object]]:
    """Yield rows of about 400 bytes, each with a prompt of its own."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(500)]
    for i in range(count):
        text = " ".join(rng.choices(words, k=40))
        yield {
            "question": f"Problem {i}: {text}?",
            "gold": str(rng.randrange(10**6)),
            "uid": f"row-{i}",
            "level": rng.randrange(5),
            "rate": rng.randrange(9) / 8,
            "extra": {"topic": rng.choice(words), "index": i},
        }


def write(kind: str, path: Path, count: int) -> None:
    """Write the rows as one file; a hub folder as `datasets` does."""
    if kind == "jsonl":
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(count))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    made, tables = rows(count), []
    target = path if kind == "parquet" else path.with_suffix(".parquet")
    while batch := list(itertools.islice(made, _BATCH)):
        tables.append(pa.Table.from_pylist(batch))
    pq.write_table(pa.concat_tables(tables), target)  # one row group, as pandas writes
    if kind == "hub":
        from datasets import Dataset

        Dataset.from_parquet(str(target), cache_dir=str(path.parent / "cache")).save_to_disk(path)


def source(kind: str, path: Path) -> SourceConfig:
    """Return the recipe's source."""
    given = {"hub": str(path)} if kind == "hub" else {kind: (str(path),)}
    columns = ColumnsConfig(prompt="question", answer="gold", id="uid")
    return SourceConfig(
        name="big",
        data=DataConfig.model_validate({**given, "columns": columns, "held_out": 100}),
        rewards=(RewardConfig(name="right", use="exact"),),
        difficulty=DifficultyConfig(window=(0.2, 0.8), pass_rate_column="rate"),
    )


def memory(field: str) -> float:
    """Return VmRSS or VmHWM of this process, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1000
    raise LookupError(field)


def measure(kind: str, path: Path, reads: int) -> dict[str, float]:
    """Open a source and read tasks in random order."""
    cfg, before, began = source(kind, path), memory("VmRSS"), time.perf_counter()
    opened = open_source(cfg)
    open_s = time.perf_counter() - began
    began = time.perf_counter()
    pool = open_pool(cfg, opened, seed=1)
    pool_s = time.perf_counter() - began
    assert pool is not None
    after_open = memory("VmRSS")
    rng = random.Random(1)
    wanted = [rng.randrange(opened.size) for _ in range(reads)]
    began = time.perf_counter()
    for item in wanted:
        opened.task(item)
    reads_s = time.perf_counter() - began
    return {
        "items": opened.size,
        "open_s": round(open_s, 2),
        "pool_s": round(pool_s, 2),
        "live": pool.difficulty.snapshot().live,
        "rows_per_s": round((opened.size + 100) / open_s),
        "tasks_per_s": round(reads / reads_s),
        "mb_after_open": round(after_open - before, 1),
        "mb_after_reads": round(memory("VmRSS") - before, 1),
        "mb_highest": round(memory("VmHWM") - before, 1),
    }


def main() -> None:
    """Measure each kind in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--reads", type=int, default=50_000)
    parser.add_argument("--kinds", nargs="+", default=["jsonl", "parquet", "hub"])
    parser.add_argument("--folder", default="/var/tmp", help="Where the files are written.")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        kind, path = given.measure
        print(json.dumps(measure(kind, Path(path), given.reads)))
        return
    report: dict[str, object] = {
        "rows": given.rows,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
    }
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for kind in given.kinds:
            path = Path(folder) / f"rows.{kind}"
            write(kind, path, given.rows)
            command = [sys.executable, __file__, "--measure", kind, str(path)]
            command += ["--reads", str(given.reads)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            report[kind] = json.loads(done.stdout)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
