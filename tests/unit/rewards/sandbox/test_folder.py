"""Emptying a folder that hostile code filled."""

import os
from pathlib import Path

from rewards.sandbox.inside.folder import clear, usage


def test_depth_modes_and_links_do_not_matter(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    box = tmp_path / "box"
    box.mkdir()
    here = os.getcwd()
    os.chdir(box)
    try:
        for _ in range(60):  # a path longer than the kernel takes
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
        Path("leaf").write_text("x")
    finally:
        os.chdir(here)
    for name in (".0", ".1", "with space"):
        (box / name).mkdir()
        (box / name / "file").write_text("x")
    os.symlink(outside, box / "link")
    os.symlink(outside / "kept", box / ".0" / "link")
    os.mkfifo(box / "pipe")
    (box / "shut").mkdir()
    (box / "shut" / "inner").mkdir()
    (box / "shut" / "inner").chmod(0)
    (box / "shut").chmod(0)
    clear(str(box))
    assert list(box.iterdir()) == []
    assert (outside / "kept").read_text() == "kept"


def test_usage_counts_bytes_and_entries_and_stops_early(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "large").write_bytes(b"x" * 100_000)
    size, files = usage(str(tmp_path), 100)
    assert size >= 100_000
    assert files == 2
    for i in range(300):
        (tmp_path / str(i)).touch()
    assert usage(str(tmp_path), 100)[1] > 100
