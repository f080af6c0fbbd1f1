"""TLS: handshakes and records, in a thread of the worker's main interpreter. What is behind it sees plain HTTP.

A TLS session is an object of one interpreter, and its sequence numbers are one process': it cannot be handed over. So for each TLS
connection, once its client has said something, the relay makes a socket pair. One end goes to the acceptor and is peeked at, routed and
handed over as a client's own socket would be; through the other the relay copies, decrypted bytes in and bytes to encrypt out. Where the
client is, and what was agreed with it, stands in `origins`.

One thread with an epoll set of its own, so that neither handshakes nor records keep the acceptor. It never waits but for events. Sets are
level-triggered: what is not wanted just now (a peer that reads slowly, a fifth handshake) stays in the kernel and comes again.
OpenSSL gets its bytes from memory and not from the socket: one read takes many records, and all that can be wanted of it is more input.
"""

from __future__ import annotations

import math
import os
import select
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from isowsgi.shared.containment import Containment
from isowsgi.shared.origins import Origin, Origins
from isowsgi.shared.scoreboard import AcceptorRow
from isowsgi.worker.acceptor import STOP_IDLE_S, YIELD_SHARE
from isowsgi.worker.clients import LINGER_MAX_BYTES, LINGER_S
from isowsgi.worker.tlsfacts import facts_of
from isowsgi.worker.tlssession import READ_BYTES, Phase, Session

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

_DONTWAIT = int(socket.MSG_DONTWAIT)

# What OpenSSL calls a plain HTTP request where a handshake should begin.
_PLAIN_HTTP = ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST")


class Result(NamedTuple):
    """What became of a connection that the relay was given.

    Attributes:
        sock: what the acceptor shall own now; None: it is closed.
        refusal: why the client, to be answered in plain text, is refused; None: its request, decrypted, is in `sock`.
    """

    sock: socket.socket | None
    peer: Any
    refusal: Exception | None = None


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
        self._origins = origins
        self._row = row
        self._log = log
        self._containment = containment
        self._opening_s = opening_s
        self._stall_s = stall_s
        self._suppress_ragged_eofs = suppress_ragged_eofs
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._arrivals: deque[tuple[socket.socket, Any]] = deque()
        self._results: deque[Result] = deque()
        self._has_results = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sessions: dict[Session, None] = {}
        self._openings: dict[Session, None] = {}  # those in that phase, the oldest first
        self._by_fd: dict[int, Session] = {}
        self._ended_sockets: list[socket.socket] = []  # closed behind a batch of events, none of which may be of the next with that number
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._taken = 0
        self._ended = 0
        self._is_stopping = False
        self._wants_room = False
        self._next_sweep = 0.0
        self._thread = threading.Thread(target=self._run, name="isowsgi-tls", daemon=True)

    # The acceptor's side.

    def start(self) -> None:
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL_S))
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def fileno(self) -> int:
        """Return what becomes readable when there are results."""
        return self._has_results

    def take(self, sock: socket.socket, peer: Any) -> None:
        """Own a connection that was accepted; a result will say what became of it."""
        self._taken += 1
        self._arrivals.append((sock, peer))
        os.eventfd_write(self._wake, 1)

    def results(self) -> list[Result]:
        """Return what became of connections since the last call; perhaps none, when a connection's end has made room."""
        os.eventfd_read(self._has_results)
        return [self._results.popleft() for _ in range(len(self._results))]

    def open_connections(self) -> int:
        """Return how many clients' connections it has, the request of which may be answered already."""
        return self._taken - self._ended

    def make_room(self) -> None:
        """Close the oldest connection that has said nothing yet, if it has taken long."""
        self._wants_room = True
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Give clients that have said nothing yet little time to do so."""
        self._is_stopping = True
        os.eventfd_write(self._wake, 1)

    # The loop.

    def _run(self) -> None:
        """The thread's whole life. Only a set that cannot be polled ends it, and then the worker is replaced."""
        while True:
            try:
                events = self._epoll.poll(_SWEEP_S if self._sessions else -1, _MAX_EVENTS)
            except (OSError, ValueError):
                self._containment.failed("TLS relay")
                return
            if not self._containment.call("TLS relay", self._turn, events):
                time.sleep(_FAILED_S)

    def _turn(self, events: list[tuple[int, int]]) -> None:
        openings: list[tuple[Session, int, int]] = []
        for fd, flags in events:
            if fd == self._wake:
                self._answer_wake()
            elif (session := self._by_fd.get(fd)) is None:
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
            for session in [session for session in self._sessions if session.deadline <= now]:
                self._end(session)
        while self._ended_sockets:
            self._ended_sockets.pop().close()

    def _answer_wake(self) -> None:
        os.eventfd_read(self._wake)
        now = time.monotonic()
        while self._arrivals:
            outer, peer = self._arrivals.popleft()
            try:
                session = Session(outer, peer, self._context, now + self._opening_s)
            except Exception:  # no memory for it
                self._containment.failed("TLS connection")
                self._lose(outer, peer)
                continue
            self._sessions[session] = self._openings[session] = None
            self._by_fd[outer.fileno()] = session
            self._guarded(session, self._arm)
        if self._wants_room:
            self._wants_room = False
            oldest = next(iter(self._openings), None)
            if oldest is not None and oldest.deadline < now + (1 - YIELD_SHARE) * self._opening_s:
                self._end(oldest)
        if self._is_stopping:
            for session in self._openings:
                session.deadline = min(session.deadline, now + STOP_IDLE_S)

    def _guarded(self, session: Session, step: Callable[..., None], *arguments: int) -> None:
        """Take a step; what can go wrong ends this connection only."""
        try:
            step(session, *arguments)
        except ssl.SSLError as exc:
            self._fail(session, exc)
        except OSError:  # reset, or gone before it was read
            self._end(session)
        except Exception:
            self._containment.failed("TLS connection")
            self._end(session)

    def _on_event(self, session: Session, fd: int, flags: int) -> None:
        if session.inner is not None and fd == session.inner.fileno():
            if session.to_app:
                self._send_to_app(session, session.to_app)
            if flags & ~select.EPOLLOUT and not session.to_client:
                self._read_app(session)
        else:
            if session.to_client:
                self._send_to_client(session)
            if flags & ~select.EPOLLOUT:
                if session.wanted_of_client() & select.EPOLLIN:
                    if session.phase is Phase.CLOSING:
                        self._discard(session)
                    else:
                        self._read_client(session)
                elif flags & select.EPOLLERR or not session.to_app:
                    self._end(session)
                else:  # the client of a Unix socket has closed it, and its request is still on its way to the app
                    self._disarm_client(session)
                    return
        self._settle(session)

    def _settle(self, session: Session) -> None:
        """Do what a step has made due, and arm for the next one."""
        if session not in self._sessions:  # the step has ended it
            return
        if session.phase is Phase.CLOSING and not session.to_client and not session.is_shut:
            self._shut(session)
        self._arm(session)

    # From the client to the app.

    def _read_client(self, session: Session) -> None:
        try:
            count = session.outer.recv_into(self._buffer, 0, _DONTWAIT)
        except BlockingIOError:
            return
        if count:
            session.incoming.write(self._view[:count])
        else:
            session.tcp_has_ended = True
            session.incoming.write_eof()
        if not session.is_shaken:
            is_over = session.shake()
            self._send_to_client(session)
            if not is_over:
                return
            self._row.count_handshake(True)
        data = session.decrypt(self._suppress_ragged_eofs)
        if session.outgoing.pending:
            self._send_to_client(session)
        if data:
            if session.phase is Phase.OPENING:
                self._open(session)
            self._send_to_app(session, data)
        elif session.client_has_ended:
            if session.inner is None:
                self._close(session)
            else:
                self._end_input(session)

    def _open(self, session: Session) -> None:
        """Make the pair, and give its other end to the acceptor."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as exc:
            self._log.error("cannot serve a TLS connection: %s", exc)
            raise
        origin = Origin(session.peer, session.outer.getsockname(), facts_of(session.tls))
        try:
            self._origins.write(theirs.fileno(), origin)
        except ValueError:
            self._log.warning("the certificate of the client %s is too long to be shown to apps", session.peer)
            del origin.environ["SSL_CLIENT_CERT"]
            self._origins.write(theirs.fileno(), origin)
        session.inner = ours
        self._by_fd[ours.fileno()] = session
        del self._openings[session]
        session.phase, session.deadline = Phase.OPEN, math.inf
        self._tell(Result(theirs, session.peer))

    def _send_to_app(self, session: Session, data: bytes | memoryview) -> None:
        assert session.inner is not None, "it is open"
        try:
            sent = session.inner.send(data, _DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:  # its other end is closed, which will be read of it
            session.app_is_deaf, session.to_app = True, b""
            return
        session.to_app = memoryview(data)[sent:] if sent < len(data) else b""
        if session.client_has_ended and not session.to_app:
            self._end_input(session)

    def _end_input(self, session: Session) -> None:
        assert session.inner is not None, "it is open"
        try:
            session.inner.shutdown(socket.SHUT_WR)
        except OSError:
            session.app_is_deaf = True

    # From the app to the client.

    def _read_app(self, session: Session) -> None:
        assert session.inner is not None, "it is open"
        try:
            count = session.inner.recv_into(self._buffer, 0, _DONTWAIT)
        except BlockingIOError:
            return
        except OSError:  # closed with something unread, behind all that was sent
            count = 0
        if not count:
            self._close(session)
            return
        session.encrypt(self._view[:count])
        self._send_to_client(session)

    def _send_to_client(self, session: Session) -> None:
        """Send what is encrypted, as much as there is room for."""
        while True:
            if not session.to_client:
                if not session.outgoing.pending:
                    break
                session.to_client = session.outgoing.read()
            try:
                sent = session.outer.send(session.to_client, _DONTWAIT)
            except BlockingIOError:
                sent = 0
            if sent < len(session.to_client):
                session.to_client = memoryview(session.to_client)[sent:]
                if session.phase is not Phase.OPENING and (sent or session.deadline == math.inf):
                    session.deadline = time.monotonic() + self._stall_s
                return
            session.to_client = b""
        if session.phase is Phase.OPEN:
            session.deadline = math.inf

    # The end.

    def _close(self, session: Session) -> None:
        """Say the end to the client behind all that it still has to get."""
        if session.inner is not None:
            self._disarm_app(session)
            del self._by_fd[session.inner.fileno()]
            self._ended_sockets.append(session.inner)
            session.inner, session.to_app = None, b""
        if session.phase is Phase.OPENING:
            self._give_up_opening(session)
        session.phase = Phase.CLOSING
        try:
            session.tls.unwrap()
        except ssl.SSLError:  # what is wanted now is the client's own end, and that is not waited for
            pass
        session.deadline = time.monotonic() + self._stall_s
        self._send_to_client(session)

    def _give_up_opening(self, session: Session) -> None:
        del self._openings[session]
        self._tell(Result(None, session.peer))

    def _shut(self, session: Session) -> None:
        session.outer.shutdown(socket.SHUT_WR)
        session.is_shut = True
        session.deadline = time.monotonic() + LINGER_S
        if session.tcp_has_ended:
            self._end(session)

    def _discard(self, session: Session) -> None:
        """Read away what the client still sends: a close with unread data is a reset, and could destroy the answer."""
        try:
            count = session.outer.recv_into(self._buffer, 0, _DONTWAIT)
        except BlockingIOError:
            return
        session.discarded += count
        if not count or session.discarded > LINGER_MAX_BYTES:
            self._end(session)

    def _fail(self, session: Session, exc: ssl.SSLError) -> None:
        """Deal with a client that does not keep to TLS, or that is not welcome."""
        if not session.is_shaken and session.phase is Phase.OPENING:
            self._row.count_handshake(False)
            if exc.reason in _PLAIN_HTTP:
                self._end(session, Result(session.outer, session.peer, exc))
                return
        self._log.debug("TLS with %s failed: %s", session.peer, exc)
        # OpenSSL has left an alert that says why.
        self._guarded(session, self._fail_gently)

    def _fail_gently(self, session: Session) -> None:
        if session.phase is not Phase.CLOSING:
            self._close(session)
        else:
            self._end(session)
        self._settle(session)

    def _end(self, session: Session, result: Result | None = None) -> None:
        """Close a connection; its sockets are disarmed first, for a child process between fork and exec may still hold them.

        Args:
            result: gives the client's socket to the acceptor instead.
        """
        if session not in self._sessions:
            return
        del self._sessions[session]
        self._disarm_client(session)
        del self._by_fd[session.outer.fileno()]
        if session.inner is not None:
            self._disarm_app(session)
            del self._by_fd[session.inner.fileno()]
            self._ended_sockets.append(session.inner)
            session.inner = None
        self._ended += 1
        if result is not None:
            del self._openings[session]
            self._tell(result)
            return
        self._ended_sockets.append(session.outer)
        if session.phase is Phase.OPENING:
            self._give_up_opening(session)
        elif self._row.is_at_capacity or self._is_stopping:
            os.eventfd_write(self._has_results, 1)

    def _lose(self, outer: socket.socket, peer: Any) -> None:
        self._ended += 1
        self._ended_sockets.append(outer)
        self._tell(Result(None, peer))

    def _tell(self, result: Result) -> None:
        self._results.append(result)
        os.eventfd_write(self._has_results, 1)

    # The epoll set.

    def _arm(self, session: Session) -> None:
        if session not in self._sessions:
            return
        of_client = session.wanted_of_client()
        if of_client != session.client_armed:
            if session.client_armed is None:
                self._epoll.register(session.outer, of_client)
            else:
                self._epoll.modify(session.outer, of_client)
            session.client_armed = of_client
        of_app = session.wanted_of_app()
        if of_app != session.app_armed:
            assert session.inner is not None, "else it is neither armed nor wanted"
            if of_app is None:
                self._epoll.unregister(session.inner)
            elif session.app_armed is None:
                self._epoll.register(session.inner, of_app)
            else:
                self._epoll.modify(session.inner, of_app)
            session.app_armed = of_app

    def _disarm_client(self, session: Session) -> None:
        if session.client_armed is not None:
            self._epoll.unregister(session.outer)
            session.client_armed = None

    def _disarm_app(self, session: Session) -> None:
        if session.app_armed is not None and session.inner is not None:
            self._epoll.unregister(session.inner)
            session.app_armed = None
