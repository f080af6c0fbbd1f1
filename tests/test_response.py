"""What isowsgi's Response puts on the wire is what gunicorn's does, but for the differences that are named here.

`Amended` is gunicorn's class with those differences put in, so that any other shows; a test below shows each of them by itself.
"""

from __future__ import annotations

import itertools
import re
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import Any

import gunicorn.http.wsgi
import pytest
from gunicorn.http.errors import InvalidResponseHeader, InvalidResponseHeaderName
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import HEADER_VALUE_RE, FileWrapper
from hypothesis import event, given
from hypothesis import strategies as st

from isowsgi.inside.http import ClientGone, ClientStalled, ExactReader, Response
from isowsgi.inside.plainrequest import PlainReader, PlainResponse, PlainSettings
from isowsgi.shared.peek import Peeker
from isowsgi.shared.routing import Route, Router
from tests.conftest import examples, receive_all
from tests.differential import Wire, configs


class Amended(gunicorn.http.wsgi.Response):  # type: ignore[misc] # gunicorn is not annotated
    """gunicorn's Response with isowsgi's deliberate differences."""

    def start_response(self, status: Any, headers: Any, exc_info: Any = None) -> Any:
        # A call that raised has changed nothing; gunicorn has half of the headers then, and sends a body that 204 forbids.
        before = dict(vars(self))
        try:
            return super().start_response(status, headers, exc_info)
        except Exception:
            self.__dict__.update(before)
            raise

    def process_headers(self, headers: Any) -> None:
        # A repeated start_response replaces the first one's headers, as PEP 3333 has it; gunicorn adds to them.
        self.headers: list[tuple[str, str]] = []
        self.response_length = None
        self.upgrade = False
        super().process_headers(_with_strict_lengths(headers))

    def should_close(self) -> bool:
        # With a status below 100 and no length, gunicorn keeps an HTTP/1.0 connection whose client waits for its end.
        if (
            not self.must_close
            and self.status_code < 100
            and self.response_length is None
            and not self.chunked
            and self.req.method != "HEAD"
        ):
            return True
        return bool(super().should_close())

    def write(self, arg: Any) -> None:
        # The head goes out with the first byte of the body, and so not before a chunk that cannot be sent, nor for one of which nothing
        # is: an empty one, or one behind the end that Content-Length says.
        if not isinstance(arg, bytes):
            raise TypeError
        if arg:
            self._expect_status()
            if self._omits_body or self.response_length is None or self.sent < self.response_length:
                super().write(arg)

    def close(self) -> None:
        self._expect_status()
        super().close()

    def _expect_status(self) -> None:
        # gunicorn sends "HTTP/1.1 None", or stumbles over an attribute that is missing.
        if self.status is None:
            raise AssertionError


def _with_strict_lengths(headers: Any) -> Iterator[tuple[Any, Any]]:
    """gunicorn takes what int() takes: "+5", "-5", "1_0"; the client gets it as it is."""
    for name, value in headers:
        if isinstance(name, str) and name.lower() == "content-length" and isinstance(value, str) and HEADER_VALUE_RE.fullmatch(value):
            text = value.strip(" \t")
            if not (text.isascii() and text.isdigit()):
                raise ValueError
        yield name, value


@dataclass(frozen=True)
class Start:
    """A call of start_response."""

    status: Any
    headers: Any
    has_exc_info: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of an app's calls.

    Attributes:
        errors: for each call and at last for the end, the type of what it raised.
    """

    errors: list[type[Exception] | None]
    wire: bytes
    closes: bool | None
    sent: int | None
    headers: list[Any]
    headers_sent: bool
    status: Any


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HEADS = [
    GET,
    b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    b"HEAD / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
]


def gunicorns(head: bytes, wire: Any, response_class: Any = Amended) -> Any:
    cfg, _ = configs({})
    return response_class(Request(cfg, IterUnreader([head]), ("127.0.0.1", 1)), wire, cfg)


def ours(head: bytes, wire: Any) -> Response:
    _, cfg = configs({})
    length, _, line, repeats = Peeker(Router([Route(0, "", "")]), cfg).find(head, "")
    assert line is not None
    reader = PlainReader({"SERVER_NAME": "a"}, PlainSettings(cfg, 0), ExactReader(wire), ("127.0.0.1", 1))
    taken = reader.read(line, repeats, head, length)
    assert taken is not None
    fields, body, _ = taken
    return PlainResponse(wire, cfg, line, fields, body)


def outcome(response: Any, wire: Wire, calls: list[Any]) -> Outcome:
    """Do what an app does that goes on whatever its calls raise, to the end of its response."""
    errors: list[type[Exception] | None] = []
    for call in [*calls, None]:
        try:
            if isinstance(call, Start):
                response.start_response(call.status, call.headers, _exc_info() if call.has_exc_info else None)
            elif call is None:
                response.close()
            else:
                response.write(call)
        except Exception as exc:
            errors.append(type(exc))
        else:
            errors.append(None)
    begun = response.status is not None
    return Outcome(
        errors=errors,
        wire=wire.take_answer(),
        closes=response.should_close() if begun else None,
        sent=response.sent if begun else None,
        headers=response.headers,
        headers_sent=response.headers_sent,
        status=response.status,
    )


class FoundLate(Exception):
    """What an app gives start_response as exc_info."""


def _exc_info() -> Any:
    try:
        raise FoundLate
    except FoundLate:
        return sys.exc_info()


def both(head: bytes, calls: list[Any], response_class: Any = Amended) -> tuple[Outcome, Outcome]:
    """Return isowsgi's outcome and gunicorn's."""
    wires = Wire(b""), Wire(b"")
    return outcome(ours(head, wires[0]), wires[0], calls), outcome(gunicorns(head, wires[1], response_class), wires[1], calls)


# The same for any calls.


class Text(str):
    """Some frameworks give subclasses: marked-up or lazily translated text."""


def mostly(usual: list[Any], odd: list[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 19).flatmap(lambda number: st.sampled_from(odd if number == 13 else usual))


statuses = mostly(
    [
        "200 OK",
        "404 Not Found",
        "500 A \t B",
        "204 No Content",
        "304 Not Modified",
        "101 Switching Protocols",
        "103 Hints",
        "200",
        "599 \xe4",
    ],
    [
        *("099 X", "000", "100 ", "999 X", Text("200 OK"), "20 OK", "2000 OK", "200OK", "200 O\nK", "200 O\rK", "200 \x00", "200 \x7f"),
        *("abc", "", "\xb200 X", "200\tOK", " 200 OK", "200 \u0100", 200, b"200 OK", None, ["200 OK"], 2.0),
    ],
)
names = mostly(
    ["Content-Type", "Content-Length", "content-length", "X-A", "Set-Cookie", "ETag", "Connection", "Upgrade", "!#$%&'*+-.^_`|~09"],
    [
        *("Keep-Alive", "Date", "SERVER", "Transfer-Encoding", "TE", "Trailers", "Trailer", "Proxy-Authenticate", "proxy-authorization"),
        *(Text("X-B"), Text("Content-Length"), Text("Connection"), b"X", None, 5, ("a",)),
        *("", "X A", " X", "X:", "X\n", "X\r\nY", "\xc4", "\u0130", "\u212a"),
    ],
)
values = mostly(
    ["a", "", "text/html; charset=utf-8", " a\t", "a\tb", "\xe4\xf6\xff", "0", "3", "007", " 5 ", "70000", "close", "upgrade", "websocket"],
    [
        *(
            "Upgrade",
            "WebSocket",
            "keep-alive",
            "chunked",
            "+5",
            "-5",
            "1_0",
            "\xb2",
            "5.0",
            "5 5",
            "9" * 30,
            "9" * 5000,
            Text("3"),
            Text(" b "),
        ),
        *("a\nb", "a\rb", "a\r\nX: y", "\x00", "\x7f", "\x1f", "\u0100", "\u0663", "\xa0a\x85", "\x0ba", b"a", None, 5),
    ],
)
header_lists = st.one_of(
    st.lists(st.tuples(names, values), max_size=5),
    st.lists(st.tuples(st.sampled_from(["Content-Length", "X-A"]), st.sampled_from(["0", "3", "5", "70000"])), max_size=2),
    mostly([[], [("Content-Length", "3")]], [None, [("X-A",)], [("X-A", "b", "c")], (("X-A", "b"),), ["ab"], 5]),
)
starts = st.builds(Start, statuses, header_lists, st.booleans())
chunks = mostly([b"", b"a", b"abc", b"\r\n", b"x" * 300], [b"x" * 70_000, "text", bytearray(b"abc"), 5, memoryview(b"abc")])
calls = st.builds(
    lambda first, rest: [*first, *rest],
    st.lists(starts.map(lambda start: Start(start.status, start.headers)), min_size=1, max_size=1),
    st.lists(st.one_of(chunks, chunks, chunks, starts), max_size=5),
)


@examples(500)
@given(st.sampled_from(HEADS), st.one_of(calls, calls, st.lists(st.one_of(chunks, starts), max_size=4)))
def test_any_calls_of_an_app_lead_to_gunicorns_bytes(head: bytes, calls: list[Any]) -> None:
    our, gunicorns_own = both(head, calls)

    event(next((error.__name__ for error in our.errors if error is not None), "no error"))
    assert our == gunicorns_own


STATUSES = ["200 OK", "204 No Content", "304 Not Modified", "101 Switching Protocols", "404"]
HEADER_LISTS: list[list[tuple[str, str]]] = [
    [],
    [("Content-Type", "text/plain"), ("Set-Cookie", "a=b"), ("Set-Cookie", "c=d"), ("X-A", " b ")],
    [("Content-Length", "0")],
    [("Content-Length", "0"), ("Connection", "upgrade")],
    [("Content-Length", "3"), ("Content-Type", "a/b")],
    [("content-length", "5"), ("Content-Length", "3")],
    [("Connection", "close"), ("Keep-Alive", "5"), ("Date", "now"), ("Server", "me"), ("Transfer-Encoding", "chunked"), ("TE", "a")],
    [("Connection", "Upgrade"), ("Upgrade", "WebSocket")],
    [("Connection", "keep-alive, upgrade"), ("Upgrade", "h2c")],
    [("Connection", "upgrade"), ("Connection", "close"), ("Upgrade", "websocket")],
    [("X-A", "a "), ("X-B", "\xa0b\x85\t"), ("X-C", "\t c"), ("X-D", " "), ("X-E", "")],
]
BODIES: list[list[bytes]] = [[], [b""], [b"abc"], [b"a", b"", b"bc"], [b"", b"abcd"], [b"ab", b"cdef"], [b"abc" * 30_000, b"d"]]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.decode())
def test_every_kind_of_response_has_gunicorns_bytes(head: bytes) -> None:
    for status in STATUSES:
        for headers in HEADER_LISTS:
            for body in BODIES:
                our, gunicorns_own = both(head, [Start(status, headers), *body])
                assert our == gunicorns_own
                assert not any(our.errors)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.decode())
def test_a_response_that_shall_be_the_last_says_so(head: bytes) -> None:
    wire = Wire(b"")
    answers = []
    for response in (ours(head, wire), gunicorns(head, wire)):
        response.force_close()
        answers.append(outcome(response, wire, [Start("200 OK", [("Content-Length", "2")]), b"ok"]))

    assert answers[0] == answers[1]
    assert answers[0].closes


def test_a_plain_gunicorn_response_is_the_same_where_no_difference_is_named() -> None:
    """`Amended` must not amend away what it should show."""
    for head in HEADS:
        for headers in HEADER_LISTS:
            for body in BODIES:
                our, gunicorns_own = both(head, [Start("200 OK", headers), *body], gunicorn.http.wsgi.Response)
                assert our == gunicorns_own


@pytest.mark.parametrize(
    ("status", "error"), [("200 O\nK", ValueError), ("2000 OK", ValueError), ("", ValueError), (200, TypeError), (b"200 OK", TypeError)]
)
def test_a_bad_status_is_an_error_of_gunicorns_kind(status: Any, error: type[Exception]) -> None:
    our, gunicorns_own = both(GET, [Start(status, [])])

    assert our.errors[0] is gunicorns_own.errors[0] is error


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("X A", "b", InvalidResponseHeaderName),
        ("X\r\nY", "b", InvalidResponseHeaderName),
        ("", "b", InvalidResponseHeaderName),
        ("X-\xc4", "b", InvalidResponseHeaderName),
        (b"X-A", "b", TypeError),
        ("X-A", "b\r\nSet-Cookie: c=d", InvalidResponseHeader),
        ("X-A", "b\nc", InvalidResponseHeader),
        ("X-A", "\x00", InvalidResponseHeader),
        ("X-A", "\u0100", InvalidResponseHeader),
        ("X-A", b"b", TypeError),
        ("X-A", 5, TypeError),
        ("X-A", None, TypeError),
        ("Content-Length", 5, TypeError),
        ("Content-Length", "five", ValueError),
        ("Content-Length", "\xb2", ValueError),
        ("Content-Length", "\u0663", InvalidResponseHeader),
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_bad_field_is_an_error_of_gunicorns_kind_each_time(name: Any, value: Any, error: type[Exception], times: int) -> None:
    """Names that were checked are remembered; a bad one must not be."""
    for _ in range(times):
        our, gunicorns_own = both(GET, [Start("200 OK", [("Content-Type", "a/b"), (name, value)])])

    assert our.errors[0] is gunicorns_own.errors[0] is error


def test_more_names_and_statuses_than_are_remembered_are_checked_all_the_same() -> None:
    for number in range(1200):
        our, gunicorns_own = both(GET, [Start(f"200 Number {number}", [(f"X-{number}", "a"), (f"X {number}", "a")])])
        assert our.errors[0] is gunicorns_own.errors[0] is InvalidResponseHeaderName


# The named differences, one by one: what gunicorn does is checked too, so that a difference which is gone is noticed.


def differing(head: bytes, calls: list[Any]) -> tuple[Outcome, Outcome]:
    return both(head, calls, gunicorn.http.wsgi.Response)


def test_difference_a_repeated_start_response_replaces_the_headers() -> None:
    calls = [Start("200 OK", [("X-A", "a"), ("Content-Length", "3")]), Start("500 Oh", [("X-B", "b")], has_exc_info=True), b"longer"]
    our, gunicorns_own = differing(GET, calls)

    assert our.headers == [("X-B", "b")]
    assert our.wire.endswith(b"6\r\nlonger\r\n0\r\n\r\n")
    assert gunicorns_own.headers == [("X-A", "a"), ("Content-Length", "3"), ("X-B", "b")]
    assert gunicorns_own.wire.endswith(b"\r\n\r\nlon")


def test_difference_a_start_response_that_raised_has_changed_nothing() -> None:
    bad = Start("204 No Content", [("X-A", "a"), ("X B", "b")])
    our, gunicorns_own = differing(GET, [bad, b"abc"])

    assert our.wire == b""
    assert gunicorns_own.wire.endswith(b"Connection: keep-alive\r\nX-A: a\r\n\r\nabc")  # where the client looks for the next response

    our, gunicorns_own = differing(GET, [bad, Start("500 Oh", [("X-C", "c")])])

    assert (our.status, our.headers) == ("500 Oh", [("X-C", "c")])
    assert gunicorns_own.errors == [InvalidResponseHeaderName, AssertionError, None]


@pytest.mark.parametrize("length", ["+5", "-5", "1_0"])
def test_difference_a_length_must_be_digits(length: str) -> None:
    our, gunicorns_own = differing(GET, [Start("200 OK", [("Content-Length", length)])])

    assert our.errors[0] is ValueError
    assert gunicorns_own.errors[0] is None
    assert f"Content-Length: {length}".encode() in gunicorns_own.wire


@pytest.mark.parametrize(("headers", "chunk"), [([], b""), ([("Content-Length", "0")], b"too much")])
def test_difference_a_chunk_of_which_nothing_is_sent_does_not_send_the_head(headers: list[tuple[str, str]], chunk: bytes) -> None:
    """PEP 3333: until the first byte of the body an app may change its mind."""
    calls = [Start("200 OK", headers), chunk, Start("500 Oh", [], has_exc_info=True), b"sorry"]
    our, gunicorns_own = differing(GET, calls)

    assert our.wire.startswith(b"HTTP/1.1 500 Oh\r\n")
    assert gunicorns_own.wire.startswith(b"HTTP/1.1 200 OK\r\n")
    assert gunicorns_own.errors[2] is FoundLate


def test_difference_a_chunk_that_is_not_bytes_does_not_send_the_head() -> None:
    """So that the client gets a 500, and not a 200 that breaks off."""
    wires = Wire(b""), Wire(b"")
    for response in (ours(GET, wires[0]), gunicorns(GET, wires[1], gunicorn.http.wsgi.Response)):
        response.start_response("200 OK", [])
        with pytest.raises(TypeError):
            response.write("text")  # type: ignore[arg-type,unused-ignore] # the mistake

    assert wires[0].take_answer() == b""
    assert wires[1].take_answer().startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("calls", [[], [b"a"], [Start(200, [])]])
@pytest.mark.parametrize("head", [GET, HEADS[2]])
def test_difference_without_a_status_nothing_is_sent(calls: list[Any], head: bytes) -> None:
    our, gunicorns_own = differing(head, calls)

    assert our.wire == b""
    assert our.errors[-1] is AssertionError
    assert gunicorns_own.errors[-1] is AttributeError or gunicorns_own.wire.startswith(b"HTTP/1.1 None\r\n")


def test_difference_a_body_without_length_ends_with_the_connection_even_below_status_100() -> None:
    our, gunicorns_own = differing(HEADS[4], [Start("099 X", []), b"abc"])

    assert our.closes
    assert not gunicorns_own.closes  # its client waits for ever


def test_an_empty_file_in_chunks_has_one_last_chunk(tmp_path: Path) -> None:
    """gunicorn writes two, and the second is the start of the next response then."""
    our, gunicorns_own = file_answers(tmp_path, b"", GET, [])

    assert our.endswith(b"\r\n\r\n0\r\n\r\n")
    assert our.count(b"0\r\n\r\n") == 1
    assert gunicorns_own.endswith(b"\r\n\r\n0\r\n\r\n0\r\n\r\n")


# Files.


@pytest.mark.parametrize("length", [None, 0, 4, 10])
@pytest.mark.parametrize("offset", [0, 3, 10, 12])
def test_a_file_has_gunicorns_bytes(tmp_path: Path, length: int | None, offset: int) -> None:
    headers = [] if length is None else [("Content-Length", str(length))]
    for head, status in itertools.product(HEADS, ("200 OK", "304 Not Modified")):
        our, gunicorns_own = file_answers(tmp_path, b"0123456789", head, headers, status, offset)
        if offset >= 10 and b"chunked" in our:
            our += b"0\r\n\r\n"  # as for an empty file, see above
            if offset > 10:
                gunicorns_own = re.sub(rb"-2\r\n\r\n(?=0\r\n\r\n$)", b"0\r\n\r\n", gunicorns_own)  # a chunk of so many bytes

        assert our == gunicorns_own, (head, status)


def file_answers(
    folder: Path, content: bytes, head: bytes, headers: list[tuple[str, str]], status: str = "200 OK", offset: int = 0
) -> tuple[bytes, bytes]:
    path = folder / "file"
    path.write_bytes(content)
    answers = []
    for make in (ours, lambda head, sock: gunicorns(head, sock, gunicorn.http.wsgi.Response)):
        server, client = socket.socketpair()
        with server, client, path.open("rb", buffering=0) as file:
            file.seek(offset)
            response = make(head, server)
            response.start_response(status, headers)
            response.write_file(FileWrapper(file))
            response.close()
            server.shutdown(socket.SHUT_WR)
            answers.append(re.sub(rb"\r\nDate: [^\r]*", b"", receive_all(client)))
    return answers[0], answers[1]


# How it is sent.


def test_head_and_first_chunk_leave_in_one_send() -> None:
    wire = Wire(b"")
    response = ours(GET, wire)
    response.start_response("200 OK", [("Content-Length", "5")])
    response.write(b"ab")
    response.write(b"cde")
    response.close()

    assert len(wire.sends) == 2
    assert wire.sends[0].endswith(b"\r\n\r\nab")
    assert wire.sends[1] == b"cde"


def test_a_large_chunk_is_not_copied_behind_the_head() -> None:
    wire = Wire(b"")
    response = ours(GET, wire)
    response.start_response("200 OK", [("Content-Length", "1000000")])
    response.write(b"x" * 1_000_000)

    assert [len(data) for data in wire.sends[1:]] == [1_000_000]


def test_the_date_is_of_this_second() -> None:
    for _ in range(3):
        wire = Wire(b"")
        response = ours(GET, wire)
        before = int(time.time())
        response.start_response("200 OK", [])
        response.close()
        after = int(time.time())
        found = re.search(rb"\r\nDate: ([^\r]*)\r\n", b"".join(wire.sends))
        assert found is not None
        sent = int(parsedate_to_datetime(found[1].decode()).timestamp())
        assert before <= sent <= after
        assert found[1].decode() == formatdate(sent, usegmt=True)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, client = socket.socketpair()
    with server, client:
        yield server, client


def test_a_client_that_went_away_is_told_apart_from_an_error_of_the_apps(pair: tuple[socket.socket, socket.socket]) -> None:
    server, client = pair
    client.close()
    response = ours(GET, server)
    response.start_response("200 OK", [])

    with pytest.raises(ClientGone):
        response.write(b"a")


def test_a_client_that_went_away_before_early_hints_is_too(pair: tuple[socket.socket, socket.socket]) -> None:
    """It was an error of the app's once, logged with a traceback: gunicorn's callback sends on its own."""
    server, client = pair
    client.close()

    with pytest.raises(ClientGone):
        ours(GET, server).send_early_hints([("Link", "</a.css>; rel=preload")])


def test_a_client_that_does_not_read_is_given_up(pair: tuple[socket.socket, socket.socket]) -> None:
    server, _ = pair
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 10_000))
    response = ours(GET, server)
    response.start_response("200 OK", [])

    with pytest.raises(ClientStalled):
        response.write(b"x" * 10_000_000)


@pytest.mark.parametrize(
    "fields", [[("Link", "</a.css>; rel=preload"), ("X-A", " \xe4 ")], [], [("X A", "b")], [("X-A", "b\r\nc")], [(b"Link", b"<a>")]]
)
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.decode())
def test_early_hints_are_gunicorns(head: bytes, fields: list[tuple[Any, Any]]) -> None:
    def answer(response: Any, wire: Wire, send_hints: Any) -> tuple[type[Exception] | None, bytes]:
        error = None
        try:
            send_hints(fields)
        except Exception as exc:
            error = type(exc)
        response.start_response("200 OK", [("Content-Length", "2")])
        response.write(b"ok")
        send_hints([("Link", "too late")])
        return error, wire.take_answer()

    wire = Wire(b"")
    our = ours(head, wire)
    our_answer = answer(our, wire, our.send_early_hints)
    theirs = gunicorns(head, wire, gunicorn.http.wsgi.Response)

    assert our_answer == answer(theirs, wire, gunicorn.http.wsgi._make_early_hints_callback(theirs.req, wire, theirs))
