"""An instance's connections: take them over, peek, serve, keep, give back, close.

All connections of an instance are armed in its epoll set, edge-triggered, for as long as it owns them. Only the thread that holds the
runner's baton polls, and only it touches an idle connection. A ready one belongs to the thread that serves it, until it is settled: kept,
given back or closed. That is done under the baton too, as who polls may have its next event in hand. What arrives on a connection that
is not idle only leaves a mark, which is looked at when the connection is kept.
"""

from __future__ import annotations

import math
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from gunicorn.http.errors import ParseException

from isowsgi.inside import forks
from isowsgi.inside.clientsocket import ClientSocket
from isowsgi.inside.deadlines import Job, RequestTimeout
from isowsgi.inside.runner import is_from_outside
from isowsgi.inside.takeover import release
from isowsgi.inside.wsgi import Connection, Fate, Gateway
from isowsgi.shared import answers
from isowsgi.shared.containment import Containment
from isowsgi.shared.handover import ARM_EDGE, Exchange, key_of
from isowsgi.shared.messages import BootOrder
from isowsgi.shared.origins import Origins
from isowsgi.shared.peek import Peeker, Refused, peek
from isowsgi.shared.scoreboard import AT_CAPACITY, RESPONSES, STOPPING, TURNED_AWAY, Row, Scoreboard

# Events taken per system call. They are served one after the other, so a larger batch would only make the last one's wait invisible.
_MAX_EVENTS = 16

# The event of bytes that have come, and nothing else.
_MORE = select.EPOLLIN

# How many times send_timeout the kernel lets a thread wait. It wakes a writer only once a third of a full buffer, of 4 MiB at most, is
# free: so it cannot tell a client that reads slowly from one that reads nothing. `deadlines.Watcher` can; this is in case it does not run.
_SEND_MARGIN = 10

# Told to a client whose request has waited for a thread too long, or came behind too many others.
_TURNED_AWAY = answers.plain(answers.UNAVAILABLE, "The app is busy with other requests. Try again soon.", answers.RETRY_SOON_S)

# How often at most idle connections are looked through for those past their keep-alive time.
_SWEEP_S = 1.0


class Service:
    """Serves the connections handed over to this instance; `poll` and `serve` are the runner's.

    Args:
        gateways: call the apps, by their mounts' numbers.
        peeker: knows which requests are whose.
        board: the worker's scoreboard; `first_row` and the following are this instance's, one for each thread.
        exchange: by which connections come and go.
        containment: the instance's.
    """

    def __init__(
        self,
        order: BootOrder,
        gateways: Mapping[int, Gateway],
        log: Any,
        peeker: Peeker,
        board: Scoreboard,
        exchange: Exchange,
        containment: Containment,
    ) -> None:
        serving, fds = order.serving, order.fds
        assert fds is not None, "the maker of the instance gives it descriptors"
        self._keepalive_s = serving.keepalive_s
        self._receive_limit = _timeval(serving.body_timeout_s)
        self._send_limit = _timeval(_SEND_MARGIN * serving.send_timeout_s)
        self._listeners = [tuple(address) for address in serving.listeners]
        self._only_listener = self._listeners[0] if len(self._listeners) == 1 else None
        self._family = serving.family if fds.origins < 0 else 0  # behind the relay for TLS a connection has another one; 0: ask the kernel
        self._gateways = gateways
        self._first_gateway = next(iter(gateways.values()))
        self._containment = containment
        self._log = log
        self._peeker = peeker
        self._epoll = select.epoll.fromfd(os.dup(fds.connections))
        self._exchange = exchange
        self._origins = Origins(fds.origins) if fds.origins >= 0 else None
        self._acceptor_words = board.row(0).words
        first, mounts = order.place.first_row, list(gateways)
        self.jobs = [Job(number, board.thread_rows(first, mounts, number)) for number in range(serving.threads)]
        self._own = threading.local()
        self._connections: dict[int, Connection] = {}
        self._returned: deque[Connection] = deque()
        self._next_sweep = 0.0
        self._poke = fds.poke
        self._mail_fd = exchange.mail_fd
        self._calls = frozenset((self._poke, self._mail_fd))  # what is no connection
        self._epoll.register(self._poke, select.EPOLLIN)
        if self._mail_fd >= 0:
            self._epoll.register(self._mail_fd, select.EPOLLIN)
        self._is_broken = False  # whether an exception may have come where it does harm, see `repair`
        self.in_service: Callable[[], Iterable[int]] = tuple  # the runner's, once it is known
        self.draining = False  # give connections back instead of keeping them; set before a poke
        self.last = not serving.keepalive_s  # say `Connection: close` in every response; set before a poke

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

    def last_served(self, fd: int) -> tuple[Connection, object]:
        """Return what changes whenever a request of a connection was served; by the holder of the baton only."""
        connection = self._connections[fd]
        return connection, connection.response

    def give_back_waiting(self, fd: int) -> None:
        """Return a connection that waits for a thread to the acceptor; by the holder of the baton only."""
        self._give_back(self._connections[fd])

    def turn_away(self, fd: int) -> None:
        """Answer 503 to a request that waits; by the holder of the baton only."""
        connection = self._connections[fd]
        try:
            data = peek(connection.sock)
            mount = self._mount_of(data, connection) if data else None
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

    def shut_taken_over(self) -> None:
        """End the connections that apps have taken over, websockets for instance: nobody else can, and a drain waits for them."""
        for job in self.jobs:
            connection = job.connection
            if connection is None or not connection.is_taken or (token := job.ending.hold_open()) is None:
                continue
            try:
                if job.connection is connection:
                    connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the client is gone
            finally:
                job.ending.release_open(token)

    # The runner's side.

    def poll(self, wait: bool) -> list[int]:
        """Return connections that have something to say; each is the caller's."""
        connections = self._connections
        # One look at the clock for each poll: whether a sweep is due is known before, and it is made once the events are taken.
        sweep_in_s = self._next_sweep - time.monotonic() if connections else math.inf
        timeout_s = 0.0 if not wait or sweep_in_s <= 0 else sweep_in_s if connections else -1
        events = self._epoll.poll(timeout_s, _MAX_EVENTS)
        ready = []
        calls = []
        for fd, flags in events:
            connection = connections.get(fd)
            if connection is None:
                if fd in self._calls:
                    calls.append(fd)
                elif self._take_over(fd, flags):
                    ready.append(fd)
            elif connection.idle_since:
                # Before another thread may poll: it must not take a connection for idle whose request is on its way to be served.
                connection.idle_since = 0.0
                connection.has_pending_event = flags != _MORE
                ready.append(fd)
            else:
                connection.has_pending_event = True
        if calls:
            self._answer_calls(calls, ready)
            if self.draining:
                self._give_back_idle()
        if sweep_in_s <= 0:
            self._close_expired()
        return ready

    def _answer_calls(self, calls: list[int], ready: list[int]) -> None:
        """Deal with a poke and with mail.

        Args:
            ready: what has come by mail is added; whether or not it has something to say is seen then.
        """
        if self._poke in calls:
            os.eventfd_read(self._poke)
            if self._is_broken:
                self.repair({*self.in_service(), *ready})
            while self._returned:
                self.settle(self._returned.popleft())
        if self._mail_fd in calls:
            for fd in self._exchange.receive():
                self._epoll.register(fd, ARM_EDGE)
                if self._take_over(fd, 0):
                    ready.append(fd)

    def serve(self, fd: int) -> Connection:
        """Serve the next request of a connection that `poll` returned; what can go wrong ends that connection only.

        Returns:
            the connection: for `settle`, under the baton.
        """
        connection = self._connections[fd]
        job = self._own.job
        try:
            connection.fate = self._serve(connection, job)
        except (OSError, RequestTimeout):  # reset, or timed out, between two of our calls
            connection.fate = Fate.CLOSE
        except Exception as exc:
            if is_from_outside(exc):  # the app raises it in its threads, a moment too late
                self._log.warning("%s was raised by another thread between two requests; closing a connection", type(exc).__name__)
            else:
                self._containment.failed("a connection")
            connection.fate = Fate.CLOSE
        if forks.is_copy:  # forked while the app's iterable was read
            forks.leave()
        while job.is_serving:  # before anybody else may own the connection
            try:
                if job.end():
                    connection.fate = Fate.LINGER
            except RequestTimeout:  # raised for the request that is over
                continue
        return connection

    def settle(self, connection: Connection) -> None:
        """Do with a connection what its last request has led to; by the holder of the baton only."""
        fate = connection.fate
        if fate is Fate.KEEP and not self.draining:
            connection.idle_since = time.monotonic()
            if connection.has_pending_event:
                connection.has_pending_event = False
                self._epoll.modify(connection.fd, ARM_EDGE)  # fires at once, if there is something
        elif fate is Fate.CLOSE:
            self._close(connection)
        elif fate is Fate.LINGER:
            self._linger(connection)
        else:
            self._give_back(connection)

    def settle_later(self, connection: Connection) -> None:
        """Have the holder of the baton settle a connection, from a thread that has lost the baton meanwhile."""
        self._returned.append(connection)
        os.eventfd_write(self._poke, 1)

    def abandon(self, fd: int) -> Connection | None:
        """End the calling thread's request, whatever came of it; see `runner.Source`."""
        job = self._own.job
        while job.is_serving:
            try:
                job.end()
            except RequestTimeout:
                continue
        connection = self._connections.get(fd)
        if connection is not None:
            connection.fate = Fate.CLOSE
        return connection

    def repair_later(self) -> None:
        """Have the holder of the baton repair what an exception may have broken."""
        self._is_broken = True
        os.eventfd_write(self._poke, 1)

    def repair(self, in_service: Container[int]) -> None:
        """Find every connection again after an exception in the midst of polling or settling; by the holder of the baton only.

        Events that were taken may be lost. All that is armed is re-armed, and fires if there is something. The kernel knows the
        descriptors, also those that were handed over and not seen yet.
        """
        self._is_broken = False
        for fd, connection in list(self._connections.items()):
            if fd not in in_service and not connection.idle_since and connection not in self._returned:
                connection.idle_since = time.monotonic()
        for fd in armed(self._epoll.fileno()):
            self._epoll.modify(fd, select.EPOLLIN if fd in self._calls else ARM_EDGE)
        os.eventfd_write(self._poke, 1)  # whatever it was for

    def _serve(self, connection: Connection, job: Job) -> Fate:
        """Serve one request."""
        try:
            data = peek(connection.sock)
        except BlockingIOError:
            return Fate.KEEP  # an event for bytes that were taken with a request's body, or without any (epoll(7))
        if not data:
            return Fate.CLOSE
        try:
            look = self._peeker.look(data, connection.peer, first_look=False, fields=connection.plain.block)
        except (ParseException, Refused):
            return Fate.RETURN
        length = look.length
        gateway = self._gateways.get(look.mount) if length else None  # type: ignore[arg-type] # None is no mount's number
        if gateway is None:
            return Fate.RETURN
        if connection.gateway is not gateway:
            connection.enter(gateway)
        has_more = len(data) != length
        if has_more:
            connection.has_pending_event = True  # the event for what follows the head has been
        job.begin(connection, data, time.monotonic_ns())
        taken = len(connection.sock.recv(length))
        if taken != length:
            _consume(connection.sock, length, taken)
        # Not by the row's verbs, as all else that is known of it: each request would pay for two calls more.
        words = self._acceptor_words
        last = self.last or words[AT_CAPACITY] == 1 or words[STOPPING] == 1
        fate = gateway.serve(connection, data, look, last, job.row)
        return Fate.LINGER if has_more and fate is Fate.CLOSE else fate

    def _mount_of(self, data: bytes, connection: Connection) -> int | None:
        """Return whose the next request is; None if it is nobody's here, or the acceptor should refuse it."""
        try:
            return self._peeker.look(data, connection.peer, first_look=False, fields=connection.plain.block).mount
        except (ParseException, Refused):
            return None

    # Ownership.

    def _take_over(self, fd: int, flags: int) -> bool:
        """Become the owner of a connection that was handed over; False if it was reset before we looked."""
        sock = ClientSocket(self._family or socket.AF_INET, fd)
        facts: dict[str, str] = {}
        try:
            # The kernel's limits to a blocking call, so that the threads need no poll of their own. The mount before may have had others.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, self._receive_limit)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, self._send_limit)
            if not self._family:
                family = sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
                if family != socket.AF_INET:
                    sock = ClientSocket(family, sock.detach())
            if self._origins is not None:
                peer, own_name, facts = self._origins.read(self._exchange.worker_fd(fd))
                server = self._listener_of(own_name)
            else:
                peer = sock.getpeername()
                is_only = self._only_listener is not None and isinstance(peer, tuple)
                server = self._only_listener if is_only else self._listener_of(sock.getsockname())
            connection = Connection(sock, fd, key_of(sock, self._exchange.worker_fd(fd)), peer, server, self._first_gateway, facts)
            connection.has_pending_event = flags != _MORE
            self._connections[fd] = connection
        except (OSError, ValueError):  # it was reset, or what is known of it cannot be read
            self._part(sock, fd)
            return False
        except Exception:
            self._containment.failed("incoming connection")
            self._part(sock, fd)
            return False
        return True

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
        release(connection.app_socket)
        connection.sock.detach()

    def _close(self, connection: Connection) -> None:
        self._connections.pop(connection.fd, None)
        release(connection.app_socket)
        self._part(connection.sock, connection.fd)

    def _part(self, sock: socket.socket, fd: int) -> None:
        # Closing the descriptor need not disarm it: the worker has what it lent, and a child process between fork and exec what it
        # inherited. An event of it would be taken for one of the next connection that gets the number.
        try:
            self._epoll.unregister(fd)
        except OSError:  # it is no longer armed
            pass
        self._exchange.close(sock, fd, self._own.job.row.words)

    # Idle connections; only under the runner's baton.

    def _close_expired(self) -> None:
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if connection.idle_since and now - connection.idle_since > self._keepalive_s:
                self._close(connection)
        self._next_sweep = now + _SWEEP_S

    def _give_back_idle(self) -> None:
        for connection in list(self._connections.values()):
            if connection.idle_since:
                self._give_back(connection)


def armed(epoll_fd: int) -> list[int]:
    """Return the descriptors in an epoll set, as the kernel tells them (proc(5))."""
    with open(f"/proc/self/fdinfo/{epoll_fd}", "rb") as file:
        return [int(line.split()[1]) for line in file if line.startswith(b"tfd:")]


def _timeval(seconds: float) -> bytes:
    """Return a time as SO_RCVTIMEO and SO_SNDTIMEO take it; 0 is for ever."""
    return struct.pack("ll", *divmod(math.ceil(seconds * 1_000_000), 1_000_000))


def _consume(sock: socket.socket, length: int, taken: int) -> None:
    """Take the rest of what was peeked at from the connection: a stream may hand over less than it showed."""
    while taken:
        length -= taken
        if not length:
            return
        taken = len(sock.recv(length))
    raise ConnectionResetError("bytes that were there have gone")
