"""`braid grade` prints what `graders/run` of the RFT API answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from configs.errors import ConfigError
from configs.load import parse_grader
from orchestrator.cli import _main, app  # pyright: ignore[reportPrivateUsage]
from orchestrator.commands.grade import Graded
from rewards.score import FailureKind, GradeFailed, Score, Usage

ROOT = Path(__file__).parents[3]
CHECK = {
    "type": "string_check",
    "name": "same",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
FLAGS = {
    "formula_parse_error": False,
    "sample_parse_error": False,
    "truncated_observation_error": False,
    "unresponsive_reward_error": False,
    "invalid_variable_error": False,
    "other_error": False,
    "python_grader_server_error": False,
    "python_grader_server_error_type": None,
    "python_grader_runtime_error": False,
    "python_grader_runtime_error_details": None,
    "model_grader_server_error": False,
    "model_grader_refusal_error": False,
    "model_grader_parse_error": False,
    "model_grader_server_error_details": None,
}


def braid(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["grade", *arguments])


def test_the_response_is_the_documented_one():
    done = braid(json.dumps(CHECK), "--item", '{"answer": "4"}', "--sample", "4", "--json")
    assert done.exit_code == 0
    response = json.loads(done.output)
    assert response["metadata"].pop("execution_time") > 0
    assert response == {
        "reward": 1.0,
        "sub_rewards": {},
        "metadata": {
            "name": "same",
            "type": "string_check",
            "errors": FLAGS,
            "scores": {},
            "token_usage": None,
            "sampled_model_name": None,
        },
        "model_grader_token_usage_per_model": {},
    }


def test_a_grader_that_cannot_judge_is_told_by_its_flag_and_exit_code():
    done = braid(json.dumps(CHECK), "--item", "{}", "--sample", "4", "--json")
    assert done.exit_code == 1
    response = json.loads(done.output)
    assert response["reward"] == 0
    assert response["metadata"]["errors"] == {**FLAGS, "invalid_variable_error": True}


def test_files_are_read_and_people_get_a_table(tmp_path: Path):
    (tmp_path / "g.yaml").write_text("type: math\n")
    (tmp_path / "item.json").write_text('{"answer": "1/2"}')
    (tmp_path / "sample.txt").write_text("so \\boxed{0.5} [b]")
    at = f"@{tmp_path}/"
    done = braid(f"{tmp_path}/g.yaml", "--item", f"{at}item.json", "--sample", f"{at}sample.txt")
    assert done.exit_code == 0
    assert "reward" in done.output and "1" in done.output and '"answer": "0.5"' in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((json.dumps(CHECK), "--item", "[1]", "--sample", "x"), "no JSON object"),
        ((json.dumps(CHECK), "--item", "{", "--sample", "x"), "is not JSON"),
        ((json.dumps(CHECK), "--item", "@/none", "--sample", "x"), "cannot be read"),
        ((json.dumps(CHECK), "--item", "{}"), "--sample"),
        (("/no/such.yaml", "--sample", "x"), "no such file"),
        (('{"type": "string_chek"}', "--sample", "x"), "Did you mean `string_check`"),
        (('{"type": "format", "pattern": "("}', "--sample", "x"), "regular expression"),
    ],
)
def test_bad_input_is_told_before_anything_starts(arguments: tuple[str, ...], said: str):
    done = braid(*arguments)
    assert isinstance(done.exception, ConfigError)
    assert said in str(done.exception)


def response(kind: str, **grader: object) -> dict[str, object]:
    cfg = parse_grader(json.dumps(grader or CHECK), "g")
    failed = GradeFailed(kind, "why")
    return Graded(grader=cfg, score=None, failed=failed).response()["metadata"]["errors"]  # type: ignore[index, call-overload, return-value]


@pytest.mark.parametrize(
    ("kind", "flag", "detail"),
    [
        *((kind, str(kind), None) for kind in FailureKind if kind.endswith("_error")),
        (FailureKind.TIMEOUT, "python_grader_server_error", "python_grader_server_error_type"),
        (FailureKind.WORKER_LOST, "python_grader_server_error", "python_grader_server_error_type"),
        (FailureKind.NOT_A_NUMBER, "unresponsive_reward_error", None),
        ("ValueError", "python_grader_runtime_error", "python_grader_runtime_error_details"),
    ],
)
def test_every_failure_sets_its_one_flag(kind: str, flag: str, detail: str | None):
    errors = response(kind)
    assert set(errors) == set(FLAGS)
    assert [name for name, on in errors.items() if on is True] == [flag]
    if detail is not None:
        assert "why" in str(errors[detail])


def test_what_judges_cost_is_told_by_model():
    usage = Usage(prompt_tokens=190, completion_tokens=134, cached_tokens=7)
    score = Score(value=0.5, usage={"judge-1": usage}, parts={"a": 0.5})
    told = Graded(grader=parse_grader(json.dumps(CHECK), "g"), score=score).response()
    tokens = {
        "prompt_tokens": 190,
        "total_tokens": 324,
        "completion_tokens": 134,
        "cached_tokens": 7,
    }
    assert told["model_grader_token_usage_per_model"] == {"judge-1": tokens}
    metadata = told["metadata"]
    assert isinstance(metadata, dict)
    assert metadata["token_usage"] == tokens and metadata["sampled_model_name"] == "judge-1"
    assert told["sub_rewards"] == {"a": 0.5}


def test_a_function_that_loads_here_and_not_in_its_process_ends_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    text = "import os\nos.environ['ONLY_HERE']\ndef pay(rollout, task):\n    return 1.0\n"
    (tmp_path / "only_here_for_test.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ONLY_HERE", "1")
    grader = json.dumps({"type": "function", "use": "only_here_for_test:pay"})
    assert _main(["grade", grader, "--item", "{}", "--sample", "4"]) == 1
    said = capsys.readouterr().err
    assert "GraderStartError" in said and "ONLY_HERE" in said and "Traceback" not in said


def test_half_a_character_is_shown_as_its_escape():
    """As a judge may write it, or a terminal that is not UTF-8."""
    command = [sys.executable, "-c", "from orchestrator.cli import main; main()", "grade"]
    command += ["{type: math}", "--item", '{"answer": "x"}', "--sample"]
    sample = b"\\boxed{\xff}"
    for more in ([], ["--json"]):
        arguments = [*map(os.fsencode, command), sample, *map(os.fsencode, more)]
        done = subprocess.run(arguments, capture_output=True, timeout=60, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        assert more or b"\\udcff" in done.stdout
