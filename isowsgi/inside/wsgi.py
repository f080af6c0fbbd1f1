"""One request through the app: call and response, by PEP 3333; `plainrequest` makes most environs."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Mapping
from enum import Enum
from socket import MSG_DONTWAIT
from typing import Any

from gunicorn.http.body import Body, LengthReader
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.parser import RequestParser
from gunicorn.http.wsgi import FileWrapper, base_environ, create
from gunicorn.util import unquote_to_wsgi_str
from gunicorn.workers.base import Worker

from isowsgi.inside import forks
from isowsgi.inside.deadlines import RequestTimeout
from isowsgi.inside.errorbook import ErrorBook
from isowsgi.inside.errornotes import noted
from isowsgi.inside.http import ClientGone, ClientStalled, ExactReader, Response
from isowsgi.inside.plainrequest import PlainReader, PlainResponse, PlainSettings
from isowsgi.inside.streams import unended
from isowsgi.inside.takeover import app_socket
from isowsgi.shared import answers
from isowsgi.shared.errorgroups import CUT
from isowsgi.shared.errorpage import PageSocket
from isowsgi.shared.peek import Line
from isowsgi.shared.progress import delivered
from isowsgi.shared.rows import EXCEPTIONS, RESPONSES, Row

# How long, and by gunicorn's default up to 64 KiB, a body that the app left unread is read away to keep the connection: gunicorn
# gthread's DEFAULT_WORKER_DATA_TIMEOUT.
_DRAIN_S = 5.0

_SHORT = "the app sent less than its Content-Length promised"

TYPE_CHECKING = False  # as typing's, without the 2 ms of importing typing
if TYPE_CHECKING:
    from isowsgi.inside.sender import Sender, Sending

Application = Callable[[dict[str, Any], Any], Any]


class Fate(Enum):
    """What becomes of a connection after a request."""

    KEEP = "it waits for the next request"
    CLOSE = "nothing is left to read: close it"
    LINGER = "the client may still be sending: close it only after that was read, or the response is lost"
    RETURN = "its next request is another instance's, or cannot be served here: it goes back to the acceptor"
    SEND = "the rest of a file is on its way: the sender has it until all is sent"


class Connection:
    """A client's connection while this instance owns it.

    Args:
        sock: blocking, with its own time limits.
        fd: its descriptor.
        key: its name on the scoreboard, see `handover.key_of`.
        peer: the client's address as `accept` gives it; "" on a Unix socket.
        server: the listener's address as `getsockname` gives it.
        gateway: of the app that its first request is for.
        facts: environ entries that all its requests share: what TLS and the PROXY protocol say of the client.
    """

    __slots__ = (
        "_parser",
        "app_socket",
        "arrived_ns",
        "cfg",
        "ending",
        "facts",
        "fate",
        "fd",
        "gateway",
        "has_access_log",
        "has_own_limits",
        "has_pending_event",
        "idle_since",
        "is_taken",
        "key",
        "peer",
        "plain",
        "reader",
        "response",
        "sending",
        "server",
        "sock",
        "waiting_ns",
    )  # fmt: skip

    def __init__(self, sock: Any, fd: int, key: int, peer: Any, server: Any, gateway: Gateway, facts: dict[str, str]) -> None:
        self.sock = sock
        self.facts = facts
        self.fd = fd
        self.key = key
        self.peer = peer
        self.server = server
        self.cfg = gateway.cfg
        self.reader = ExactReader(sock)
        self.is_taken = False  # whether the app has taken it over, see `takeover`
        self.app_socket = app_socket(self)
        self.enter(gateway)
        self.idle_since = 0.0  # monotonic seconds; 0 while a thread serves it or it waits for one
        self.arrived_ns = 0  # monotonic nanoseconds when its current request came, or the last one
        self.waiting_ns = 0  # for how long that request waited for a thread
        self.fate = Fate.KEEP
        self.has_own_limits = False  # whether its time limits are others than `sockettimeouts.STANDARD`
        self.has_pending_event = False  # whether more may have come since, or the client may have hung up
        self.response: Response | None = None  # to the current request, or the last one
        self.ending: Any = None  # of the current request, or the last one
        self.sending: Sending | None = None  # a response that is left to the sender, until it is counted
        self._parser: RequestParser | None = None

    def enter(self, gateway: Gateway) -> None:
        """Let the connection's next request be for another app of the instance."""
        self.gateway = gateway
        self.has_access_log = gateway.has_access_log()
        base = gateway.base_environ(self.app_socket, self.peer, self.server)
        if self.facts:
            base |= self.facts
        self.plain = PlainReader(base, gateway.plain, self.reader, self.peer)

    def progress(self) -> tuple[int, int, int]:
        """Return what changes with every byte from the client or to it, within one request."""
        return self.reader.reads, self.response.sent if self.response is not None else 0, delivered(self.sock)

    def waits_for_client(self) -> str:
        """Return "body" or "send" if its thread is in a call that waits for the client; else ""."""
        if self.reader.is_waiting:
            return "body"
        return "send" if self.response is not None and self.response.is_sending else ""

    def count_sent(self, rows: Mapping[int, Row]) -> None:
        """Count its request, which has ended, if the sender had the response.

        Args:
            rows: of a thread that serves nobody just now.
        """
        sending, self.sending = self.sending, None
        if sending is not None:
            sending.count(rows[self.gateway.mount], self)

    def parsed(self, head: bytes) -> Any:
        """Return what gunicorn's parser makes of a head that was taken from the connection."""
        self.reader.put_head(head)
        return next(self.parser())

    def parser(self) -> RequestParser:
        """Return gunicorn's parser for this connection; most never need one."""
        if self._parser is None:
            self._parser = RequestParser(self.cfg, self.sock, self.peer)
            self._parser.unreader = self.reader
        return self._parser


class _Timing:
    """Makes a response's Server-Timing field (W3C): how long its request waited for a thread, and how long the app took."""

    def __init__(self, waiting_ns: int) -> None:
        self._waiting_ns = waiting_ns
        self._began_ns = time.monotonic_ns()

    def __call__(self) -> bytes:
        app_ns = time.monotonic_ns() - self._began_ns
        return b"Server-Timing: queue;dur=%.3f, app;dur=%.3f\r\n" % (self._waiting_ns / 1e6, app_ns / 1e6)


class Gateway:
    """Calls one app.

    Args:
        mount: the mount's number.
        app: the WSGI application.
        cfg: gunicorn's settings.
        log: the instance's log.
        prefix: the mount's, as SCRIPT_NAME gets it.
        extra: environ entries that are the same for every request.
        end_lines: called at a request's end, so that what the app printed without a line end reaches the log.
        errors: counts what goes wrong.
    """

    def __init__(
        self,
        mount: int,
        app: Application,
        cfg: Any,
        log: Any,
        prefix: str,
        extra: Mapping[str, Any],
        end_lines: Callable[[], None],
        errors: ErrorBook | None = None,
    ) -> None:
        self.mount = mount
        self.cfg = cfg
        self.prefix = prefix
        self._app = app
        self._log = log
        self._extra = dict(extra)
        self._base = {**base_environ(cfg), **self._extra, "SCRIPT_NAME": prefix}
        self.plain = PlainSettings(cfg, len(prefix))
        self._end_lines = end_lines
        self.errors = errors or ErrorBook()
        self.has_server_timing = False  # whether responses say where their time went
        self.sender: Sender | None = None  # for files, where the app is one of isowsgi's own

    def has_access_log(self) -> bool:
        """Whether the log is to be told of each request; asked once for a connection."""
        return bool(self._log.access_enabled)

    def base_environ(self, sock: Any, peer: Any, server: Any) -> dict[str, Any]:
        """Return what the environs of a connection's ordinary requests have in common; see `gunicorn.http.wsgi.create`."""
        environ = self._base.copy()
        environ["gunicorn.socket"] = sock
        if isinstance(peer, tuple):
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = peer[0], str(peer[1])
        else:
            environ["REMOTE_ADDR"] = os.fsdecode(peer)  # bytes in the abstract namespace
        address = server.split(":") if isinstance(server, str) else server
        if len(address) > 1:  # else a Unix socket, which has nothing for these two: the Host field stands in
            environ["SERVER_NAME"], environ["SERVER_PORT"] = address[0], str(address[1])
        return environ

    def serve(self, connection: Connection, data: bytes, length: int, line: Line | None, repeats: bool, last: int, row: Row | None) -> Fate:
        """Serve a request whose head was taken from the connection.

        Args:
            data: the head, and perhaps more that is still in the kernel's buffer.
            length, line, repeats: what the peeker made of it, see `peek.Found`.
            last: 0, or whatever means that the response shall say `Connection: close`.
            row: the calling thread's on the scoreboard, if it has one.
        """
        request = None
        response: Response | None = None
        if noted:  # else there is nothing to forget
            self.errors.forget()
        try:
            if line is not None and (plain := connection.plain.read(line, repeats, data, length)) is not None:
                fields, body, environ = plain
                response = PlainResponse(connection.sock, self.cfg, line, fields, body)
                environ["wsgi.early_hints"] = response.send_early_hints
            else:
                request = connection.parsed(data[:length])
                response, environ = create(request, connection.sock, connection.peer, connection.server, self.cfg, Response)
                self._complete(environ, connection)
            environ["isowsgi.queue_s"] = connection.waiting_ns / 1e9
            if row is not None:
                response.board = row.words
            response.ending = connection.ending
            connection.response = response
            if last:
                response.must_close = True
            if self.has_server_timing:
                response.timing = _Timing(connection.waiting_ns)
            self._call(connection, response, environ)
            if response.sent == response.response_length and not response.must_close and response.body is connection.plain.no_body:
                return Fate.KEEP  # as `fate` would say, which most requests need not ask
            return self.fate(connection, response) if response.unsent is None else Fate.SEND
        except (NoMoreData, ClientGone) as exc:
            self._log.debug("the client closed the connection early: %s", exc)
        except ClientStalled:
            self._answer_stalled(connection, request or _request_of(response), response, row)
        except RequestTimeout:  # its client was answered by who raised it
            self._log.info("the timed-out request has returned")
        except BaseException as exc:  # SystemExit too: an app that exits ends its request, not the worker
            self._answer_error(connection, request or _request_of(response), response, exc, row)
        finally:
            if unended:
                self._end_lines()
            if noted:
                self._count_error(connection, request or _request_of(response), response, row)
        return Fate.LINGER

    def _count_error(self, connection: Connection, request: Any, response: Response | None, row: Row | None) -> None:
        if connection.ending.is_timed_out:  # an error already; whatever the app made of it is no other
            self.errors.forget()
        else:
            self.errors.settle(self.mount, request, response, row)

    def warm_up(self, path: str, server: Any) -> str:
        """Ask the app for a path before the first client does; return the status.

        Args:
            path: below the mount, as a client would send it.
            server: a TCP listener's address, for SERVER_NAME; None: there is none.
        """
        path, _, query = path.partition("?")
        environ = self.base_environ(None, "127.0.0.1", server or ())
        environ |= {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": unquote_to_wsgi_str(path),
            "QUERY_STRING": query,
            "RAW_URI": self.prefix + path,
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "localhost",
            "HTTP_USER_AGENT": "isowsgi warm-up",
            "wsgi.url_scheme": "https" if self.cfg.is_ssl else "http",
            "wsgi.input": Body(LengthReader(None, 0)),
            "wsgi.early_hints": lambda headers: None,
            "isowsgi.queue_s": 0.0,
        }
        environ.setdefault("SERVER_NAME", "localhost")
        environ.setdefault("SERVER_PORT", "80")
        statuses: list[str] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
            statuses.append(status)
            return lambda data: None

        body = self._app(environ, start_response)
        try:
            for _ in body:
                pass
        finally:
            if hasattr(body, "close"):
                body.close()
        return statuses[-1] if statuses else "no status at all"

    def _complete(self, environ: dict[str, Any], connection: Connection) -> None:
        """Turn gunicorn's environ into the mount's."""
        environ["gunicorn.socket"] = connection.app_socket
        environ.update(self._extra)
        environ.update(connection.facts)
        if self.prefix:
            # The router matched this very path, so it starts with the prefix and a segment ends there.
            environ["PATH_INFO"] = environ["PATH_INFO"][len(self.prefix) :]
            environ["SCRIPT_NAME"] += self.prefix

    def _call(self, connection: Connection, response: Response, environ: dict[str, Any]) -> None:
        started = time.monotonic() if connection.has_access_log else 0.0
        ending = connection.ending
        body: Any = None
        try:
            if not ending.enter_app():
                raise ClientGone("the request timed out before it reached the app")
            try:
                body = self._app(environ, response.start_response)
                if not isinstance(body, FileWrapper):
                    for chunk in body:
                        if forks.is_copy:
                            break
                        response.write(chunk)
                elif not forks.is_copy:
                    response.write_file(body, self.sender is not None and self.sender.takes(response))
            finally:
                if forks.is_copy:
                    forks.leave()
            response.close()
        finally:
            try:
                if response.unsent is None:
                    if started and response.headers_sent:  # otherwise what answers the error logs it
                        ending.leave_app()  # an interrupt would leave the log's lock taken
                        self.log_access(response, environ, time.monotonic() - started)
                        ending.enter_app()
                    if hasattr(body, "close"):
                        body.close()
                else:
                    assert self.sender is not None, "nothing is left else"
                    connection.sending = self.sender.left(response, environ, body)
            finally:
                ending.leave_app()

    def log_access(self, response: Response, environ: dict[str, Any], elapsed_s: float) -> None:
        self._log.access(response, response.req, environ, datetime.timedelta(seconds=elapsed_s))

    def fate(self, connection: Connection, response: Response) -> Fate:
        """Return what becomes of a connection once a response was sent; what is wrong with that is logged."""
        length = response.response_length
        if length is None or response.sent < length:
            if response.dropped and not connection.is_taken:
                self._log.warning(
                    "%s %s: the app returned a body of %d bytes with status %s, which must not have one; the body is not sent",
                    response.req.method, response.req.uri, response.dropped, response.status,
                )  # fmt: skip
            elif length is not None and response.truncated:
                request = response.req
                self.errors.add(self.mount, CUT, "body shorter than its Content-Length", f"{request.method} {request.uri}", _SHORT)
                self._log.warning(
                    "%s %s: the app sent %d bytes of the %d that its Content-Length promised; closing the connection",
                    request.method, request.uri, response.sent, response.response_length,
                )  # fmt: skip
                return Fate.LINGER
        body_read = response.body is connection.plain.no_body or is_read(response.body)
        if response.must_close:
            return Fate.CLOSE if body_read and not connection.is_taken else Fate.LINGER
        if body_read:
            return Fate.KEEP
        # Not for every request: it costs two system calls even when there is nothing to drain.
        parser = connection.parser()
        parser.mesg = response.req
        try:
            return Fate.KEEP if parser.finish_body(deadline=time.monotonic() + _DRAIN_S) else Fate.LINGER
        except ParseException as exc:  # a bad chunk; the answer to it is on its way already
            self._log.debug("the part of a request's body that the app did not read is malformed: %s", exc)
            return Fate.LINGER

    def _answer_stalled(self, connection: Connection, request: Any, response: Response | None, row: Row | None) -> None:
        what = f"{request.method} {request.uri}" if request else "a request"
        self._log.info("%s: the client sent too little of the body in time; closing the connection", what)
        if response is not None and connection.ending.claim():
            _count_response(row, 408)
            _try_send(connection.sock, answers.plain(answers.TOO_LATE))
        if not connection.ending.is_timed_out:  # else the watcher has counted it
            self.errors.forget()  # the app may have been told, and have said so
            self.errors.add(self.mount, CUT, "client too slow", what, "the client sent too little of the body in time")

    def _answer_error(self, connection: Connection, request: Any, response: Response | None, exc: BaseException, row: Row | None) -> None:
        """Log what the app or the parser raised, and answer if that is still possible."""
        if connection.is_taken and isinstance(exc, (StopIteration, ConnectionError)):
            # How libraries for websockets end a request under gunicorn, and what a client that hangs up ends one with.
            self._log.debug("%s %s: a connection that the app had taken over has ended", request.method, request.uri)
            return
        if row is not None and not isinstance(exc, ParseException) and not connection.ending.is_timed_out:
            row.words[EXCEPTIONS] += 1
            row.set_error(f"{row.line()}: {type(exc).__name__}: {_text_of(exc)}")
        if response is not None and not isinstance(exc, ParseException):
            self.errors.raised(exc)
        if response is not None and response.headers_sent:
            # The client has a status already; all that can still be said is that the response is not whole.
            self._log.exception("Error handling request %s %s after its response had begun", request.method, request.uri)
            return
        if not connection.ending.claim():
            self._log.exception("Error handling request %s after it timed out", row.line() if row is not None else "")
            return
        has_body = request is None or request.method != "HEAD"
        sock = PageSocket(connection.sock, has_body, lambda status: _count_response(row, status))
        Worker.handle_error(_ErrorContext(self._log, self.cfg, self._extra), request, sock, connection.peer, exc)


class _ErrorContext:
    """What gunicorn's `Worker.handle_error` reads of a worker: its map from exception to answer serves here too."""

    def __init__(self, log: Any, cfg: Any, extra: Mapping[str, Any]) -> None:
        self.log = self
        self.cfg = cfg
        self.debug = log.debug
        self.warning = log.warning
        self.exception = log.exception
        self._access = log.access
        self._extra = extra

    def access(self, response: Any, request: Any, environ: dict[str, Any], elapsed: datetime.timedelta) -> None:
        """Log with what gunicorn does not know of: which mount it was, and what the request's fields say."""
        fields = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in getattr(request, "headers", ())}
        response.status_code = int(response.status[:3])  # gunicorn's own has it where an app has called start_response
        self._access(response, request, {**fields, **environ, **self._extra}, elapsed)


def is_read(body: Any) -> bool:
    """Whether nothing of a request's body is left to be read from the connection."""
    reader = body.reader
    return reader.__class__ is LengthReader and reader.length == 0


def _request_of(response: Response | None) -> Any:
    return None if response is None else response.req


def _text_of(exc: BaseException) -> str:
    """Return what an exception of the app's says; its __str__ is the app's code, and may raise."""
    try:
        return str(exc)
    except BaseException:
        return "<exception str() failed>"  # as tracebacks have it


def _count_response(row: Row | None, status: int) -> None:
    if row is not None:
        row.words[RESPONSES + status // 100] += 1


def _try_send(sock: Any, data: bytes) -> None:
    try:
        sock.send(data, MSG_DONTWAIT)
    except OSError:
        return
