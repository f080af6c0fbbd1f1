"""`gunicorn.socket` is the app's own duplicate: what it does with that ends its connection at most, and never another one."""

from __future__ import annotations

import gc
import os
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from isowsgi.inside.wsgi import Connection
from isowsgi.shared.rows import RESPONSES
from tests.test_serve import REQUEST, Place

UPGRADE = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")


class Taking(Place):
    """A service whose app does with its socket what the test wants."""

    use: Any = None

    def _app(self, environ: Any, start_response: Any) -> Any:
        self.environ = environ
        assert type(environ) is dict
        self.use(environ["gunicorn.socket"])
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]


@pytest.fixture
def place() -> Iterator[Taking]:
    place = Taking()
    yield place
    place.close()


def lingering(place: Taking) -> bool:
    """Whether the acceptor has the connection, to read away what the client still sends."""
    place.client.send(b"more")
    return [fd for fd, _ in place.lingering.poll(0)] == [place.fd]


def test_an_app_that_does_not_ask_for_it_has_a_socket_without_a_descriptor(place: Taking) -> None:
    before = len(os.listdir("/proc/self/fd"))
    place.use = lambda sock: seen.append((isinstance(sock, socket.socket), repr(sock), len(os.listdir("/proc/self/fd"))))
    seen: list[Any] = []

    assert place.answer().endswith(b"ok")

    assert seen == [(True, "<the client's connection, not taken over>", before)]


@pytest.mark.parametrize(
    "use",
    [
        lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
        lambda sock: (sock.family, sock.type, sock.getpeername()),
        lambda sock: os.fstat(sock.fileno()),
        lambda sock: select.select([sock], [], [], 0) == ([], [], []) or pytest.fail("the client has sent no more"),
    ],
)
def test_an_app_that_only_looks_answers_as_ever_and_its_connection_goes_on(place: Taking, use: Any) -> None:
    place.use = use

    assert place.answer().endswith(b"ok")
    assert place.answer().endswith(b"ok")


@pytest.mark.parametrize("ends_by", ["return", StopIteration(), BrokenPipeError()])
def test_after_the_app_has_taken_it_over_no_word_of_http_is_written(place: Taking, ends_by: Any) -> None:
    """flask-sock ends by StopIteration, as gunicorn wants it; a page with 500 went into the stream behind its close frame."""

    def use(sock: socket.socket) -> None:
        sock.sendall(b"another protocol")
        if ends_by != "return":
            raise ends_by

    place.use = use

    assert place.answer(UPGRADE) == b"another protocol"
    assert place.client.recv(100) == b""
    assert lingering(place)
    assert place.board.row(2).words[RESPONSES + 1] == 1
    assert place.board.row(2).words[RESPONSES + 5] == 0


def test_a_library_that_closes_its_socket_closes_no_connection_of_ours(place: Taking) -> None:
    """The number was the next client's a moment later, whose connection vanished: of 2,454 websockets 25 worked."""

    def use(sock: socket.socket) -> None:
        sock.sendall(b"bye")
        sock.close()

    place.use = use
    assert place.answer(UPGRADE) == b"bye"

    assert os.fstat(place.fd), "still open, and the acceptor's"
    assert lingering(place)


def test_the_time_limits_of_ordinary_requests_do_not_hold_for_it(place: Taking) -> None:
    """`body_timeout` cut a client off that only listened."""
    limits: list[bytes] = []

    def use(sock: socket.socket) -> None:
        sock.sendall(b"hello")
        limits.extend(sock.getsockopt(socket.SOL_SOCKET, option, 16) for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO))

    place.use = use
    place.answer(UPGRADE)

    assert limits == [b"\0" * 16] * 2


def test_an_app_that_keeps_the_socket_has_nothing_after_its_request(place: Taking) -> None:
    kept: list[socket.socket] = []
    place.use = kept.append
    place.answer(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    with pytest.raises(OSError, match="has ended"):
        kept[0].getpeername()


def test_a_default_timeout_of_the_apps_does_not_hold_for_our_side(place: Taking) -> None:
    """Duplicates share their flags; a timeout makes both non-blocking."""
    place.use = lambda sock: sock.getpeername()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(1)
    try:
        place.answer()
    finally:
        socket.setdefaulttimeout(before)

    assert os.get_blocking(place.fd)


def test_a_connection_leaves_no_cycle_behind(place: Taking) -> None:
    """Else each closed connection would wait for the garbage collector."""
    place.use = lambda sock: None

    def connections() -> int:
        return sum(type(thing) is Connection for thing in gc.get_objects())

    gc.collect()
    before = connections()
    gc.disable()
    try:
        place.answer(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert connections() == before
    finally:
        gc.enable()


def test_an_app_that_closes_the_number_of_its_socket_itself_costs_no_connection(place: Taking) -> None:
    """The number was another's then; closing it raised, the connection stayed in the table and was never counted as closed."""
    place.use = lambda sock: os.close(sock.fileno())
    assert place.answer().endswith(b"ok")

    place.drain()
    place.service.poll(True)

    assert place.service.open_connections() == 0
    place.client.sendall(REQUEST)
    assert place.given_back() == [place.fd]
