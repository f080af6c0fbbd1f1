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
from collections import deque
from collections.abc import Mapping
from typing import Any

from gunicorn.http.errors import ParseException

from isowsgi.handover import ARM_ONCE, Exchange
from isowsgi.inside.deadlines import Job, RequestTimeout
from isowsgi.inside.wsgi import Connection, Fate, Gateway
from isowsgi.origins import Origins
from isowsgi.peek import INCOMPLETE, PEEK_FIRST_BYTES, PEEK_MAX_BYTES, Look, Peeker, Refused
from isowsgi.scoreboard import AT_CAPACITY, RESPONSES, STOPPING, TURNED_AWAY, Row, Scoreboard

# Events taken per system call. They are served one after the other, so a larger batch would only make the last one's wait invisible.
_MAX_EVENTS = 16

# int() takes the flags out of their enum, whose `|` costs 2 us a request.
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

# Told to a client whose request has waited for a thread too long, or came behind too many others.
_TURNED_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 53\r\n\r\nThe app is busy with other requests. Try again soon.\n"
)

# How often at most idle connections are looked through for those past their keep-alive time.
_SWEEP_S = 1.0


class Service:
    """Serves the connections handed over to this instance; `poll` and `serve` are the runner's.

    Args:
        order: the boot order, see `bootorder`.
        gateways: call the apps, by their mounts' numbers.
        peeker: knows which requests are whose.
        board: the worker's scoreboard; `first_row` and the following are this instance's, one for each thread.
        exchange: by which connections come and go.
    """

    def __init__(
        self,
        order: dict[str, Any],
        gateways: Mapping[int, Gateway],
        log: Any,
        peeker: Peeker,
        board: Scoreboard,
        exchange: Exchange,
    ) -> None:
        self._keepalive_s = order["keepalive_s"]
        self._listeners = [tuple(address) for address in order["listeners"]]
        self._gateways = gateways
        self._first_gateway = next(iter(gateways.values()))
        self._log = log
        self._peeker = peeker
        self._epoll = select.epoll.fromfd(os.dup(order["fds"]["connections"]))
        self._exchange = exchange
        self._origins = Origins(order["fds"]["origins"]) if "origins" in order["fds"] else None
        self._acceptor_words = board.row(0).words
        first, mounts = order["first_row"], list(gateways)
        self.jobs = [Job(number, board.thread_rows(first, mounts, number)) for number in range(order["threads"])]
        self._own = threading.local()
        self._connections: dict[int, Connection] = {}
        self._returned: deque[Connection] = deque()
        self._next_sweep = 0.0
        self._poke = order["fds"]["poke"]
        self._mail_fd = exchange.mail_fd
        self._calls = frozenset((self._poke, self._mail_fd))  # what is no connection
        self._epoll.register(self._poke, select.EPOLLIN)
        if self._mail_fd >= 0:
            self._epoll.register(self._mail_fd, select.EPOLLIN)
        self.draining = False  # give connections back instead of keeping them; set before a poke
        self.last = False  # say `Connection: close` in every response; set before a poke

    def enter_thread(self, number: int) -> None:
        """Say which of the instance's threads the caller is; it alone writes that row of the scoreboard."""
        job = self._own.job = self.jobs[number]
        job.enter()

    def open_connections(self) -> int:
        return len(self._connections)

    def enter_control(self, rows: Mapping[int, Row]) -> None:
        """Say that the caller is the control thread; what it closes counts in its own rows."""
        if not hasattr(self._own, "job"):
            self._own.job = Job(-1, rows)

    def give_back_waiting(self, fd: int) -> None:
        """Return a connection that waits for a thread to the acceptor; by the holder of the baton only."""
        connection = self._connections.get(fd) or self._take_over(fd)
        if connection is not None:
            self._give_back(connection)

    def turn_away(self, fd: int) -> None:
        """Answer 503 to a request that waits; by the holder of the baton only."""
        connection = self._connections.get(fd) or self._take_over(fd)
        if connection is None:
            return
        try:
            data = _peek(connection.sock)
            mount = self._look(data, connection).mount if data else None
            if mount is not None and mount in self._gateways:
                words = self._own.job.rows[mount].words
                words[TURNED_AWAY] += 1
                words[RESPONSES + 5] += 1
                connection.sock.send(_TURNED_AWAY, socket.MSG_DONTWAIT)
                self._linger(connection)
            elif data:
                self._give_back(connection)
            else:
                self._close(connection)
        except OSError:
            self._close(connection)

    # The runner's side.

    def poll(self, wait: bool) -> list[int]:
        """Return connections that have something to say; each is disarmed and the caller's."""
        events = self._epoll.poll(self._poll_timeout() if wait else 0, _MAX_EVENTS)
        calls = self._calls
        ready = [fd for fd, _ in events if fd not in calls]
        is_called = len(ready) != len(events)
        if is_called:
            self._answer_calls([fd for fd, _ in events if fd in calls], ready)
        for fd in ready:
            # Before another thread may poll: it must not take a connection for idle whose request is on its way to be served.
            if (connection := self._connections.get(fd)) is not None:
                connection.idle_since = 0.0
        if self.draining and is_called:
            self._give_back_idle()
        if self._connections and time.monotonic() >= self._next_sweep:
            self._close_expired()
        return ready

    def _answer_calls(self, calls: list[int], ready: list[int]) -> None:
        """Deal with a poke and with mail.

        Args:
            ready: what has come by mail and has something to say is added.
        """
        if self._poke in calls:
            os.eventfd_read(self._poke)
            while self._returned:
                self.keep(self._returned.popleft())
        if self._mail_fd in calls:
            for fd in self._exchange.receive():
                self._epoll.register(fd, ARM_ONCE)
            # At once: an instance that ends polls without waiting, and must not take what it was just given for idle.
            ready += [fd for fd, _ in self._epoll.poll(0, _MAX_EVENTS) if fd not in self._calls]

    def serve(self, fd: int) -> Connection | None:
        """Serve the next request of a connection that `poll` returned; what can go wrong ends that connection only.

        Returns:
            the connection, if it shall wait for its next request: for `keep`, under the baton.
        """
        connection = self._connections.get(fd) or self._take_over(fd)
        if connection is None:
            return None
        job = self._own.job
        kept = False
        try:
            kept = self._serve(connection, job)
        except (OSError, RequestTimeout):  # reset, or given up, between two of our calls
            self._close(connection)
        except Exception:
            self._log.exception("a mistake in isowsgi ended a connection; please report it")
            self._close(connection)
        while job.connection is not None or job.interrupted:
            try:
                job.end()
            except RequestTimeout:  # raised for the request that is over
                continue
        return connection if kept else None

    def keep(self, connection: Connection) -> None:
        """Let a connection wait for its next request, or let the acceptor do so while draining; by the holder of the baton only."""
        if self.draining:
            self._give_back(connection)
            return
        connection.idle_since = time.monotonic()
        self._epoll.modify(connection.fd, ARM_ONCE)

    def keep_later(self, connection: Connection) -> None:
        """Have the holder of the baton keep a connection, from a thread that has lost the baton meanwhile."""
        self._returned.append(connection)
        os.eventfd_write(self._poke, 1)

    def _serve(self, connection: Connection, job: Job) -> bool:
        """Serve one request; True if the connection shall be kept."""
        try:
            data = _peek(connection.sock)
        except BlockingIOError:
            return True  # an event without a byte, as after a checksum error (epoll(7))
        if not data:
            self._close(connection)
            return False
        look = self._look(data, connection)
        gateway = self._gateways.get(look.mount) if look.length else None  # type: ignore[arg-type] # None is no mount's number
        if gateway is None:
            self._give_back(connection)
            return False
        if connection.gateway is not gateway:
            connection.enter(gateway)
        job.begin(connection, data, time.monotonic_ns())
        _consume(connection.sock, look.length)
        words = self._acceptor_words
        last = self.last or not self._keepalive_s or words[AT_CAPACITY] == 1 or words[STOPPING] == 1
        fate = gateway.serve(connection, data, look, last, job.row)
        job.end()  # before anybody else may own the connection
        if fate is Fate.KEEP:
            return True
        if fate is Fate.CLOSE and len(data) == look.length:
            self._close(connection)
        else:
            self._linger(connection)
        return False

    def _look(self, data: bytes, connection: Connection) -> Look:
        """Return what the next request is; nothing to serve if the acceptor should refuse it."""
        try:
            return self._peeker.look(data, connection.peer, first_look=False)
        except (ParseException, Refused):
            return INCOMPLETE

    # Ownership.

    def _take_over(self, fd: int) -> Connection | None:
        sock = socket.socket(fileno=fd)
        facts: dict[str, str]
        try:
            if self._origins is None:
                peer, own_name, facts = sock.getpeername(), sock.getsockname(), {}
            else:
                peer, own_name, facts = self._origins.read(self._exchange.worker_fd(fd))
        except OSError:  # reset before we looked
            self._part(sock, fd)
            return None
        server = self._listener_of(own_name)
        connection = Connection(sock, fd, self._exchange.worker_fd(fd), peer, server, self._first_gateway, facts)
        self._connections[fd] = connection
        return connection

    def _listener_of(self, own_name: Any) -> Any:
        """Return the address of the listener that a connection came by, as gunicorn's workers have it for SERVER_NAME."""
        if not isinstance(own_name, tuple):
            return os.fsdecode(own_name)  # bytes in the abstract namespace
        for listener in self._listeners:
            if listener[1] == own_name[1] and listener[0] in (own_name[0], "0.0.0.0", "::"):
                return listener
        return own_name

    def _give_back(self, connection: Connection) -> None:
        """Return a connection to the acceptor, which routes its next request."""
        self._forget(connection)
        self._exchange.give_back(connection.fd)

    def _linger(self, connection: Connection) -> None:
        """Say that nothing more is sent, and let the acceptor read away what the client still sends (RFC 9112 section 9.6)."""
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client is gone
            self._close(connection)
            return
        self._forget(connection)
        self._exchange.linger(connection.fd)

    def _forget(self, connection: Connection) -> None:
        self._epoll.unregister(connection.fd)
        del self._connections[connection.fd]
        connection.sock.detach()

    def _close(self, connection: Connection) -> None:
        self._connections.pop(connection.fd, None)
        self._part(connection.sock, connection.fd)

    def _part(self, sock: socket.socket, fd: int) -> None:
        if self._mail_fd >= 0:
            # What the worker has lent stays open there, and so would stay armed here, under a number that the next one may get.
            try:
                self._epoll.unregister(fd)
            except OSError:  # it was closed as idle, or by the app
                pass
        self._exchange.close(sock, fd, self._own.job.row.words)

    # Idle connections; only under the runner's baton.

    def _poll_timeout(self) -> float:
        if not self._connections:
            return -1
        return max(self._next_sweep - time.monotonic(), 0.0)

    def _close_expired(self) -> None:
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if connection.idle_since and now - connection.idle_since > self._keepalive_s:
                self._epoll.unregister(connection.fd)
                self._close(connection)
        self._next_sweep = now + _SWEEP_S

    def _give_back_idle(self) -> None:
        for connection in list(self._connections.values()):
            if connection.idle_since:
                self._give_back(connection)


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
