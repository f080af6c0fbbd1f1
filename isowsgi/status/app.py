"""The status page's routes: HTML and its files, status.json, metrics, and what load balancers and supervisors ask.

Read-only: GET and HEAD. Everything that comes from an app (paths, errors, stacks) travels as JSON and becomes text nodes in the browser.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from werkzeug.exceptions import Forbidden, HTTPException, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from isowsgi.shared.board import Board, Reading
from isowsgi.status import metrics
from isowsgi.status.access import Access
from isowsgi.status.snapshot import patterns, snapshot, unready

# How long a worker's main interpreter may be silent; it reports once a second.
_MOST_SILENT_S = 10.0

_FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}

# Nothing from elsewhere, nothing inline, and in nobody's frame.
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

_ROUTES = Map(
    [
        Rule("/", endpoint="page", methods=["GET"]),
        Rule("/page.css", endpoint="style", methods=["GET"]),
        Rule("/page.js", endpoint="script", methods=["GET"]),
        Rule("/status.json", endpoint="snapshot", methods=["GET"]),
        Rule("/metrics", endpoint="metrics", methods=["GET"]),
        Rule("/ready", endpoint="ready", methods=["GET"]),
        Rule("/live", endpoint="live", methods=["GET"]),
    ]
)

StartResponse = Callable[..., Any]


class StatusPage:
    """The WSGI app over one board.

    Args:
        board: read by one request at a time.
        access: says who may see it.
    """

    def __init__(self, board: Board, access: Access) -> None:
        self._board = board
        self._access = access
        self._lock = threading.Lock()
        folder = importlib.resources.files("isowsgi.status")
        self._files = {name: folder.joinpath(name).read_bytes() for name in _FILES}
        self._registry: CollectorRegistry = metrics.registry(board)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        try:
            response = self._respond(request)
        except HTTPException as exc:
            response = _text(f"{exc.description}\n", exc.code or 500)
            if isinstance(valid := getattr(exc, "valid_methods", None), list):
                response.headers["Allow"] = ", ".join(sorted(valid))
        response.headers.update(_SECURITY)
        return response(environ, start_response)

    def _respond(self, request: Request) -> Response:
        if (refusal := self._access.refusal(request.environ)) is not None:
            raise Forbidden(refusal)
        if not request.environ.get("PATH_INFO"):  # the page's links are relative to its folder
            return Response(status=308, headers={"Location": f"{request.environ.get('SCRIPT_NAME', '')}/"})
        endpoint, _ = _ROUTES.bind_to_environ(request.environ).match()
        handler: Callable[[Request], Response] = getattr(self, f"_{endpoint}")
        return handler(request)

    def _page(self, request: Request) -> Response:
        return self._file("page.html")

    def _style(self, request: Request) -> Response:
        return self._file("page.css")

    def _script(self, request: Request) -> Response:
        return self._file("page.js")

    def _file(self, name: str) -> Response:
        return Response(self._files[name], content_type=f"{_FILES[name]}; charset=utf-8")

    def _snapshot(self, request: Request) -> Response:
        taken = snapshot(self._read(), time.monotonic_ns() // 1_000_000, time.time())
        return Response(json.dumps(taken, ensure_ascii=False).encode("utf-8", "replace"), content_type="application/json")

    def _metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        with self._lock:
            return Response(encode(self._registry), content_type=content_type)

    def _ready(self, request: Request) -> Response:
        """Answer 200 if every worker that accepts requests can serve the mount, or all mounts; a sleeping one counts as ready."""
        reading = self._read()
        missing = unready(reading)
        if missing is None and reading.regions and all(region.is_stopping for region in reading.regions):
            return _text("stopping: requests are still served, but go elsewhere\n", 503)
        if missing is None:
            return _text("no worker accepts requests, or a worker has too many mounts to report their states\n", 503)
        mount = request.args.get("mount")
        if mount is None:
            return _text("".join(f"{pattern}: not ready\n" for pattern in missing) or "ready\n", 503 if missing else 200)
        if mount not in patterns(reading):
            raise NotFound(f"no mount {mount!r}; the mounts are {', '.join(patterns(reading))}")
        return _text(f"{mount}: not ready\n", 503) if mount in missing else _text("ready\n", 200)

    def _live(self, request: Request) -> Response:
        """Answer 200 as long as this worker's main interpreter runs; that we answer shows that ours does."""
        now = time.time()
        own = (os.getpid(), os.getppid())  # the latter if this runs in its own process
        silent = [now - r.report["updated"] for r in self._read().regions if r.report and r.report["pid"] in own]
        if silent and min(silent) > _MOST_SILENT_S:
            return _text(f"the worker's main interpreter has not reported for {min(silent):.0f} s\n", 503)
        return _text("alive\n", 200)

    def _read(self) -> Reading:
        with self._lock:
            return self._board.read()


def _text(text: str, status: int) -> Response:
    return Response(text, status=status, content_type="text/plain; charset=utf-8")


_made: StatusPage | None = None
_making = threading.Lock()


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Serve the status page; the server that mounts it says in the environ where the board is and who may see it."""
    global _made
    if _made is None:
        place = environ.get("isowsgi.status")
        if place is None:
            response = _text("isowsgi.status works only as a mount of isowsgi.toml, served by isowsgi's worker\n", 500)
            return response(environ, start_response)
        with _making:
            _made = _made or StatusPage(Board(place["board"]), Access(place["allow"], [*place["hosts"], place["host"]]))
    return _made(environ, start_response)
