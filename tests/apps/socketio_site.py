"""Flask-SocketIO with threads, as it is used without gevent and eventlet."""

from __future__ import annotations

from flask import Flask, request
from flask_socketio import SocketIO, emit

application = Flask(__name__)
io = SocketIO(application, async_mode="threading")


@io.on("ask")
def ask(text: str) -> str:
    io.start_background_task(io.emit, "told", f"{text} in the background")
    emit("told", f"{text} at once")
    return f"{text} {io.server.transport(request.sid)}"  # type: ignore[attr-defined] # Flask-SocketIO adds it


@application.route("/generation")
def generation() -> str:
    return str(request.environ["isowsgi.generation"])
