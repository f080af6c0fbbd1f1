"""Connections are closed without a wait for their clients, whatever somebody has set on them."""

from __future__ import annotations

import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from isowsgi.worker import closer
from isowsgi.worker.closer import Closer
from tests.conftest import eventually


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = signal.getsignal(signal.SIGURG)
    yield
    signal.signal(signal.SIGURG, before)


def lingering(stack: ExitStack) -> int:
    """Return the descriptor of a connection whose client reads nothing, and for which a close waits."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = stack.enter_context(socket.create_connection(server.getsockname()))
        sock, _ = server.accept()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)
    sock.send(bytes(200_000), socket.MSG_DONTWAIT)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
    return sock.detach()


def is_open(fd: int) -> bool:
    try:
        socket.socket(fileno=fd).detach()
    except OSError:
        return False
    return True


def test_a_close_waits_for_no_client() -> None:
    made = Closer()
    with ExitStack() as stack:
        fds = [lingering(stack) for _ in range(3)]
        for fd in fds:
            made.close(fd)
        eventually(lambda: not any(map(is_open, fds)) and not made._began, "their end")


def test_who_sets_it_again_just_then_keeps_the_others_waiting_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closer, "_set_back", lambda fd: None)  # as if it was set again at once
    monkeypatch.setattr(closer, "_LONG_S", 0.0)
    made = Closer()
    with ExitStack() as stack:
        fds = [lingering(stack) for _ in range(3)]
        for fd in fds:
            made.close(fd)
        eventually(lambda: made._began and not is_open(fds[0]), "a close that waits")
        assert is_open(fds[1])

        def are_closed() -> bool:
            made.tick()
            return not any(map(is_open, fds)) and not made._began

        eventually(are_closed, "the end of all")
