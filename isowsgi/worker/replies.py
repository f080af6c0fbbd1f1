"""isowsgi's own answers to connections that reach no instance: counted, logged, and closed gently. On the acceptor's thread."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from gunicorn.http.wsgi import default_environ

from isowsgi.shared import answers
from isowsgi.shared.containment import Containment
from isowsgi.shared.peek import Peeker
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker.clients import Client, Clients

# Of a request line, for people.
_MAX_LINE_BYTES = 500


class Replies:
    """See the module's text.

    Args:
        clients: the acceptor's connections.
        peeker: reads a head once more, for the access log.
        board: where answers are counted, for a mount or for none.
        log: gunicorn's logger.
        containment: where mistakes end.
        refuse_by_gunicorn: answers a parse error: takes the socket, the client's address and the exception.
        on_refused: takes the mount's number, the request's first line and a text, for each 5xx of a mount.
    """

    def __init__(
        self,
        *,
        clients: Clients,
        peeker: Peeker,
        board: Scoreboard,
        log: Any,
        containment: Containment,
        refuse_by_gunicorn: Callable[[socket.socket, Any, Exception], None],
        on_refused: Callable[[int, str, str], None],
    ) -> None:
        self._clients = clients
        self._peeker = peeker
        self._board = board
        self._row = board.acceptor_row()
        self._log = log
        self._containment = containment
        self._refuse_by_gunicorn = refuse_by_gunicorn
        self._on_refused = on_refused

    def refuse(self, client: Client, exc: Exception) -> None:
        """Have gunicorn answer what its parser refuses: same statuses, same pages, same log."""
        self._refuse_by_gunicorn(client.sock, client.peer, exc)
        self._clients.linger(client)

    def answer(
        self,
        client: Client,
        data: bytes,
        status: str,
        text: str,
        mount: int | None = None,
        retry_after_s: int | None = None,
        location: str = "",
    ) -> None:
        """Answer a request.

        Args:
            data: what has come of it.
            mount: for which it is counted; None: it is none's.
            location: see `answers.page`.
        """
        row = self._row if mount is None else self._board.mount_row(mount)
        row.count_response(int(status[:3]))
        if mount is not None and status.startswith("5"):
            line = data[:_MAX_LINE_BYTES].partition(b"\r\n")[0].decode("latin-1")
            self._containment.call("count of errors", self._on_refused, mount, line, text)
        answer, length = answers.page(status, text, retry_after_s, location)
        try:
            client.sock.send(answer[:-length] if data.startswith(b"HEAD ") else answer, socket.MSG_DONTWAIT)
        except OSError:  # its buffer is full of answers it never read, or it is gone
            self._clients.close(client)
            return
        if self._log.access_log_enabled:
            self._containment.call("access log", self._log_access, client, data, status, length)
        self._clients.linger(client)

    def _log_access(self, client: Client, data: bytes, status: str, length: int) -> None:
        try:
            request = self._peeker.parse(data[: data.find(b"\r\n\r\n") + 4], client.peer)
        except Exception:  # a head that never came, or one that gunicorn refuses: no line to log
            return
        environ = default_environ(request, client.sock, request.cfg)
        environ["REMOTE_ADDR"] = client.peer[0] if isinstance(client.peer, tuple) else client.peer
        self._log.access(_Answered(status, length), request, environ, timedelta())


class _Answered:
    """What gunicorn's access log reads of a response."""

    def __init__(self, status: str, sent: int) -> None:
        self.status = status
        self.sent = sent
        self.headers: list[tuple[str, str]] = []
