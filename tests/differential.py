"""gunicorn's reading of a request beside isowsgi's: the same bytes, settings and addresses for both.

`compare` is what tests/test_plain.py and tests/fuzz/plain.py rest on. Each side serves the requests of one connection, as its worker
does: parse, environ, app, response, what is left of the body. gunicorn's side is put together here as its gthread worker does it;
isowsgi's is `Peeker` and `Gateway`, as its `Service` uses them.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from gunicorn.config import Config
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.http.wsgi import create

from isowsgi.configuration.crossing import snapshot
from isowsgi.inside.ending import Ending
from isowsgi.inside.plainrequest import PlainRequest
from isowsgi.inside.settings import Settings
from isowsgi.inside.wsgi import Connection, Fate, Gateway
from isowsgi.shared.peek import PEEK_MAX_BYTES, Peeker, Refused
from isowsgi.shared.routing import Route, Router

# What an instance puts into every environ, in both environs here.
EXTRA = {"wsgi.multithread": True, "isowsgi.mount": "/", "isowsgi.queue_s": 0.0}

# Objects that each side has its own of.
_OBJECTS = ("gunicorn.socket", "wsgi.early_hints", "wsgi.errors", "wsgi.input")

# What a logger class of the user's may read of a request, besides what is in the environ.
_ATTRIBUTES = ("method", "uri", "path", "query", "fragment", "version", "scheme", "headers", "peer_addr", "remote_addr")

_DATE = re.compile(rb"\r\nDate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT(?=\r\n)")

# Where a request may arrive. 127.0.0.1 and ::1 may set forwarded fields by gunicorn's default; on a Unix socket everybody may.
PEERS = [("127.0.0.1", 50000), ("192.0.2.7", 50000), ("::1", 50000, 0, 0), ("2001:db8::7", 1, 0, 0), ("fe80::1%lo", 1, 0, 1), "", b""]
SERVERS = [
    ("127.0.0.1", 8000),
    ("0.0.0.0", 80),
    ("::", 8000, 0, 0),
    "/run/isowsgi.sock",
    "/run/example.com:8000.sock",
    "relative:sock:1",
    b"\0abstract",
]
PREFIXES = ["", "", "", "/a", "/a/b", "/é".encode().decode("latin-1")]

# Settings that the parser reads, each with values that are not the default.
SETTINGS: Mapping[str, list[Any]] = {
    "limit_request_line": [0, 10, 14, 15, 20, 30, 60, 8190, 8191, 20000],
    "limit_request_fields": [0, 1, 2, 3, 5, 101, 40000],
    "limit_request_field_size": [0, 5, 20, 40, 80, 20000],
    "header_map": ["refuse", "dangerous"],
    "forwarded_allow_ips": ["*", "", "192.0.2.0/24", "2001:db8::/32,fe80::1"],
    "secure_scheme_headers": [
        {},
        {"X-FORWARDED-PROTO": "http", "HOST": "a"},
        {"CONNECTION": "close"},
        {"X-A": "", "x-forwarded-proto": "https"},
    ],
    "forwarder_headers": ["*", "", "SCRIPT-NAME,X-A,X_A", "SCRIPT_NAME,PATH_INFO,REMOTE_USER"],
    "permit_obsolete_folding": [True],
    "strip_header_spaces": [True],
    "permit_unconventional_http_method": [True],
    "permit_unconventional_http_version": [True],
    "casefold_http_method": [True],
    "certfile": ["certificate.pem"],
    "workers": [3],
}

# What an app may do with a body, by name.
READS: Mapping[str, Callable[[Any], Any]] = {
    "all": lambda body: body.read(),
    "all in pieces": lambda body: b"".join(iter(lambda: body.read(3), b"")),
    "as lines": lambda body: b"".join(body),
    "a part": lambda body: body.read(2),
    "one line": lambda body: body.readline(),
    "nothing": lambda body: b"",
}


class Disagreement(AssertionError):
    """The two sides made different things of the same bytes."""


class Wire:
    """A connection in place of a socket: hands out what the client sent, and keeps what it is answered.

    Args:
        data: all that the client sends; after it the connection is at its end.
        step: most bytes that one recv() takes; a peek shows all there is, as that of a head that has come whole.
    """

    def __init__(self, data: bytes, step: int | None = None) -> None:
        self.rest = data
        self.sends: list[bytes] = []
        self._step = step or len(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if flags & socket.MSG_PEEK:
            return self.rest[:size]
        size = min(size, self._step)
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    def sendall(self, data: bytes) -> None:
        self.sends.append(bytes(data))

    def fileno(self) -> int:
        return -1

    def send(self, data: bytes, flags: int = 0) -> int:
        self.sendall(data)
        return len(data)

    def take_answer(self) -> bytes:
        """Return what was sent since the last call, without the value of Date."""
        answer = _DATE.sub(b"\r\nDate: (now)", b"".join(self.sends))
        self.sends.clear()
        return answer

    def gettimeout(self) -> None:
        return None

    def settimeout(self, value: float | None) -> None:
        """gunicorn bounds the reading of what an app left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a request arrives.

    Attributes:
        prefix: of the only mount.
        settings: gunicorn's, where they are not the default.
    """

    peer: Any = ("127.0.0.1", 50000)
    server: Any = ("127.0.0.1", 8000)
    prefix: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Reading:
    """What one side made of one request.

    Attributes:
        refusal: the exception's type, if the app was not called.
        attributes: of the request object that the access log gets.
        body: what the app read, or the type of what that raised.
        is_kept: whether the connection waits for another request.
        rest: the bytes behind the request.
        is_plain: whether the fast path read it.
    """

    refusal: type[BaseException] | None = None
    environ: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    body: Any = b""
    request_closes: bool = True
    answer: bytes = b""
    is_kept: bool = False
    rest: bytes = b""
    is_plain: bool = False


class NotRouted(Exception):
    """The only mount does not have that path."""


def compare(
    data: bytes, place: Place, reads: Iterable[str] = ("all",), step: int | None = None, *, gunicorns_place: Place | None = None
) -> list[Reading]:
    """Let both sides serve the same connection, request by request, as long as there is one, and return isowsgi's readings.

    Args:
        reads: keys of READS, one for each request that is served at most.
        step: see `Wire`; for isowsgi, as gunicorn gets all bytes at once.
        gunicorns_place: another place for gunicorn, to see that the difference shows.

    Raises:
        Disagreement: with all that differs.
    """
    assert len(data) < PEEK_MAX_BYTES
    theirs = GunicornSide(data, gunicorns_place or place)
    ours = IsowsgiSide(data, place, step)
    readings = []
    for read in reads:
        our, their = ours.serve(read), theirs.serve(read)
        readings.append(our)
        if our.refusal is Refused:
            break  # isowsgi declines it by rules of its own; see peek.Peeker
        if our.refusal is NotRouted and their.refusal:
            break  # nobody serves it, and why is not asked any further
        _expect_same(data, place, our, their)
        if not our.is_kept or not our.rest:
            break
    return readings


def _expect_same(data: bytes, place: Place, our: Reading, their: Reading) -> None:
    faults = []
    for name in (entry.name for entry in fields(Reading)):
        mine, theirs = getattr(our, name), getattr(their, name)
        if name == "is_plain" or (name == "rest" and not our.is_plain and not our.is_kept):
            continue  # where a request begins that gunicorn's parser gave up is nobody's question
        if name == "body" and isinstance(mine, type) and isinstance(theirs, type):
            continue  # which fault of a chunked body is found first depends on where its packets end
        if isinstance(mine, dict):
            faults += [
                f"{name}[{key!r}]: {mine.get(key, 'missing')!r}, gunicorn has {theirs.get(key, 'missing')!r}"
                for key in sorted(mine.keys() | theirs.keys())
                if not _is_same(mine.get(key), theirs.get(key)) or (key in mine) != (key in theirs)
            ]
        elif not _is_same(mine, theirs):
            faults.append(f"{name}: {mine!r}, gunicorn has {theirs!r}")
    if faults:
        faults.append(f"by {'the fast path' if our.is_plain else 'the long way'}, for {data!r} at {place}")
        raise Disagreement("\n".join(faults))


def _is_same(mine: Any, theirs: Any) -> bool:
    return bool(mine == theirs) and type(mine) is type(theirs)


class _App:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.read = "all"
        self.reading = Reading()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"]
        shown = {name: type(value).__name__ for name, value in environ.items() if name in ("wsgi.input",)}
        self.reading.environ = {name: value for name, value in environ.items() if name not in _OBJECTS} | shown
        try:
            self.reading.body = READS[self.read](body)
        except (ParseException, NoMoreData) as exc:
            self.reading.body = type(exc)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"ok"]

    def note_request(self, request: Any) -> None:
        self.reading.is_plain = isinstance(request, PlainRequest)
        self.reading.attributes = {name: getattr(request, name, "missing") for name in _ATTRIBUTES}
        self.reading.request_closes = request.should_close()


class GunicornSide:
    """A connection of gunicorn's gthread worker (`ThreadWorker.handle` and `handle_request`)."""

    def __init__(self, data: bytes, place: Place) -> None:
        self._place = place
        self._cfg, _ = configs(place.settings)
        self._wire = Wire(data)
        self._parser = RequestParser(self._cfg, self._wire, place.peer)
        # In one packet: when it finds a head too long depends on where the packets end.
        self._parser.unreader = SocketUnreader(self._wire, max_chunk=PEEK_MAX_BYTES)
        self._app = _App()

    def serve(self, read: str) -> Reading:
        reading = self._app.reading = Reading()
        self._app.read = read
        try:
            reading.is_kept = self._handle()
        except (ParseException, NoMoreData, NotRouted) as exc:
            reading.refusal = type(exc)
        else:
            reading.answer = self._wire.take_answer()
            reading.rest = self._parser.unreader.buf.getvalue() + self._wire.rest
        return reading

    def _handle(self) -> bool:
        place = self._place
        request = next(self._parser, None)
        if request is None:
            raise NoMoreData
        response, environ = create(request, self._wire, place.peer, place.server, self._cfg)
        environ.update(EXTRA)
        if place.prefix:
            path = environ["PATH_INFO"]
            if path != place.prefix and not path.startswith(place.prefix + "/"):
                raise NotRouted
            environ["SCRIPT_NAME"] += place.prefix
            environ["PATH_INFO"] = path[len(place.prefix) :]
        for chunk in self._app(environ, response.start_response):
            response.write(chunk)
        response.close()
        self._app.note_request(request)
        if response.should_close():
            return False
        try:
            return bool(self._parser.finish_body(deadline=time.monotonic() + 5))
        except (ParseException, NoMoreData):
            return False


class IsowsgiSide:
    """A connection of an instance (`Service._serve`)."""

    def __init__(self, data: bytes, place: Place, step: int | None) -> None:
        _, cfg = configs(place.settings)
        self._place = place
        self._wire = Wire(data, step)
        self._app = _App()
        self._gateway = _PlainSpokenGateway(0, self._app, cfg, _Log(self._app), place.prefix, EXTRA, lambda: None)
        self._connection = Connection(self._wire, self._wire.fileno(), self._wire.fileno(), place.peer, place.server, self._gateway, {})
        self._connection.ending = Ending()
        self._peeker = Peeker(Router([Route(0, "", place.prefix)]), cfg)

    def serve(self, read: str) -> Reading:
        reading = self._app.reading = Reading()
        self._app.read = read
        try:
            reading.is_kept = self._handle()
        except (ParseException, NoMoreData, NotRouted, Refused) as exc:
            reading.refusal = type(exc)
        else:
            reading.answer = self._wire.take_answer()
            read_ahead = self._connection.reader.buf.getvalue()
            assert not (read_ahead and reading.is_kept), "the next peek would not see what was read ahead"
            reading.rest = read_ahead + self._wire.rest
        return reading

    def _handle(self) -> bool:
        data = self._wire.recv(PEEK_MAX_BYTES, socket.MSG_PEEK)
        length, mount, line, repeats = self._peeker.find(data, self._place.peer, fields=self._connection.plain.block)
        if not length:
            raise NoMoreData(data)
        if mount is None:
            raise NotRouted
        left = length
        while left:
            left -= len(self._wire.recv(left))
        self._connection.ending.begin(memoryview(bytearray(8 * 64)).cast("q"))
        return self._gateway.serve(self._connection, data, length, line, repeats, last=False, row=None) is Fate.KEEP


class _PlainSpokenGateway(Gateway):
    """Raises what is answered by an error page otherwise."""

    def _answer_error(self, connection: Any, request: Any, response: Any, exc: BaseException, row: Any) -> None:
        raise exc


class _Log:
    """What a gateway needs of a log; says whose request it was."""

    access_enabled = True

    def __init__(self, app: _App) -> None:
        self._app = app

    def access(self, response: Any, request: Any, environ: Any, elapsed: Any) -> None:
        self._app.note_request(request)

    def debug(self, message: str, *args: Any) -> None:
        """Only that a client went away, or what it sent badly."""


_configs: dict[str, tuple[Config, Settings]] = {}


def configs(settings: Mapping[str, Any]) -> tuple[Config, Settings]:
    """Return gunicorn's Config with some settings, and the same as an instance has it."""
    key = repr(sorted(settings.items()))
    if key not in _configs:
        cfg = Config()
        cfg.set("http_parser", "python")
        for name, value in settings.items():
            cfg.set(name, value)
        _configs[key] = cfg, Settings(snapshot(cfg))
    return _configs[key]
