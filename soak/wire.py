"""One connection of a client: bytes out, answers in, and what exactly went wrong when something did.

No HTTP library: the account needs to know how much of an answer came before a connection broke, and a client must be able to be slow,
to send several requests at once and to leave at any moment.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# How long a client waits for the next byte. Longer than any limit of the server's own (request_timeout, 60 s), whose answer it is to see.
PATIENCE_S = 90.0

_RECV_BYTES = 64 * 1024


class Broken(Exception):
    """No whole answer came.

    Attributes:
        how: "refused", "reset", "closed", "timeout" or "malformed".
        got: bytes of the answer that came.
    """

    def __init__(self, how: str, got: int, detail: str = "") -> None:
        super().__init__(f"{how} after {got} bytes{detail and ': '}{detail}")
        self.how = how
        self.got = got


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A response's status and fields, names in lower case."""

    status: int
    fields: dict[str, str]

    @property
    def says_close(self) -> bool:
        return self.fields.get("connection", "").lower() == "close"


class Connection:
    """An open connection.

    Attributes:
        port: the client's, by which the server's side of it can be found.
        opened_at: monotonic seconds.
        asked_at, asked_before: when the current request began, and the one before.
        headed_at, answered_at: when the last answer's head, and its last byte, was read.
        answers: how many came so far.
        generations: newest generation of each mount that has answered on it.
        worker: process id of the worker that answered; 0: none yet.
    """

    def __init__(self, address: tuple[str, int], *, receive_buffer: int = 0) -> None:
        self.answers = 0
        self.generations: dict[str, int] = {}
        self.worker = 0
        self._buffer = bytearray()
        self._got = 0  # bytes of the current answer
        self._sock = socket.socket()
        self._sock.settimeout(PATIENCE_S)
        if receive_buffer:  # set before the connect, so that the window never grows
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.opened_at = self.asked_at = self.asked_before = self.headed_at = self.answered_at = time.monotonic()
        self.port = 0
        try:
            self._sock.connect(address)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.port = self._sock.getsockname()[1]
        except OSError as exc:
            self._sock.close()
            raise Broken("refused", 0, str(exc)) from exc

    def send(self, data: bytes) -> bool:
        """Send; False if the server takes no more, which it may have said why."""
        try:
            self._sock.sendall(data)
        except OSError:
            return False
        return True

    def end_sending(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:  # it broke; reading tells how
            return

    def begin_request(self) -> None:
        self.asked_before, self.asked_at = self.asked_at, time.monotonic()
        self.begin_answer()

    def begin_answer(self) -> None:
        """Count what comes from here on as the next answer's."""
        self._got = len(self._buffer)

    def has_news(self) -> bool:
        """Whether something can be read: on an idle connection, that the server has closed it."""
        return bool(self._buffer or select.select([self._sock], [], [], 0)[0])

    def head(self) -> Head:
        """Read a response's head; raises Broken."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._fill()
        text = bytes(self._buffer[:end]).decode("latin-1")
        del self._buffer[: end + 4]
        line, *lines = text.split("\r\n")
        version, _, rest = line.partition(" ")
        if version != "HTTP/1.1" or not rest[:3].isdigit():
            raise Broken("malformed", self._got, f"a response begins with {line!r}")
        fields: dict[str, str] = {}
        for field in lines:
            name, _, value = field.partition(":")
            if fields.setdefault(name.lower(), value.strip()) != value.strip():
                raise Broken("malformed", self._got, f"{name} was sent twice")
        self.headed_at = time.monotonic()
        return Head(status=int(rest[:3]), fields=fields)

    def body(self, head: Head, take: Callable[[bytes], None]) -> None:
        """Read a response's body and hand it over as it comes; raises Broken."""
        if "chunked" in head.fields.get("transfer-encoding", ""):
            for size in self._chunk_sizes():
                self._pass(size, take)
                self._expect_line_end()
        elif "content-length" in head.fields:
            self._pass(int(head.fields["content-length"]), take)
        else:
            self._pass_all(take)
        self.answers += 1
        self.answered_at = time.monotonic()

    def close(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)  # a thread may be sending, and would wait for ever
        except OSError:
            pass  # it broke
        self._sock.close()

    def reset(self) -> None:
        """Close it so that the server gets an error."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def _fill(self) -> None:
        try:
            data = self._sock.recv(_RECV_BYTES)
        except ConnectionResetError:
            raise Broken("reset", self._got) from None
        except TimeoutError:
            raise Broken("timeout", self._got) from None
        except OSError as exc:
            raise Broken("reset", self._got, str(exc)) from exc
        if not data:
            raise Broken("closed", self._got)
        self._got += len(data)
        self._buffer += data

    def _pass(self, count: int, take: Callable[[bytes], None]) -> None:
        while count:
            if not self._buffer:
                self._fill()
            piece = bytes(self._buffer[:count])
            del self._buffer[: len(piece)]
            count -= len(piece)
            take(piece)

    def _pass_all(self, take: Callable[[bytes], None]) -> None:
        while True:
            if self._buffer:
                take(bytes(self._buffer))
                self._buffer.clear()
            try:
                self._fill()
            except Broken as exc:
                if exc.how != "closed":
                    raise
                return

    def _chunk_sizes(self) -> Iterator[int]:
        while True:
            line = self._line()
            try:
                size = int(line, 16)
            except ValueError:
                raise Broken("malformed", self._got, f"expected a chunk's size, got {line[:40]!r}") from None
            if not size:
                self._expect_line_end()
                return
            yield size

    def _expect_line_end(self) -> None:
        if line := self._line():
            raise Broken("malformed", self._got, f"expected the end of a chunk, got {line[:40]!r}")

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line
