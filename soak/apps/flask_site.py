"""The soak's app in Flask."""

from __future__ import annotations

import encodings.idna  # noqa: F401 - for werkzeug's first request: a neighbour may have all descriptors just then

import content
from flask import Flask, Response, request
from werkzeug.exceptions import ClientDisconnected


def create(mount: str) -> Flask:
    app = Flask(__name__)

    def answer(body: object, **options: object) -> Response:
        response = Response(body, **options)
        response.headers.extend(content.identity(mount, request.environ))
        return response

    @app.get("/small")
    def small() -> Response:
        return answer(content.small(mount, request.headers["Soak-Token"]), mimetype="application/json")

    @app.post("/take")
    def take() -> Response:
        try:
            return answer(content.digest(request.stream.read), mimetype="application/json")
        except OSError as exc:  # the client has left
            raise ClientDisconnected from exc

    @app.get("/give")
    def give() -> Response:
        seed, length = (int(request.args[name]) for name in ("seed", "length"))
        return answer(content.pieces(seed, length), headers={"Content-Length": str(length)})

    @app.get("/stream")
    def stream() -> Response:
        return answer(content.slow_pieces(*(int(request.args[name]) for name in ("seed", "length", "pause_ms"))))

    @app.post("/echo")
    def echo() -> Response:
        return answer(content.echo(request.stream.read))

    return app
