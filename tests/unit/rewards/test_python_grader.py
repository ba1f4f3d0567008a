"""The RFT python grader: what it is given, what it may return, what is wrong with its source."""

from collections.abc import Mapping

import pytest
from pydantic import JsonValue

from configs.graders.code import PythonGrader
from configs.sandbox import SandboxConfig
from rewards.python_grader import check_python, prepare_python
from rewards.sandbox import shared
from rewards.score import GradeFailed, Score
from rewards.subject import Subject

ITEM: Mapping[str, JsonValue] = {"answer": "4", "n": 10, "tags": ["a"]}


def grade(source: str, text: str = "four", **fields: float) -> Score:
    cfg = PythonGrader.model_validate({"type": "python", "source": source, **fields})
    jail = prepare_python(cfg, "g")
    try:
        return jail(Subject.of_text(ITEM, text))
    finally:
        close()


def close() -> None:
    """Free the sandboxes made so far; each source may want modules of its own."""
    for made in shared.made():
        made.close()


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("len(sample['output_text']) / item['n']", 0.4),
        ("1", 1.0),
        ("-0.25", -0.25),
        ("float(sample['output_json'] == {'a': 1})", 1.0),
        ("float(sample['choices'][0]['message']['content'] == sample['output_text'])", 1.0),
        ("float(item['answer'] == '4' and item['tags'] == ['a'])", 1.0),
        ("1e-20", 1e-20),
    ],
)
def test_values(body: str, value: float):
    text = '{"a": 1}' if "json" in body else "four"
    assert grade(f"def grade(sample, item):\n    return {body}\n", text).value == value


def test_packages_are_there():
    source = (
        "import numpy as np\nimport yaml, pydantic, jsonschema\n"
        "def grade(sample: dict, item: dict) -> float:\n    return np.float32(0.5)\n"
    )
    assert grade(source).value == 0.5


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("item['nothing']", "KeyError: 'nothing'"),
        ("'1.0'", "must be a finite float"),
        ("None", "must be a finite float"),
        ("True", "must be a finite float"),
        ("[1.0]", "must be a finite float"),
        ("float('nan')", "NaN"),
        ("float('inf')", "must be a finite float"),
        ("__import__('sys').exit(0)", "SystemExit"),
        ("__import__('os')._exit(0)", "without a value"),
        ("bytearray(8 << 30)", "memory"),
        ("open('/etc/passwd').read()", "Error"),
    ],
)
def test_what_is_no_number_is_invalid(body: str, message: str):
    with pytest.raises(GradeFailed) as failed:
        grade(f"def grade(sample, item):\n    return {body}\n")
    assert failed.value.kind == "python_grader_runtime_error"
    assert message in failed.value.message


def test_a_grader_that_hangs_is_invalid_before_the_pool_kills_it():
    with pytest.raises(GradeFailed, match="timeout"):
        grade("def grade(sample, item):\n    while True: pass\n", timeout_s=1.0)


def test_attempts_are_noted():
    source = "import gc\ndef grade(sample, item):\n    gc.get_objects()\n    return 1.0\n"
    assert grade(source).notes == {"tampering": ["gc.get_objects"]}


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("def grade(sample):\n    return 1.0", "takes 1 arguments"),
        ("def grade(a, b, c):\n    return 1.0", "takes 3 arguments"),
        ("async def grade(sample, item):\n    return 1.0", "async def"),
        ("def score(sample, item):\n    return 1.0", "defines no `grade`"),
        ("def grade(sample, item:\n", "is not Python"),
        ("import rdkit.Chem\ndef grade(s, i):\n    return 1.0", "imports 'rdkit'"),
        ("def grade(s, i):\n    return 1.0\n#" + "x" * 256_000, "bytes"),
    ],
)
def test_problems_of_a_source(source: str, what: str):
    (problem,) = check_python(PythonGrader(type="python", source=source), "g")
    assert problem.where == "g.source"
    assert what in problem.what


@pytest.mark.parametrize(
    "source",
    [
        "import json\ndef grade(sample, item):\n    return 1.0",
        "def grade(sample, item, extra=1):\n    return 1.0",
        "def grade(*both):\n    return 1.0",
        "grade = lambda sample, item: 1.0",
        "from math import fsum as grade",
    ],
)
def test_sources_without_problems(source: str):
    assert check_python(PythonGrader(type="python", source=source), "g") == []


def test_without_the_required_tier_nothing_is_graded(monkeypatch: pytest.MonkeyPatch):
    from configs.errors import ConfigError
    from rewards.sandbox import tiers

    broken = lambda tier: tiers.Probe(tier=tier, works=False, detail="broken")  # noqa: E731
    monkeypatch.setattr(tiers, "probe", broken)
    monkeypatch.setattr(shared, "_chosen", [SandboxConfig(require="bwrap")])
    close()
    with pytest.raises(ConfigError, match="broken"):
        grade("def grade(sample, item):\n    return 1.0\n")
