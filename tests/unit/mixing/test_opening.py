"""Opening a recipe's sources: all problems at once, and a check that costs little."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.data import DataConfig
from configs.errors import ConfigError
from configs.schema import RewardConfig, RunConfig, SourceConfig
from mixing.mixer import Mixer
from mixing.sources.opening import open_sources, probe_sources, source_warnings

MakeSource = Callable[..., SourceConfig]


def run_of(*sources: SourceConfig) -> RunConfig:
    return RunConfig.model_construct(sources=sources)


def test_all_problems_of_all_sources_are_told_at_once() -> None:
    def source(name: str, data: DataConfig) -> SourceConfig:
        return SourceConfig(name=name, data=data, rewards=(RewardConfig(name="r", use="exact"),))

    cfg = RunConfig.model_construct(
        sources=(
            source("none", DataConfig()),
            source("both", DataConfig(procedural="reasoning_gym/lcm", jsonl=(__file__,))),
            source("file", DataConfig(jsonl="/no/such.jsonl")),
            source("other", DataConfig(procedural="gym/lcm")),
            source("unsafe", DataConfig(procedural="reasoning_gym/countdown")),
            source("good", DataConfig(procedural="reasoning_gym/lcm", held_out=3)),
        )
    )
    names = [p.where.split(".")[1] for p in probe_sources(cfg)[0]]
    assert names == ["none", "both", "file", "other", "unsafe"]
    with pytest.raises(ConfigError) as caught:
        open_sources(cfg)
    assert [str(p) for p in caught.value.problems] == [str(p) for p in probe_sources(cfg)[0]]
    with pytest.raises(ConfigError) as caught:
        Mixer(cfg)
    assert [p.where.split(".")[1] for p in caught.value.problems] == names


def test_an_unvetted_dataset_is_warned_about() -> None:
    def source(dataset: str) -> SourceConfig:
        return SourceConfig(
            name=dataset,
            data=DataConfig(procedural=f"reasoning_gym/{dataset}"),
            rewards=(RewardConfig(name="r", use="reasoning_gym"),),
        )

    (warning,) = source_warnings([source("lcm"), source("syllogism")])
    assert "syllogism" in str(warning)


def test_a_hub_name_is_not_asked_for_before_the_run(make_source: MakeSource) -> None:
    cfg = make_source(hub="nobody/nothing-of-this-name")
    assert probe_sources(run_of(cfg)) == ([], {"s": None})
    (warning,) = source_warnings([cfg])
    assert warning.where == "sources.s.data.hub" and "fetched when the run starts" in warning.what


def test_small_files_are_checked_whole_and_large_ones_at_their_start(
    make_source: MakeSource, tmp_path: Path
) -> None:
    def write(path: Path, count: int, *, bad: int) -> Path:
        rows = [json.dumps({"prompt": f"q{i}" + "x" * 400, "answer": "a"}) for i in range(count)]
        rows[bad] = "{"
        path.write_text("\n".join(rows))
        return path

    small = write(tmp_path / "small.jsonl", 1000, bad=900)
    ((problem,), _) = probe_sources(run_of(make_source(jsonl=small)))
    assert problem.where == f"{small}:901"
    sound = write(tmp_path / "sound.jsonl", 1001, bad=1000)
    sound.write_text(sound.read_text().removesuffix("{"))
    assert probe_sources(run_of(make_source(jsonl=sound))) == ([], {"s": 992})
    late = write(tmp_path / "late.jsonl", 10_000, bad=9_000)
    assert probe_sources(run_of(make_source(jsonl=late))) == ([], {"s": None})
    with pytest.raises(ConfigError, match=r"late\.jsonl:9001: not JSON"):
        open_sources(run_of(make_source(jsonl=late)))
    early = write(tmp_path / "early.jsonl", 10_000, bad=9)
    ((problem,), _) = probe_sources(run_of(make_source(jsonl=early)))
    assert problem.where == f"{early}:10"


def test_a_large_file_with_a_filter_that_is_met_late_is_no_problem_of_the_plan(
    make_source: MakeSource, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"q{i}" + "x" * 400, "answer": "a", "level": i // 5000} for i in range(9000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = make_source(jsonl=path, where={"level": 1})
    assert probe_sources(run_of(cfg)) == ([], {"s": None})
    assert open_sources(run_of(cfg))["s"].size == 4000 - 8
