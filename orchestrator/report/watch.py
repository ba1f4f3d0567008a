"""Serve a run's page while it goes on: on this machine alone, under a path that nobody guesses.

There is no login: who knows the path may read. So it is 256 random bits, is never sent on (no
referrer), and every other path, method and Host gets the same empty 404. The run is only read.
"""

import asyncio
import gzip
import hashlib
import hmac
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import ConfigError, Problem
from orchestrator.report.gather import RunReader
from orchestrator.report.page import render, to_json

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
POLL_S = 2.0
"""Seconds between a page's questions."""
_PATIENCE = 5
"""Reading the run may take one part in so many of the time."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class LivePage:
    """The run's page as of the last look; looks again when it is asked and the last is old."""

    def __init__(self, run: Path, every_s: float = POLL_S):
        self._reader = RunReader(run)
        self._every_s = every_s
        self._lock = asyncio.Lock()
        self._seen: dict[str, Any] = {}
        self._tag = ""
        self._next = 0.0

    async def data(self) -> tuple[str, Mapping[str, Any]]:
        """Return a tag of the content, and the content."""
        async with self._lock:
            if time.monotonic() >= self._next:
                began = time.monotonic()
                run = await asyncio.to_thread(self._reader.read)
                took = time.monotonic() - began
                self._next = time.monotonic() + max(0.5 * self._every_s, _PATIENCE * took)
                self._tag = _tag_of(run)
                self._seen = page_data(run, live=True) | {
                    "every_s": max(self._every_s, _PATIENCE * took)
                }
        return self._tag, self._seen


def page_data(run: Mapping[str, Any], *, live: bool = False) -> dict[str, Any]:
    """Return what the page of one run is made of."""
    return {"kind": "run", "title": f"{run['name']} · Braid", "live": live, "run": run}


def _tag_of(run: Mapping[str, Any]) -> str:
    """Return a tag that is the same for as long as nothing but the clock has changed."""
    still = {key: value for key, value in run.items() if key != "made"}
    return (
        f'"{hashlib.sha256(to_json(still).encode("utf-8", "backslashreplace")).hexdigest()[:32]}"'
    )


def make_app(page: LivePage, token: str) -> "Starlette":
    """Return the server's application: `/TOKEN/` and `/TOKEN/data.json`."""
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    def is_ours(request: "Request") -> bool:
        host = request.headers.get("host", "").partition(":")[0]
        given = request.path_params["token"].encode()
        return hmac.compare_digest(given, token.encode()) and host in (HOST, "localhost")

    def answer(request: "Request", body: bytes, kind: str, tag: str) -> "Response":
        headers = {**_HEADERS, "ETag": tag}
        if "gzip" in request.headers.get("accept-encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        return Response(body, media_type=kind, headers=headers)

    async def show(request: "Request") -> "Response":
        if not is_ours(request):
            return Response(status_code=404)
        tag, data = await page.data()
        return answer(request, await asyncio.to_thread(render, data), "text/html", tag)

    async def tell(request: "Request") -> "Response":
        if not is_ours(request):
            return Response(status_code=404)
        tag, data = await page.data()
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={**_HEADERS, "ETag": tag})
        body = to_json(data).encode("utf-8", "backslashreplace")
        return answer(request, body, "application/json", tag)

    async def nothing(request: "Request", error: Exception) -> "Response":
        return Response(status_code=404)

    routes = [Route("/{token}/", show), Route("/{token}/data.json", tell)]
    app = Starlette(routes=routes, exception_handlers={404: nothing, 405: nothing})
    app.router.redirect_slashes = False  # a redirect would tell which paths there are
    return app


def listen(port: int) -> socket.socket:
    """Return a socket on this machine's own address.

    Raises:
        ConfigError: the port is taken.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
        found.listen(64)
    except OSError as error:
        found.close()
        what = f"cannot be listened on: {error.strerror}"
        fix = "Give another --port, or none for a free one."
        raise ConfigError(Problem(where=f"--port {port}", what=what, fix=fix)) from None
    return found


def serve(page: LivePage, taken: socket.socket, token: str) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        make_app(page, token),
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
    )
    with taken:
        uvicorn.Server(config).run(sockets=[taken])


def new_token() -> str:
    """Return 256 random bits as a piece of a path."""
    return secrets.token_urlsafe(32)
