"""docs/troubleshoot.md quotes messages that the code really says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshoot.md"
PACKAGES = ("actors", "configs", "mixing", "orchestrator", "rewards", "rollouts", "trainer")


def quoted() -> list[str]:
    """Return the messages in the first column of the tables."""
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert all(len(row) == 5 and row[2].strip() and row[3].strip() for row in rows)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row[1])]


@pytest.fixture(scope="module")
def said() -> str:
    """Return every constant text of the code, those inside f-strings too."""
    files = [p for name in PACKAGES for p in (ROOT / name).rglob("*.py")]
    nodes = [node for p in files for node in ast.walk(ast.parse(p.read_text()))]
    docs = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}
    texts = (n.value for n in nodes if isinstance(n, ast.Constant) and id(n) not in docs)
    return "\n".join(t for t in texts if isinstance(t, str))


def test_there_are_messages():
    assert len(quoted()) == len(set(quoted())) > 30


@pytest.mark.parametrize("message", quoted())
def test_the_message_is_one_of_the_code(message: str, said: str):
    assert message in said
