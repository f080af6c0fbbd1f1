"""An instance's connections: take them over, peek, serve, keep, give back, close.

All idle connections of an instance are armed in its epoll set. Only the thread that holds the runner's baton polls, and only it touches
an idle connection; a ready one belongs to the thread that serves it until it is armed again, given back or closed.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from gunicorn.http.errors import ParseException

from isowsgi.handover import ARM_ONCE, Port
from isowsgi.inside.wsgi import Connection, Fate, Gateway
from isowsgi.peek import INCOMPLETE, PEEK_FIRST_BYTES, PEEK_MAX_BYTES, Look, Peeker, Refused
from isowsgi.scoreboard import AT_CAPACITY, CLOSED, REQUESTS, Scoreboard

# Events taken per system call. They are served one after the other, so a larger batch would only make the last one's wait invisible.
_MAX_EVENTS = 16

# int() takes the flags out of their enum, whose `|` costs 2 us a request.
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

# How often at most idle connections are looked through for those past their keep-alive time.
_SWEEP_S = 1.0


class Service:
    """Serves the connections handed over to this instance; `poll` and `serve` are the runner's.

    Args:
        order: the boot order, see `instances.interpreter`.
        gateway: calls the app.
        peeker: knows which requests are this mount's.
        board: the worker's scoreboard; `first_row` and the following are this instance's, one for each thread.
        notify_capacity: tells the acceptor that a connection was closed while the worker had as many as it may.
    """

    def __init__(
        self,
        order: dict[str, Any],
        gateway: Gateway,
        log: Any,
        peeker: Peeker,
        board: Scoreboard,
        notify_capacity: Callable[[], None],
    ) -> None:
        self._mount = order["mount"]
        self._keepalive_s = order["keepalive_s"]
        self._listeners = [tuple_of(address) for address in order["listeners"]]
        self._gateway = gateway
        self._log = log
        self._peeker = peeker
        self._epoll = select.epoll.fromfd(os.dup(order["fds"]["connections"]))
        self._returns = Port.open(order["fds"]["returns"], order["arm_returns"])
        self._lingering = Port.open(order["fds"]["lingering"], order["arm_returns"])
        self._acceptor_row = board.row(0)
        self._rows = [board.row(order["first_row"] + number) for number in range(order["threads"])]
        self._own = threading.local()
        self._notify_capacity = notify_capacity
        self._connections: dict[int, Connection] = {}
        self._next_sweep = 0.0
        self._poke = order["fds"]["poke"]
        self._epoll.register(self._poke, select.EPOLLIN)
        self.draining = False  # give connections back instead of keeping them; set before a poke
        self.last = False  # say `Connection: close` in every response; set before a poke

    def enter_thread(self, number: int) -> None:
        """Say which of the instance's threads the caller is; it alone writes that row of the scoreboard."""
        self._own.row = self._rows[number]

    def open_connections(self) -> int:
        return len(self._connections)

    # The runner's side.

    def poll(self, wait: bool) -> list[int]:
        """Return connections that have something to say; each is disarmed and the caller's."""
        events = self._epoll.poll(self._poll_timeout() if wait else 0, _MAX_EVENTS)
        ready = [fd for fd, _ in events if fd != self._poke]
        if len(ready) != len(events):
            os.eventfd_read(self._poke)
            if self.draining:
                self._give_back_idle(ready)
        if self._connections and time.monotonic() >= self._next_sweep:
            self._close_expired(ready)
        return ready

    def serve(self, fd: int) -> None:
        """Serve the next request of a connection that `poll` returned; what can go wrong ends that connection only."""
        connection = self._connections.get(fd) or self._take_over(fd)
        if connection is None:
            return
        connection.idle_since = 0.0
        try:
            self._serve(fd, connection)
        except OSError:  # reset between two of our calls
            self._close(fd, connection)
        except Exception:
            self._log.exception("a mistake in isowsgi ended a connection; please report it")
            self._close(fd, connection)

    def _serve(self, fd: int, connection: Connection) -> None:
        try:
            data = _peek(connection.sock)
        except BlockingIOError:
            self._keep(fd, connection)  # an event without a byte, as after a checksum error (epoll(7))
            return
        if not data:
            self._close(fd, connection)
            return
        look = self._look(data, connection)
        if look.mount != self._mount or not look.length:
            self._give_back(fd, connection)
            return
        self._own.row[REQUESTS] += 1
        _consume(connection.sock, look.length)
        last = self.last or not self._keepalive_s or self._acceptor_row[AT_CAPACITY] == 1
        fate = self._gateway.serve(connection, data, look, last)
        if fate is Fate.KEEP and self.draining:
            self._give_back(fd, connection)
        elif fate is Fate.KEEP:
            self._keep(fd, connection)
        elif fate is Fate.CLOSE and len(data) == look.length:
            self._close(fd, connection)
        else:
            self._linger(fd, connection)

    def _look(self, data: bytes, connection: Connection) -> Look:
        """Return what the next request is; nothing to serve if the acceptor should refuse it."""
        try:
            return self._peeker.look(data, connection.peer, first_look=False)
        except (ParseException, Refused):
            return INCOMPLETE

    # Ownership.

    def _take_over(self, fd: int) -> Connection | None:
        sock = socket.socket(fileno=fd)
        try:
            peer = sock.getpeername()
            server = self._listener_of(sock.getsockname())
        except OSError:  # reset before we looked
            sock.close()
            self._count_closed()
            return None
        connection = self._connections[fd] = Connection(sock, peer, server, self._gateway)
        return connection

    def _listener_of(self, own_name: Any) -> Any:
        """Return the address of the listener that a connection came by, as gunicorn's workers have it for SERVER_NAME."""
        if not isinstance(own_name, tuple):
            return own_name
        for listener in self._listeners:
            if isinstance(listener, tuple) and listener[1] == own_name[1] and listener[0] in (own_name[0], "0.0.0.0", "::"):
                return listener
        return own_name

    def _keep(self, fd: int, connection: Connection) -> None:
        connection.idle_since = time.monotonic()
        self._epoll.modify(fd, ARM_ONCE)

    def _give_back(self, fd: int, connection: Connection) -> None:
        """Return a connection to the acceptor, which routes its next request."""
        self._forget(fd, connection)
        self._returns.give(fd)

    def _linger(self, fd: int, connection: Connection) -> None:
        """Say that nothing more is sent, and let the acceptor read away what the client still sends (RFC 9112 section 9.6)."""
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client is gone
            self._close(fd, connection)
            return
        self._forget(fd, connection)
        self._lingering.give(fd)

    def _forget(self, fd: int, connection: Connection) -> None:
        self._epoll.unregister(fd)
        del self._connections[fd]
        connection.sock.detach()

    def _close(self, fd: int, connection: Connection) -> None:
        self._connections.pop(fd, None)
        connection.sock.close()
        self._count_closed()

    def _count_closed(self) -> None:
        self._own.row[CLOSED] += 1
        if self._acceptor_row[AT_CAPACITY]:
            self._notify_capacity()

    # Idle connections; only under the runner's baton.

    def _poll_timeout(self) -> float:
        if not self._connections:
            return -1
        return max(self._next_sweep - time.monotonic(), 0.0)

    def _close_expired(self, ready: list[int]) -> None:
        now = time.monotonic()
        for fd, connection in list(self._connections.items()):
            idle_since = connection.idle_since
            if idle_since and now - idle_since > self._keepalive_s and fd not in ready:
                self._epoll.unregister(fd)
                self._close(fd, connection)
        self._next_sweep = now + _SWEEP_S

    def _give_back_idle(self, ready: list[int]) -> None:
        for fd, connection in list(self._connections.items()):
            if connection.idle_since and fd not in ready:
                self._give_back(fd, connection)


def tuple_of(address: Any) -> Any:
    """Return a socket address that went through JSON as Python has it."""
    return tuple(address) if isinstance(address, list) else address


def _peek(sock: socket.socket) -> bytes:
    data = sock.recv(PEEK_FIRST_BYTES, _PEEK)
    if len(data) == PEEK_FIRST_BYTES:
        data = sock.recv(PEEK_MAX_BYTES, _PEEK)
    return data


def _consume(sock: socket.socket, length: int) -> None:
    """Take bytes that were peeked at from the connection."""
    while length:  # a stream may hand over less than it showed
        taken = len(sock.recv(length))
        if not taken:
            raise ConnectionResetError("bytes that were there have gone")
        length -= taken
