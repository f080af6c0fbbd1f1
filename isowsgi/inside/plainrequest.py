"""From the bytes of an ordinary request to its environ, without gunicorn's parser: the fast path.

It recognises the heads that nearly every client sends, by one expression for the line (`peek._PLAIN_LINE`) and one for all fields, and
builds the environ directly. Whatever it is not sure of, it leaves to gunicorn's parser. What it takes, gunicorn would take too, and
read in the same way: tests compare the two on the same bytes and settings.

The fields of most requests on a kept-alive connection are the same bytes as the last one's; so what was made of them is kept and copied.
So are request lines that come again (`peek.Line`).
"""

from __future__ import annotations

import math
import re
import socket
from typing import Any, NamedTuple

from gunicorn.http.body import Body, LengthReader
from gunicorn.http.message import DEFAULT_MAX_HEADERFIELD_SIZE, MAX_HEADERS, MAX_REQUEST_LINE, HeaderPolicy

from isowsgi.inside.http import Response
from isowsgi.shared.peek import Line

# One whole field line. The name is a token (RFC 9110 section 5.6.2) without an underscore: those are for gunicorn's header policy. The
# value holds what gunicorn takes: no control character but the tab. It begins with no blank, as one would match either repeat: 16 KiB
# of blanks before a control character took 4 s, and four times as long for each doubling. (Possessive repeats are new in Python 3.11,
# and a child process may run an older one.)
_FIELD = re.compile(r"(?<=\n)([!#$%&'*+.^`|~0-9A-Za-z-]+):[ \t]*(?![ \t])([^\x00-\x08\x0a-\x1f\x7f]*)\r\n")

# Fields that say more than a value in the environ; a request with one of these takes the long way.
_LEFT_TO_GUNICORN = frozenset(("expect", "transfer-encoding"))

# Fields that must not be repeated here: gunicorn refuses a second one, or reads the first one only.
_SINGLE = frozenset(("host", "content-type", "content-length", "connection"))

_LENGTH = re.compile(r"[0-9]{1,18}")

# Longest block of fields that is kept for comparison with the next request's; an idle connection holds it.
_MAX_KEPT_BYTES = 2048

# Blocks that are kept for other connections, how many of them and how long: 100 KiB with all that was made of them. None with what only its
# client should know.
_MAX_SHARED, _MAX_SHARED_BYTES = 32, 1024
_SECRETS = frozenset(("HTTP_COOKIE", "HTTP_AUTHORIZATION", "HTTP_PROXY_AUTHORIZATION", "HTTP_X_API_KEY"))

# Most addresses of clients remembered.
_MAX_PEERS = 1024

# Most field names remembered; names come from clients, so there may be any number of them.
_MAX_NAMES = 1024


class Block(NamedTuple):
    """What a block of fields says, whoever sent it. Nobody changes it."""

    environ: dict[str, Any]
    content_length: int
    closes: tuple[bool, bool]
    pairs: tuple[tuple[str, str], ...]


class Fields(NamedTuple):
    """What a request's fields say."""

    peer: Any  # who sent it
    environ: dict[str, Any]  # with the connection's and the instance's entries; a request works on a copy
    content_length: int
    closes: tuple[bool, bool]  # whether the connection shall be closed: by the Connection field, else by version 1.0 and 1.1
    pairs: tuple[tuple[str, str], ...]  # names in upper case, as gunicorn's requests hold them


class PlainRequest:
    """What the response, error pages and the access log read of a request, under gunicorn's names: loggers of users too."""

    __slots__ = ("_fields", "body", "method", "must_close", "uri", "version")

    def __init__(self, line: Line, fields: Fields, body: Body) -> None:
        self.method = line.method
        self.uri = line.uri
        self.version = line.version
        self.body = body
        self._fields = fields
        self.must_close = fields.closes[line.minor]

    # Made when they are asked for, as most logs do without.

    @property
    def path(self) -> str:
        return self.uri.partition("?")[0]

    @property
    def query(self) -> str:
        return self.uri.partition("?")[2]

    @property
    def fragment(self) -> str:
        return ""

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [*self._fields.pairs]

    @property
    def scheme(self) -> str:
        scheme: str = self._fields.environ["wsgi.url_scheme"]
        return scheme

    @property
    def peer_addr(self) -> Any:
        return self._fields.peer

    remote_addr = peer_addr

    def should_close(self) -> bool:
        return self.must_close


class PlainResponse(Response):
    """The response to a `PlainRequest`, which is made when somebody asks for it: for most requests nobody does."""

    _line: Line

    def __init__(self, sock: socket.socket, cfg: Any, line: Line, fields: Fields, body: Body) -> None:
        self.sock = sock
        self.cfg = cfg
        self.body = body
        self._line = line
        self._fields = fields
        self.must_close = fields.closes[line.minor]

    def _make_request(self) -> PlainRequest:
        return PlainRequest(self._line, self._fields, self.body)


class PlainSettings:
    """What is the same for all connections to a mount.

    Args:
        cfg: gunicorn's settings.
        prefix_length: of the mount's prefix; the router matched it against the decoded path.
    """

    def __init__(self, cfg: Any, prefix_length: int) -> None:
        self.prefix_length = prefix_length
        # What gunicorn's Request and Message make of these: 0 is no limit for a line, and the greatest one for the other two.
        line_limit = min(cfg.limit_request_line, MAX_REQUEST_LINE)
        self.longest_line = line_limit + 2 if line_limit > 0 else math.inf  # with its end
        self.fields_limit = min(cfg.limit_request_fields or MAX_HEADERS, MAX_HEADERS)
        self.field_size_limit = cfg.limit_request_field_size or DEFAULT_MAX_HEADERFIELD_SIZE
        self.scheme = "https" if cfg.is_ssl else "http"
        self._cfg = cfg
        self._scheme_fields: dict[Any, dict[str, str]] = {}
        self._blocks: dict[tuple[bytes, int], Block] = {}  # what was read, with whether the peer may say how it was reached

    def read_block(self, block: bytes, peer: Any) -> Block | None:
        """Return what a block of fields says, whichever connection it came on; None: gunicorn's parser should read it.

        Args:
            block: from the line feed of the request line to the empty line.
            peer: who sent it.
        """
        scheme_fields = self._scheme_fields_of(peer)
        key = block, len(scheme_fields)
        said = self._blocks.get(key)
        if said is None and len(block) <= self.field_size_limit:
            said = self._parse(block, scheme_fields)
            if said is not None and len(block) <= _MAX_SHARED_BYTES and said.environ.keys().isdisjoint(_SECRETS):
                if len(self._blocks) >= _MAX_SHARED:
                    self._blocks.clear()
                self._blocks[key] = said
        return said

    def _parse(self, block: bytes, scheme_fields: dict[str, str]) -> Block | None:
        found = _FIELD.findall(block.decode("latin-1"))
        # Each match ends in the one line feed it holds. Two are outside of all matches: the first byte and the empty line's. So if
        # the counts agree every line is a match, and there is no bare line feed.
        if len(found) + 2 != block.count(b"\n") or len(found) > self.fields_limit:
            return None
        environ: dict[str, Any] = dict(_TO_COME)
        pairs: list[tuple[str, str]] = []
        seen: set[str] = set()
        scheme: str | None = None
        content_length = 0
        closes = True, False
        for name, value in found:
            if value and value[-1] in " \t":
                value = value.rstrip(" \t")
            upper, lower, key = _NAMES.get(name) or _remember(name)
            pairs.append((upper, value))
            if lower in _LEFT_TO_GUNICORN or (lower in _SINGLE and lower in seen):
                return None
            if upper in scheme_fields:
                if scheme is not None:
                    return None  # two of them must agree: gunicorn's to judge
                scheme = "https" if value == scheme_fields[upper] else "http"
            if lower == "content-length":
                if _LENGTH.fullmatch(value) is None:
                    return None
                content_length = int(value)
            elif lower == "connection":
                option = value.lower()
                closes = (True, True) if option == "close" else (False, False) if option == "keep-alive" else (True, False)
            environ[key] = f"{environ[key]},{value}" if lower in seen else value
            seen.add(lower)
        environ["wsgi.url_scheme"] = scheme or self.scheme
        return Block(environ, content_length, closes, tuple(pairs))

    def _scheme_fields_of(self, peer: Any) -> dict[str, str]:
        """Return the fields by which a client may say that it was reached by TLS, as gunicorn's parser finds them."""
        host = peer[0] if isinstance(peer, tuple) else None  # the rest of the address makes no difference
        found = self._scheme_fields.get(host)
        if found is None:
            if len(self._scheme_fields) >= _MAX_PEERS:
                self._scheme_fields.clear()
            policy = HeaderPolicy()
            policy.cfg = self._cfg
            policy.peer_addr = peer
            found, _ = policy._peer_trusted_for_forwarded()
            self._scheme_fields[host] = found
        return found


class PlainReader:
    """Reads the ordinary requests of one connection.

    Args:
        base: the environ entries that all requests of the connection share; if SERVER_NAME is none of them, the Host field gives it.
        settings: the mount's.
        unreader: where a body is read from; its buffer is empty between requests.
        peer: the client's address as `accept` gives it.
    """

    def __init__(self, base: dict[str, Any], settings: PlainSettings, unreader: Any, peer: Any) -> None:
        self._base = base
        self._settings = settings
        self._unreader = unreader
        self._peer = peer
        self._needs_host = "SERVER_NAME" not in base
        self._prefix_length = settings.prefix_length
        self._longest_line = settings.longest_line
        self.block = b""  # the last request's fields, as `peek.Peeker.look` takes them; b"" if they are left to gunicorn, or long
        self._fields: Fields | None = None
        self.no_body = Body(LengthReader(unreader, 0))

    def read(self, line: Line, repeats: bool, data: bytes, length: int) -> tuple[Fields, Body, dict[str, Any]] | None:
        """Return what a request's fields say, its body and its environ; None: gunicorn's parser should read it.

        Args:
            line: its request line.
            repeats: whether its fields are `block`.
            data: the head, and perhaps more.
            length: of the head, its empty line included.
        """
        if line.end > self._longest_line:
            return None
        fields = self._fields
        if not repeats or fields is None:  # the latter if the block was another reader's, of an app in the same group
            block = data[line.end - 1 : length]
            fields = self._fields = self._read_fields(block)
            self.block = block if fields is not None and len(block) <= _MAX_KEPT_BYTES else b""
            if fields is None:
                return None
        environ: dict[str, Any] = fields.environ | line.environ
        if self._prefix_length:
            environ["PATH_INFO"] = line.path[self._prefix_length :]
        if not fields.content_length:
            return fields, self.no_body, environ
        body = environ["wsgi.input"] = Body(LengthReader(self._unreader, fields.content_length))
        return fields, body, environ

    def _read_fields(self, block: bytes) -> Fields | None:
        """Read a block that starts with the line feed of the request line and ends with the empty line."""
        said = self._settings.read_block(block, self._peer)
        if said is None:
            return None
        environ = self._base | said.environ
        environ["wsgi.input"] = self.no_body
        if self._needs_host and not _name_server(environ):
            return None
        return Fields(self._peer, environ, said.content_length, said.closes, said.pairs)


# What each request sets. Keys that are there already save it the growing of its dict, which takes longer than the copying.
_TO_COME = dict.fromkeys(
    ("REQUEST_METHOD", "RAW_URI", "QUERY_STRING", "SERVER_PROTOCOL", "PATH_INFO", "wsgi.input", "wsgi.early_hints", "isowsgi.queue_s"),
    "",
)

# Field name as sent: upper case, lower case, environ key. Shared by all connections of the interpreter.
_NAMES: dict[str, tuple[str, str, str]] = {}


def _remember(name: str) -> tuple[str, str, str]:
    upper = name.upper()
    key = upper.replace("-", "_")
    if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        key = "HTTP_" + key
    entry = (upper, name.lower(), key)
    if len(_NAMES) < _MAX_NAMES:
        _NAMES[name] = entry
    return entry


def _name_server(environ: dict[str, Any]) -> bool:
    """Set SERVER_NAME and SERVER_PORT on a Unix socket from the Host field, as `gunicorn.http.wsgi.create` does; False if unsure."""
    host = environ.get("HTTP_HOST")
    if not host:
        return False
    parts = host.split(":")
    environ["SERVER_NAME"] = parts[0]
    environ["SERVER_PORT"] = parts[1] if len(parts) > 1 else "443" if environ["wsgi.url_scheme"] == "https" else "80"
    return True
