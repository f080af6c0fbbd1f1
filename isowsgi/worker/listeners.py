"""The listening sockets: when to accept, and when there is no room.

There is room while the worker has fewer connections than it may, and while descriptors are left for everything else: the loop's own work,
replacements, the apps' files. The kernel gives the lowest free number, so a connection with a high one shows that few are left. A few
connections are taken even then.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from isowsgi.shared.clientsocket import ClientSocket
from isowsgi.shared.rows import AcceptorRow
from isowsgi.shared.sockettimeouts import INHERITING, STANDARD, has_limits, set_limits
from isowsgi.worker.loop import Loop

# Connections accepted in a row before others are looked at; when the worker stops: more than any queue holds at its default limit.
_ACCEPT_BATCH = 64
_LAST_BATCH = 4096

# For how many wakes at most one connection each is accepted, without asking for a second, after seconds were asked for in vain.
_MOST_LONELY = 15

# Descriptors that connections leave to everything else: a share of all, but so many at least and at most. A replacement takes some ten, and
# what an app opens while it is imported.
_RESERVE_SHARE = 8
_RESERVE_LEAST = 32
_RESERVE_MOST = 512

# Connections that are taken even where the mounts alone need all but the reserve: no connection's close makes room there, and to take none
# would be an outage without an end. As many as a browser opens to one host, and two for a probe and a proxy.
_LEAST_OPEN = 8

# How often it is logged that there are too few: where that is so, it is so for each connection.
_SAY_S = 60.0


def reserve_of(limit: int) -> int:
    """Return how many of a process' descriptors connections leave to everything else."""
    return min(max(limit // _RESERVE_SHARE, _RESERVE_LEAST), _RESERVE_MOST, limit // 2)


def most_connections(limit: int, per_connection: int) -> int:
    """Return how many connections a process can hold with so many descriptors."""
    return max((limit - reserve_of(limit)) // per_connection, 1)


class _Listener:
    """What is known of one listening socket.

    Attributes:
        family: of its connections.
        gives_limits: whether its connections have the limits by themselves, or have none from here: Unix sockets.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.family = int(sock.family)
        self._was_empty = False  # its queue, since its connections should inherit the limits: those before have none
        self.gives_limits = self.family not in INHERITING

    def limit(self) -> None:
        if self.family in INHERITING:
            set_limits(self._sock, STANDARD)

    def look_at(self, sock: socket.socket) -> None:
        """Give a new connection the limits, unless it has them and all that follow will."""
        try:
            if self._was_empty and has_limits(sock, STANDARD):
                self.gives_limits = True
                return
            set_limits(sock, STANDARD)
        except OSError:  # it was reset
            return
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        self._was_empty = not poller.poll(0)


class Listeners:
    """See the module's text. For the acceptor's thread.

    Args:
        loop: on which they are watched.
        listeners: listening sockets, non-blocking; closed by `stop`.
        shared: whether other processes accept from the same ones.
        row: the acceptor's on the scoreboard.
        max_connections: of this worker, here and in its instances.
        count_closed: returns how many connections were closed, here and in the instances; takes long if there are many mounts.
        count_behind: returns how many clients' connections the relay has; None: there is no TLS.
        take: becomes the owner of a connection with its client's address.
        log: gunicorn's logger.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        listeners: Iterable[socket.socket],
        shared: bool,
        row: AcceptorRow,
        max_connections: int,
        count_closed: Callable[[], int],
        count_behind: Callable[[], int] | None,
        take: Callable[[socket.socket, Any], None],
        log: Any,
    ) -> None:
        self._loop = loop
        self._listeners = {listener: _Listener(listener) for listener in listeners}
        self._shared = shared
        # Waking every process for one connection costs all of them; and one process must not take the whole queue then.
        self._events = select.EPOLLIN | (select.EPOLLEXCLUSIVE if shared else 0)
        self._batch = 1 if shared else _ACCEPT_BATCH
        self._row = row
        self._max_connections = max_connections
        self._count_closed = count_closed
        self._count_behind = count_behind
        self._known_closed = 0  # when last counted
        self._take = take
        self._log = log
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._first_reserved = limit - reserve_of(limit) if limit != resource.RLIM_INFINITY else 1 << 30
        self._is_short = False  # of descriptors, when last looked at
        self._say_next = 0.0
        self._is_stopping = False
        self._lonely = 0  # wakes for which one is taken to have come alone
        self._doubt = 0  # of the next ones after that
        self.accepted = 0
        self.is_wanted = False  # whether connections are taken, or would be if there were room
        self.is_accepting = False

    def start(self) -> None:
        for listener in self._listeners.values():
            self._loop.containment.call("listener", listener.limit)
        self.is_wanted = True
        self._set_accepting(True)

    def open_connections(self) -> int:
        """Return how many connections this worker has, here and in its instances."""
        # The board may hold anything. So the figure is kept in bounds: never fewer than before, and at most as many as there were.
        self._known_closed = max(self._known_closed, min(self._count_closed(), self.accepted))
        return self._at_most_open()

    def _at_most_open(self) -> int:
        """Return how many there were if none had been closed since they were counted last."""
        connections = self.accepted - self._known_closed
        # With TLS there are two ends of each, and either may be the last: the app's, or the client's that has not got all of its answer.
        return connections if self._count_behind is None else max(connections, self._count_behind())

    def look(self) -> None:
        """Accept again as soon as there is room; called when a connection was closed at the limit, and about once a second."""
        if self.is_wanted and not self.is_accepting:
            self._set_accepting(self._has_room())

    def stop(self) -> None:
        """Accept what has reached the queues, and close the listeners."""
        self.is_wanted = False
        self._set_accepting(False)
        self._batch, self._is_stopping, self._lonely = _LAST_BATCH, True, 0
        for listener in self._listeners:
            self._loop.containment.call("listener", self._accept, listener)
            listener.close()
        self._listeners.clear()

    def _set_accepting(self, accepting: bool) -> None:
        if accepting == self.is_accepting:
            return
        for listener in self._listeners:
            if accepting:
                self._watch(listener)
            else:
                self._loop.unwatch(listener.fileno())
        self.is_accepting = accepting  # last: what failed is tried again

    def _watch(self, listener: socket.socket) -> None:
        self._loop.unwatch(listener.fileno())
        self._loop.watch(listener.fileno(), lambda: self._on_event(listener), "listener", self._events, is_late=False)

    def _on_event(self, listener: socket.socket) -> None:
        self._accept(listener)
        if self._shared and self.is_accepting:
            # The kernel wakes the process that has waited longest, and keeps waking it: of 60 connections opened one by one 59 reached
            # the same one of three workers. Registered again, it goes to the queue's end.
            try:
                self._watch(listener)
            except OSError:  # no memory just now: it is in no set, and `look` tries again
                self._set_accepting(False)
                raise

    def _accept(self, listener: socket.socket) -> None:
        state = self._listeners[listener]
        for number in range(self._most_now()):
            if not self.is_accepting and not self._is_stopping:
                return
            try:
                fd, peer = listener._accept()  # type: ignore[attr-defined] # `accept` makes a socket with enums, for most of its time
            except BlockingIOError:
                if number == 1:
                    self._doubt = min(2 * self._doubt + 1, _MOST_LONELY)
                    self._lonely = self._doubt
                return
            except OSError as exc:
                if exc.errno == errno.ECONNABORTED:
                    continue
                # Out of descriptors or memory: leave the queue alone until the next look, there is nothing to tell the client with.
                self._pause(f"cannot accept a connection: {exc.strerror or exc}")
                return
            if number == 1:
                self._doubt = 0
            sock = ClientSocket(state.family, fd)
            self.accepted += 1
            self._row.count_accepted()
            # Before it is handed over: the answers to all of them say `Connection: close` from the last one there is room for on.
            if not self._is_stopping:
                if sock.fileno() >= self._first_reserved and not self._has_few():
                    self._pause("nearly all of the worker's file descriptors are in use")
                elif self._at_most_open() >= self._max_connections:
                    self._set_accepting(self._has_room())
            if not state.gives_limits:
                state.look_at(sock)
            self._take(sock, peer)

    def _most_now(self) -> int:
        """Return how many to accept in a row: one, where others have not come with one lately. Each wake would pay for the question."""
        if self._lonely and not self._is_stopping:
            self._lonely -= 1
            return 1
        return self._batch

    def _pause(self, why: str) -> None:
        self._is_short = True
        self._row.set_at_capacity(True)
        self._set_accepting(False)
        if (now := time.monotonic()) >= self._say_next:
            self._say_next = now + _SAY_S
            self._log.error(
                "%s; new connections wait for free descriptors; raise the limit (ulimit -n, LimitNOFILE=) or lower worker_connections",
                why,
            )

    def _has_room(self) -> bool:
        if self._is_short and not self._has_descriptors() and not self._has_few():
            return False
        self._is_short = False
        if self.open_connections() < self._max_connections:
            self._row.set_at_capacity(False)
            return True
        # In this order: an instance that closes a connection now either sees the flag and tells, or is counted here.
        self._row.set_at_capacity(True)
        return self.open_connections() < self._max_connections

    def _has_few(self) -> bool:
        return self._at_most_open() < _LEAST_OPEN or self.open_connections() < _LEAST_OPEN

    def _has_descriptors(self) -> bool:
        try:
            number = os.dup(self._loop.epoll.fileno())
        except OSError:
            return False
        os.close(number)
        return number < self._first_reserved
