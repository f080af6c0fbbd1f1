"""The soak's app without a framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

import content


def create(mount: str) -> Callable[..., Iterable[bytes]]:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        fields = content.identity(mount, environ)
        query = {name: int(values[0]) for name, values in parse_qs(environ["QUERY_STRING"]).items()}
        read = environ["wsgi.input"].read
        what = environ["PATH_INFO"]
        if what == "/small":
            body = content.small(mount, environ["HTTP_SOAK_TOKEN"])
        elif what == "/interpreters":
            body = b""
            fields.append(("Soak-Interpreters", str(content.interpreters())))
        elif what == "/take":
            body = content.digest(read)
        elif what == "/give":
            start_response("200 OK", [*fields, ("Content-Length", str(query["length"]))])
            return content.pieces(query["seed"], query["length"])
        elif what == "/stream":
            start_response("200 OK", fields)
            return content.slow_pieces(query["seed"], query["length"], query["pause_ms"])
        elif what == "/echo":
            start_response("200 OK", fields)
            return content.echo(read)
        else:
            start_response("404 Not Found", [*fields, ("Content-Length", "0")])
            return []
        start_response("200 OK", [*fields, ("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return application
