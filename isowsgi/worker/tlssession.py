"""One client's TLS connection: what stands between its two sockets, without an epoll set and without a wait."""

from __future__ import annotations

import select
import socket
import ssl
from enum import Enum
from typing import Any

# Most that is read at once: four records, or what a socket pair holds without waiting.
READ_BYTES = 64 * 1024

# Most bytes that OpenSSL itself may have to send (alerts, key updates) to a client that does not read.
_MAX_UNSENT_BYTES = 64 * 1024


class Phase(Enum):
    OPENING = "handshake, and until the client has said something"
    OPEN = "bytes are copied both ways"
    CLOSING = "the rest is sent, then the client's end is waited for"


class Session:
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
        self.phase = Phase.OPENING
        self.is_shaken = False
        self.deadline = deadline
        self.to_client: bytes | memoryview = b""  # encrypted, and there was no room for it yet
        self.to_app: bytes | memoryview = b""  # decrypted, the same
        self.client_has_ended = False  # its last byte was decrypted
        self.tcp_has_ended = False
        self.app_is_deaf = False  # the other end of the pair is closed, or no longer reads
        self.is_shut = False  # for writing
        self.discarded = 0  # bytes, since then
        self.client_armed: int | None = None  # for which events; None: not at all
        self.app_armed: int | None = None

    def wanted_of_client(self) -> int:
        if self.phase is Phase.OPENING:
            reads = True
        elif self.phase is Phase.OPEN:
            reads = not (self.to_app or self.client_has_ended or self.app_is_deaf or self.outgoing.pending > _MAX_UNSENT_BYTES)
        else:
            reads = self.is_shut
        return (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if self.to_client else 0)

    def wanted_of_app(self) -> int | None:
        if self.inner is None:
            return None
        # Not at all rather than for no event: a hang-up is reported in any case, and would be again and again until the client has read.
        return (0 if self.to_client else select.EPOLLIN) | (select.EPOLLOUT if self.to_app else 0) or None

    def shake(self) -> bool:
        """Go on with the handshake; True when it is over.

        Raises:
            ssl.SSLError: the client does not keep to TLS.
        """
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.is_shaken = True
        return True

    def decrypt(self, suppress_ragged_eofs: bool) -> bytes:
        """Return what the client has said, as far as it has come; note its end.

        Raises:
            ConnectionResetError: it ended without saying so, and that is not allowed.
        """
        chunks: list[bytes] = []
        tls, incoming = self.tls, self.incoming
        try:
            # OpenSSL takes no more out of `incoming` than the record it reads, so what is in neither has not come yet.
            while incoming.pending or tls.pending():
                chunk = tls.read(READ_BYTES)
                if not chunk:
                    self.client_has_ended = True
                    break
                chunks.append(chunk)
        except ssl.SSLWantReadError:
            pass
        if self.tcp_has_ended and not self.client_has_ended:
            if not suppress_ragged_eofs:
                raise ConnectionResetError("the connection ended without an end of the TLS session")
            self.client_has_ended = True
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def encrypt(self, data: memoryview) -> None:
        """Make records of what the app says; they wait in `outgoing`."""
        written = 0
        while written < len(data):
            written += self.tls.write(data[written:])
