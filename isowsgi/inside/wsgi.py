"""One request through the app: environ, call, response, by PEP 3333."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from gunicorn.http.body import LengthReader
from gunicorn.http.errors import NoMoreData
from gunicorn.http.parser import RequestParser
from gunicorn.http.wsgi import FileWrapper, base_environ, create

from isowsgi.inside.http import ClientGone, ClientStalled, ExactReader, Response
from isowsgi.inside.plain import PlainReader
from isowsgi.peek import Look

# How long, and by gunicorn's default up to 64 KiB, a body that the app left unread is read away to keep the connection: gunicorn
# gthread's DEFAULT_WORKER_DATA_TIMEOUT.
_DRAIN_S = 5.0

Application = Callable[[dict[str, Any], Any], Any]


class Fate(Enum):
    """What becomes of a connection after a request."""

    KEEP = "it waits for the next request"
    CLOSE = "nothing is left to read: close it"
    LINGER = "the client may still be sending: close it only after that was read, or the response is lost"


class Connection:
    """A client's connection while this instance owns it.

    Args:
        sock: blocking, with time limits of its own.
        peer: the client's address as `accept` gives it; "" on a Unix socket.
        server: the listener's address as `getsockname` gives it.
        gateway: of the app that its requests are for.
    """

    __slots__ = ("_parser", "cfg", "idle_since", "peer", "plain", "reader", "server", "sock")

    def __init__(self, sock: Any, peer: Any, server: Any, gateway: Gateway) -> None:
        self.sock = sock
        self.peer = peer
        self.server = server
        self.cfg = gateway.cfg
        self.reader = ExactReader(sock)
        self.plain = PlainReader(gateway.base_environ(sock, peer, server), gateway.cfg, self.reader, peer, server, gateway.prefix)
        self.idle_since = 0.0  # monotonic seconds; 0 while a thread serves it
        self._parser: RequestParser | None = None

    def parser(self) -> RequestParser:
        """Return gunicorn's parser for this connection; most never need one."""
        if self._parser is None:
            self._parser = RequestParser(self.cfg, self.sock, self.peer)
            self._parser.unreader = self.reader
        return self._parser


class Gateway:
    """Calls one app.

    Args:
        app: the WSGI application.
        cfg: gunicorn's settings.
        log: the instance's log.
        prefix: the mount's, as SCRIPT_NAME gets it.
        extra: environ entries that are the same for every request.
        end_lines: called at a request's end, so that what the app printed without a line end reaches the log.
    """

    def __init__(self, app: Application, cfg: Any, log: Any, prefix: str, extra: Mapping[str, Any], end_lines: Callable[[], None]) -> None:
        self.cfg = cfg
        self.prefix = prefix
        self._app = app
        self._log = log
        self._extra = dict(extra)
        self._end_lines = end_lines

    def base_environ(self, sock: Any, peer: Any, server: Any) -> dict[str, Any]:
        """Return what the environs of a connection's ordinary requests have in common; see `gunicorn.http.wsgi.create`."""
        environ = {**base_environ(self.cfg), **self._extra, "gunicorn.socket": sock, "SCRIPT_NAME": self.prefix}
        if isinstance(peer, tuple):
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = peer[0], str(peer[1])
        else:
            environ["REMOTE_ADDR"] = peer.decode() if isinstance(peer, bytes) else peer
        if isinstance(server, tuple):
            environ["SERVER_NAME"], environ["SERVER_PORT"] = server[0], str(server[1])
        return environ

    def serve(self, connection: Connection, data: bytes, look: Look, last: bool) -> Fate:
        """Serve a request whose head was taken from the connection.

        Args:
            data: the head, and perhaps more that is still in the kernel's buffer.
            look: what the peeker made of it.
            last: whether the response shall say `Connection: close`.
        """
        request = response = None
        try:
            plain = None if look.line is None else connection.plain.read(look.line, data, look.length)
            if plain is not None:
                request, environ = plain
                response = Response(request, connection.sock, self.cfg)
                environ["wsgi.early_hints"] = response.send_early_hints
            else:
                connection.reader.put_head(data[: look.length])
                request = next(connection.parser())
                response, environ = create(request, connection.sock, connection.peer, connection.server, self.cfg, Response)
                self._complete(environ)
            if last:
                response.must_close = True
            self._call(request, response, environ)
            return self._fate(connection, request, response)
        except StopIteration:
            return Fate.CLOSE
        except (NoMoreData, ClientGone) as exc:
            self._log.debug("the client closed the connection early: %s", exc)
        except ClientStalled:
            self._answer_stalled(connection.sock, request, response)
        except BaseException as exc:  # SystemExit too: an app that exits ends its request, not the worker
            self._answer_error(connection, request, response, exc)
        finally:
            self._end_lines()
        return Fate.LINGER

    def _complete(self, environ: dict[str, Any]) -> None:
        """Turn gunicorn's environ into the mount's."""
        environ.update(self._extra)
        if self.prefix:
            # The router matched this very path, so it starts with the prefix and a segment ends there.
            environ["PATH_INFO"] = environ["PATH_INFO"][len(self.prefix) :]
            environ["SCRIPT_NAME"] += self.prefix

    def _call(self, request: Any, response: Response, environ: dict[str, Any]) -> None:
        started = time.monotonic() if self._log.access_enabled else 0.0
        body = self._app(environ, response.start_response)
        try:
            if isinstance(body, FileWrapper):
                response.write_file(body)
            else:
                for chunk in body:
                    response.write(chunk)
            response.close()
        finally:
            if started and response.headers_sent:  # otherwise what answers the error logs it
                elapsed = datetime.timedelta(seconds=time.monotonic() - started)
                self._log.access(response, request, environ, elapsed)
            if hasattr(body, "close"):
                body.close()

    def _fate(self, connection: Connection, request: Any, response: Response) -> Fate:
        if response.truncated:
            self._log.warning(
                "%s %s: the app sent %d bytes of the %d that its Content-Length promised; the connection is closed",
                request.method, request.uri, response.sent, response.response_length,
            )  # fmt: skip
            return Fate.LINGER
        reader = request.body.reader
        body_read = isinstance(reader, LengthReader) and reader.length == 0
        if response.should_close():
            return Fate.CLOSE if body_read else Fate.LINGER
        if body_read:
            return Fate.KEEP
        # Not for every request: it costs two system calls even when there is nothing to drain.
        parser = connection.parser()
        parser.mesg = request
        return Fate.KEEP if parser.finish_body(deadline=time.monotonic() + _DRAIN_S) else Fate.LINGER

    def _answer_stalled(self, sock: Any, request: Any, response: Response | None) -> None:
        what = f"{request.method} {request.uri}" if request else "a request"
        self._log.info("%s: the client did not go on in time, the connection is closed", what)
        if response is not None and not response.headers_sent:
            _try_send(sock, b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    def _answer_error(self, connection: Connection, request: Any, response: Response | None, exc: BaseException) -> None:
        """Log what the app or the parser raised, and answer if that is still possible."""
        if response is not None and response.headers_sent:
            # The client has a status already; all that can still be said is that the response is not whole.
            self._log.exception("Error handling request %s %s after its response had begun", request.method, request.uri)
            return
        # Late: errors are rare, and this pulls in ssl and the reloader.
        from gunicorn.workers.base import Worker

        Worker.handle_error(_ErrorContext(self._log, self.cfg), request, connection.sock, connection.peer, exc)


class _ErrorContext:
    """What gunicorn's `Worker.handle_error` reads of a worker: its map from exception to answer serves here too."""

    def __init__(self, log: Any, cfg: Any) -> None:
        self.log = log
        self.cfg = cfg


def _try_send(sock: Any, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        return
