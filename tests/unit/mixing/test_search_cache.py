"""The contamination search is made once; its kept result is never stale and never half."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs.schema import RunConfig
from mixing.sources import search_cache
from mixing.sources.decontaminate import (
    NOT_SEARCHED,
    Contamination,
    decontaminate,
    find_contamination,
)
from mixing.sources.search_cache import cache_folder, find_once, load
from mixing.sources.source import Source
from rollouts.types import Message, Task


@dataclass(frozen=True)
class Texts:
    """A source of bare texts."""

    name: str
    training: Sequence[str]
    evaluation: Sequence[str] = ()
    content: str = "c"

    @property
    def size(self) -> int:
        return len(self.training)

    @property
    def fingerprint(self) -> str:
        return self.content

    def offline_rates(self) -> None:
        return None

    def task(self, item: int) -> Task:
        return self._task("train", item, self.training[item])

    def held_out(self) -> tuple[Task, ...]:
        return tuple(self._task("held_out", i, t) for i, t in enumerate(self.evaluation))

    def _task(self, side: str, item: int, text: str) -> Task:
        return Task(
            task_id=f"{self.name}/{side}/{item}",
            source=self.name,
            prompt=(Message(role="user", content=text),),
            answer=None,
            metadata={},
        )


SOURCES = {"a": Texts("a", ["é one", "two"], ["é one"]), "b": Texts("b", ["two"], ["three"])}


def recipe(**how: object) -> RunConfig:
    common = {"data": {"jsonl": "x"}, "rewards": [{"name": "r", "use": "exact"}]}
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 1,
            "model": {"path": "m"},
            "batch": {"groups_per_step": 1},
            "sources": [{"name": name, **common} for name in SOURCES],
            "decontaminate": {"action": "warn", **how},
        }
    )


@pytest.fixture
def searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An empty cache; one entry for each search that is really made."""
    made: list[int] = []

    def search(cfg: RunConfig, sources: dict[str, Source]) -> Contamination:
        made.append(1)
        return find_contamination(cfg, sources)

    monkeypatch.setenv("BRAID_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(search_cache, "find_contamination", search)
    return made


def test_the_same_search_is_made_once_and_says_the_same(searches: list[int]) -> None:
    first = find_once(recipe(), SOURCES)
    assert first.matches and first == find_contamination(recipe(), SOURCES)
    assert find_once(recipe(), SOURCES) == first
    assert find_once(recipe(action="drop"), SOURCES) == first  # what follows is not searched
    assert len(searches) == 1
    thinned, _ = decontaminate(recipe(action="drop"), SOURCES, find_once)
    assert (thinned["a"].size, len(searches)) == (1, 1)


@pytest.mark.parametrize(
    ("how", "sources"),
    [
        ({"ngram": 5}, SOURCES),
        ({"max_overlap": 0.4}, SOURCES),
        ({}, {**SOURCES, "b": Texts("b", ["é one"], ["three"], content="other")}),
        ({}, {"a": SOURCES["a"]}),
        ({}, {"b": SOURCES["b"], "a": SOURCES["a"]}),
        ({}, {"a": SOURCES["a"], "b": Texts("c", ["two"], ["three"])}),
    ],
)
def test_whatever_it_rests_on_makes_it_another_search(
    searches: list[int], how: dict[str, object], sources: dict[str, Texts]
) -> None:
    find_once(recipe(), SOURCES)
    renamed = sources["b"].name == "c" if "b" in sources else False
    assert find_once(recipe(**how), sources) == find_contamination(recipe(**how), sources)
    assert len(searches) == (1 if renamed else 2)  # a source's name is its key in the recipe


def test_other_code_or_another_package_is_another_search(
    searches: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_once(recipe(), SOURCES)
    monkeypatch.setattr(search_cache, "version", lambda package: "0.0.1")
    find_once(recipe(), SOURCES)
    assert len(searches) == 2
    copy = tmp_path / "mixing/sources"
    copy.mkdir(parents=True)
    (copy / "decontaminate.py").write_text("# changed")
    monkeypatch.setattr(search_cache, "_CODE", tmp_path / "mixing")
    find_once(recipe(), SOURCES)
    assert len(searches) == 3


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _of_another_search(path: Path) -> None:
    find_once(recipe(ngram=3), SOURCES)
    (other,) = set(path.parent.iterdir()) - {path}
    path.write_bytes(other.read_bytes())


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [_cut, _flip, _of_another_search, _folder, lambda path: path.write_bytes(b"")]
)
def test_a_damaged_result_counts_for_nothing(
    searches: list[int], damage: Callable[[Path], object]
) -> None:
    wanted = find_once(recipe(), SOURCES)
    (path,) = cache_folder().iterdir()
    damage(path)
    searches.clear()
    assert load(path.stem) is None
    assert find_once(recipe(), SOURCES) == wanted
    assert len(searches) == 1
    if path.is_file():
        assert find_once(recipe(), SOURCES) == wanted
        assert len(searches) == 1  # mended


def test_a_cache_that_cannot_be_written_costs_the_search_alone(
    searches: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BRAID_CACHE_DIR", str(tmp_path / "file" / "below"))
    for _ in range(2):
        assert find_once(recipe(), SOURCES).matches
    assert len(searches) == 2


def test_the_results_used_last_are_kept(
    searches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_cache, "_KEPT", 3)
    for ngram in range(2, 6):
        find_once(recipe(ngram=ngram), SOURCES)
        for age, path in enumerate(sorted(cache_folder().iterdir(), key=_modified)):
            os.utime(path, (age, age))
        find_once(recipe(ngram=2), SOURCES)  # used each time, so never the oldest
    assert len(list(cache_folder().iterdir())) == 3
    find_once(recipe(ngram=2), SOURCES)
    assert len(searches) == 4


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def test_where_nothing_is_searched_nothing_is_kept(searches: list[int]) -> None:
    assert find_once(recipe(action="off"), SOURCES) == NOT_SEARCHED
    assert not cache_folder().exists()


def test_the_folder_is_the_user_s_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRAID_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/braid/contamination")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be passed over, by the specification
    monkeypatch.setenv("HOME", "/home/x")
    assert cache_folder() == Path("/home/x/.cache/braid/contamination")
