"""A connection has one owner at any moment, whichever thread polls, serves or gives back."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gunicorn.config import Config

from isowsgi.handover import ARM_EDGE, ARM_ONCE, Port, SameProcess
from isowsgi.inside.serve import Service
from isowsgi.inside.settings import Settings
from isowsgi.inside.wsgi import Gateway
from isowsgi.peek import Peeker
from isowsgi.routing import Route, Router
from isowsgi.scoreboard import CLOSED, STOPPING, Scoreboard
from isowsgi.settings import snapshot
from tests.conftest import DEADLINE_S

CFG = Settings(snapshot(Config()))
REQUEST = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


class QuietLog:
    """Logs nothing; an error fails the test."""

    access_enabled = False

    def debug(self, *args: Any) -> None:
        return

    def exception(self, message: str, *args: Any) -> None:
        raise AssertionError(message % args)


class Place:
    """A service whose runner is the test, with one client."""

    def __init__(self) -> None:
        self.during_a_request: Callable[[], None] = lambda: None
        self.connections, self.returns, self.lingering = select.epoll(), select.epoll(), select.epoll()
        self.poke_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.board = Scoreboard()
        order = {
            "mount": 0,
            "keepalive_s": 60,
            "listeners": [["127.0.0.1", 80]],
            "fds": {
                "connections": self.connections.fileno(),
                "returns": self.returns.fileno(),
                "lingering": self.lingering.fileno(),
                "poke": self.poke_fd,
            },
            "arm_returns": ARM_EDGE,
            "threads": 1,
            "first_row": 1,
        }
        gateway = Gateway(0, self._app, CFG, QuietLog(), "/a", {}, lambda: None)
        peeker = Peeker(Router([Route(0, "", "/a")]), CFG)
        ports = (Port.open(epoll.fileno(), ARM_EDGE) for epoll in (self.returns, self.lingering))
        exchange = SameProcess(*ports, self.board.row(0).words, lambda: None)
        self.service = Service(order, {0: gateway}, QuietLog(), peeker, self.board, exchange)
        self.service.enter_thread(0)
        self.client, served = socket.socketpair()
        self.client.settimeout(DEADLINE_S)
        self.fd = served.detach()
        self.connections.register(self.fd, ARM_ONCE)

    def _app(self, environ: Any, start_response: Any) -> list[bytes]:
        self.during_a_request()
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    def drain(self) -> None:
        self.service.draining = True
        os.eventfd_write(self.poke_fd, 1)

    def ask(self) -> None:
        """Have a request served."""
        self.client.sendall(REQUEST)
        for fd in self.service.poll(True):
            self.serve(fd)
        assert self.client.recv(1000).endswith(b"ok")

    def serve(self, fd: int) -> None:
        """Do what the runner does with a connection."""
        kept = self.service.serve(fd)
        if kept is not None:
            self.service.keep(kept)

    def given_back(self) -> list[int]:
        """Return the connections that the acceptor was handed."""
        return [fd for fd, _ in self.returns.poll(0)]

    def close(self) -> None:
        self.client.close()
        os.close(self.poke_fd)
        if self.service.open_connections() == 0 and not self.board.row(2).words[CLOSED]:  # given back, and so ours
            os.close(self.fd)
        for epoll in (self.connections, self.returns, self.lingering):
            epoll.close()


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


def test_a_drain_gives_an_idle_connection_back(place: Place) -> None:
    place.ask()
    place.drain()

    assert place.service.poll(True) == []
    place.client.sendall(REQUEST)  # the acceptor's set fires for what comes now
    assert place.given_back() == [place.fd]
    assert place.service.open_connections() == 0
    assert place.board.total(CLOSED) == 0


def test_a_connection_that_was_polled_is_left_to_the_thread_that_will_serve_it(place: Place) -> None:
    """Another thread may poll before it is served. It took it for idle until then, and gave it back while it was being served."""
    place.ask()
    place.client.sendall(REQUEST)
    ready = place.service.poll(True)
    place.drain()

    assert place.service.poll(True) == []
    assert place.given_back() == []
    for fd in ready:
        place.serve(fd)
    assert place.client.recv(1000).endswith(b"ok")
    place.client.sendall(REQUEST)
    assert place.given_back() == [place.fd]


def test_a_connection_whose_request_outlasts_the_drains_beginning_is_given_back_after_it(place: Place) -> None:
    def drain_meanwhile() -> None:
        place.drain()
        assert place.service.poll(True) == []

    place.during_a_request = drain_meanwhile
    place.ask()

    place.client.sendall(REQUEST)
    assert place.given_back() == [place.fd]


def test_from_the_moment_the_worker_stops_each_response_is_its_connections_last(place: Place) -> None:
    """The order to finish is read a moment later. A response in between kept its connection, which was closed as idle soon after: into
    the client's next request.
    """
    place.ask()
    place.board.row(0).words[STOPPING] = 1

    place.client.sendall(REQUEST)
    for fd in place.service.poll(True):
        place.serve(fd)
    assert b"\r\nConnection: close\r\n" in place.client.recv(1000)
    assert place.client.recv(1000) == b""
