"""What a reward actor writes down of rollouts."""

import json
from dataclasses import replace
from pathlib import Path

from actors.reward import _append  # pyright: ignore[reportPrivateUsage]
from rewards.subject import Subject
from rollouts.record import record
from rollouts.types import GroupRequest, RolloutGroup, Sampling


def test_half_a_character_in_a_judges_words_is_written_as_json(tmp_path: Path):
    subject = Subject.of_text({}, "so: \U0001f600")
    why = json.loads('"cut off \\ud83d"')
    rollout = replace(subject.rollout, reward=1.0, reward_notes={"verdict": {"why": why}})
    drawn = Sampling(temperature=1.0, max_tokens=1)
    request = GroupRequest(group_id="g", task=subject.task, group_size=1, sampling=drawn, step=0)
    group = RolloutGroup(request=request, rollouts=(rollout,), generate_s=0.0)
    lines = [json.dumps(row, ensure_ascii=False) for row in record(group, 0)]
    _append(tmp_path / "rollouts.jsonl", lines)
    row = json.loads((tmp_path / "rollouts.jsonl").read_text(encoding="utf-8"))
    assert row["reward_notes"]["verdict"]["why"] == why
    assert row["completions"] == ["so: \U0001f600"]
