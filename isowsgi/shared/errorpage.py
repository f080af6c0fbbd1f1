"""gunicorn's page for an error, as its `Worker.handle_error` writes it, mended on its way to the client."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any


class PageSocket:
    """A connection as gunicorn sees it while it answers an error.

    gunicorn 27.0.1 puts head and page through textwrap.dedent(). Since Python 3.14 that makes a bare line feed of the empty line that
    ends the head, and clients that insist on CRLF (RFC 9112 section 2.2) find no end of it.

    Args:
        has_body: False after a HEAD request, which gets the head only.
        on_status: takes the status before it is sent.
        waits: whether sending may wait for the client to read; else what there is no room for is not sent.
    """

    def __init__(
        self,
        sock: socket.socket,
        has_body: bool = True,
        on_status: Callable[[int], None] = lambda status: None,
        waits: bool = True,
    ) -> None:
        self._sock = sock
        self._has_body = has_body
        self._on_status = on_status
        self._send = sock.sendall if waits else self._send_now

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: bytes) -> None:
        """Send a whole response: gunicorn writes it in one call."""
        self._on_status(int(data[9:12]))
        head, end, body = data.replace(b"\r\n\n", b"\r\n\r\n", 1).partition(b"\r\n\r\n")
        self._send(head + end + body if self._has_body else head + end)

    def _send_now(self, data: bytes) -> None:
        self._sock.send(data, socket.MSG_DONTWAIT)
