"""An instance's requests: wait for one, peek, serve it, and do with its connection what came of it; `connections` has the connections.

All connections of an instance are armed in its epoll set, edge-triggered, for as long as it owns them. Only the thread that holds the
runner's baton polls, and only it touches an idle connection. A ready one belongs to the thread that serves it, until it is settled: kept,
given back or closed. That is done under the baton too, as who polls may have its next event in hand. What arrives on a connection that
is not idle only leaves a mark, which is looked at when the connection is kept.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping
from time import monotonic, monotonic_ns  # by their own names: each request pays for a look into a module
from typing import Any

from gunicorn.http.errors import ParseException

from isowsgi.inside import forks
from isowsgi.inside.connections import MORE, SWEEP_S, Holdings
from isowsgi.inside.deadlines import Job, RequestTimeout
from isowsgi.inside.runner import is_from_outside
from isowsgi.inside.wsgi import Connection, Fate, Gateway
from isowsgi.shared.containment import Containment
from isowsgi.shared.errorgroups import QUEUE
from isowsgi.shared.handover import ARM_EDGE, Exchange
from isowsgi.shared.messages import BootOrder, Limits
from isowsgi.shared.peek import PEEK, PEEK_FIRST_BYTES, Peeker, Refused, peek
from isowsgi.shared.progress import since_last_bytes_ns
from isowsgi.shared.rows import AT_CAPACITY, STOPPING, Region, Row

TYPE_CHECKING = False  # as typing's, without the 2 ms of importing typing
if TYPE_CHECKING:
    from isowsgi.inside.sender import Sender

# Events taken per system call. They are served one after the other, so a larger batch would only make the last one's wait invisible.
_MAX_EVENTS = 16

# For how long nobody has looked at the set, from which on the kernel is asked when a request on a kept connection came: it knows no
# better than its tick. So whoever serves many requests asks for none. And how long a look lasts at least that found nothing at first: what
# it returns has just come then.
_ASK_NS, _WAITED_NS = 10_000_000, 1_000_000

_epoll = select.epoll  # as in `handover`


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
        board: Region,
        exchange: Exchange,
        containment: Containment,
    ) -> None:
        serving, fds = order.serving, order.fds
        assert fds is not None, "the maker of the instance gives it descriptors"
        self._gateways = gateways
        self._containment = containment
        self._log = log
        self.peeker = peeker  # another one may take its place between any two requests
        self._epoll = _epoll.fromfd(os.dup(fds.connections))
        self._exchange = exchange
        self._acceptor_words = board.row(0).words
        first, mounts = order.place.first_row, list(gateways)
        self.jobs = [Job(number, board.thread_rows(first, mounts, number)) for number in range(serving.threads)]
        self._own = threading.local()
        self._holdings = Holdings(
            order, self._epoll, exchange, next(iter(gateways.values())), containment, self._closed_row, board.arrivals()
        )
        self._looked_ns = 0  # monotonic nanoseconds when the set was last looked at
        self._connections = self._holdings.connections  # by their descriptors
        self._returned: deque[Connection] = deque()
        self._poke = fds.poke
        self._mail_fd = exchange.mail_fd
        self._calls = frozenset((self._poke, self._mail_fd))  # what is no connection
        self._epoll.register(self._poke, select.EPOLLIN)
        if self._mail_fd >= 0:
            self._epoll.register(self._mail_fd, select.EPOLLIN)
        self.sender: Sender | None = None  # of files, where the apps are isowsgi's own
        self._is_broken = False  # whether an exception may have come where it does harm, see `repair`
        self.in_service: Callable[[], Iterable[int]] = tuple  # the runner's, once it is known
        self.draining = False  # give connections back instead of keeping them; set before a poke
        self.last = not serving.keepalive_s  # say `Connection: close` in every response; set before a poke

    def enter_thread(self, number: int) -> None:
        """Say which of the instance's threads the caller is; it alone writes that row of the scoreboard."""
        job = self._own.job = self.jobs[number]
        job.enter()

    def set_limits(self, limits: Limits) -> None:
        self._holdings.set_limits(limits)
        if self.sender is not None:
            self.sender.set_limits(limits)

    def open_connections(self) -> int:
        return len(self._connections)

    def enter_control(self, rows: Mapping[int, Row]) -> None:
        """Say that the caller is the control thread; what it closes counts in its own rows."""
        if not hasattr(self._own, "job"):
            self._own.job = Job(-1, rows)

    def _closed_row(self) -> memoryview:
        """Return the words of the row where the calling thread counts what it closes."""
        words: memoryview = self._own.job.row.words
        return words

    def last_served(self, fd: int) -> tuple[Connection, object]:
        """Return what changes whenever a request of a connection was served; by the holder of the baton only."""
        connection = self._connections[fd]
        return connection, connection.response

    def give_back_waiting(self, fd: int) -> None:
        """Return a connection that waits for a thread to the acceptor; by the holder of the baton only."""
        self._holdings.give_back(self._connections[fd])

    def turn_away(self, fd: int, answer: bytes) -> None:
        """Answer a request that waits, by 503, and count it as turned away; by the holder of the baton only."""
        connection = self._connections[fd]
        try:
            data = peek(connection.sock)
            mount = self._mount_of(data, connection) if data else None
            if mount is not None and mount in self._gateways:
                self._own.job.rows[mount].count_turned_away()
                line = data.partition(b"\r\n")[0].decode("latin-1")
                self._gateways[mount].errors.add(mount, QUEUE, "503 Service Unavailable", line, "its queue was full or too slow")
                connection.sock.send(answer, socket.MSG_DONTWAIT)
                self._holdings.linger(connection)
            elif data:
                self._holdings.give_back(connection)
            else:
                self._holdings.close(connection)
        except OSError:
            self._holdings.close(connection)

    # The runner's side.

    def poll(self, wait: bool) -> list[int]:
        """Return connections that have something to say; each is the caller's."""
        connections = self._connections
        looked_ns = self._looked_ns
        timeout_s = (SWEEP_S if connections else -1) if wait else 0
        began_ns = monotonic_ns()
        events = self._epoll.poll(timeout_s, _MAX_EVENTS)
        self._looked_ns = now_ns = monotonic_ns()
        is_vague = began_ns - looked_ns > _ASK_NS and now_ns - began_ns < _WAITED_NS
        ready: list[int] = []
        calls: list[int] = []
        for fd, flags in events:
            connection = connections.get(fd)
            if connection is None:
                if fd in self._calls:
                    calls.append(fd)
                elif self._holdings.take_over(fd, flags):
                    ready.append(fd)
            elif connection.idle_since:
                # Before another thread may poll: it must not take a connection for idle whose request is on its way to be served.
                connection.idle_since = 0.0
                connection.has_pending_event = flags != MORE
                connection.arrived_ns = now_ns - since_last_bytes_ns(connection.sock) if is_vague else now_ns
                ready.append(fd)
            else:
                connection.has_pending_event = True
        if calls:
            self._answer_calls(calls, ready)
            if self.draining:
                self._holdings.give_back_idle()
        if now_ns >= self._holdings.next_sweep_ns:
            self._holdings.close_expired()
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
                connection = self._returned.popleft()
                if connection.fate is not Fate.SEND:
                    connection.count_sent(self._own.job.rows)
                self.settle(connection)
        if self._mail_fd in calls:
            for fd in self._exchange.receive():
                self._epoll.register(fd, ARM_EDGE)
                if self._holdings.take_over(fd, 0):
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
                    connection.count_sent(job.rows)
                    connection.fate = Fate.LINGER
                break
            except RequestTimeout:  # raised for the request that is over
                continue
        return connection

    def settle(self, connection: Connection) -> None:
        """Do with a connection what its last request has led to; by the holder of the baton only."""
        fate = connection.fate
        if fate is Fate.KEEP and not self.draining:
            connection.idle_since = monotonic()
            if connection.has_pending_event:
                connection.has_pending_event = False
                self._epoll.modify(connection.fd, ARM_EDGE)  # fires at once, if there is something
        elif fate is Fate.CLOSE:
            self._holdings.close(connection)
        elif fate is Fate.LINGER:
            self._holdings.linger(connection)
        elif fate is Fate.SEND:
            assert self.sender is not None, "nothing is left to it else"
            self.sender.take(connection)
        else:
            self._holdings.give_back(connection)

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
            is_elsewhere = fd in in_service or connection in self._returned or connection.sending is not None
            if not is_elsewhere and not connection.idle_since:
                connection.idle_since = monotonic()
        for fd in self._armed():
            self._epoll.modify(fd, select.EPOLLIN if fd in self._calls else ARM_EDGE)
        os.eventfd_write(self._poke, 1)  # whatever it was for

    def _armed(self) -> list[int]:
        try:
            return armed(self._epoll.fileno())
        except PermissionError:  # /proc/self is out of reach in the sandbox of a copy; but all that comes by mail was seen
            return [*(fd for fd in self._calls if fd >= 0), *self._connections]

    def _serve(self, connection: Connection, job: Job) -> Fate:
        """Serve one request."""
        sock = connection.sock
        try:
            data = sock.recv(PEEK_FIRST_BYTES, PEEK)
            if (size := len(data)) == PEEK_FIRST_BYTES:
                data = peek(sock)
                size = len(data)
        except BlockingIOError:
            return Fate.KEEP  # an event for bytes that were taken with a request's body, or without any (epoll(7))
        if not size:
            return Fate.CLOSE
        peeker, block = self.peeker, connection.plain.block
        end = data.find(b"\n")
        line, repeats = peeker.known.get(data[:end]), True
        if line is not None and block and data.startswith(block, end):  # as `find` has it, which most requests need not call
            length, mount = end + len(block), line.mount
        else:
            try:
                length, mount, line, repeats = peeker.find(data, connection.peer, False, block)
            except (ParseException, Refused):
                return Fate.RETURN
        gateway = connection.gateway
        if gateway.mount != mount:  # another one than the request before
            if mount is None or mount not in self._gateways:
                return Fate.RETURN
            gateway = self._gateways[mount]
            connection.enter(gateway)
        if has_more := size != length:
            connection.has_pending_event = True  # the event for what follows the head has been
        began_ns = monotonic_ns()
        connection.waiting_ns = began_ns - connection.arrived_ns
        job.begin(connection, gateway.mount, data, began_ns)
        if (taken := len(sock.recv(length))) != length:
            _consume(sock, length, taken)
        # Not by the row's verbs, as all else that is known of it: each request would pay for two calls more.
        words = self._acceptor_words
        last = self.last or words[AT_CAPACITY] | words[STOPPING]
        fate = gateway.serve(connection, data, length, line, repeats, last, job.row)
        if fate is Fate.SEND:
            job.pass_on()
        return Fate.LINGER if has_more and fate is Fate.CLOSE else fate

    def _mount_of(self, data: bytes, connection: Connection) -> int | None:
        """Return whose the next request is; None if it is nobody's here, or the acceptor should refuse it."""
        try:
            return self.peeker.look(data, connection.peer, first_look=False, fields=connection.plain.block).mount
        except (ParseException, Refused):
            return None


def armed(epoll_fd: int) -> list[int]:
    """Return the descriptors in an epoll set, as the kernel tells them (proc(5))."""
    with open(f"/proc/self/fdinfo/{epoll_fd}", "rb") as file:
        return [int(line.split()[1]) for line in file if line.startswith(b"tfd:")]


def _consume(sock: socket.socket, length: int, taken: int) -> None:
    """Take the rest of what was peeked at from the connection: a stream may hand over less than it showed."""
    while taken:
        length -= taken
        if not length:
            return
        taken = len(sock.recv(length))
    raise ConnectionResetError("bytes that were there have gone")
