"""The acceptor: peek, route, hand over. On the worker's loop; no blocking call.

It holds connections that have no instance to serve them: those whose head is not complete, those whose mount is still booting or does not
answer, and those that only wait for their client to stop sending before they are closed. It consumes no byte of a request it hands over, so
a slow or half-sent head costs a descriptor and no thread.

A descriptor that fires in the loop's set and is not known there was given back by an instance: its next request is another mount's, or the
instance drains. What fails while a connection is looked at ends that connection only.
"""

from __future__ import annotations

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

from isowsgi.shared import answers
from isowsgi.shared.origins import Origin, Origins
from isowsgi.shared.peek import INCOMPLETE, Peeker, Refused, peek
from isowsgi.shared.scoreboard import CLOSED, Scoreboard
from isowsgi.worker.clients import Client, Clients, Phase
from isowsgi.worker.listeners import Listeners
from isowsgi.worker.loop import Loop
from isowsgi.worker.proxyheader import Header
from isowsgi.worker.shares import Shares

# How long a stopping worker waits for the next request on an idle connection: gunicorn gthread's STOP_KEEPALIVE_LINGER.
STOP_IDLE_S = 2.0

# How often requests are looked at that wait because their mount has as many unanswered ones as it may.
_HELD_LOOK_S = 0.05

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
    def progress(self) -> int: ...
    def has_free_thread(self) -> bool: ...
    def has_ended(self) -> bool: ...


class Relay(Protocol):
    """What the acceptor needs of that which ends TLS, see `tls.Relay`."""

    def fileno(self) -> int: ...
    def take(self, sock: socket.socket, peer: Any) -> None: ...
    def results(self) -> Iterable[tuple[socket.socket | None, Any, Exception | None]]: ...
    def open_connections(self) -> int: ...
    def make_room(self) -> None: ...
    def stop(self) -> None: ...


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
    """See the module's text. All methods are for the loop's thread.

    Args:
        loop: the worker's; the acceptor takes the events of all descriptors that nobody watches.
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
        loop: Loop,
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
        self._loop = loop
        self._containment = loop.containment
        self._peeker = peeker
        self._choose = choose
        self._board = board
        self._row = board.acceptor_row()
        self._log = log
        self._refuse_by_gunicorn = refuse_by_gunicorn
        self._head_timeout_s = head_timeout_s
        self._keepalive_s = keepalive_s
        self._origins = origins
        self._relay = relay
        self._proxy_header = proxy_header
        self._shares = Shares(max_connections)
        self._stopping = False
        self._is_holding = False  # whether held connections will be looked at
        self._known_closed = 0  # here and in the instances, when last counted
        self._next_yield = 0.0
        self._listeners = Listeners(
            loop=loop, listeners=listeners, shared=shared, row=self._row, max_connections=max_connections,
            count=self.open_connections, at_most=self._at_most_open, take=self._take_new, log=log,
        )  # fmt: skip
        self.on_capacity = self._listeners.look
        self._clients = Clients(loop.epoll, origins, self._listeners.look)
        self.watch, self.watch_room, self.unwatch, self.later = loop.watch, loop.watch_room, loop.unwatch, loop.later
        loop.on_connection = self._on_event
        loop.every(_SWEEP_S, self._sweep, "acceptor")
        loop.at_the_end(self._yield, "acceptor")
        loop.watch(self.lingering_fd, self._take_lingering, "acceptor")
        if relay is not None:
            loop.watch(relay.fileno(), self._take_decrypted, "TLS")

    @property
    def returns_fd(self) -> int:
        """Return the epoll set in which instances arm connections that they give back."""
        return self._loop.epoll.fileno()

    @property
    def lingering_fd(self) -> int:
        """Return the epoll set in which instances arm connections that are answered and must be closed gently."""
        return self._clients.lingering.fileno()

    def start_accepting(self) -> None:
        self._listeners.start()

    def release(self, mount: int) -> None:
        """Look again at the connections that wait for a mount: it serves now, or never will."""
        for client in self._clients.in_phase(Phase.PARKED):
            if client.mount == mount:
                client.phase = Phase.PEEKING
                self._guarded(client.sock.fileno(), self._look, client)

    # Connections that a child process had: none of them is armed here.

    def take_back(self, fd: int) -> None:
        """Own a connection whose next request is to be routed."""
        self._guarded(fd, self._own, fd, self._look)

    def take_lingering(self, fd: int) -> None:
        """Own a connection that was answered, and close it gently."""
        self._guarded(fd, self._own, fd, self._clients.linger)

    def take_closed(self, fd: int) -> None:
        """Close a connection."""
        self._guarded(fd, self._clients.close_by_number, fd)

    def _own(self, fd: int, step: Callable[[Client], None]) -> None:
        if (client := self._clients.take_back(fd, self._idle_s(), None)) is not None:
            step(client)

    def _idle_s(self) -> float:
        return STOP_IDLE_S if self._stopping else self._keepalive_s

    def _guarded(self, fd: int, step: Callable[..., None], *args: Any) -> None:
        """Do a step for one connection; what can go wrong ends this connection only."""
        try:
            step(*args)
        except Exception:
            self._containment.failed("connection")
            self._clients.drop(fd)

    def stop(self) -> None:
        """Accept what has reached the listeners' queues and close them; idle connections get little time to say something."""
        self._stopping = True
        # Here and not with the order to the instances, which takes a moment to be read: told to keep its connection, a client would send
        # into it just when it is closed as idle.
        self._row.say_stopping()
        self._listeners.stop()
        if self._relay is not None:
            self._relay.stop()
        limit = time.monotonic() + STOP_IDLE_S
        for client in self._clients.in_phase(Phase.PEEKING):
            if not client.began:
                client.deadline = min(client.deadline, limit)

    def open_connections(self) -> int:
        """Return how many connections this worker has, here and in its instances."""
        closed = self._clients.closed + self._board.total(CLOSED)  # which takes long if there are many mounts
        # The board may hold anything. So it is in bounds: never fewer than before, and no more than there were.
        self._known_closed = max(self._known_closed, min(closed, self._listeners.accepted))
        return self._at_most_open()

    def _at_most_open(self) -> int:
        """Return how many there were if none had been closed since they were counted last."""
        connections = self._listeners.accepted - self._known_closed
        # With TLS there are two ends of each, and either may be the last: the app's, or the client's that has not got all of its answer.
        return connections if self._relay is None else max(connections, self._relay.open_connections())

    @property
    def is_accepting(self) -> bool:
        """Whether it takes connections, or would if there were not as many as there may be."""
        return self._listeners.is_wanted

    def parked(self) -> Counter[int]:
        """Return how many requests wait for each mount to boot."""
        return Counter(client.mount for client in self._clients.in_phase(Phase.PARKED))

    def statistics(self) -> Statistics:
        return Statistics(
            accepted=self._listeners.accepted,
            open=self.open_connections(),
            peeking=len(self._clients.in_phase(Phase.PEEKING)),
            parked=len(self._clients.in_phase(Phase.PARKED)),
            lingering=len(self._clients.in_phase(Phase.LINGERING)),
            wakeups=self._loop.wakeups,
        )

    # Time.

    def _sweep(self) -> None:
        now = time.monotonic()
        self._shares.tick(now)
        for client in self._clients.expired(now):
            self._guarded(client.sock.fileno(), self._expire, client)
        self.on_capacity()

    def _expire(self, client: Client) -> None:
        if client.phase is Phase.PEEKING and (data := _peeked(client.sock)):
            self._answer(client, data, answers.TOO_LATE, "the request did not come in time")
        else:
            self._clients.close(client)

    def _yield(self) -> None:
        """Behind all events, none of which may be of a connection that is closed here."""
        if self._listeners.is_wanted and not self._listeners.is_accepting:
            now = time.monotonic()
            if now >= self._next_yield and not self._make_room(now):
                self._next_yield = now + _SWEEP_S

    def _make_room(self, now: float) -> bool:
        """Close the connection that has taken longest for its head, if it has taken long, and accept again; False if there surely is none.

        Otherwise slow clients, once they are as many as there may be connections, would keep all others out until head_timeout. As nginx
        reuses idle connections. No answer: that would hold the connection for LINGER_S more.
        """
        latest = now + (1 - YIELD_SHARE) * self._head_timeout_s
        for client in self._clients.by_fd.values():  # the oldest come first
            if client.phase is Phase.PEEKING and client.deadline < latest:
                self._guarded(client.sock.fileno(), self._clients.close, client)
                return True
        if self._relay is not None:
            self._relay.make_room()  # and if it does, its result comes as an event
        return self._relay is not None

    # Connections.

    def _take_new(self, sock: socket.socket, peer: Any) -> None:
        if self._relay is not None:
            self._relay.take(sock, peer)
        else:
            self._guarded(sock.fileno(), self._begin, sock, peer)

    def _take_decrypted(self) -> None:
        """Become the owner of connections whose clients have said something over TLS, and of those that do not speak it."""
        assert self._relay is not None, "it is watched"
        for sock, peer, refusal in self._relay.results():
            if sock is None:
                self._clients.closed += 1
            elif refusal is None:
                self._guarded(sock.fileno(), self._begin, sock, peer)
            else:
                self._guarded(sock.fileno(), self._refuse, self._clients.add(sock, peer), refusal)
        self.on_capacity()

    def _begin(self, sock: socket.socket, peer: Any) -> None:
        client = self._clients.add(sock, peer, time.monotonic() + self._head_timeout_s)
        client.is_new = self._proxy_header is not None
        self._look(client)

    def _on_event(self, fd: int, flags: int) -> None:
        self._guarded(fd, self._on_client, fd, flags)

    def _on_client(self, fd: int, flags: int) -> None:
        client = self._clients.by_fd.get(fd) or self._clients.take_back(fd, self._idle_s(), self._loop.epoll)
        if client is None:
            return
        # A hang-up says that nothing more will come, not that nothing is left to read: both sides have ended theirs, or the client of a
        # Unix socket has closed it.
        if flags & select.EPOLLERR or (flags & select.EPOLLHUP and client.phase is Phase.PARKED):
            self._clients.close(client)
        elif client.phase is Phase.PEEKING:
            self._look(client, hung_up=bool(flags & (select.EPOLLRDHUP | select.EPOLLHUP)))
        elif client.phase is Phase.LINGERING:
            self._clients.discard(client)

    def _take_lingering(self) -> None:
        """Become the owner of connections that an instance has answered and shut down for writing."""
        for fd, flags in self._clients.lingering.poll(0, 256):
            self._guarded(fd, self._on_lingering, fd, flags)

    def _on_lingering(self, fd: int, flags: int) -> None:
        client = self._clients.by_fd.get(fd) or self._clients.take_lingering(fd)
        if flags & select.EPOLLERR:
            self._clients.close(client)
        else:
            self._clients.discard(client)

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
            self._refuse(client, exc)
            return
        except Refused as exc:
            self._answer(client, data, exc.status, str(exc))
            return
        if is_over:
            self._clients.close(client)
        elif look is INCOMPLETE and hung_up:
            self._clients.linger(client)  # which reads away the half that came: a close would be a reset, and may destroy an earlier answer
        elif look is INCOMPLETE:
            self._wait_for_more(client, data)
        elif look.mount is None:
            self._answer(client, data, answers.NOT_FOUND, "no app is mounted at this address")
        else:
            self._dispatch(client, data, look.mount)

    def _refuse(self, client: Client, exc: Exception) -> None:
        """Have gunicorn answer what its parser refuses: same statuses, same pages, same log."""
        self._refuse_by_gunicorn(client.sock, client.peer, exc)
        self._clients.linger(client)

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
        self._clients.arm(client)

    def _dispatch(self, client: Client, data: bytes, mount: int) -> None:
        home = self._choose(mount)
        if home is NotServing.BOOTING:
            client.phase, client.mount, client.deadline = Phase.PARKED, mount, math.inf  # the home sets a limit to its boots
            self._clients.arm(client)
        elif home is NotServing.FAILED:
            self._answer(client, data, answers.UNAVAILABLE, "the app at this address is not available", mount, answers.RETRY_LATER_S)
        else:
            assert not isinstance(home, NotServing), "both kinds are dealt with"
            now = time.monotonic()
            if self._shares.may_have(home, now):
                self._give(client, data, mount, home)
            elif self._shares.is_stalled(home, now):
                self._answer(client, data, answers.UNAVAILABLE, "the app at this address does not answer", mount, answers.RETRY_LATER_S)
            else:
                client.phase, client.mount, client.deadline, client.is_held = Phase.PARKED, mount, math.inf, True
                self._clients.arm(client)
                self._look_at_held_soon()

    def _look_at_held_soon(self) -> None:
        if not self._is_holding:
            self._is_holding = True
            self._loop.later(_HELD_LOOK_S, self._look_at_held, "acceptor")

    def _look_at_held(self) -> None:
        """Hand over what waited for a mount that has got on since, the oldest first, or answer it if the mount does nothing."""
        self._is_holding = False
        full: set[int] = set()
        for client in self._clients.in_phase(Phase.PARKED):
            if client.is_held and client.mount not in full:
                client.phase, client.is_held = Phase.PEEKING, False
                self._guarded(client.sock.fileno(), self._look, client)
                if client.is_held:
                    full.add(client.mount)
        if full:
            self._look_at_held_soon()

    def _give(self, client: Client, data: bytes, mount: int, home: Home) -> None:
        fd = self._clients.part_with(client)
        try:
            home.give(fd)
        except Exception:  # it has it not: no memory for one more, or the instance is broken
            self._containment.failed("hand-over")
            client = self._clients.add(socket.socket(fileno=fd), client.peer)
            self._answer(client, data, answers.UNAVAILABLE, "the app at this address is not available", mount, answers.RETRY_LATER_S)

    # Answers of the acceptor's own.

    def _answer(
        self, client: Client, data: bytes, status: str, text: str, mount: int | None = None, retry_after_s: int | None = None
    ) -> None:
        row = self._row if mount is None else self._board.mount_row(mount)
        row.count_response(int(status[:3]))
        answer, length = answers.page(status, text, retry_after_s)
        try:
            client.sock.send(answer[:-length] if data.startswith(b"HEAD ") else answer, socket.MSG_DONTWAIT)
        except OSError:  # its buffer is full of answers it never read, or it is gone
            self._clients.close(client)
            return
        if self._log.access_log_enabled:
            self._containment.call("access log", self._log_access, client, data, status, length)
        self._clients.linger(client)

    def _log_access(self, client: Client, data: bytes, status: str, length: int) -> None:
        try:
            request = self._peeker.parse(data[: data.find(b"\r\n\r\n") + 4], client.peer)
        except Exception:  # a head that never came, or one that gunicorn refuses: no line to log
            return
        environ = default_environ(request, client.sock, request.cfg)
        environ["REMOTE_ADDR"] = client.peer[0] if isinstance(client.peer, tuple) else client.peer
        self._log.access(_Answered(status, length), request, environ, timedelta())


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
