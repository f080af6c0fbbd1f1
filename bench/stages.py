"""Where the time of a kept-alive hello request goes: `python -m bench.stages`. A table by stage, in microseconds.

Each stage runs alone, again and again, on the objects that a server would have, and the best of many rounds counts. System calls go to a
connection over the loopback whose other end is this process.
"""

from __future__ import annotations

import argparse
import select
import socket
import time
import timeit
from collections.abc import Callable
from typing import Any

from gunicorn.config import Config

from isowsgi.configuration.crossing import snapshot
from isowsgi.inside.deadlines import Job
from isowsgi.inside.plainrequest import PlainReader, PlainResponse
from isowsgi.inside.serve import Service
from isowsgi.inside.settings import Settings
from isowsgi.inside.wsgi import Connection, Gateway
from isowsgi.shared.containment import Containment
from isowsgi.shared.handover import ARM_EDGE
from isowsgi.shared.messages import Descriptors
from isowsgi.shared.peek import Peeker, peek
from isowsgi.shared.routing import Route, Router
from isowsgi.shared.scoreboard import Scoreboard
from tests.orders import any_order

HEAD = b"GET /hello/ HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n"
BODY = b"Hello, World!"
FIELDS = [("Content-Type", "text/plain"), ("Content-Length", "13")]

_NUMBER = 5_000
_ROUNDS = 40


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", FIELDS)
    return [BODY]


class _Log:
    access_enabled = False

    def debug(self, *args: Any) -> None: ...


class _Nowhere:
    """A socket that takes everything at once."""

    def sendall(self, data: bytes) -> None: ...

    def send(self, data: bytes, flags: int) -> int:
        return len(data)


class _Exchange:
    mail_fd = -1

    def worker_fd(self, fd: int) -> int:
        return fd


def stages() -> list[tuple[str, float]]:
    """Return each stage and its time in microseconds; the last one is a whole request without system calls."""
    cfg = Settings(snapshot(Config()))
    peeker = Peeker(Router([Route(0, "", "/hello"), Route(1, "", "/shop"), Route(2, "", "")]), cfg)
    gateway = Gateway(0, app, cfg, _Log(), "/hello", {"isowsgi.mount": "/hello"}, lambda: None)
    board = Scoreboard()
    board.set_mounts(["/hello"])
    first_row = board.allot(1, [0], "own-gil")
    job = Job(0, board.thread_rows(first_row, [0], 0))
    job.enter()
    nowhere: Any = _Nowhere()
    peer, server = ("127.0.0.1", 50000), ("127.0.0.1", 8000)
    connection = Connection(nowhere, 7, 7, peer, server, gateway, {})
    length, _, line, _ = peeker.find(HEAD, peer, first_look=False)
    assert line is not None
    taken = connection.plain.read(line, False, HEAD, length)
    assert taken is not None
    fields, body, environ = taken
    plain: PlainReader = connection.plain
    calls = _System()

    def respond() -> None:
        response = PlainResponse(nowhere, cfg, line, fields, body)
        response.board = job.row.words
        for chunk in app(environ, response.start_response):
            response.write(chunk)
        response.close()

    def note() -> None:
        job.begin(connection, 0, HEAD, time.monotonic_ns())
        job.end()

    def whole() -> None:
        length, _, line, repeats = peeker.find(HEAD, peer, first_look=False, fields=plain.block)
        job.begin(connection, 0, HEAD, time.monotonic_ns())
        gateway.serve(connection, HEAD, length, line, repeats, False, job.row)
        job.end()

    order = any_order(first_row=first_row, fds=calls.fds, threads=1, keepalive_s=60.0, listeners=[list(server)])
    contained = Containment(_Log(), job.row.words)
    service = Service(order, {0: gateway}, _Log(), peeker, board, _Exchange(), contained)  # type: ignore[arg-type] # as much as is asked
    connection.has_pending_event = False
    timed: dict[str, Callable[[], object]] = {
        "wait for an event: epoll_wait": lambda: service._epoll.poll(0, 16),
        "look at the head: recv with MSG_PEEK": lambda: peek(calls.head),
        "find its end and its mount": lambda: peeker.find(HEAD, peer, first_look=False, fields=plain.block),
        "take it: recv": lambda: calls.served.recv(1),
        "note it on the scoreboard, begin and end": note,
        "read it into an environ": lambda: plain.read(line, True, HEAD, length),
        "response: the app, checks, head": respond,
        "send: sendto, and the client's recv": calls.send,
        "keep the connection": lambda: service.settle(connection),
        "all of it but system calls": whole,
    }
    return [(name, _microseconds(function, calls.fill)) for name, function in timed.items()]


class _System:
    """What system calls are made on: connections over the loopback, one with a head to look at, one to take bytes from and to send on."""

    def __init__(self) -> None:
        sender, self.head = _connection()
        sender.sendall(HEAD)
        self.client, self.served = _connection()
        self._sender = sender
        self._epoll = select.epoll()
        self._epoll.register(self.head, ARM_EDGE)
        self._pipe = socket.socketpair()
        self.fds = Descriptors(board=-1, channel=-1, connections=self._epoll.fileno(), poke=self._pipe[0].fileno())
        self._answer = b"x" * 140

    def fill(self) -> None:
        """See to it that a round finds as many bytes as it may take."""
        try:
            while self.served.recv(65536, socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            self.client.sendall(b"x" * _NUMBER)

    def send(self) -> None:
        self.served.sendall(self._answer)
        self.client.recv(4096)


def _connection() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        served, _ = listener.accept()
    for sock in (client, served):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, served


def _microseconds(function: Callable[[], object], before: Callable[[], None]) -> float:
    return min(timeit.repeat(function, before, number=_NUMBER, repeat=_ROUNDS)) / _NUMBER * 1e6


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    print("| stage | us |\n|---|---:|")
    for name, microseconds in stages():
        print(f"| {name} | {microseconds:.2f} |")


if __name__ == "__main__":
    main()
