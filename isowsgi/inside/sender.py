"""Sends files to clients that take them slowly: all of them in one thread, with an epoll set of its own.

Only for files that isowsgi itself serves. The thread that serves a request sends the head and what the client takes quickly. What is left
is the sender's (`wsgi.Fate.SEND`), and that thread serves the next request. The connection stays its instance's meanwhile: what arrives on
it leaves a mark, as while any request is served. Once all is sent, whoever holds the runner's baton counts the request and settles what
becomes of the connection, as after any other.

The connection does not block while the sender has it, and nobody else writes to it.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from isowsgi.inside.deadlines import ClientWait, Patience
from isowsgi.inside.http import ClientGone, Response
from isowsgi.inside.wsgi import Connection, Fate, Gateway, is_read
from isowsgi.shared.containment import Containment
from isowsgi.shared.errorgroups import CUT, TIMEOUT
from isowsgi.shared.messages import Limits
from isowsgi.shared.progress import delivered
from isowsgi.shared.rows import SENDS, TIMEOUTS, Row

TYPE_CHECKING = False  # as typing's, without the 2 ms of importing typing
if TYPE_CHECKING:
    from isowsgi.inside.serve import Service

# Files on their way at a time: each has a descriptor beside its connection's. So a part of those that a process may have, and never more
# than a thread looks after a few times a second without being seen (0.3 ms for 1,000). More are sent by the threads, which wait then.
_MOST, _SHARE_OF_DESCRIPTORS = 1000, 8

# How often it is looked who takes nothing: as `controlthread` does for requests.
_LOOK_S = 0.25

_MAX_EVENTS = 64

_epoll = select.epoll  # as in `handover`


class Sending:
    """A response of which the sender has the rest."""

    __slots__ = ("body", "client", "environ", "has_timed_out", "request", "response", "since_ns", "words")

    def __init__(self, request: Any, response: Response, environ: dict[str, Any], body: Any) -> None:
        self.request = request
        self.response = response
        self.environ = environ
        self.body = body  # has the file, and closes it
        self.since_ns = time.monotonic_ns()
        self.client = ClientWait()
        self.has_timed_out = False  # for lack of progress
        self.words: memoryview | None = None  # of the row that says that it is being sent

    def begin(self, row: Row) -> None:
        """Say that it is being sent; as `count`, by the holder of the baton."""
        self.words = row.words
        self.words[SENDS] += 1

    def count(self, row: Row, connection: Connection) -> None:
        """Count the request, which has ended."""
        if self.words is not None:
            self.words[SENDS] -= 1
        response = self.response
        elapsed_ns = time.monotonic_ns() - began_ns(connection)
        row.end_slow(elapsed_ns, connection.waiting_ns, min(response.sending_ns, elapsed_ns), 0, response.sent)
        if self.has_timed_out:
            row.words[TIMEOUTS] += 1


def began_ns(connection: Connection) -> int:
    """Return when a thread began to serve a connection's current request, in monotonic nanoseconds."""
    return connection.arrived_ns + connection.waiting_ns


class Sender:
    """See the module's text.

    Args:
        service: the instance's; settles what becomes of each connection.
        log: the instance's.
        limits: how long clients are waited for.
        rows: the instance's control rows, by the mount's number.
        containment: the instance's.
        count_error: as `deadlines.Watcher` has it.
        run_in_thread: calls what it is given, in a thread of the instance's own.
    """

    def __init__(
        self,
        service: Service,
        log: Any,
        limits: Limits,
        rows: Mapping[int, Row],
        containment: Containment,
        count_error: Callable[[int, str, str, str, str, str], None],
        run_in_thread: Callable[[Callable[[], None]], None],
    ) -> None:
        self._service = service
        self._log = log
        self._rows = rows
        self._containment = containment
        self._count_error = count_error
        self.set_limits(limits)
        self._most = min(_MOST, max(os.sysconf("SC_OPEN_MAX"), 0) // _SHARE_OF_DESCRIPTORS or _MOST)
        self._connections: dict[int, Connection] = {}  # by their descriptors
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = _epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self._is_ended = False
        self._thread = threading.Thread(target=run_in_thread, args=(self._run,), name="isowsgi-sender", daemon=True)

    def set_limits(self, limits: Limits) -> None:
        self._patience = Patience(limits.body_timeout_s, limits.send_timeout_s, limits.min_rate)
        self._timeout_s = limits.request_timeout_s

    def start(self, gateways: Iterable[Gateway]) -> None:
        """Start the thread, and have files left to it by what calls the apps; before the first request.

        Raises:
            RuntimeError: the system has no room for another one.
        """
        try:
            self._thread.start()
        except RuntimeError:
            self._close()
            raise
        for gateway in gateways:
            gateway.sender = self

    # For the threads that serve.

    def takes(self, response: Response) -> bool:
        """Whether a response may be left: there is room, and nothing of the request is left to be read."""
        return len(self._connections) < self._most and is_read(response.body)

    def left(self, response: Response, environ: dict[str, Any], body: Any) -> Sending:
        """Return what `take` finds with the connection."""
        return Sending(response.req, response, environ, body)

    # For the holder of the runner's baton.

    def take(self, connection: Connection) -> None:
        """Send the rest that is left on a connection, which comes back by `Service.settle_later`."""
        assert connection.sending is not None, "its fate says so"
        self._connections[connection.fd] = connection
        try:
            connection.sending.begin(self._rows[connection.gateway.mount])
            self._epoll.register(connection.fd, select.EPOLLOUT)
            if len(self._connections) == 1:
                os.eventfd_write(self._wake, 1)  # what takes nothing now is no event, and must be looked at all the same
        except Exception as exc:  # no memory in the kernel, mostly; it must not be left to nobody
            self._finish(connection, exc)

    def finish(self) -> None:
        """Wait until all is sent, and end the thread; once those that serve have ended, so that nobody else has the baton."""
        service = self._service
        service.enter_control(service.jobs[0].rows)
        while self._thread.is_alive() and any(row.words[SENDS] for row in self._rows.values()):
            if not self._containment.call("files on their way", self._settle_some):
                time.sleep(_LOOK_S)  # no memory in the kernel, mostly
        self._is_ended = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._close()

    def _settle_some(self) -> None:
        """Wait until something has been sent, or comes; nothing that comes now is served here."""
        for fd in self._service.poll(True):
            self._service.give_back_waiting(fd)

    def _close(self) -> None:
        self._epoll.close()
        os.close(self._wake)

    # The thread.

    def _run(self) -> None:
        next_look = 0.0
        while not self._is_ended:
            for fd, _ in self._epoll.poll(_LOOK_S if self._connections else -1, _MAX_EVENTS):
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                elif (connection := self._connections.get(fd)) is not None:
                    self._containment.call("a file on its way", self._go_on, connection)
            now = time.monotonic()
            if now >= next_look:
                next_look = now + _LOOK_S
                for connection in list(self._connections.values()):
                    self._containment.call("a file on its way", self._look_at, connection, now)

    def _go_on(self, connection: Connection) -> None:
        """Send a client its next share; whatever goes wrong ends that response."""
        sending = connection.sending
        assert sending is not None, "it is not settled yet"
        response = sending.response
        assert response.unsent is not None, "that is why it is here"
        problem: Exception | None = None
        try:
            if not response.send_part(response.unsent):
                return
        except Exception as exc:
            problem = exc
        self._finish(connection, problem)

    def _look_at(self, connection: Connection, now: float) -> None:
        """Part from a client that takes nothing, or too little."""
        sending = connection.sending
        assert sending is not None, "it is not settled yet"
        taken, client = delivered(connection.sock), sending.client
        client.look(now, 1, "send", 0, taken)
        moved = sending.response.sent if connection.sock.family == socket.AF_UNIX else client.taken()
        fault = self._patience.fault("send", client.waited_s, client.still_s, moved)
        if not fault and self._timeout_s and client.still_s >= self._timeout_s:
            sending.has_timed_out = True
            fault = f"no progress for {client.still_s:.1f} s"
        if fault:
            line = f"{sending.request.method} {sending.request.uri}"
            kind, type_ = (TIMEOUT, "response cut") if sending.has_timed_out else (CUT, "client too slow")
            self._log.info("%s; closing its connection: %s", fault, line)
            self._count_error(connection.gateway.mount, kind, type_, line, fault, "")
            self._finish(connection, TimeoutError(fault))

    def _finish(self, connection: Connection, problem: Exception | None) -> None:
        """Close the file, log the response, and have the connection settled.

        Args:
            problem: for which not all is sent.
        """
        sending = connection.sending
        assert sending is not None, "it is not settled yet"
        del self._connections[connection.fd]
        fate = Fate.CLOSE
        try:
            fate = self._end_response(connection, sending, problem)
        except Exception:
            self._containment.failed("the end of a file")
        # Not in the middle of it: from here on it may be closed, and its number be another connection's.
        connection.fate = fate
        self._service.settle_later(connection)

    def _end_response(self, connection: Connection, sending: Sending, problem: Exception | None) -> Fate:
        request, response = sending.request, sending.response
        response.sending_ns += time.monotonic_ns() - sending.since_ns
        try:
            self._epoll.unregister(connection.fd)
        except OSError:  # it could not be registered
            pass
        sending.body.close()
        os.set_blocking(connection.fd, True)
        if self._log.access_enabled:
            elapsed_s = (time.monotonic_ns() - began_ns(connection)) / 1e9
            connection.gateway.log_access(response, sending.environ, elapsed_s)
        if problem is None:
            fate = connection.gateway.fate(connection, response)
            return Fate.LINGER if fate is Fate.CLOSE and connection.has_pending_event else fate
        if isinstance(problem, ClientGone):
            self._log.debug("the client closed the connection early: %s", problem)
        elif not isinstance(problem, TimeoutError):
            text = "cannot send the rest of a file; closing the connection: %s %s: %s"
            self._log.error(text, request.method, request.uri, problem)
        return Fate.CLOSE
