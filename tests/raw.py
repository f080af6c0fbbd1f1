"""A client that sends bytes as they are, and reads one response at a time from a connection."""

from __future__ import annotations

import socket
from typing import BinaryIO, NamedTuple

from tests.conftest import Server


class Answer(NamedTuple):
    status: int
    reason: str
    version: str
    fields: dict[str, str]  # names in lower case
    body: bytes
    whole: bool  # False: the connection ended before the body did


class Client:
    """One connection to a server; closed when the block is left."""

    def __init__(self, server: Server) -> None:
        self.sock = server.connect()
        self._file: BinaryIO = self.sock.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def send(self, data: bytes | str) -> None:
        self.sock.sendall(data.encode("latin-1") if isinstance(data, str) else data)

    def send_what_fits(self, data: bytes) -> None:
        """Send, though the server may stop reading at any byte."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def end_sending(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def ask(self, path: str, method: str = "GET", fields: str = "", body: bytes = b"") -> Answer:
        """Send an ordinary request and return the response."""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{length}{fields}\r\n".encode() + body)
        return self.answer(method)

    def answer(self, method: str = "GET") -> Answer:
        """Read the next response, an interim one (1xx) included."""
        answer = self.head()
        body, whole = b"", True
        if method == "HEAD" or answer.status < 200 or answer.status in (204, 304):
            pass
        elif "chunked" in answer.fields.get("transfer-encoding", ""):
            chunks = []
            while chunk := self.chunk():
                chunks.append(chunk)
            body, whole = b"".join(chunks), chunk is not None
        elif "content-length" in answer.fields:
            length = int(answer.fields["content-length"])
            body = self._file.read(length)
            whole = len(body) == length
        else:
            body = self._file.read()
        return answer._replace(body=body, whole=whole)

    def head(self) -> Answer:
        """Read a response's head only."""
        line = self._file.readline()
        assert line.endswith(b"\r\n"), f"expected a status line, got {line!r}"
        version, status, reason = line.decode("latin-1").rstrip("\r\n").split(" ", 2)
        fields: dict[str, str] = {}
        while (line := self._file.readline()) != b"\r\n":
            assert line, "the connection ended within a head"
            name, _, value = line.decode("latin-1").partition(":")
            assert name.lower() not in fields, f"{name} was sent twice"
            fields[name.lower()] = value.strip()
        return Answer(int(status), reason, version, fields, b"", True)

    def chunk(self) -> bytes | None:
        """Read one chunk of a body: b"" is the last one, None says that the connection ended before it."""
        line = self._file.readline()
        if not line:
            return None
        size = int(line, 16)
        data = self._file.read(size)
        if len(data) < size:
            return None
        assert self._file.readline() == b"\r\n"
        return data

    def read(self, count: int) -> bytes:
        return self._file.read(count)

    def is_closed(self) -> bool:
        """Wait for the server to close; False if it sends something instead."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True
