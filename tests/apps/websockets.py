"""Websockets in the three ways in which WSGI apps have them: flask-sock, simple-websocket by hand, and plain bytes on the socket."""

from __future__ import annotations

import simple_websocket
from flask import Flask, request
from flask_sock import Sock

application = Flask(__name__)
sock = Sock(application)


@application.route("/")
def home() -> str:
    return f"generation {request.environ['isowsgi.generation']}"


@sock.route("/echo")
def echo(ws: simple_websocket.Server) -> None:
    while True:
        ws.send(ws.receive())


@application.route("/by-hand", websocket=True)
def by_hand() -> str:
    ws = simple_websocket.Server.accept(request.environ)
    try:
        while True:
            ws.send(ws.receive())
    except simple_websocket.ConnectionClosed:
        return ""
