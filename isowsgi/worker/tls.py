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
import re
import select
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, NamedTuple

from gunicorn.sock import ssl_context

from isowsgi.shared.origins import Origin, Origins
from isowsgi.shared.scoreboard import AT_CAPACITY, HANDSHAKE_FAILURES, HANDSHAKES
from isowsgi.worker.acceptor import LINGER_MAX_BYTES, LINGER_S, STOP_IDLE_S, YIELD_SHARE

# Most that is read at once: four records, or what a socket pair holds without waiting.
_READ_BYTES = 64 * 1024

_MAX_EVENTS = 64

# Handshakes in a row before records are looked at again: one costs up to a millisecond with an RSA key of 2048 bits, a record some 20 us.
_HANDSHAKES_IN_A_ROW = 4

# Most that OpenSSL may have to say of its own (alerts, key updates) to a client that does not read.
_MAX_UNSENT_BYTES = 64 * 1024

_SWEEP_S = 1.0

# How long a thread that computes may keep the main interpreter's GIL from the relay, which gives it up at each system call. Hello over
# TLS by 16 connections, beside a mount that shares that GIL and computes: 87 a second with the default, 5 ms, 1,100 with 0.5 ms, 4,200 with
# this, 5,800 with 0.05 ms (CPython 3.14.10, 2 cores, python -m bench.tls).
_SWITCH_INTERVAL_S = 0.0001

_DONTWAIT = int(socket.MSG_DONTWAIT)

_GONE = select.EPOLLERR | select.EPOLLHUP

# What OpenSSL calls a plain HTTP request where a handshake should begin.
_PLAIN_HTTP = ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST")


class ContextError(Exception):
    """gunicorn's settings give no TLS context; the text says which of them and why."""


def make_context(cfg: Any) -> ssl.SSLContext:
    """Return the TLS context that gunicorn's settings ask for, by its own code.

    Raises:
        ContextError: they ask for what cannot be.
    """
    for name in ("certfile", "keyfile", "ca_certs"):
        path = getattr(cfg, name)
        try:
            if path:
                open(path, "rb").close()
        except OSError as exc:
            raise ContextError(f"gunicorn setting {name}: cannot read {path!r}: {exc.strerror}") from exc
    try:
        context: ssl.SSLContext = ssl_context(cfg)
        # Renegotiation, which TLS 1.3 no longer has, costs the server far more than the client that asks for it, and would let a write
        # wait for a read. OpenSSL 3 refuses it anyway.
        context.options |= ssl.OP_NO_RENEGOTIATION
    except Exception as exc:  # the user's `ssl_context` may raise anything
        files = f"certfile {cfg.certfile!r}, keyfile {cfg.keyfile!r}"
        raise ContextError(f"gunicorn's TLS settings: no TLS context can be made of {files}: {type(exc).__name__}: {exc}") from exc
    return context


class _Phase(Enum):
    OPENING = "handshake, and until the client has said something"
    OPEN = "bytes are copied both ways"
    CLOSING = "the rest is sent, then the client's end is waited for"


class _Session:
    """One client's connection."""

    __slots__ = (
        "app_armed", "app_is_deaf", "client_armed", "client_has_ended", "deadline", "discarded", "incoming", "inner", "is_shaken",
        "is_shut", "outer", "outgoing", "peer", "phase", "tcp_has_ended", "tls", "to_app", "to_client",
    )  # fmt: skip

    def __init__(self, outer: socket.socket, peer: Any, context: ssl.SSLContext, deadline: float) -> None:
        self.outer = outer
        self.peer = peer
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.inner: socket.socket | None = None  # our end of the pair
        self.phase = _Phase.OPENING
        self.is_shaken = False
        self.deadline = deadline
        self.to_client: bytes | memoryview = b""  # encrypted, and there was no room for it yet
        self.to_app: bytes | memoryview = b""  # decrypted, the same
        self.client_has_ended = False  # its last byte was decrypted
        self.tcp_has_ended = False
        self.app_is_deaf = False  # the other end of the pair is closed, or reads no more
        self.is_shut = False  # for writing
        self.discarded = 0  # bytes, since then
        self.client_armed: int | None = None  # for which events; None: not at all
        self.app_armed: int | None = None

    def wanted_of_client(self) -> int:
        if self.phase is _Phase.OPENING:
            reads = True
        elif self.phase is _Phase.OPEN:
            reads = not (self.to_app or self.client_has_ended or self.app_is_deaf or self.outgoing.pending > _MAX_UNSENT_BYTES)
        else:
            reads = self.is_shut
        return (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if self.to_client else 0)

    def wanted_of_app(self) -> int | None:
        if self.inner is None:
            return None
        # Not at all rather than for no event: a hang-up is told in any case, and would be again and again until the client has read.
        return (0 if self.to_client else select.EPOLLIN) | (select.EPOLLOUT if self.to_app else 0) or None


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
        words: of the acceptor's row on the scoreboard.
        log: gunicorn's logger.
        opening_s: how long a client may take for its handshake and the first byte of a request.
        stall_s: how long it may take nothing of what is sent to it.
        suppress_ragged_eofs: whether a client may end the connection without saying so in TLS.
    """

    def __init__(
        self,
        *,
        context: ssl.SSLContext,
        origins: Origins,
        words: memoryview,
        log: Any,
        opening_s: float,
        stall_s: float,
        suppress_ragged_eofs: bool,
    ) -> None:
        self._context = context
        self._origins = origins
        self._words = words
        self._log = log
        self._opening_s = opening_s
        self._stall_s = stall_s
        self._suppress_ragged_eofs = suppress_ragged_eofs
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._arrivals: deque[tuple[socket.socket, Any]] = deque()
        self._results: deque[Result] = deque()
        self._has_results = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sessions: dict[_Session, None] = {}
        self._openings: dict[_Session, None] = {}  # those in that phase, the oldest first
        self._by_fd: dict[int, _Session] = {}
        self._ended_sockets: list[socket.socket] = []  # closed behind a batch of events, none of which may be of the next with that number
        self._buffer = bytearray(_READ_BYTES)
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
        try:
            while True:
                self._turn()
        except BaseException:
            self._log.exception("the TLS relay has ended by a mistake in isowsgi; please report it")

    def _turn(self) -> None:
        openings: list[tuple[_Session, int, int]] = []
        for fd, flags in self._epoll.poll(_SWEEP_S if self._sessions else -1, _MAX_EVENTS):
            if fd == self._wake:
                self._answer_wake()
            elif (session := self._by_fd.get(fd)) is None:
                continue  # ended by an event before this one
            elif session.phase is _Phase.OPENING:
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
            session = _Session(outer, peer, self._context, now + self._opening_s)
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

    def _guarded(self, session: _Session, step: Callable[..., None], *arguments: int) -> None:
        """Take a step; what can go wrong ends this connection only."""
        try:
            step(session, *arguments)
        except ssl.SSLError as exc:
            self._fail(session, exc)
        except OSError:  # reset, or gone before it was read
            self._end(session)
        except Exception:
            self._log.exception("a mistake in isowsgi ended a TLS connection; please report it")
            self._end(session)

    def _on_event(self, session: _Session, fd: int, flags: int) -> None:
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
                    if session.phase is _Phase.CLOSING:
                        self._discard(session)
                    else:
                        self._read_client(session)
                elif flags & select.EPOLLERR or not session.to_app:
                    self._end(session)
                else:  # the client of a Unix socket has closed it, and its request is still on its way to the app
                    self._disarm_client(session)
                    return
        self._settle(session)

    def _settle(self, session: _Session) -> None:
        """Do what a step has made due, and arm for the next one."""
        if session not in self._sessions:  # the step has ended it
            return
        if session.phase is _Phase.CLOSING and not session.to_client and not session.is_shut:
            self._shut(session)
        self._arm(session)

    # From the client to the app.

    def _read_client(self, session: _Session) -> None:
        try:
            count = session.outer.recv_into(self._buffer, 0, _DONTWAIT)
        except BlockingIOError:
            return
        if count:
            session.incoming.write(self._view[:count])
        else:
            session.tcp_has_ended = True
            session.incoming.write_eof()
        if not session.is_shaken and not self._shake(session):
            return
        data = self._decrypt(session)
        if session.outgoing.pending:
            self._send_to_client(session)
        if data:
            if session.phase is _Phase.OPENING:
                self._open(session)
            self._send_to_app(session, data)
        elif session.client_has_ended:
            if session.inner is None:
                self._close(session)
            else:
                self._end_input(session)

    def _shake(self, session: _Session) -> bool:
        """Go on with the handshake; True when it is over."""
        try:
            session.tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send_to_client(session)
            return False
        session.is_shaken = True
        self._words[HANDSHAKES] += 1
        self._send_to_client(session)
        return True

    def _decrypt(self, session: _Session) -> bytes:
        """Return what the client has said, as far as it has come; note its end."""
        chunks: list[bytes] = []
        tls, incoming = session.tls, session.incoming
        try:
            # OpenSSL takes no more out of `incoming` than the record it reads, so what is in neither has not come yet.
            while incoming.pending or tls.pending():
                chunk = tls.read(_READ_BYTES)
                if not chunk:
                    session.client_has_ended = True
                    break
                chunks.append(chunk)
        except ssl.SSLWantReadError:
            pass
        if session.tcp_has_ended and not session.client_has_ended:
            if not self._suppress_ragged_eofs:
                raise ConnectionResetError("the connection ended without an end of the TLS session")
            session.client_has_ended = True
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _open(self, session: _Session) -> None:
        """Make the pair, and give its other end to the acceptor."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as exc:
            self._log.error("cannot serve a TLS connection: %s", exc)
            raise
        origin = Origin(session.peer, session.outer.getsockname(), _facts(session.tls))
        try:
            self._origins.write(theirs.fileno(), origin)
        except ValueError:
            self._log.warning("the certificate of the client %s is too long to be shown to apps", session.peer)
            del origin.environ["SSL_CLIENT_CERT"]
            self._origins.write(theirs.fileno(), origin)
        session.inner = ours
        self._by_fd[ours.fileno()] = session
        del self._openings[session]
        session.phase, session.deadline = _Phase.OPEN, math.inf
        self._tell(Result(theirs, session.peer))

    def _send_to_app(self, session: _Session, data: bytes | memoryview) -> None:
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

    def _end_input(self, session: _Session) -> None:
        assert session.inner is not None, "it is open"
        try:
            session.inner.shutdown(socket.SHUT_WR)
        except OSError:
            session.app_is_deaf = True

    # From the app to the client.

    def _read_app(self, session: _Session) -> None:
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
        written = 0
        while written < count:
            written += session.tls.write(self._view[written:count])
        self._send_to_client(session)

    def _send_to_client(self, session: _Session) -> None:
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
                if session.phase is not _Phase.OPENING and (sent or session.deadline == math.inf):
                    session.deadline = time.monotonic() + self._stall_s
                return
            session.to_client = b""
        if session.phase is _Phase.OPEN:
            session.deadline = math.inf

    # The end.

    def _close(self, session: _Session) -> None:
        """Say the end to the client behind all that it still has to get."""
        if session.inner is not None:
            self._disarm_app(session)
            del self._by_fd[session.inner.fileno()]
            self._ended_sockets.append(session.inner)
            session.inner, session.to_app = None, b""
        if session.phase is _Phase.OPENING:
            self._give_up_opening(session)
        session.phase = _Phase.CLOSING
        try:
            session.tls.unwrap()
        except ssl.SSLError:  # what is wanted now is the client's own end, and that is not waited for
            pass
        session.deadline = time.monotonic() + self._stall_s
        self._send_to_client(session)

    def _give_up_opening(self, session: _Session) -> None:
        del self._openings[session]
        self._tell(Result(None, session.peer))

    def _shut(self, session: _Session) -> None:
        session.outer.shutdown(socket.SHUT_WR)
        session.is_shut = True
        session.deadline = time.monotonic() + LINGER_S
        if session.tcp_has_ended:
            self._end(session)

    def _discard(self, session: _Session) -> None:
        """Read away what the client still sends: a close with unread data is a reset, and could destroy the answer."""
        try:
            count = session.outer.recv_into(self._buffer, 0, _DONTWAIT)
        except BlockingIOError:
            return
        session.discarded += count
        if not count or session.discarded > LINGER_MAX_BYTES:
            self._end(session)

    def _fail(self, session: _Session, exc: ssl.SSLError) -> None:
        """Deal with a client that does not keep to TLS, or that is not welcome."""
        if not session.is_shaken and session.phase is _Phase.OPENING:
            self._words[HANDSHAKE_FAILURES] += 1
            if exc.reason in _PLAIN_HTTP:
                self._end(session, Result(session.outer, session.peer, exc))
                return
        self._log.debug("TLS with %s failed: %s", session.peer, exc)
        # OpenSSL has left an alert that says why.
        self._guarded(session, self._fail_gently)

    def _fail_gently(self, session: _Session) -> None:
        if session.phase is not _Phase.CLOSING:
            self._close(session)
        else:
            self._end(session)
        self._settle(session)

    def _end(self, session: _Session, result: Result | None = None) -> None:
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
        if session.phase is _Phase.OPENING:
            self._give_up_opening(session)
        elif self._words[AT_CAPACITY] or self._is_stopping:
            os.eventfd_write(self._has_results, 1)

    def _tell(self, result: Result) -> None:
        self._results.append(result)
        os.eventfd_write(self._has_results, 1)

    # The epoll set.

    def _arm(self, session: _Session) -> None:
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

    def _disarm_client(self, session: _Session) -> None:
        if session.client_armed is not None:
            self._epoll.unregister(session.outer)
            session.client_armed = None

    def _disarm_app(self, session: _Session) -> None:
        if session.app_armed is not None and session.inner is not None:
            self._epoll.unregister(session.inner)
            session.app_armed = None


# Short names of what certificates call people and places by (RFC 4514 section 3, and what OpenSSL adds to it); others stay as they are.
_SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "surname": "SN",
    "givenName": "GN",
    "userId": "UID",
}


def _facts(tls: ssl.SSLObject) -> dict[str, str]:
    """Return what was agreed with the client, and who it is, by the names that Apache's mod_ssl gives it."""
    facts = {"SSL_PROTOCOL": tls.version() or "", "SSL_CLIENT_VERIFY": "NONE"}
    if (cipher := tls.cipher()) is not None:
        facts |= {"SSL_CIPHER": cipher[0], "SSL_CIPHER_USEKEYSIZE": str(cipher[2])}
    # Without a demand for certificates none is taken.
    octets = tls.getpeercert(binary_form=True)
    if octets is None:
        return facts
    facts |= {"SSL_CLIENT_VERIFY": "SUCCESS", "SSL_CLIENT_CERT": ssl.DER_cert_to_PEM_cert(octets)}
    certificate: Any = tls.getpeercert()
    return facts | {
        "SSL_CLIENT_S_DN": distinguished_name(certificate["subject"]),
        "SSL_CLIENT_I_DN": distinguished_name(certificate["issuer"]),
        "SSL_CLIENT_M_SERIAL": certificate["serialNumber"],
        "SSL_CLIENT_V_START": certificate["notBefore"],
        "SSL_CLIENT_V_END": certificate["notAfter"],
    }


def distinguished_name(parts: Iterable[Iterable[tuple[str, str]]]) -> str:
    """Return a certificate's subject or issuer as text by RFC 4514: the most particular part first, UTF-8 as PEP 3333 has it.

    Args:
        parts: as `getpeercert` gives them.
    """
    turned = ([*part][::-1] for part in [*parts][::-1])
    text = ",".join("+".join(f"{_SHORT_NAMES.get(name, name)}={_escaped(value)}" for name, value in part) for part in turned)
    return text.encode("utf-8", "replace").decode("latin-1")


def _escaped(value: str) -> str:
    text = re.sub(r'([,+"\\<>;])', r"\\\1", value)
    text = re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\{ord(match[0]):02X}", text)
    if text.startswith(("#", " ")):
        text = "\\" + text
    return text[:-1] + "\\ " if text.endswith(" ") and len(value) > 1 else text
