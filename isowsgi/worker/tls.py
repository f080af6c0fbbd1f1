"""TLS: handshakes and records, in a thread of the worker's main interpreter. What is behind it sees plain HTTP.

A TLS session is an object of one interpreter, and its sequence numbers are one process': it cannot be handed over. So for each TLS
connection, once its client has said something, the relay makes a socket pair. One end goes to the acceptor and is peeked at, routed and
handed over as a client's own socket would be; through the other the relay copies, decrypted bytes in and bytes to encrypt out. Where the
client is, and what was agreed with it, is in `origins`.

One thread with an epoll set of its own, so that neither handshakes nor records keep the acceptor. It waits for events only. Sets are
level-triggered: what is not wanted just now (a peer that reads slowly, a fifth handshake) stays in the kernel and comes again.
OpenSSL gets its bytes from memory and not from the socket: one read takes many records, and all that can be wanted of it is more input.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import sys
import threading
import time
from collections import deque
from typing import Any

from isowsgi.shared.containment import Containment
from isowsgi.shared.origins import Origins
from isowsgi.shared.rows import AcceptorRow
from isowsgi.worker.acceptor import STOP_IDLE_S, YIELD_SHARE
from isowsgi.worker.tlshosts import THREAD
from isowsgi.worker.tlspump import Pump, Result, Results
from isowsgi.worker.tlssession import Phase, Session
from isowsgi.worker.tlsset import Sessions

_MAX_EVENTS = 64

# Handshakes in a row before records are looked at again: one costs up to a millisecond with an RSA key of 2048 bits, a record some 20 us.
_HANDSHAKES_IN_A_ROW = 4

_SWEEP_S = 1.0

# How long the relay rests after a turn that failed: what made it fail may come again at once.
_FAILED_S = 0.1

# How long a thread that computes may keep the main interpreter's GIL from the relay, which gives it up at each system call. Hello over
# TLS by 16 connections, beside a mount that shares that GIL and computes: 87 a second with the default, 5 ms, 1,100 with 0.5 ms, 4,200 with
# this, 5,800 with 0.05 ms (CPython 3.14.10, 2 cores, python -m bench.tls).
_SWITCH_INTERVAL_S = 0.0001


class Relay:
    """See the module's text. `take`, `results`, `make_room` and `stop` are for the acceptor's thread.

    Args:
        context: as `make_context` made it.
        origins: where clients' addresses are noted.
        row: the acceptor's on the scoreboard.
        log: gunicorn's logger.
        containment: where mistakes end; of this thread alone.
        opening_s: how long a client may take for its handshake and the first byte of a request.
        stall_s: how long it may take nothing of what is sent to it.
        suppress_ragged_eofs: whether a client may end the connection without saying so in TLS.
    """

    def __init__(
        self,
        *,
        context: ssl.SSLContext,
        origins: Origins,
        row: AcceptorRow,
        log: Any,
        containment: Containment,
        opening_s: float,
        stall_s: float,
        suppress_ragged_eofs: bool,
    ) -> None:
        self._context = context
        self._containment = containment
        self._opening_s = opening_s
        self._sessions = Sessions()
        self._results = Results()
        pump = self._pump = Pump(
            sessions=self._sessions, results=self._results, origins=origins, row=row, log=log, containment=containment, stall_s=stall_s,
            suppress_ragged_eofs=suppress_ragged_eofs,
        )  # fmt: skip
        self._guarded, self._on_event = pump.guarded, pump.on_event
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sessions.epoll.register(self._wake, select.EPOLLIN)
        self._arrivals: deque[tuple[socket.socket, Any]] = deque()
        self._taken = 0
        self._is_stopping = False
        self._wants_room = False
        self._next_sweep = 0.0
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)

    # The acceptor's side.

    def start(self) -> None:
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL_S))
        self._thread.start()

    def renew(self, context: ssl.SSLContext) -> None:
        """Serve connections that come from now on with another context."""
        self._context = context

    def set_limits(self, opening_s: float, stall_s: float) -> None:
        """Have other time limits count, from each connection's next step on."""
        self._opening_s, self._pump.stall_s = opening_s, stall_s

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def fileno(self) -> int:
        """Return what becomes readable when there are results."""
        return self._results.fd

    def take(self, sock: socket.socket, peer: Any) -> None:
        """Own a connection that was accepted; a result will say what became of it."""
        self._taken += 1
        self._arrivals.append((sock, peer))
        os.eventfd_write(self._wake, 1)

    def results(self) -> list[Result]:
        """Return what became of connections since the last call; perhaps none, when a connection's end has made room."""
        return self._results.take()

    def open_connections(self) -> int:
        """Return how many clients' connections it has, the request of which may be answered already."""
        return self._taken - self._pump.ended

    def make_room(self) -> None:
        """Close the oldest connection that has said nothing yet, if it has taken long."""
        self._wants_room = True
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Give clients that have said nothing yet little time to do so."""
        self._is_stopping = self._pump.is_stopping = True
        os.eventfd_write(self._wake, 1)

    # The loop.

    def _run(self) -> None:
        """The thread's whole life. Only a set that cannot be polled ends it, and then the worker is replaced."""
        while True:
            try:
                events = self._sessions.epoll.poll(_SWEEP_S if self._sessions.all else -1, _MAX_EVENTS)
            except (OSError, ValueError):
                self._containment.failed("TLS relay")
                return
            if not self._containment.call("TLS relay", self._turn, events):
                time.sleep(_FAILED_S)

    def _turn(self, events: list[tuple[int, int]]) -> None:
        openings: list[tuple[Session, int, int]] = []
        by_fd = self._sessions.by_fd
        for fd, flags in events:
            if fd == self._wake:
                self._answer_wake()
            elif (session := by_fd.get(fd)) is None:
                continue  # ended by an event before this one
            elif session.phase is Phase.OPENING:
                openings.append((session, fd, flags))
            else:
                self._guarded(session, self._on_event, fd, flags)
        for session, fd, flags in openings[:_HANDSHAKES_IN_A_ROW]:
            self._guarded(session, self._on_event, fd, flags)
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_S
            for session in [session for session in self._sessions.all if session.deadline <= now]:
                self._pump.end(session)
        self._sessions.close_ended()

    def _answer_wake(self) -> None:
        os.eventfd_read(self._wake)
        now = time.monotonic()
        while self._arrivals:
            outer, peer = self._arrivals.popleft()
            try:
                session = Session(outer, peer, self._context, now + self._opening_s)
            except Exception:  # no memory for it
                self._containment.failed("TLS connection")
                self._pump.lose(outer, peer)
                continue
            self._sessions.add(session)
            self._guarded(session, self._sessions.arm)
        if self._wants_room:
            self._wants_room = False
            oldest = next(iter(self._sessions.openings), None)
            if oldest is not None and oldest.deadline < now + (1 - YIELD_SHARE) * self._opening_s:
                self._pump.end(oldest)
        if self._is_stopping:
            for session in self._sessions.openings:
                session.deadline = min(session.deadline, now + STOP_IDLE_S)
