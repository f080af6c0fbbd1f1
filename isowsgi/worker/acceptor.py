"""The acceptor: accept, peek, route, hand over. One thread of the main interpreter, one epoll set, no blocking call but the poll.

It holds connections that have no instance to serve them: those whose head is not complete, those whose mount is still booting, and those
that only wait for their client to stop sending before they are closed. It consumes no byte of a request it hands over, so a slow or
half-sent head costs a descriptor and no thread.

A descriptor that fires in the acceptor's set and is not known there was given back by an instance: its next request is another
mount's, or the instance drains.
"""

from __future__ import annotations

import errno
import html
import math
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, Protocol

from gunicorn.http.errors import ParseException
from gunicorn.http.wsgi import default_environ

from isowsgi.shared.handover import ARM_EDGE
from isowsgi.shared.origins import Origin, Origins
from isowsgi.shared.peek import INCOMPLETE, PEEK_MAX_BYTES, Peeker, Refused, peek
from isowsgi.shared.scoreboard import ACCEPTED, AT_CAPACITY, CLOSED, RESPONSES, STOPPING, Scoreboard
from isowsgi.worker.proxyheader import Header

# How long, and how many bytes, a refused client may go on sending before its connection is closed: gunicorn.util.close_graceful's. Of the
# bytes twice as many: a head may be refused because it is too large to be peeked at, and then all of it is still to be read.
LINGER_S = 2.0
LINGER_MAX_BYTES = 2 * PEEK_MAX_BYTES

# How long a stopping worker waits for the next request on an idle connection: gunicorn gthread's STOP_KEEPALIVE_LINGER.
STOP_IDLE_S = 2.0

# Told to clients with a 503.
_RETRY_AFTER_S = 10

# Connections accepted in a row before others are looked at.
_ACCEPT_BATCH = 64

_SWEEP_S = 1.0

# Share of head_timeout that a connection may take for its head before it yields to a new one, if there are as many as there may be.
YIELD_SHARE = 0.1


class NotServing(Enum):
    """Why a mount has no instance for a request just now."""

    BOOTING = "its app is being loaded"
    FAILED = "its app could not be loaded"


class Home(Protocol):
    """What the acceptor needs of an instance."""

    def give(self, fd: int) -> None: ...


class Relay(Protocol):
    """What the acceptor needs of that which ends TLS, see `tls.Relay`."""

    def fileno(self) -> int: ...
    def take(self, sock: socket.socket, peer: Any) -> None: ...
    def results(self) -> Iterable[tuple[socket.socket | None, Any, Exception | None]]: ...
    def open_connections(self) -> int: ...
    def make_room(self) -> None: ...
    def stop(self) -> None: ...


class Phase(Enum):
    PEEKING = "its request's head is not complete"
    PARKED = "its mount is booting"
    LINGERING = "it was answered, and what the client still sends is thrown away"


class Client:
    """A connection while the acceptor owns it."""

    __slots__ = ("armed_in", "began", "deadline", "discarded", "is_new", "line_seen", "mount", "peer", "phase", "sock")

    def __init__(self, sock: socket.socket, peer: Any, deadline: float, armed_in: select.epoll | None) -> None:
        self.sock = sock
        self.peer = peer
        self.deadline = deadline
        self.armed_in = armed_in  # None: not armed yet
        self.phase = Phase.PEEKING
        self.is_new = False  # whether a PROXY header may come before its request
        self.began = False  # whether a first byte of the head came; the deadline is the head's then
        self.line_seen = False  # whether the request line came and was checked
        self.mount = -1  # while PARKED
        self.discarded = 0  # bytes, while LINGERING


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """A look inside, for tests and the log."""

    accepted: int
    open: int
    peeking: int
    parked: int
    lingering: int
    wakeups: int


class Acceptor:
    """See the module's text. All methods are for the thread that calls `turn`.

    Args:
        listeners: listening sockets, non-blocking; the acceptor's from here on.
        peeker: knows all mounts.
        choose: returns the instance that shall have a mount's next request, or why there is none.
        board: the worker's scoreboard.
        log: gunicorn's logger.
        refuse_by_gunicorn: answers a parse error: takes the socket, the client's address and the exception.
        head_timeout_s: how long a head may take from its first byte (or from accept) to its last.
        keepalive_s: how long a connection that came back may be idle.
        max_connections: over this instance's and all instances' connections.
        shared: whether other processes accept from the same listeners.
        origins: where connections come from whose sockets do not say; None: all do.
        relay: ends TLS, if clients speak it.
        proxy_header: reads the PROXY header before a connection's first request: takes the bytes so far and the client's address, see
            `proxyheader.Reader`. None: there is none.
    """

    def __init__(
        self,
        *,
        listeners: Iterable[socket.socket],
        peeker: Peeker,
        choose: Callable[[int], Home | NotServing],
        board: Scoreboard,
        log: Any,
        refuse_by_gunicorn: Callable[[socket.socket, Any, Exception], None],
        head_timeout_s: float,
        keepalive_s: float,
        max_connections: int,
        shared: bool,
        origins: Origins | None = None,
        relay: Relay | None = None,
        proxy_header: Callable[[bytes, Any], Header | None] | None = None,
    ) -> None:
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._peeker = peeker
        self._choose = choose
        self._board = board
        self._words = board.row(0).words
        self._log = log
        self._refuse_by_gunicorn = refuse_by_gunicorn
        self._head_timeout_s = head_timeout_s
        self._keepalive_s = keepalive_s
        self._max_connections = max_connections
        # Waking every process for one connection costs all of them; and one process must not take the whole queue then.
        self._arm_listener = select.EPOLLIN | (select.EPOLLEXCLUSIVE if shared else 0)
        self._batch = 1 if shared else _ACCEPT_BATCH
        self._shared = shared
        self._origins = origins
        self._relay = relay
        self._proxy_header = proxy_header
        self._epoll = select.epoll()
        self._lingering = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._wanting_room: dict[int, Callable[[], None]] = {}
        self._clients: dict[int, Client] = {}
        self._accepting = False
        self._wants_accepting = False
        self._stopping = False
        self._accepted = 0
        self._closed = 0  # here
        self._known_closed = 0  # here and in the instances, when last counted
        self._wakeups = 0
        self._next_sweep = 0.0
        self._next_yield = 0.0
        self.watch(self._lingering.fileno(), self._take_lingering)
        if relay is not None:
            self.watch(relay.fileno(), self._take_decrypted)

    @property
    def returns_fd(self) -> int:
        """Return the epoll set in which instances arm connections that they give back."""
        return self._epoll.fileno()

    @property
    def lingering_fd(self) -> int:
        """Return the epoll set in which instances arm connections that are answered and must be closed gently."""
        return self._lingering.fileno()

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back whenever a descriptor that is no connection becomes readable; the callback reads it empty."""
        self._epoll.register(fd, select.EPOLLIN)
        self._watched[fd] = callback

    def watch_room(self, fd: int, callback: Callable[[], None] | None) -> None:
        """Call back too whenever something can be written to a descriptor that is watched; None ends that."""
        if callback is None:
            if self._wanting_room.pop(fd, None) is not None:
                self._epoll.modify(fd, select.EPOLLIN)
        elif fd not in self._wanting_room:
            self._wanting_room[fd] = callback
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)

    def unwatch(self, fd: int) -> None:
        del self._watched[fd]
        self._wanting_room.pop(fd, None)
        self._epoll.unregister(fd)

    def turn(self, timeout_s: float) -> None:
        """Wait for events and deal with them, and with deadlines; the loop's one step."""
        reports = []
        for fd, flags in self._epoll.poll(timeout_s, 256):
            self._wakeups += 1
            if fd in self._watched:
                if flags & select.EPOLLOUT and fd in self._wanting_room:
                    reports.append(self._wanting_room[fd])
                if flags & ~select.EPOLLOUT:
                    reports.append(self._watched[fd])
            elif fd in self._listeners:
                self._accept(self._listeners[fd])
                if self._shared and self._accepting:
                    # The kernel wakes the process that waits longest of all, and goes on waking it: of 60 connections opened one by
                    # one 59 reached the same one of three workers. Registered anew, it goes to the queue's end.
                    self._epoll.unregister(fd)
                    self._epoll.register(fd, self._arm_listener)
            else:
                self._on_client(fd, flags)
        # Last, for a mount that has come up is handed the connections that waited for it. An event of one of these, polled before that
        # and looked at after it, would pass for a connection given back, and it would have two owners.
        for report in reports:
            report()
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_S
            self._close_expired(now)
            self.on_capacity()
        # Behind the events too: none of them may be of a connection that was closed meanwhile.
        if self._wants_accepting and not self._accepting and now >= self._next_yield and not self._make_room(now):
            self._next_yield = now + _SWEEP_S

    def start_accepting(self) -> None:
        self._wants_accepting = True
        self._set_accepting(True)

    def release(self, mount: int) -> None:
        """Look again at the connections that wait for a mount: it serves now, or never will."""
        for client in list(self._clients.values()):
            if client.phase is Phase.PARKED and client.mount == mount:
                client.phase = Phase.PEEKING
                self._look(client)

    # Connections that a child process had: none of them is armed here.

    def take_back(self, fd: int) -> None:
        """Own a connection whose next request is to be routed."""
        if (client := self._own(fd)) is not None:
            self._look(client)

    def take_lingering(self, fd: int) -> None:
        """Own a connection that was answered, and close it gently."""
        if (client := self._own(fd)) is not None:
            self._linger(client)

    def take_closed(self, fd: int) -> None:
        """Close a connection."""
        socket.socket(fileno=fd).close()
        self._closed += 1
        self.on_capacity()

    def _own(self, fd: int) -> Client | None:
        idle_s = STOP_IDLE_S if self._stopping else self._keepalive_s
        client = self._clients[fd] = Client(socket.socket(fileno=fd), None, time.monotonic() + idle_s, None)
        return client if self._learn_peer(client) else None

    def _learn_peer(self, client: Client) -> bool:
        try:
            client.peer = client.sock.getpeername() if self._origins is None else self._origins.read(client.sock.fileno()).peer
        except OSError:  # reset meanwhile
            self._close(client)
            return False
        return True

    def stop(self) -> None:
        """Accept what has reached the listeners' queues and close them; idle connections get little time to say something."""
        self._wants_accepting = False
        self._set_accepting(False)
        self._batch = 4096  # more than any queue holds at its default limit
        self._stopping = True
        # Here and not with the order to the instances, which takes a moment to be read: told to keep its connection, a client would send
        # into it just when it is closed as idle.
        self._words[STOPPING] = 1
        for listener in self._listeners.values():
            self._accept(listener)
            listener.close()
        self._listeners.clear()
        if self._relay is not None:
            self._relay.stop()
        limit = time.monotonic() + STOP_IDLE_S
        for client in self._clients.values():
            if client.phase is Phase.PEEKING and not client.began:
                client.deadline = min(client.deadline, limit)

    def open_connections(self) -> int:
        """Return how many connections this worker has, here and in its instances."""
        self._known_closed = self._closed + self._board.total(CLOSED)  # which takes long if there are many mounts
        return self._at_most_open()

    def _at_most_open(self) -> int:
        """Return how many there were if none had been closed since they were counted last."""
        connections = self._accepted - self._known_closed
        # With TLS there are two ends of each, and either may be the last: the app's, or the client's that has not got all of its answer.
        return connections if self._relay is None else max(connections, self._relay.open_connections())

    @property
    def is_accepting(self) -> bool:
        """Whether it takes connections, or would if there were not as many as there may be."""
        return self._wants_accepting

    def parked(self) -> Counter[int]:
        """Return how many requests wait for each mount to boot."""
        return Counter(client.mount for client in self._clients.values() if client.phase is Phase.PARKED)

    def statistics(self) -> Statistics:
        phases = [client.phase for client in self._clients.values()]
        return Statistics(
            accepted=self._accepted,
            open=self.open_connections(),
            peeking=phases.count(Phase.PEEKING),
            parked=phases.count(Phase.PARKED),
            lingering=phases.count(Phase.LINGERING),
            wakeups=self._wakeups,
        )

    def on_capacity(self) -> None:
        """Accept again as soon as there is room; called when a connection was closed at the limit, here or by an instance."""
        if self._wants_accepting and not self._accepting:
            self._set_accepting(self._has_room())

    # Listeners.

    def _set_accepting(self, accepting: bool) -> None:
        if accepting == self._accepting:
            return
        self._accepting = accepting
        for fd in self._listeners:
            if accepting:
                self._epoll.register(fd, self._arm_listener)
            else:
                self._epoll.unregister(fd)

    def _has_room(self) -> bool:
        if self.open_connections() < self._max_connections:
            self._words[AT_CAPACITY] = 0
            return True
        # In this order: an instance that closes a connection now either sees the flag and tells, or is counted here.
        self._words[AT_CAPACITY] = 1
        return self.open_connections() < self._max_connections

    def _make_room(self, now: float) -> bool:
        """Close the connection that has taken longest for its head, if it has taken long, and accept again; False if there surely is none.

        Otherwise slow clients, once they are as many as there may be connections, would keep all others out until head_timeout. As nginx
        reuses idle connections. No answer: that would hold the connection for LINGER_S more.
        """
        latest = now + (1 - YIELD_SHARE) * self._head_timeout_s
        for client in self._clients.values():  # the oldest come first
            if client.phase is Phase.PEEKING and client.deadline < latest:
                self._close(client)
                return True
        if self._relay is not None:
            self._relay.make_room()  # and if it does, its result comes as an event
        return self._relay is not None

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(self._batch):
            if not self._accepting and not self._stopping:
                return
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno == errno.ECONNABORTED:
                    continue
                # Out of descriptors or memory: leave the queue alone until the next sweep, there is nothing to tell the client with.
                self._log.error("cannot accept a connection: %s; the next try is in %d s", exc, _SWEEP_S)
                self._set_accepting(False)
                return
            self._accepted += 1
            self._words[ACCEPTED] += 1
            # Before it is handed over: the answers to all of them say `Connection: close` from the last one there is room for on.
            if not self._stopping and self._at_most_open() >= self._max_connections:
                self._set_accepting(self._has_room())
            if self._relay is not None:
                self._relay.take(sock, peer)
            else:
                self._begin(sock, peer)

    def _take_decrypted(self) -> None:
        """Become the owner of connections whose clients have said something over TLS, and of those that do not speak it."""
        assert self._relay is not None, "it is watched"
        for sock, peer, refusal in self._relay.results():
            if sock is None:
                self._closed += 1
            elif refusal is None:
                self._begin(sock, peer)
            else:
                client = self._clients[sock.fileno()] = Client(sock, peer, math.inf, None)
                self._refuse_by_gunicorn(sock, peer, refusal)
                self._linger(client)
        self.on_capacity()

    def _begin(self, sock: socket.socket, peer: Any) -> None:
        client = Client(sock, peer, time.monotonic() + self._head_timeout_s, None)
        client.is_new = self._proxy_header is not None
        self._clients[sock.fileno()] = client
        self._look(client)

    # Connections.

    def _on_client(self, fd: int, flags: int) -> None:
        client = self._clients.get(fd) or self._take_back(fd)
        if client is None:
            return
        # A hang-up says that nothing more will come, not that nothing is left to read: both sides have ended theirs, or the client of a
        # Unix socket has closed it.
        if flags & select.EPOLLERR or (flags & select.EPOLLHUP and client.phase is Phase.PARKED):
            self._close(client)
        elif client.phase is Phase.PEEKING:
            self._look(client, hung_up=bool(flags & (select.EPOLLRDHUP | select.EPOLLHUP)))
        elif client.phase is Phase.LINGERING:
            self._discard(client)

    def _take_back(self, fd: int) -> Client | None:
        """Become the owner of a connection that an instance gave back; it is armed in our set already."""
        idle_s = STOP_IDLE_S if self._stopping else self._keepalive_s
        client = Client(socket.socket(fileno=fd), None, time.monotonic() + idle_s, self._epoll)
        self._clients[fd] = client
        return client if self._learn_peer(client) else None

    def _take_lingering(self) -> None:
        """Become the owner of connections that an instance has answered and shut down for writing."""
        for fd, flags in self._lingering.poll(0, 256):
            client = self._clients.get(fd)
            if client is None:
                client = Client(socket.socket(fileno=fd), None, time.monotonic() + LINGER_S, self._lingering)
                client.phase = Phase.LINGERING
                self._clients[fd] = client
            if flags & select.EPOLLERR:
                self._close(client)
            else:
                self._discard(client)

    def _look(self, client: Client, hung_up: bool = False) -> None:
        """Peek at a head and do what can be done with it."""
        data = b""
        try:
            data = peek(client.sock)
            is_over = not data
            if client.is_new and data:
                if self._take_proxy_header(client, data):
                    self._look(client, hung_up)
                    return
                look = INCOMPLETE
            else:
                look = self._peeker.look(data, client.peer, not client.line_seen) if data else INCOMPLETE
        except BlockingIOError:
            look, is_over = INCOMPLETE, False
        except OSError:
            look, is_over = INCOMPLETE, True
        except ParseException as exc:
            # gunicorn answers what its parser refuses: same statuses, same pages, same log.
            self._refuse_by_gunicorn(client.sock, client.peer, exc)
            self._linger(client)
            return
        except Refused as exc:
            self._answer(client, data, exc.status, str(exc))
            return
        if is_over:
            self._close(client)
        elif look is INCOMPLETE and hung_up:
            self._linger(client)  # which reads away the half that came: a close would be a reset, and may destroy an earlier answer
        elif look is INCOMPLETE:
            self._wait_for_more(client, data)
        elif look.mount is None:
            self._answer(client, data, "404 Not Found", "no app is mounted at this address")
        else:
            self._dispatch(client, data, look.mount)

    def _take_proxy_header(self, client: Client, data: bytes) -> bool:
        """Consume the PROXY header, if there is one; False if it is not complete.

        Raises:
            gunicorn.http.errors.ParseException: gunicorn would refuse it.
        """
        assert self._proxy_header is not None, "new connections are marked for its sake"
        assert self._origins is not None, "who gives a reader gives a table"
        header = self._proxy_header(data, client.peer)
        if header is None:
            return False
        client.is_new = client.line_seen = False
        client.sock.recv(header.length, socket.MSG_DONTWAIT)
        number = client.sock.fileno()
        origin = Origin(client.peer, client.sock.getsockname(), {}) if self._relay is None else self._origins.read(number)
        self._origins.write(number, Origin(origin.peer, origin.own, origin.environ | header.environ))
        return True

    def _wait_for_more(self, client: Client, data: bytes) -> None:
        if data and not client.began:
            client.began = True
            client.deadline = time.monotonic() + self._head_timeout_s
        client.line_seen = not client.is_new and b"\r\n" in data[2:]
        self._arm(client)

    def _dispatch(self, client: Client, data: bytes, mount: int) -> None:
        home = self._choose(mount)
        if home is NotServing.BOOTING:
            client.phase, client.mount, client.deadline = Phase.PARKED, mount, math.inf  # the home sets a limit to its boots
            self._arm(client)
        elif home is NotServing.FAILED:
            self._answer(client, data, "503 Service Unavailable", "the app at this address is not available", mount)
        else:
            assert not isinstance(home, NotServing), "both kinds are dealt with"
            self._disarm(client)
            fd = client.sock.detach()
            del self._clients[fd]
            home.give(fd)

    def _arm(self, client: Client) -> None:
        if client.armed_in is None:
            client.armed_in = self._epoll
            self._epoll.register(client.sock, ARM_EDGE)  # fires at once for what is there already

    def _disarm(self, client: Client) -> None:
        if client.armed_in is not None:
            client.armed_in.unregister(client.sock)
            client.armed_in = None

    # Answers of the acceptor's own.

    def _answer(self, client: Client, data: bytes, status: str, message: str, mount: int | None = None) -> None:
        words = self._words if mount is None else self._board.mount_row(mount).words
        words[RESPONSES + int(status[0])] += 1
        reason = status.partition(" ")[2]
        page = f"<!doctype html>\n<title>{status}</title>\n<h1>{reason}</h1>\n<p>{html.escape(message)}</p>\n".encode()
        fields = [
            f"HTTP/1.1 {status}",
            "Content-Type: text/html; charset=utf-8",
            f"Content-Length: {len(page)}",
            "Connection: close",
        ]
        if status.startswith("503"):
            fields.append(f"Retry-After: {_RETRY_AFTER_S}")
        head = "\r\n".join([*fields, "\r\n"]).encode("latin-1")
        try:
            client.sock.send(head if data.startswith(b"HEAD ") else head + page, socket.MSG_DONTWAIT)
        except OSError:  # its buffer is full of answers it never read, or it is gone
            self._close(client)
            return
        if self._log.access_log_enabled:
            self._log_access(client, data, status, len(page))
        self._linger(client)

    def _log_access(self, client: Client, data: bytes, status: str, length: int) -> None:
        try:
            request = self._peeker.parse(data[: data.find(b"\r\n\r\n") + 4], client.peer)
        except Exception:  # a head that never came, or one that gunicorn refuses: no line to log
            return
        environ = default_environ(request, client.sock, request.cfg)
        environ["REMOTE_ADDR"] = client.peer[0] if isinstance(client.peer, tuple) else client.peer
        self._log.access(_Answered(status, length), request, environ, timedelta())

    def _linger(self, client: Client) -> None:
        """Close in both directions one after the other: a close with unread data is a reset, and would lose the answer."""
        try:
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(client)
            return
        client.phase, client.deadline = Phase.LINGERING, time.monotonic() + LINGER_S
        if client.armed_in is None:
            self._arm(client)
        else:
            self._discard(client)

    def _discard(self, client: Client) -> None:
        while client.discarded < LINGER_MAX_BYTES:
            try:
                data = client.sock.recv(16 * 1024, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                break
            if not data:
                break
            client.discarded += len(data)
        self._close(client)

    def _close(self, client: Client) -> None:
        """Close a connection; disarmed first, for a child process between fork and exec may still hold the descriptor."""
        self._disarm(client)
        del self._clients[client.sock.fileno()]
        client.sock.close()
        self._closed += 1
        self.on_capacity()

    def _close_expired(self, now: float) -> None:
        for client in list(self._clients.values()):
            if client.deadline > now:
                continue
            if client.phase is Phase.PEEKING and (data := _peeked(client.sock)):
                self._answer(client, data, "408 Request Timeout", "the request did not come in time")
            else:
                self._close(client)


class _Answered:
    """What gunicorn's access log reads of a response."""

    def __init__(self, status: str, sent: int) -> None:
        self.status = status
        self.sent = sent
        self.headers: list[tuple[str, str]] = []


def _peeked(sock: socket.socket) -> bytes:
    try:
        return peek(sock)
    except OSError:
        return b""
