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
PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

# A request line that gunicorn's parser takes with any settings and reads as this expression does: origin-form, not starting with two
# slashes, no fragment, a version of 1.0 or 1.1; and not CONNECT. Groups: method, target, path, query, minor version.
_PLAIN_LINE = re.compile(rb'(?!CONNECT )([A-Z]{3,20}) ((/(?!/)[!-"$->@-~]*)(?:\?([!-"$-~]*))?) HTTP/1\.([01])\r\n')

# A field name with an underscore may be a trusted proxy's SCRIPT_NAME: for gunicorn's header policy to decide.
_UNDERSCORED_FIELD = re.compile(rb"\n[^:\r\n_]*_[^:\r\n]*:")

_HOST_FIELD = re.compile(rb"\n[Hh][Oo][Ss][Tt]:[ \t]*([^\r\n]*)")

# Lines and paths come from clients, so there may be any number of them: when so many of either are remembered, all are forgotten. At most
# 300 KiB each peeker, if all are of the greatest length.
_MAX_REMEMBERED = 256
_MAX_REMEMBERED_BYTES = 128

_UNKNOWN = object()

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def peek(sock: socket.socket) -> bytes:
    """Return what has come on a connection, as far as it may be a head; b"" if the client sends no more.

    Raises:
        BlockingIOError: nothing has.
        OSError: it was reset.
    """
    data = sock.recv(PEEK_FIRST_BYTES, PEEK)
    if len(data) == PEEK_FIRST_BYTES:
        data = sock.recv(PEEK_MAX_BYTES, PEEK)
    return data


class Line:
    """An ordinary request line, as `_PLAIN_LINE` has read it. The same object serves all requests with that line: nobody changes it.

    Attributes:
        end: its bytes, with the line end.
        path: decoded, as the router and PEP 3333 have it.
        octets: the path as received.
        minor: of the version, 0 or 1.
        environ: what the line says to an app at the root.
        mount: whose the path is, if no route names a host.
    """

    __slots__ = ("end", "environ", "is_head", "method", "minor", "mount", "octets", "path", "uri", "version")

    def __init__(self, match: re.Match[bytes], router: Router) -> None:
        method, target, self.octets, query, minor = match.groups()
        self.end = match.end()
        self.method, self.uri = method.decode("latin-1"), target.decode("latin-1")
        self.path = (unquote_to_bytes(self.octets) if b"%" in self.octets else self.octets).decode("latin-1")
        self.minor = int(minor)
        self.version = (1, self.minor)
        self.is_head = method == b"HEAD"
        self.environ = {
            "REQUEST_METHOD": self.method,
            "RAW_URI": self.uri,
            "QUERY_STRING": query.decode("latin-1") if query else "",
            "SERVER_PROTOCOL": f"HTTP/1.{self.minor}",
            "PATH_INFO": self.path,
        }
        self.mount = None if router.has_hosts else router.match("", self.path)


# What a peek found: the head's length in bytes, its empty line included, 0: not complete yet; the mount, None: no mount has that path; the
# line, None: gunicorn's parser has read it; and whether the fields are those of the request before. Without names, for each request pays.
Found = tuple[int, int | None, Line | None, bool]


class Look(NamedTuple):
    """As `Found`, with names."""

    length: int
    mount: int | None
    line: Line | None = None


INCOMPLETE = Look(0, None)
_NOTHING: Found = (0, None, None, False)


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
        self._has_hosts = router.has_hosts
        self._cfg = cfg
        self._script_name = script_name
        # These change how field lines are read, so the Host field must be found by the parser.
        self._plain_fields = not (cfg.permit_obsolete_folding or cfg.strip_header_spaces)
        limit = cfg.limit_request_line
        self._line_limit = min(limit, MAX_REQUEST_LINE) if limit > 0 else PEEK_MAX_BYTES
        self._lines: dict[bytes, Line] = {}  # as received, up to the "\n"
        self.known = {} if router.has_hosts else self._lines  # those that say the mount by themselves
        self._matched: dict[tuple[bytes, bytes], int | None] = {}  # by Host field and path, as received

    def with_router(self, router: Router) -> Peeker:
        """Return one that reads in the same way and knows another table."""
        return Peeker(router, self._cfg, self._script_name)

    def look(self, data: bytes, peer: Any, first_look: bool = True, fields: bytes = b"") -> Look:
        """Return what was found; see `find`."""
        found = self.find(data, peer, first_look, fields)
        return Look(*found[:3]) if found[0] else INCOMPLETE

    def find(self, data: bytes, peer: Any, first_look: bool = True, fields: bytes = b"") -> Found:
        """Return the head's length and mount.

        Args:
            data: the bytes peeked so far; a request starts at the first.
            peer: the client's address as `accept` gives it.
            first_look: whether an unfinished head should be checked too, as far as it goes: False once that was done.
            fields: the last request's on the connection, if it had a `Line`: from that line's end, "\\n", to the empty line. Most
                requests repeat them, and they are not looked through again then.

        Raises:
            gunicorn.http.errors.ParseException: gunicorn would refuse it.
            Refused: isowsgi does.
        """
        end = data.find(b"\n")  # -1: then nothing of what is known is looked at, as the head is not complete
        line = self._lines.get(data[:end]) or self._read_line(data)
        if line is not None and fields and data.startswith(fields, end):
            length, repeats = end + len(fields), True
        else:
            repeats = False
            length = data.find(b"\r\n\r\n") + 4
            if length < 4:
                self._check_unfinished(data, peer, first_look)
                return _NOTHING
            if line is None or self._script_name or not self._plain_fields or _UNDERSCORED_FIELD.search(data, end, length - 2):
                return length, self._parse(data[:length], peer), None, False
        return length, self._mount_by_host(line, data, length) if self._has_hosts else line.mount, line, repeats

    def _read_line(self, data: bytes) -> Line | None:
        """Read a request line, and remember it: clients ask for the same again and again."""
        match = _PLAIN_LINE.match(data)
        if match is None:
            return None
        line = Line(match, self._router)
        if line.end <= _MAX_REMEMBERED_BYTES:
            if len(self._lines) >= _MAX_REMEMBERED:
                self._lines.clear()
            self._lines[match[0][:-1]] = line
        return line

    def _mount_by_host(self, line: Line, data: bytes, length: int) -> int | None:
        """Return the mount, and remember it."""
        field = _HOST_FIELD.search(data, line.end - 1, length - 2)
        host, path = field[1] if field else b"", line.octets
        mount = self._matched.get((host, path), _UNKNOWN)
        if mount is _UNKNOWN:
            mount = self._router.match(host.rstrip(b" \t").decode("latin-1"), line.path)
            if len(host) + len(path) <= _MAX_REMEMBERED_BYTES:
                if len(self._matched) >= _MAX_REMEMBERED:
                    self._matched.clear()
                self._matched[host, path] = mount
        return mount  # type: ignore[return-value] # mypy does not see that it is known now

    def host(self, head: bytes, line: Line | None, peer: Any) -> str:
        """Return the Host field of a complete head, as `look` has read it to find the mount; "" if there is none.

        Args:
            line: the `Look`'s, which says how the head was read.

        Raises:
            gunicorn.http.errors.ParseException: as `look`.
        """
        if line is None:
            return str(dict(self.parse(head, peer).headers).get("HOST", ""))
        field = _HOST_FIELD.search(head, line.end - 1, len(head) - 2)
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

    def _parse(self, head: bytes, peer: Any) -> int | None:
        """Return the mount of a head that gunicorn's parser reads."""
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
        return self._router.match(host, unquote_to_wsgi_str(path))

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
