"""A request's bytes in and a response's bytes out: gunicorn's parser and response, kept from reading or sending more than they must."""

from __future__ import annotations

import io
import os
import socket
import stat
import time
from email.utils import formatdate
from typing import Any

from gunicorn.http.unreader import Unreader
from gunicorn.http.wsgi import Response as GunicornResponse
from gunicorn.util import has_fileno

# Most bytes asked for in one recv() of a body: gunicorn's own bound, SocketUnreader.max_body_chunk.
_MAX_RECV_BYTES = 1024 * 1024

# Most bytes peeked at for the end of a chunk-size or trailer line.
_LINE_PEEK_BYTES = 8192

# A body chunk up to this size is copied behind the head, so that one system call and one packet carry both.
_JOIN_MAX_BYTES = 64 * 1024

# Most bytes per sendfile() call: the kernel's own bound, MAX_RW_COUNT, is a page less than 2 GiB.
_MAX_SENDFILE_BYTES = 1 << 30


class ClientGone(ConnectionError):
    """The client closed the connection or reset it before it had the response."""


class ClientStalled(TimeoutError):
    """The client neither sent nor read a byte for the time that a connection may stand still."""


def _client_error(exc: OSError) -> OSError:
    """Tell a client's failure apart from an OSError of the app's own, which is a 500."""
    if isinstance(exc, BlockingIOError):  # SO_RCVTIMEO or SO_SNDTIMEO ran out
        return ClientStalled("the client did not go on in time")
    return ClientGone(str(exc))


class ExactReader(Unreader):  # type: ignore[misc] # gunicorn is not annotated
    """Feeds gunicorn's parser, and never takes a byte that lies behind the request.

    What follows may be the next request, and that may be another mount's: it must stay in the kernel's buffer, where the peeker looks.
    So a body of known length is read to its end and no further, and a chunked one line by line.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock

    def put_head(self, head: bytes) -> None:
        """Let the parser read these bytes first; nothing may be left of a request before."""
        self.buf = io.BytesIO(head)

    def chunk(self, size_hint: int | None = None) -> bytes:
        try:
            if size_hint:
                return self.sock.recv(min(size_hint, _MAX_RECV_BYTES))
            line = self.sock.recv(_LINE_PEEK_BYTES, socket.MSG_PEEK)
            return self.sock.recv(line.find(b"\n") + 1 or len(line))
        except OSError as exc:
            raise _client_error(exc) from exc


class Response(GunicornResponse):  # type: ignore[misc] # gunicorn is not annotated
    """gunicorn's response, with its head and first chunk in one send.

    `sent` counts body bytes, `truncated` says whether the app gave fewer than its Content-Length promised.
    """

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        if exc_info and not self.headers_sent:
            # PEP 3333: the second call replaces the first one's headers; gunicorn's would add to them.
            self.headers: list[tuple[str, str]] = []
            self.response_length = None
            self.upgrade = False
        return super().start_response(status, headers, exc_info)

    @property
    def truncated(self) -> bool:
        return self.response_length is not None and self.sent < self.response_length and not self._omits_body

    def write(self, data: bytes) -> None:
        if not isinstance(data, bytes):
            raise TypeError(f"{data!r} is not a byte string")
        if not data:
            return  # PEP 3333: the head goes out with the first byte of the body, not before
        if self._omits_body:
            super().write(data)  # sends the head, warns once
            return
        length = self.response_length
        if length is not None and len(data) > length - self.sent:
            data = data[: length - self.sent]
            if not data:
                return
        self.sent += len(data)
        framed = b"%X\r\n%b\r\n" % (len(data), data) if self.chunked else data
        if not self.headers_sent:
            head = self._head()
            if len(framed) <= _JOIN_MAX_BYTES:
                framed = head + framed
            else:
                self._send(head)
        self._send(framed)

    def send_headers(self) -> None:
        if not self.headers_sent:
            self._send(self._head())

    def close(self) -> None:
        """Send what the app's silence means: the head of an empty response, the end of a chunked one."""
        end = b"0\r\n\r\n" if self.chunked else b""
        if not self.headers_sent:
            end = self._head() + end
        if end:
            self._send(end)

    def sendfile(self, respiter: Any) -> bool:
        """Send a file without reading it into this process; False when that cannot be done and nothing was sent.

        gunicorn's goes through `socket.sendfile`, which waits for a client that does not read without any limit.
        """
        if not self.cfg.sendfile or self._omits_body or not has_fileno(respiter.filelike):
            return False
        fd = respiter.filelike.fileno()
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return False
        # A buffered reader may have read ahead of what the app took from it, so the descriptor's own offset is not the app's.
        offset = respiter.filelike.tell() if hasattr(respiter.filelike, "tell") else os.lseek(fd, 0, os.SEEK_CUR)
        count = max(status.st_size - offset, 0)
        if self.response_length is not None:
            count = min(count, self.response_length)
        framed = self.chunked and count > 0
        self._send(self._head() + (b"%X\r\n" % count if framed else b""))
        try:
            while self.sent < count:
                sent = os.sendfile(self.sock.fileno(), fd, offset + self.sent, min(count - self.sent, _MAX_SENDFILE_BYTES))
                if sent == 0:  # the file was cut short meanwhile
                    break
                self.sent += sent
        except OSError as exc:
            raise _client_error(exc) from exc
        if framed:
            if self.sent < count:
                raise ClientGone("the file became shorter while it was sent; the response cannot be completed")
            self._send(b"\r\n")
        return True

    def _head(self) -> bytes:
        if self.status is None:
            raise AssertionError("the application returned without calling start_response")
        self.headers_sent = True
        lines = self.default_headers()
        lines.extend([f"{name}: {value}\r\n" for name, value in self.headers])
        return "".join([*lines, "\r\n"]).encode("latin-1")

    def default_headers(self) -> list[str]:
        connection = "upgrade" if self.upgrade else "close" if self.should_close() else "keep-alive"
        major, minor = self.req.version
        lines = [
            f"HTTP/{major}.{minor} {self.status}\r\n",
            f"Server: {self.version}\r\n",
            f"Date: {_http_date()}\r\n",
            f"Connection: {connection}\r\n",
        ]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked\r\n")
        return lines

    def _send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as exc:
            raise _client_error(exc) from exc


_date = (0, "")


def _http_date() -> str:
    """Return the Date field's value, made once a second (RFC 9110 section 5.6.7)."""
    global _date
    now = int(time.time())
    second, text = _date
    if second != now:
        text = formatdate(now, usegmt=True)
        _date = (now, text)  # one assignment: threads see the old pair or the new one
    return text
