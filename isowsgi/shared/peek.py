"""Peek at a request's head in the kernel's buffer and find its mount, without consuming a byte.

Both sides use it: the acceptor for a connection's first request, an instance for each that follows on a kept-alive one. Ordinary heads
are recognised by one regular expression; everything else is parsed by gunicorn's own parser, so that routing, refusal and the app all
rest on one reading of the bytes.
"""

from __future__ import annotations

import re
import socket
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from gunicorn.http.errors import ConfigurationProblem, LimitRequestHeaders, NoMoreData
from gunicorn.http.message import MAX_REQUEST_LINE, Request
from gunicorn.http.unreader import IterUnreader
from gunicorn.util import split_request_uri, unquote_to_wsgi_str

from isowsgi.shared.routing import Router, bare_host

# Most bytes of a head that are peeked at; a longer one is answered 431. The head must fit the socket's receive buffer as it is, since
# nothing is consumed: Linux' default for TCP is 128 KiB, half of it for bookkeeping.
PEEK_MAX_BYTES = 64 * 1024

# Most heads fit; a larger first read would cost each request its allocation.
PEEK_FIRST_BYTES = 4096

# int() takes the flags out of their enum, whose `|` costs 2 us a request.
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

# A request line that gunicorn's parser takes with any settings and reads as this expression does: origin-form, not starting with two
# slashes, no fragment, a version of 1.0 or 1.1; and not CONNECT. Groups: method, target, path, query, minor version.
_PLAIN_LINE = re.compile(rb'(?!CONNECT )([A-Z]{3,20}) ((/(?!/)[!-"$->@-~]*)(?:\?([!-"$-~]*))?) HTTP/1\.([01])\r\n')

# A field name with an underscore may be a trusted proxy's SCRIPT_NAME: for gunicorn's header policy to decide.
_UNDERSCORED_FIELD = re.compile(rb"\n[^:\r\n_]*_[^:\r\n]*:")

_HOST_FIELD = re.compile(rb"\n[Hh][Oo][Ss][Tt]:[ \t]*([^\r\n]*)")

# Paths come from clients, so there may be any number of them: when so many are remembered, all are forgotten. At most 150 KiB each peeker.
_MAX_REMEMBERED = 512
_MAX_REMEMBERED_BYTES = 128

_UNKNOWN = object()

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def peek(sock: socket.socket) -> bytes:
    """Return what has come on a connection, as far as it may be a head; b"" if the client sends no more.

    Raises:
        BlockingIOError: nothing has.
        OSError: it was reset.
    """
    data = sock.recv(PEEK_FIRST_BYTES, _PEEK)
    if len(data) == PEEK_FIRST_BYTES:
        data = sock.recv(PEEK_MAX_BYTES, _PEEK)
    return data


class Look(NamedTuple):
    """What a peek found."""

    length: int  # of the head in bytes, its empty line included; 0: not complete yet
    mount: int | None  # None: no mount has that path
    line: re.Match[bytes] | None = None  # of _PLAIN_LINE, if that is how the head was read; else gunicorn's parser did


INCOMPLETE = Look(0, None)


class Refused(Exception):
    """A request that isowsgi itself declines, although gunicorn's parser takes it.

    Attributes:
        status: three digits and reason, for the status line.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class Peeker:
    """Reads heads by one server's settings.

    Args:
        router: the table, or an instance's part of it.
        cfg: gunicorn's settings as `inside.settings.Settings`; its `http_parser` must be "python".
        script_name: the prefix that `SCRIPT_NAME` in the server's environment puts before every path; "" for none.
    """

    def __init__(self, router: Router, cfg: Any, script_name: str = "") -> None:
        self._router = router
        self._cfg = cfg
        self._script_name = script_name
        # These change how field lines are read, so the Host field must be found by the parser.
        self._plain_fields = not (cfg.permit_obsolete_folding or cfg.strip_header_spaces)
        limit = cfg.limit_request_line
        self._line_limit = min(limit, MAX_REQUEST_LINE) if limit > 0 else PEEK_MAX_BYTES
        self._matched: dict[tuple[bytes, bytes], int | None] = {}  # by Host field and path, as received

    def with_router(self, router: Router) -> Peeker:
        """Return one that reads in the same way and knows another table."""
        return Peeker(router, self._cfg, self._script_name)

    def look(self, data: bytes, peer: Any, first_look: bool = True, fields: bytes = b"") -> Look:
        """Return the head's length and mount.

        Args:
            data: the bytes peeked so far; a request starts at the first.
            peer: the client's address as `accept` gives it.
            first_look: whether an unfinished head should be checked too, as far as it goes: False once that was done.
            fields: the last request's on the connection, if its `Look` had a line: from that line's end, "\\n", to the empty line. Most
                requests repeat them, and they are not looked through again then.

        Raises:
            gunicorn.http.errors.ParseException: gunicorn would refuse it.
            Refused: isowsgi does.
        """
        line = _PLAIN_LINE.match(data)
        if line is not None and fields and data.startswith(fields, line.end() - 1):
            length = line.end() - 1 + len(fields)
        else:
            length = data.find(b"\r\n\r\n") + 4
            if length < 4:
                self._check_unfinished(data, peer, first_look)
                return INCOMPLETE
            if line is None or self._script_name or not self._plain_fields or _UNDERSCORED_FIELD.search(data, line.end() - 1, length - 2):
                return self._parse(data[:length], peer)
        path = line[3]
        host = b""
        if self._router.has_hosts and (field := _HOST_FIELD.search(data, line.end() - 1, length - 2)):
            host = field[1]
        mount = self._matched.get((host, path), _UNKNOWN)
        if mount is _UNKNOWN:
            mount = self._match(host, path)
        return Look(length, mount, line)  # type: ignore[arg-type] # mypy does not see that it is known now

    def _match(self, host: bytes, path: bytes) -> int | None:
        """Return the mount, and remember it: clients ask for the same paths again and again."""
        text = (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1")
        mount = self._router.match(host.rstrip(b" \t").decode("latin-1"), text)
        if len(host) + len(path) <= _MAX_REMEMBERED_BYTES:
            if len(self._matched) >= _MAX_REMEMBERED:
                self._matched.clear()
            self._matched[host, path] = mount
        return mount

    def host(self, head: bytes, line: re.Match[bytes] | None, peer: Any) -> str:
        """Return the Host field of a complete head, as `look` has read it to find the mount; "" if there is none.

        Args:
            line: the `Look`'s, which says how the head was read.

        Raises:
            gunicorn.http.errors.ParseException: as `look`.
        """
        if line is None:
            return str(dict(self.parse(head, peer).headers).get("HOST", ""))
        field = _HOST_FIELD.search(head, line.end() - 1, len(head) - 2)
        return "" if field is None else field[1].rstrip(b" \t").decode("latin-1")

    def address(self, head: bytes, peer: Any) -> tuple[str, str]:
        """Return the path of a complete head, as it was sent but without a SCRIPT_NAME that goes before all, and its query.

        Raises:
            gunicorn.http.errors.ParseException: as `look`.
        """
        request = self.parse(head, peer)
        return request.path.removeprefix(dict(request.headers).get("SCRIPT_NAME", self._script_name)), request.query

    def parse(self, data: bytes, peer: Any) -> Request:
        """Return gunicorn's reading of a head."""
        # The request's number on its connection only matters to the PROXY protocol, whose header is gone before the first one.
        return Request(self._cfg, IterUnreader([data]), peer, 2)

    def _parse(self, head: bytes, peer: Any) -> Look:
        request = self.parse(head, peer)
        fields = dict(request.headers)
        host = fields.get("HOST", "")
        if request.method == "CONNECT":
            raise Refused("501 Not Implemented", "CONNECT is not served here")
        if not request.uri.startswith(("/", "*")):
            _check_authority(request.uri, host)
        # From here on as gunicorn.http.wsgi.create does it for the app.
        script_name = fields.get("SCRIPT_NAME", self._script_name)
        path = request.path
        if script_name:
            if not path.startswith(script_name):
                raise ConfigurationProblem(f"Request path {path!r} does not start with SCRIPT_NAME {script_name!r}")
            path = path[len(script_name) :]
        return Look(len(head), self._router.match(host, unquote_to_wsgi_str(path)))

    def _check_unfinished(self, data: bytes, peer: Any, first_look: bool) -> None:
        """Raise if the bytes so far can never become a request that gunicorn takes."""
        line_end = data.find(b"\r\n", 2 if data.startswith(b"\r\n") else 0)  # an empty line may come first
        line_came = first_look and line_end >= 0
        line_too_long = line_end < 0 and len(data) - 2 > self._line_limit
        bare_lf = data.count(b"\n") != data.count(b"\r\n")
        if line_came or line_too_long or bare_lf:
            try:
                self.parse(data, peer)
            except NoMoreData:
                pass  # nothing wrong with it so far
        if len(data) >= PEEK_MAX_BYTES:
            raise LimitRequestHeaders("max buffer headers")


def _check_authority(target: str, host: str) -> None:
    """Refuse an absolute-form target for another host than the Host field's.

    RFC 9112 section 3.2.2 has the target win, but the app reads the Host field: a request that names two hosts must not reach the
    mount of one as if it were for the other.
    """
    parts = split_request_uri(target)
    authority, host = parts.netloc.lower(), host.lower()
    default_port = _DEFAULT_PORTS.get(parts.scheme, "")
    if host and bare_host(authority) + _port(authority, default_port) != bare_host(host) + _port(host, default_port):
        raise Refused("400 Bad Request", "the request's target and its Host field name different hosts")


def _port(authority: str, default: str) -> str:
    rest = authority[len(authority) - len(authority.split("]")[-1]) :]
    _, colon, port = rest.partition(":")
    return colon + port if colon and port else default
