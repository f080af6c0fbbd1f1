"""`https_only`: what came without TLS is sent to the same address with it, instead of to the app. Imported where a mount asks for it.

It stands before the app and not in the acceptor, because it must go by what the app would be told: `wsgi.url_scheme`, as gunicorn makes it
of its own TLS and of what a trusted proxy says (`forwarded_allow_ips`, `secure_scheme_headers`).
"""

from __future__ import annotations

import re
from typing import Any

from isowsgi.inside.wsgi import Application
from isowsgi.shared import answers, redirects

# A host that may stand in an address; and its port, which is that of plain HTTP.
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d*)?")

# Methods whose client may ask with GET for what it was sent to; for the others 308 keeps the method and body.
_SAFE_METHODS = frozenset(("GET", "HEAD"))


class HttpsOnly:
    """An app that is called with `https` only."""

    def __init__(self, app: Application) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Call the app, or answer in its place."""
        # A warm-up comes from no client.
        if environ["wsgi.url_scheme"] == "https" or environ["gunicorn.socket"] is None:
            return self._app(environ, start_response)
        host = _HOST.fullmatch(environ.get("HTTP_HOST", ""))
        if host is None:
            return _answer(start_response, "400 Bad Request", "https is needed, and the request names no host to ask with it")
        path, _, query = environ["RAW_URI"].partition("#")[0].partition("?")
        if not path.startswith("/"):  # absolute-form, or `*`
            path = "/" + path.partition("://")[2].partition("/")[2]
        location = f"https://{host[1]}{redirects.location(redirects.PATH, 0, path, query)}"
        status = answers.MOVED[301 if environ["REQUEST_METHOD"] in _SAFE_METHODS else 308]
        return _answer(start_response, status, f"This address has moved to {location}", [("Location", location)])


def _answer(start_response: Any, status: str, text: str, more: list[tuple[str, str]] | None = None) -> list[bytes]:
    body = f"{text}\n".encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *(more or ())])
    return [body]
