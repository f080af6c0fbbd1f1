"""`https_only`: what came without TLS is sent to the same address with it, instead of to the app. Imported where a mount asks for it.

It stands before the app, because it must go by what the app would be told: `wsgi.url_scheme`, as gunicorn makes it of its own TLS and of
what a trusted proxy says (`forwarded_allow_ips`, `secure_scheme_headers`). The acceptor answers the same while no app is loaded.
"""

from __future__ import annotations

from typing import Any

from isowsgi.inside.wsgi import Application
from isowsgi.shared import redirects


class HttpsOnly:
    """An app that is called with `https` only."""

    def __init__(self, app: Application) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Call the app, or answer in its place."""
        # A warm-up comes from no client.
        if environ["wsgi.url_scheme"] == "https" or environ["gunicorn.socket"] is None:
            return self._app(environ, start_response)
        status, text, location = redirects.to_https(environ["REQUEST_METHOD"], environ.get("HTTP_HOST", ""), environ["RAW_URI"])
        body = f"{text}\n".encode()
        fields = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
        start_response(status, [*fields, ("Location", location)] if location else fields)
        return [body]
