"""The acceptor: owns the connections that no instance has, and times out those that send no whole head. On the loop; nothing blocks.

It holds connections that have no instance to serve them: those whose head is not complete, those whose mount is still booting or does not
answer, and those that only wait for their client to stop sending before they are closed. Here is how they come, fire and time out;
`dispatcher` decides what happens to a request.

A descriptor that fires in the loop's set and is not known there was given back by an instance: its next request is another mount's, or the
instance drains. What fails while a connection is looked at ends that connection only.
"""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from isowsgi.configuration import Mount
from isowsgi.shared import answers
from isowsgi.shared.origins import Origins
from isowsgi.shared.peek import Peeker, peek
from isowsgi.shared.routing import Router
from isowsgi.shared.rows import CLOSED
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.shared.sockettimeouts import STANDARD, set_limits
from isowsgi.worker.clients import Client, Clients, Phase
from isowsgi.worker.dispatcher import Dispatcher, Instance, NotServing
from isowsgi.worker.listeners import Listeners
from isowsgi.worker.loop import Loop
from isowsgi.worker.proxyheader import Header
from isowsgi.worker.replies import Replies
from isowsgi.worker.shares import Shares

# How long a stopping worker waits for the next request on an idle connection: gunicorn gthread's STOP_KEEPALIVE_LINGER.
STOP_IDLE_S = 2.0

_SWEEP_S = 1.0

# Share of head_timeout that a connection may take for its head before it yields to a new one, if there are as many as there may be.
YIELD_SHARE = 0.1


class Relay(Protocol):
    """What the acceptor needs of that which ends TLS, see `tls.Relay`."""

    def fileno(self) -> int: ...
    def take(self, sock: socket.socket, peer: Any) -> None: ...
    def results(self) -> Iterable[tuple[socket.socket | None, Any, Exception | None]]: ...
    def open_connections(self) -> int: ...
    def make_room(self) -> None: ...
    def set_limits(self, opening_s: float, stall_s: float) -> None: ...
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
        choose: Callable[[int], Instance | NotServing],
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
        on_refused: Callable[[int, str, str], None] = lambda mount, line, text: None,
    ) -> None:
        self._loop = loop
        self._row = board.acceptor_row()
        self._keepalive_s = keepalive_s
        self._relay = relay
        self._has_proxy_headers = proxy_header is not None
        self._shares = Shares(max_connections)
        self._stopping, self._next_yield = False, 0.0
        self._listeners = Listeners(
            loop=loop, listeners=listeners, shared=shared, row=self._row, max_connections=max_connections,
            count_closed=lambda: self._clients.closed + board.total(CLOSED),
            count_behind=None if relay is None else relay.open_connections, take=self._take_new, log=log,
        )  # fmt: skip
        self.on_capacity, self.open_connections = self._listeners.look, self._listeners.open_connections
        self._clients = Clients(loop.epoll, origins, self._listeners.look, loop.containment)
        self._guarded = self._clients.guarded
        self._replies = Replies(
            clients=self._clients, peeker=peeker, board=board, log=log, containment=loop.containment,
            refuse_by_gunicorn=refuse_by_gunicorn, on_refused=on_refused,
        )  # fmt: skip
        self.dispatcher = Dispatcher(
            loop=loop, clients=self._clients, replies=self._replies, shares=self._shares, peeker=peeker, arrivals=board.arrivals(),
            choose=choose, head_timeout_s=head_timeout_s, origins=origins, has_tls=relay is not None, proxy_header=proxy_header,
        )  # fmt: skip
        self._look, self.release = self.dispatcher.look, self.dispatcher.release
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

    def set_table(self, router: Router, head_timeout_s: float, stall_s: float, special: Mapping[int, Mount]) -> None:
        """Route by another table from now on.

        Args:
            special: see `Dispatcher.set_table`.
            stall_s: how long a client of any mount may take nothing of what is sent to it.
        """
        self.dispatcher.set_table(router, head_timeout_s, special)
        if self._relay is not None:
            self._relay.set_limits(head_timeout_s, stall_s)

    def start_accepting(self) -> None:
        self._listeners.start()

    # Connections that a child process had: none of them is armed here.

    def take_back(self, fd: int) -> None:
        """Own a connection whose next request must be routed."""
        self._guarded(fd, self._own, fd, self._look)

    def take_lingering(self, fd: int) -> None:
        """Own a connection that was answered, and close it gently."""
        self._guarded(fd, self._own, fd, self._clients.linger)

    def take_closed(self, fd: int) -> None:
        """Close a connection."""
        self._guarded(fd, self._clients.close_by_number, fd)

    def _own(self, fd: int, step: Callable[[Client], None]) -> None:
        if not self._clients.count_if_closed(fd) and (client := self._clients.take_back(fd, self._idle_s(), None)) is not None:
            client.was_lent = True
            set_limits(client.sock, STANDARD)  # the child may have died with its own, or left any
            step(client)

    def _idle_s(self) -> float:
        return STOP_IDLE_S if self._stopping else self._keepalive_s

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
        self._clients.closer.tick()
        for client in self._clients.expired(now):
            self._guarded(client.sock.fileno(), self._expire, client)
        self.on_capacity()

    def _expire(self, client: Client) -> None:
        if client.phase is Phase.PEEKING:
            self._look(client)  # what came while this turn was busy has not fired yet: a request in time, or the first byte of one
            if client.phase is not Phase.PEEKING or client.deadline > time.monotonic() or client.sock.fileno() < 0:
                return
            if data := _peeked(client.sock):
                self._replies.answer(client, data, answers.TOO_LATE, "the request did not arrive in time")
                return
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
        latest = now + (1 - YIELD_SHARE) * self.dispatcher.head_timeout_s
        for client in self._clients.by_fd.values():  # the oldest come first
            is_late = client.phase is Phase.PEEKING and client.deadline < latest
            if is_late and (client.began or not _peeked(client.sock)):  # else it was idle, and its next request has not fired yet
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
                self._guarded(sock.fileno(), self._replies.refuse, self._clients.add(sock, peer), refusal)
        self.on_capacity()

    def _begin(self, sock: socket.socket, peer: Any) -> None:
        client = self._clients.add(sock, peer, time.monotonic() + self.dispatcher.head_timeout_s)
        client.is_new = self._has_proxy_headers
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


def _peeked(sock: socket.socket) -> bytes:
    try:
        return peek(sock)
    except OSError:
        return b""
