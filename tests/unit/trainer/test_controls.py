"""What travels in the checkpoint of the coefficients that follow a target."""

from pathlib import Path

import pytest

from configs.errors import ConfigError
from trainer.controls import Controls


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    controls = Controls(entropy_coef=0.25, kl_scale=1.1, entropy_low=False)
    controls.save(tmp_path)
    assert Controls.load(tmp_path) == controls


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "is missing from the checkpoint"),
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ('{"kl_scale": 1.0}', "entropy_coef"),
        ('{"entropy_coef": "high"}', "entropy_coef"),
    ],
)
def test_a_missing_or_damaged_file_is_named_with_what_to_do(
    text: str | None, why: str, tmp_path: Path
) -> None:
    file = tmp_path / "controls.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=why) as raised:
        Controls.load(tmp_path)
    (problem,) = raised.value.problems
    assert problem.where == str(file) and "another checkpoint" in problem.fix
