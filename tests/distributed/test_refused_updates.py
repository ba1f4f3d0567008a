"""An optimizer step that a guard refuses leaves no trace, in any stage and dtype."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

RunWorld = Callable[[str, int, Path, Path], None]


@pytest.mark.timeout(300)
def test_a_refused_update_leaves_no_trace(
    worker: ModuleType, run_world: RunWorld, tmp_path: Path
) -> None:
    """By its loss, its norm, or because that is infinite: weights, moments and schedule stay, and
    the next update is bit for bit the one of an engine that never saw them; on both ranks."""
    worker.make_model(tmp_path / "models" / "tied", tied=True)
    run_world("refusals", 2, tmp_path / "models", tmp_path)
    seen = [json.loads((tmp_path / f"refusals_{rank}.json").read_text()) for rank in (0, 1)]
    assert seen[0] == seen[1] and len(seen[0]) == 6
    for case, found in seen[0].items():
        refused = found["refused"]
        for name in ("loss", "grad norm"):
            assert refused[name]["skipped"] == 1 and refused[name]["non_finite"] == 0, case
            assert refused[name]["grad_norm"] == pytest.approx(found["alone"]["grad_norm"]), case
        bad = refused["not finite"]
        assert bad["skipped"] == bad["non_finite"] == 1 and "grad_norm" not in bad, case
        assert found["kept"] and found["moved"] and found["same"], case
        assert found["after"] == found["alone"], case
        assert found["after"]["skipped"] == 0, case
        # warm-up over two steps: half of 1e-2, of which the guard leaves a tenth; then all of it
        assert found["lr"] == pytest.approx([5e-4, 1e-2]), case
