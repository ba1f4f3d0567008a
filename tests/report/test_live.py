"""`braid watch`: it follows the run, and tells nothing to who does not know the path."""

import contextlib
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report.watch import LivePage, make_app, new_token
from tests.report.conftest import Made, row

ROOT = Path(__file__).parents[2]


class Served:
    """A `braid watch` in a process of its own."""

    def __init__(self, run: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from orchestrator.cli import main; main()", "watch", run],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "40"},
        )
        assert self.process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]{43})/", self.process.stdout.readline())
        assert found is not None
        self.address, self.port, self.token = found[0], int(found[1]), found[2]

    def ask(self, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """Send one request; what is given overrides its headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()


@pytest.fixture
def served(make: Callable[..., Path], tmp_path: Path) -> Iterator[Served]:
    server = Served(make(tmp_path / "run", steps=6, num_steps=9))
    yield server
    server.process.send_signal(signal.SIGINT)
    try:
        server.process.wait(timeout=20)
    finally:
        server.process.kill()
        server.process.communicate()


def test_it_is_seen_by_who_knows_the_path_alone(served: Served):
    path = f"/{served.token}/"
    status, body, headers = served.ask(path)
    assert status == 200 and b"made" in body
    assert headers["referrer-policy"] == "no-referrer" and headers["cache-control"] == "no-store"
    for other in (
        *("/", "/data.json", f"/{served.token}", f"/{served.token}x/", f"/{new_token()}/"),
        *(f"/{new_token()}/data.json", f"{path}../run.json", f"{path}run.json", "/static/x"),
        *("/%2e%2e/etc/passwd", f"/{served.token[:-1]}/", "/%C3%A9/"),
    ):
        assert served.ask(other)[:2] == (404, b""), other
    assert served.ask(path, Host="evil.example:80")[:2] == (404, b"")
    status, body, headers = served.ask(f"{path}data.json")
    assert status == 200 and json.loads(body)["run"]["step"] == 6
    again = served.ask(f"{path}data.json", **{"If-None-Match": headers["etag"]})
    assert again[:2] == (304, b"")
    assert listening(served.process.pid) == {f"127.0.0.1:{served.port}"}


def listening(pid: int) -> set[str]:
    """Return the addresses that a process listens on, IPv6's too."""
    inodes = set[str]()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            inodes.add(os.readlink(descriptor))
    found: set[str] = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and f"socket:[{parts[9]}]" in inodes:
                address, port = parts[1].split(":")
                octets = [str(int(address[i : i + 2], 16)) for i in (6, 4, 2, 0)]
                found.add(f"{'.'.join(octets)}:{int(port, 16)}" if table == "tcp" else parts[1])
    return found


def test_the_page_follows_the_run(browser: Any, served: Served, tmp_path: Path):
    browser.open(served.address)
    tile = "return document.querySelector('.tiles').innerText.includes(arguments[0])"
    assert browser.js(tile, "6 of 9")
    browser.js(
        "document.querySelector('.list').children[5].click(); window.kept = 1;"
        "document.querySelector('#faults details').open = true;"
        "document.querySelector('#faults').scrollIntoView({behavior: 'instant'});"
    )
    browser.js("document.querySelector('#faults summary').focus({preventScroll: true})")
    kept = "return [scrollY, document.activeElement.outerHTML.slice(0, 90)]"
    place = browser.js(kept)
    assert place[0] > 1000 and place[1].startswith("<summary>")
    chosen = "return document.querySelector('.list [aria-selected=true]').dataset.key"
    before = browser.js(chosen)
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(Made(), 7, random.Random(1))) + "\n" + '{"step": 8, "torn')
    browser.wait(tile, "7 of 9", seconds=40)
    assert browser.js(kept) == place
    assert browser.js("return document.querySelector('#faults details').open")
    assert browser.js(chosen) == before and browser.js("return window.kept") == 1
    assert browser.complaints() == []
    assert all(url.startswith(served.address) for url in browser.requests())


def test_a_damaged_run_is_served_as_far_as_it_goes(make: Callable[..., Path], tmp_path: Path):
    from starlette.testclient import TestClient

    run = make(tmp_path / "run", steps=4)
    page, token = LivePage(run, every_s=0.0), new_token()
    with TestClient(make_app(page, token), base_url="http://127.0.0.1:80") as client:
        assert client.get(f"/{token}/data.json").json()["run"]["step"] == 4
        for path in list(run.iterdir()):
            if path.is_file():
                path.unlink()
        deadline = time.monotonic() + 20  # it looks again as soon as its last look has paid off
        while (found := client.get(f"/{token}/data.json").json()["run"])["step"]:
            assert time.monotonic() < deadline
    assert found["notes"]
