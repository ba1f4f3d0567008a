"""Lines of one dash pattern can be told apart by everyone: four colours solid, four dashed."""

import itertools
import re
from importlib.resources import files

import numpy as np
import pytest

SEEN = {
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0993], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.969]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
    "all": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
}  # fmt: skip
"""How a colour of linear RGB is seen (Machado, Oliveira and Fernandes 2009, severity 1)."""
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])


def palettes() -> dict[str, list[str]]:
    style = (files("orchestrator.report") / "assets/style.css").read_text()
    modes = dict(zip(("light", "dark"), style.split(':root[data-theme="dark"]'), strict=True))
    return {mode: re.findall(r"--c[0-7]: (#\w{6})", text) for mode, text in modes.items()}


def lab(colour: str, eye: str) -> np.ndarray:  # type: ignore[type-arg]
    """Return CIELAB of a colour as an eye sees it."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.array(SEEN[eye]) @ linear, 0, 1) / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("eye", SEEN)
def test_colours_of_one_dash_lie_apart(mode: str, eye: str):
    colours = palettes()[mode]
    assert len(colours) == 8
    for own in (colours[:4], colours[4:]):
        for a, b in itertools.combinations(own, 2):
            assert np.linalg.norm(lab(a, eye) - lab(b, eye)) > 20, (a, b)
