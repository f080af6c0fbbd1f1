"""What goes through a TLS connection: bytes both ways, its opening, and its end. Nothing here waits; for the relay's thread."""

from __future__ import annotations

import math
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from isowsgi.shared.containment import Containment
from isowsgi.shared.handover import blocking
from isowsgi.shared.origins import Origin, Origins
from isowsgi.shared.rows import AcceptorRow
from isowsgi.worker.clients import LINGER_MAX_BYTES, LINGER_S
from isowsgi.worker.tlsfacts import facts_of
from isowsgi.worker.tlssession import READ_BYTES, Phase, Session
from isowsgi.worker.tlsset import Sessions

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


class Results:
    """What the relay has to tell the acceptor, and the descriptor that is readable then."""

    def __init__(self) -> None:
        self._results: deque[Result] = deque()
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def put(self, result: Result) -> None:
        self._results.append(result)
        self.wake()

    def wake(self) -> None:
        """Have the acceptor look: a connection's end has made room."""
        os.eventfd_write(self.fd, 1)

    def take(self) -> list[Result]:
        os.eventfd_read(self.fd)
        return [self._results.popleft() for _ in range(len(self._results))]


class Pump:
    """See the module's text.

    Args:
        sessions: the relay's connections.
        results: takes the results.
        origins: where clients' addresses are noted.
        row: the acceptor's on the scoreboard.
        log: gunicorn's logger.
        containment: where mistakes end; of this thread alone.
        stall_s: how long a client may take nothing of what is sent to it.
        suppress_ragged_eofs: whether a client may end the connection without saying so in TLS.

    Attributes:
        ended: how many clients' connections have ended.
        is_stopping: whether the worker is.
    """

    def __init__(
        self,
        *,
        sessions: Sessions,
        results: Results,
        origins: Origins,
        row: AcceptorRow,
        log: Any,
        containment: Containment,
        stall_s: float,
        suppress_ragged_eofs: bool,
    ) -> None:
        self._sessions = sessions
        self._all = sessions.all
        self._arm = sessions.arm
        self._results = results
        self._origins = origins
        self._row = row
        self._log = log
        self._containment = containment
        self.stall_s = stall_s
        self._suppress_ragged_eofs = suppress_ragged_eofs
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self.ended = 0
        self.is_stopping = False

    def guarded(self, session: Session, step: Callable[..., None], *arguments: int) -> None:
        """Take a step; what can go wrong ends this connection only."""
        try:
            step(session, *arguments)
        except ssl.SSLError as exc:
            self._fail(session, exc)
        except OSError:  # reset, or gone before it was read
            self.end(session)
        except Exception:
            self._containment.failed("TLS connection")
            self.end(session)

    def on_event(self, session: Session, fd: int, flags: int) -> None:
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
                    self.end(session)
                else:  # the client of a Unix socket has closed it, and its request is still on its way to the app
                    self._sessions.disarm_client(session)
                    return
        self._settle(session)

    def _settle(self, session: Session) -> None:
        """Do what a step has made due, and arm for the next one."""
        if session not in self._all:  # the step has ended it
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
            ours, theirs = map(blocking, socket.socketpair())
        except OSError as exc:
            self._log.error("cannot serve a TLS connection: %s", exc)
            raise
        origin = Origin(session.peer, session.outer.getsockname(), facts_of(session.tls))
        try:
            self._origins.write(theirs.fileno(), origin)
        except ValueError:
            self._log.warning("client %s: its certificate is too long for the environ; apps do not get SSL_CLIENT_CERT", session.peer)
            del origin.environ["SSL_CLIENT_CERT"]
            self._origins.write(theirs.fileno(), origin)
        self._sessions.open(session, ours)
        self._results.put(Result(theirs, session.peer))

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
                    session.deadline = time.monotonic() + self.stall_s
                return
            session.to_client = b""
        if session.phase is Phase.OPEN:
            session.deadline = math.inf

    # The end.

    def _close(self, session: Session) -> None:
        """Say the end to the client behind all that it still has to get."""
        self._sessions.close_inner(session)
        session.to_app = b""
        if session.phase is Phase.OPENING:
            self._fail_opening(session)
        session.phase = Phase.CLOSING
        try:
            session.tls.unwrap()
        except ssl.SSLError:  # what is wanted now is the client's own end, and that is not waited for
            pass
        session.deadline = time.monotonic() + self.stall_s
        self._send_to_client(session)

    def _fail_opening(self, session: Session) -> None:
        del self._sessions.openings[session]
        self._results.put(Result(None, session.peer))

    def _shut(self, session: Session) -> None:
        session.outer.shutdown(socket.SHUT_WR)
        session.is_shut = True
        session.deadline = time.monotonic() + LINGER_S
        if session.tcp_has_ended:
            self.end(session)

    def _discard(self, session: Session) -> None:
        """Read away what the client still sends: a close with unread data is a reset, and could destroy the answer."""
        try:
            count = session.outer.recv_into(self._buffer, 0, _DONTWAIT)
        except BlockingIOError:
            return
        session.discarded += count
        if not count or session.discarded > LINGER_MAX_BYTES:
            self.end(session)

    def _fail(self, session: Session, exc: ssl.SSLError) -> None:
        """Deal with a client that does not keep to TLS, or that is not welcome."""
        if not session.is_shaken and session.phase is Phase.OPENING:
            self._row.count_handshake(False)
            if exc.reason in _PLAIN_HTTP:
                self.end(session, Result(session.outer, session.peer, exc))
                return
        self._log.debug("TLS with %s failed: %s", session.peer, exc)
        # OpenSSL has left an alert that says why.
        self.guarded(session, self._fail_gently)

    def _fail_gently(self, session: Session) -> None:
        if session.phase is not Phase.CLOSING:
            self._close(session)
        else:
            self.end(session)
        self._settle(session)

    def end(self, session: Session, result: Result | None = None) -> None:
        """Close a connection.

        Args:
            result: gives the client's socket to the acceptor instead.
        """
        if session not in self._all:
            return
        self._sessions.remove(session)
        self.ended += 1
        if result is not None:
            del self._sessions.openings[session]
            self._results.put(result)
            return
        self._sessions.close_later(session.outer)
        if session.phase is Phase.OPENING:
            self._fail_opening(session)
        elif self._row.is_at_capacity or self.is_stopping:
            self._results.wake()

    def lose(self, outer: socket.socket, peer: Any) -> None:
        """Close the socket of a client for which there is no memory."""
        self.ended += 1
        self._sessions.close_later(outer)
        self._results.put(Result(None, peer))
