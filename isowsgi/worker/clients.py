"""The connections that the acceptor owns: where they are armed, and how they are closed gently. `acceptor` times them out."""

from __future__ import annotations

import math
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

from isowsgi.shared.containment import Containment
from isowsgi.shared.handover import ARM_EDGE, blocking
from isowsgi.shared.origins import Origins
from isowsgi.shared.peek import PEEK_MAX_BYTES
from isowsgi.worker.closer import Closer

# How long, and how many bytes, a refused client may keep sending before its connection is closed: gunicorn.util.close_graceful's. Of the
# bytes twice as many: a head may be refused because it is too large to be peeked at, and then all of it is still to be read.
LINGER_S = 2.0
LINGER_MAX_BYTES = 2 * PEEK_MAX_BYTES

# Most that is read away at once.
_DISCARD_BYTES = 16 * 1024


class Phase(Enum):
    PEEKING = "its request's head is not complete"
    PARKED = "its mount is booting, or has too many that it does not answer"
    LINGERING = "it was answered, and what the client still sends is thrown away"


class Client:
    """A connection while the acceptor owns it."""

    __slots__ = (
        "armed_in",
        "arrived",
        "began",
        "deadline",
        "discarded",
        "is_held",
        "is_new",
        "line_seen",
        "mount",
        "peer",
        "phase",
        "sock",
        "was_lent",
    )

    def __init__(self, sock: socket.socket, peer: Any, deadline: float, armed_in: select.epoll | None) -> None:
        self.sock = sock
        self.peer = peer
        self.deadline = deadline
        self.armed_in = armed_in  # None: not armed yet
        self.phase = Phase.PEEKING
        self.is_new = False  # whether a PROXY header may come before its request
        self.arrived = 0.0  # monotonic seconds when a first byte of its request was seen, if it could not be handed over at once
        self.began = False  # whether a first byte of the head came; the deadline is the head's then
        self.line_seen = False  # whether the request line came and was checked
        self.mount = -1  # while PARKED
        self.is_held = False  # whether it is PARKED because its mount has too many that it does not answer
        self.discarded = 0  # bytes, while LINGERING
        self.was_lent = False  # whether a child process had it, which may have set anything on it


class Clients:
    """All of them, by the numbers of their descriptors. For the acceptor's thread.

    Args:
        epoll: the loop's set; instances arm in it what they give back.
        origins: where connections come from whose sockets do not say; None: all do.
        on_closed: called when one was closed.
        containment: where mistakes end.

    Attributes:
        closer: closes what child processes had.
    """

    def __init__(self, epoll: select.epoll, origins: Origins | None, on_closed: Callable[[], None], containment: Containment) -> None:
        self._epoll = epoll
        self.closer = Closer()
        self._origins = origins
        self._on_closed = on_closed
        self._containment = containment
        self.lingering = select.epoll()  # instances arm in it what was answered and must be closed gently
        self.by_fd: dict[int, Client] = {}
        self.closed = 0

    def add(self, sock: socket.socket, peer: Any, deadline: float = math.inf) -> Client:
        """Own a connection that is armed nowhere."""
        client = self.by_fd[sock.fileno()] = Client(sock, peer, deadline, None)
        return client

    def take_back(self, fd: int, idle_s: float, armed_in: select.epoll | None) -> Client | None:
        """Own a connection that an instance gave back; None if it was reset meanwhile.

        Raises:
            OSError: it is none; an app has put something else in its place.
        """
        client = self.by_fd[fd] = Client(blocking(socket.socket(fileno=fd)), None, time.monotonic() + idle_s, armed_in)
        try:
            client.peer = client.sock.getpeername() if self._origins is None else self._origins.read(fd).peer
        except OSError:
            self.close(client)
            return None
        return client

    def take_lingering(self, fd: int) -> Client:
        """Own a connection that an instance has answered, shut down for writing, and armed in `lingering`."""
        client = Client(blocking(socket.socket(fileno=fd)), None, time.monotonic() + LINGER_S, self.lingering)
        client.phase = Phase.LINGERING
        self.by_fd[fd] = client
        return client

    def guarded(self, fd: int, step: Callable[..., None], *args: Any) -> None:
        """Do a step for one connection; what can go wrong ends this connection only."""
        try:
            step(*args)
        except Exception:
            self._containment.failed("connection")
            self.drop(fd)

    def arm(self, client: Client) -> None:
        if client.armed_in is None:
            client.armed_in = self._epoll
            self._epoll.register(client.sock, ARM_EDGE)  # fires at once for what is there already

    def _disarm(self, client: Client) -> None:
        if client.armed_in is not None:
            client.armed_in.unregister(client.sock)
            client.armed_in = None

    def part_with(self, client: Client) -> int:
        """Return the descriptor of a connection, which has another owner from here on."""
        self._disarm(client)
        fd = client.sock.detach()
        del self.by_fd[fd]
        return fd

    def linger(self, client: Client) -> None:
        """Close in both directions one after the other: a close with unread data is a reset, and would lose the answer."""
        try:
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close(client)
            return
        client.phase, client.deadline = Phase.LINGERING, time.monotonic() + LINGER_S
        if client.armed_in is None:
            self.arm(client)
        else:
            self.discard(client)

    def discard(self, client: Client) -> None:
        """Read away what has come, and close at its end."""
        while client.discarded < LINGER_MAX_BYTES:
            try:
                data = client.sock.recv(_DISCARD_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                break
            if not data:
                break
            client.discarded += len(data)
        self.close(client)

    def close(self, client: Client) -> None:
        """Close a connection; disarmed first, for a child process between fork and exec may still hold the descriptor."""
        self._disarm(client)
        del self.by_fd[client.sock.fileno()]
        self._close(client)
        self.closed += 1
        self._on_closed()

    def drop(self, fd: int) -> None:
        """Close a connection of which nothing is certain, for something failed while it was looked at; without effect if it is not ours."""
        client = self.by_fd.pop(fd, None)
        for epoll in (self._epoll, self.lingering):
            try:
                epoll.unregister(fd)
            except (OSError, ValueError):
                continue
        if client is None:
            return
        client.armed_in = None
        try:
            self._close(client)
        except OSError:  # an app has closed its descriptor
            pass
        self.closed += 1
        self._on_closed()

    def _close(self, client: Client) -> None:
        if client.was_lent:
            self.closer.close(client.sock.detach())
        else:
            client.sock.close()

    def close_by_number(self, fd: int) -> None:
        """Close a connection that a child process had."""
        self.closer.close(fd)
        self.closed += 1
        self._on_closed()

    def count_if_closed(self, fd: int) -> bool:
        """Return whether an app has closed a connection that is nobody's just now by its number, which another file may have since."""
        try:
            is_closed = not stat.S_ISSOCK(os.fstat(fd).st_mode)
        except OSError:
            is_closed = True
        if is_closed:
            self.closed += 1
            self._on_closed()
        return is_closed

    def in_phase(self, phase: Phase) -> list[Client]:
        """Return those in one phase, the oldest first."""
        return [client for client in self.by_fd.values() if client.phase is phase]

    def expired(self, now: float) -> list[Client]:
        return [client for client in self.by_fd.values() if client.deadline <= now]
