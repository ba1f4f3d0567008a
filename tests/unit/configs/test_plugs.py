"""Plugs: names, imports and signatures, each with an error that says what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from configs.errors import ConfigError
from configs.plugs import bind, resolve


def clip(x: object, *, low: float = 0.2, mode: Literal["a", "b"] = "a") -> tuple[object, ...]:
    return (x, low, mode)


def needs(x: object, *, pattern: str) -> str:
    return pattern


BUILTINS = {"ppo_clip": clip, "exact": needs}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    monkeypatch.syspath_prepend(str(tmp_path))
    return write


def problem(error: ConfigError) -> str:
    assert len(error.problems) == 1
    return str(error)


def test_a_built_in_name_wins() -> None:
    assert resolve("ppo_clip", BUILTINS) is clip


def test_module_attribute_is_imported_nested_ones_too(module: Callable[[str, str], str]) -> None:
    module("plug_good", "class A:\n    def f(x): return x + 1\n")
    found = resolve("plug_good:A.f")
    assert callable(found) and found(1) == 2


@pytest.mark.parametrize(
    ("use", "words"),
    [
        ("pp_clip", ["'pp_clip'", "`exact`", "`ppo_clip`", "Did you mean `ppo_clip`?"]),
        ("no_such_module_x:f", ["no_such_module_x", "not found", "importable"]),
        ("plug_a:clap", ["plug_a.py", "'clap'", "Did you mean `clip`?"]),
        ("plug_b:f", ["plug_b", "SyntaxError"]),
        ("plug_c:f", ["imports 'no_such_dependency'", "Install"]),
        ("plug_d:f", ["plug_d", "ValueError: boom"]),
        ("plug_e:f", ["plug_e", "SystemExit"]),
    ],
)
def test_what_cannot_be_resolved_is_explained(
    module: Callable[[str, str], str], use: str, words: list[str]
) -> None:
    module("plug_a", "def clip(): pass\n")
    module("plug_b", "def f(:\n")
    module("plug_c", "import no_such_dependency\n")
    module("plug_d", "raise ValueError('boom')\n")
    module("plug_e", "raise SystemExit(3)\n")
    with pytest.raises(ConfigError) as caught:
        resolve(use, BUILTINS, where="sources.a.rewards.r")
    text = problem(caught.value)
    assert text.startswith("sources.a.rewards.r: ")
    assert all(word in text for word in words), text


def test_bound_arguments_reach_the_function() -> None:
    assert bind(clip, {"low": 1, "mode": "b"}, parameters=("x",))("in") == ("in", 1.0, "b")


def test_bind_takes_classes_and_any_keywords() -> None:
    class World:
        def __init__(self, size: int = 1):
            self.size = size

    def loose(x: object, **rest: object) -> dict[str, object]:
        return rest

    assert bind(World, {"size": 3}, parameters=())().size == 3
    assert bind(loose, {"anything": 1}, parameters=("x",))(0) == {"anything": 1}


@pytest.mark.parametrize(
    ("fn", "args", "parameters", "words"),
    [
        (clip, {"lowe": 0.1}, ("x",), ["no argument 'lowe'", "Did you mean `low`?"]),
        (clip, {"zzz": 0.1}, ("x",), ["no argument 'zzz'", "`low`, `mode`"]),
        (clip, {"low": "much"}, ("x",), ["args.low", "'much'", "number"]),
        (clip, {"mode": "c"}, ("x",), ["args.mode", "'a' or 'b'"]),
        (clip, {}, ("x", "y"), ["too many positional", "f(x, y)"]),
        (clip, {"x": 1}, ("x",), ["multiple values", "f(x, x=...)"]),
        (needs, {}, ("x",), ["missing", "'pattern'"]),
        (3, {}, (), ["not a function"]),
    ],
)
def test_what_does_not_fit_is_explained(
    fn: object, args: dict[str, object], parameters: tuple[str, ...], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        bind(fn, args, parameters=parameters, use="mine:f", where="algorithm.loss")
    text = problem(caught.value)
    assert text.startswith("algorithm.loss") and "'mine:f'" in text
    assert all(word in text for word in words), text
