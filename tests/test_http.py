"""Requests are read to their last byte and no further; responses go out whole, framed right, and in as few sends as can be."""

import io
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import ChunkMissingTerminator, InvalidResponseHeader, InvalidResponseHeaderName, LimitRequestHeaders, NoMoreData
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import FileWrapper
from hypothesis import given
from hypothesis import strategies as st

from isowsgi.configuration.crossing import snapshot
from isowsgi.inside.http import ClientGone, ClientStalled, ExactReader, Response
from isowsgi.inside.settings import Settings
from tests.conftest import DEADLINE_S, examples

CFG = Settings(snapshot(Config()))
PEER = ("127.0.0.1", 50000)

# What lies behind a request on a kept-alive connection: another mount's, perhaps.
NEXT = b"GET /next HTTP/1.1\r\nHost: b.example\r\n\r\n"


class TricklingSocket:
    """A connection whose client sends the next piece only when its last one was read, or a little before.

    So every way in which a body may be cut into packets can be played, without threads and without waiting.
    """

    def __init__(self, pieces: list[bytes], eager: list[bool]) -> None:
        self.sock, self._client = socket.socketpair()
        self._pieces = [piece for piece in pieces if piece]
        self._eager = eager

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not self.unread() or (self._eager and self._eager.pop()):
            self.send_piece()
        return self.sock.recv(size, flags)

    def send_piece(self) -> bool:
        """Send the client's next piece, if there is one; else its end."""
        if self._pieces:
            self._client.sendall(self._pieces.pop(0))
            return True
        self._client.shutdown(socket.SHUT_WR)
        return False

    def unread(self) -> bytes:
        try:
            return self.sock.recv(1 << 20, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def rest(self) -> bytes:
        """Return all that was not read, sent meanwhile or not."""
        while self.send_piece():
            pass
        return self.unread()

    def close(self) -> None:
        self.sock.close()
        self._client.close()

    # gunicorn bounds the time of a drain by these.
    def gettimeout(self) -> float | None:
        return self.sock.gettimeout()

    def settimeout(self, seconds: float | None) -> None:
        self.sock.settimeout(seconds)


def chunked(chunks: list[bytes], sizes: list[str], extension: bytes, trailers: bytes) -> bytes:
    """Frame a body, each chunk's size written in one of the ways that are allowed."""
    framed = b"".join(
        (size % len(chunk)).encode() + extension + b"\r\n" + chunk + b"\r\n" for chunk, size in zip(chunks, sizes, strict=True) if chunk
    )
    return framed + b"0" + extension + b"\r\n" + trailers + b"\r\n"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({place % (len(data) + 1) for place in places})
    return [data[start:end] for start, end in zip([0, *edges], [*edges, len(data)], strict=True)]


def read_all(body: Any, way: str, size: int) -> bytes:
    """Read a body to its end, in one of the ways that apps do."""
    if way == "lines":
        return b"".join(body)
    if way == "at once":
        return bytes(body.read())
    parts = []
    while part := (body.readline(size) if way == "short lines" else body.read(size)):
        parts.append(part)
    return b"".join(parts)


pieces_of_chunks = st.one_of(
    st.binary(max_size=8), st.sampled_from([b"\r\n", b"\n", b"0\r\n\r\n", NEXT, b"x" * 3000]), st.binary(max_size=3000)
)
bodies = st.one_of(
    st.binary(max_size=5000).map(lambda body: (f"Content-Length: {len(body)}", body, body)),
    st.lists(st.tuples(pieces_of_chunks, st.sampled_from(["%x", "%X", "%04x"])), max_size=4).flatmap(
        lambda chunks: st.tuples(
            st.just("Transfer-Encoding: chunked"),
            st.just(b"".join(chunk for chunk, _ in chunks)),
            st.builds(
                chunked,
                st.just([chunk for chunk, _ in chunks]),
                st.just([size for _, size in chunks]),
                st.sampled_from([b"", b";a=b", b' ; a="b\t c"']),
                st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: \r\nB: c\r\n", b"A: b\r\n" * 90]),
            ),
        )
    ),
)


@examples(300)
@given(
    bodies,
    st.lists(st.integers(0, 6000), max_size=12),
    st.lists(st.booleans(), max_size=20),
    st.sampled_from(["at once", "pieces", "lines", "short lines"]),
    st.integers(1, 2000),
)
def test_after_a_body_was_read_just_the_next_request_is_left_in_the_kernels_buffer(
    body: tuple[str, bytes, bytes], places: list[int], eager: list[bool], way: str, size: int
) -> None:
    """That is where the peeker looks for it, and the app of the first must not get to see it."""
    field, content, framed = body
    sock = TricklingSocket(cut(framed + NEXT, places), eager)
    parser = RequestParser(CFG, sock, PEER)
    parser.unreader = ExactReader(sock)  # type: ignore[arg-type]
    parser.unreader.put_head(f"POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n".encode())

    request = next(parser)
    assert read_all(request.body, way, size) == content
    assert parser.finish_body()

    assert sock.rest() == NEXT
    sock.close()


@examples(100)
@given(bodies, st.lists(st.integers(0, 6000), max_size=12), st.integers(0, 100))
def test_a_body_that_the_app_left_unread_is_drained_to_its_end_and_no_further(
    body: tuple[str, bytes, bytes], places: list[int], size: int
) -> None:
    field, content, framed = body
    sock = TricklingSocket(cut(framed + NEXT, places), [])
    parser = RequestParser(CFG, sock, PEER)
    parser.unreader = ExactReader(sock)  # type: ignore[arg-type]
    parser.unreader.put_head(f"POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n".encode())

    assert next(parser).body.read(size) == content[:size]
    assert parser.finish_body()

    assert sock.rest() == NEXT
    sock.close()


def test_a_request_without_a_body_reads_nothing() -> None:
    sock = TricklingSocket([NEXT], [True])
    parser = RequestParser(CFG, sock, PEER)
    parser.unreader = ExactReader(sock)  # type: ignore[arg-type]
    parser.unreader.put_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")

    assert next(parser).body.read() == b""
    assert sock.rest() == NEXT
    sock.close()


def test_the_time_to_read_trailers_grows_with_their_length_only() -> None:
    """They were read line by line, and gunicorn looks through all it has for each: 800 KB of them kept a thread busy for minutes."""
    ours, client = socket.socketpair()
    trailers = b"a:\r\n" * 50_000
    sending = threading.Thread(target=client.sendall, args=(b"3\r\nabc\r\n0\r\n" + trailers + b"\r\n" + NEXT,))
    sending.start()
    parser = RequestParser(CFG, ours, PEER)
    parser.unreader = ExactReader(ours)
    parser.unreader.put_head(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    body = next(parser).body
    began = time.thread_time()

    with pytest.raises(LimitRequestHeaders):
        body.read()
    assert time.thread_time() - began < 2

    sending.join(DEADLINE_S)
    assert ours.recv(1000) == NEXT
    ours.close()
    client.close()


@pytest.mark.parametrize("sent", [b"", b"3", b"3\r\nab", b"3\r\nabc", b"3\r\nabc\r\n0\r\n", b"3\r\nabc\r\n0\r\nX: y\r\n"])
def test_a_chunked_body_that_breaks_off_is_an_error_and_not_the_end_of_the_body(sent: bytes) -> None:
    sock = TricklingSocket([sent], [])
    parser = RequestParser(CFG, sock, PEER)
    parser.unreader = ExactReader(sock)  # type: ignore[arg-type]
    parser.unreader.put_head(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    body = next(parser).body

    with pytest.raises((NoMoreData, ChunkMissingTerminator)):
        body.read()
    assert not parser.finish_body()
    sock.close()


def test_a_client_that_stalls_is_told_from_one_that_is_gone() -> None:
    """The one is answered 408 if it can be, the other cannot be answered."""
    ours, client = socket.socketpair()
    reader = ExactReader(ours)
    ours.setblocking(False)  # as when SO_RCVTIMEO has run out
    with pytest.raises(ClientStalled):
        reader.chunk(10)
    with pytest.raises(ClientStalled):
        reader.chunk()

    ours.close()
    client.close()
    with pytest.raises(ClientGone):
        reader.chunk(10)


def test_a_drain_that_takes_too_long_is_given_up_and_not_taken_for_the_clients_end() -> None:
    """gunicorn bounds it by the socket's timeout, so what ends it is a TimeoutError and no BlockingIOError."""
    ours, client = socket.socketpair()
    with ours, client:
        ours.settimeout(0.01)

        with pytest.raises(ClientStalled):
            ExactReader(ours).chunk(10)


# Responses.


class Wire:
    """A connection that notes what is sent in one call.

    Attributes:
        sends: the bytes of each call, in order; sendfile's are not among them.
    """

    def __init__(self) -> None:
        self.sends: list[bytes] = []
        self._sock, self._client = socket.socketpair()
        self._received = io.BytesIO()
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        while data := self._client.recv(1 << 20):
            self._received.write(data)

    def sendall(self, data: bytes) -> None:
        self.sends.append(data)
        self._sock.sendall(data)

    def send(self, data: bytes, flags: int) -> int:
        self.sendall(data)
        return len(data)

    def fileno(self) -> int:
        return self._sock.fileno()

    def hang_up(self) -> None:
        """Let the client go away."""
        self._client.shutdown(socket.SHUT_RDWR)
        self._reading.join(DEADLINE_S)
        self._client.close()

    def received(self) -> bytes:
        """End the connection and return all that the client got."""
        self._sock.close()
        self._reading.join(DEADLINE_S)
        self._client.close()
        return self._received.getvalue()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.received()


def response(wire: Wire, method: str = "GET", version: str = "1.1", **changed: Any) -> Response:
    cfg = Settings({**snapshot(Config()), **changed})
    request = Request(cfg, IterUnreader([f"{method} / HTTP/{version}\r\nHost: a\r\n\r\n".encode()]), PEER, 2)
    return Response(request, wire, cfg)  # type: ignore[arg-type]


def halves(received: bytes) -> tuple[list[str], bytes]:
    """Return the head's lines and the body as it was sent."""
    head, _, body = received.partition(b"\r\n\r\n")
    return head.decode("latin-1").split("\r\n"), body


def unchunked(body: bytes) -> bytes:
    """Take chunks apart; fails unless the framing is right to the last byte."""
    content = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        chunk, end, body = body[: int(size, 16)], body[int(size, 16) : int(size, 16) + 2], body[int(size, 16) + 2 :]
        assert end == b"\r\n"
        if not chunk:
            assert body == b""
            return content
        content += chunk


def test_head_and_first_chunk_are_one_send(wire: Wire) -> None:
    """One system call and one packet; two small ones wait for each other with Nagle and delayed acknowledgements."""
    answer = response(wire)
    write = answer.start_response("200 OK", [("Content-Length", "5")])
    assert wire.sends == []

    write(b"")
    assert wire.sends == []
    write(b"hel")
    write(b"lo")
    answer.close()

    assert len(wire.sends) == 2
    assert halves(wire.received())[1] == b"hello"


def test_head_framing_and_chunk_are_one_send_too(wire: Wire) -> None:
    answer = response(wire)
    answer.start_response("200 OK", [])
    answer.write(b"hello")
    answer.close()

    assert len(wire.sends) == 2  # the end of the body is not known before
    assert wire.sends[1] == b"0\r\n\r\n"


def test_a_large_first_chunk_is_not_copied_behind_the_head(wire: Wire) -> None:
    answer = response(wire)
    data = b"x" * 200_000
    answer.start_response("200 OK", [("Content-Length", str(len(data)))])
    answer.write(data)

    assert len(wire.sends) == 2
    assert wire.sends[1] is data


def test_an_empty_body_is_one_send(wire: Wire) -> None:
    answer = response(wire)
    answer.start_response("200 OK", [])
    answer.close()

    assert len(wire.sends) == 1
    assert wire.received().endswith(b"\r\n\r\n0\r\n\r\n")


@examples(100)
@given(st.lists(st.binary(max_size=40), max_size=6), st.sampled_from(["GET", "HEAD"]), st.sampled_from(["1.0", "1.1"]), st.data())
def test_the_client_gets_the_apps_bytes_in_the_framing_that_the_head_announces(
    chunks: list[bytes], method: str, version: str, data: Any
) -> None:
    whole = b"".join(chunks)
    length = data.draw(st.one_of(st.none(), st.integers(0, len(whole) + 2)))
    wire = Wire()  # after the draw, which may abandon the example: a wire's thread would keep pytest from ending
    answer = response(wire, method, version)
    answer.start_response("200 OK", [] if length is None else [("Content-Length", str(length))])

    for chunk in chunks:
        answer.write(chunk)
    answer.close()

    head, body = halves(wire.received())
    sent_whole = b"" if method == "HEAD" else whole[:length]
    chunked = "Transfer-Encoding: chunked" in head
    assert (unchunked(body) if chunked else body) == sent_whole
    assert chunked == (length is None and version == "1.1" and method == "GET")
    assert answer.truncated == (length is not None and len(whole) < length and method == "GET")
    assert answer.sent == len(sent_whole)
    closes = version == "1.0" or answer.should_close()
    assert f"Connection: {'close' if closes else 'keep-alive'}" in head
    assert closes or chunked or length is not None or method == "HEAD"


@pytest.mark.parametrize(("status", "may_tell_length"), [("204 No Content", False), ("304 Not Modified", True), ("101 Switching", False)])
def test_a_status_without_a_body_has_none_whatever_the_app_gives(wire: Wire, status: str, may_tell_length: bool) -> None:
    answer = response(wire)
    answer.start_response(status, [("Content-Length", "5")])
    answer.write(b"hello")
    answer.write(b"again")
    answer.close()

    head, body = halves(wire.received())
    assert body == b""
    assert head[0] == f"HTTP/1.1 {status}"
    assert ("Content-Length: 5" in head) == may_tell_length
    assert "Connection: keep-alive" in head
    assert not answer.truncated
    assert answer.dropped == len(b"helloagain")


def test_a_second_start_response_with_exc_info_replaces_all_of_the_first(wire: Wire) -> None:
    """PEP 3333; gunicorn's own class adds the fields of the second to those of the first."""
    answer = response(wire)
    answer.start_response("200 OK", [("Content-Length", "5"), ("X-First", "1"), ("Connection", "upgrade")])
    answer.start_response("500 Oh no", [("X-Second", "2")], (ValueError, ValueError("x"), None))
    answer.write(b"sorry, a longer text")
    answer.close()

    head, body = halves(wire.received())
    assert head[0] == "HTTP/1.1 500 Oh no"
    assert "X-Second: 2" in head
    assert not [line for line in head if line.startswith(("Content-Length", "X-First")) or "upgrade" in line]
    assert unchunked(body) == b"sorry, a longer text"


def test_exc_info_after_the_head_went_out_is_raised_as_it_is(wire: Wire) -> None:
    answer = response(wire)
    answer.start_response("200 OK", [])
    answer.write(b"a")
    failure = ValueError("x")

    with pytest.raises(ValueError, match="x") as caught:
        answer.start_response("500 Oh no", [], (ValueError, failure, None))

    assert caught.value is failure


def test_start_response_twice_is_the_apps_mistake(wire: Wire) -> None:
    answer = response(wire)
    answer.start_response("200 OK", [])

    with pytest.raises(AssertionError, match="twice"):
        answer.start_response("200 OK", [])


def test_an_app_that_never_called_start_response_is_told_so(wire: Wire) -> None:
    with pytest.raises(AssertionError, match="without calling start_response"):
        response(wire).close()
    assert wire.sends == []


@pytest.mark.parametrize(
    ("status", "fields", "error"),
    [
        ("200 OK\r\nX: y", [], ValueError),
        ("200", [], None),
        ("20 OK", [], ValueError),
        (200, [], TypeError),
        (b"200 OK", [], TypeError),
        ("200 OK", [("X", "a\r\nY: b")], InvalidResponseHeader),
        ("200 OK", [("X", "a\nb")], InvalidResponseHeader),
        ("200 OK", [("X", "a\0b")], InvalidResponseHeader),
        ("200 OK", [("X", "\u0100")], InvalidResponseHeader),
        ("200 OK", [("X", b"a")], TypeError),
        ("200 OK", [("X Y", "a")], InvalidResponseHeaderName),
        ("200 OK", [("X\r\nY", "a")], InvalidResponseHeaderName),
        ("200 OK", [("", "a")], InvalidResponseHeaderName),
        ("200 OK", [(b"X", "a")], TypeError),
        ("200 OK", [("Content-Length", "-1")], ValueError),
        ("200 OK", [("Content-Length", "\u0661")], (ValueError, InvalidResponseHeader)),
        ("200 OK", [("Content-Length", "1 2")], ValueError),
        ("200 OK", [("X", " a\tb\xff "), ("Y", "")], None),
    ],
)
def test_nothing_that_would_break_the_head_is_taken(wire: Wire, status: Any, fields: Any, error: Any) -> None:
    """Twice: what was checked once is remembered, and must not be taken for checked when it was refused."""
    for _ in range(2):
        answer = response(wire)
        if error is None:
            answer.start_response(status, fields)
        else:
            with pytest.raises(error):
                answer.start_response(status, fields)


def test_the_same_fields_again_are_framed_anew_for_each_response(wire: Wire) -> None:
    """Blocks of fields are remembered; a logger may change what it finds in one response."""
    fields = [("Content-Length", "2"), ("X-Same", "a")]
    for _ in range(4):
        answer = response(wire)
        answer.start_response("200 OK", iter(fields))
        answer.write(b"abc")
        assert answer.headers == fields
        answer.headers.clear()

        head, body = halves(wire.sends.pop())
        assert (head[4:], body) == (["Content-Length: 2", "X-Same: a"], b"ab")


def test_fields_in_lists_are_taken_too(wire: Wire) -> None:
    fields: Any = [["Content-Length", "0"]]
    for _ in range(3):
        answer = response(wire)
        answer.start_response("200 OK", fields)
        assert answer.response_length == 0


def test_fields_go_out_as_given_but_for_blanks_at_their_ends_and_those_between_neighbours(wire: Wire) -> None:
    answer = response(wire)
    answer.start_response(
        "200 OK", [("x-CASE", " a  b\t"), ("X-Empty", ""), ("Keep-Alive", "timeout=5"), ("Transfer-Encoding", "gzip"), ("X-Latin", "\xe9")]
    )
    answer.close()

    head, _ = halves(wire.received())
    assert head[4:] == ["Transfer-Encoding: chunked", "x-CASE: a  b", "X-Empty: ", "X-Latin: \xe9"]
    assert [line.partition(":")[0] for line in head[1:4]] == ["Server", "Date", "Connection"]


def test_only_bytes_are_a_body(wire: Wire) -> None:
    answer = response(wire)
    answer.start_response("200 OK", [])

    with pytest.raises(TypeError, match="'text' is not a byte string"):
        answer.write("text")  # type: ignore[arg-type]
    assert wire.sends == []


def test_a_client_that_is_gone_is_told_from_the_apps_own_oserror(wire: Wire) -> None:
    answer = response(wire)
    answer.start_response("200 OK", [])
    wire.hang_up()

    with pytest.raises(ClientGone):
        answer.write(b"x")


# Files.

CONTENT = bytes(range(256)) * 1000


def same(one: bytes, other: bytes) -> bool:
    """Compare large bodies; to show in what two differ would take pytest minutes."""
    return one == other


@pytest.fixture
def file(tmp_path: Path) -> Iterator[BinaryIO]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with open(path, "rb") as file:
        yield file


def sent_file(wire: Wire, answer: Response, file: Any, fields: list[tuple[str, str]], before: bytes = b"") -> tuple[list[str], bytes]:
    write = answer.start_response("200 OK", fields)
    if before:
        write(before)
    answer.write_file(FileWrapper(file))
    answer.close()
    head, body = halves(wire.received())
    return head, unchunked(body) if "Transfer-Encoding: chunked" in head else body


def test_a_file_is_sent_without_reading_it(wire: Wire, file: BinaryIO) -> None:
    _, body = sent_file(wire, response(wire), file, [("Content-Length", str(len(CONTENT)))])

    assert same(body, CONTENT)
    assert sum(map(len, wire.sends)) < 1000


def test_a_file_of_untold_length_is_one_chunk(wire: Wire, file: BinaryIO) -> None:
    _, body = sent_file(wire, response(wire), file, [])

    assert same(body, CONTENT)
    assert b"".join(wire.sends).endswith(b"%X\r\n\r\n0\r\n\r\n" % len(CONTENT))


@pytest.mark.parametrize("position", [1, 1000, len(CONTENT), len(CONTENT) + 5])
@pytest.mark.parametrize("fields", [[], [("Content-Length", "7")]])
def test_a_file_is_sent_from_where_it_stands(wire: Wire, file: BinaryIO, position: int, fields: list[tuple[str, str]]) -> None:
    """By `tell`, as a buffered reader has read ahead of what the app took from it."""
    file.read(1)
    file.seek(position)
    answer = response(wire)

    _, body = sent_file(wire, answer, file, fields)

    assert same(body, CONTENT[position:][: 7 if fields else None])
    assert answer.truncated == (bool(fields) and position >= len(CONTENT))


def test_a_file_longer_than_promised_is_cut(wire: Wire, file: BinaryIO) -> None:
    answer = response(wire)

    _, body = sent_file(wire, answer, file, [("Content-Length", "1000")])

    assert same(body, CONTENT[:1000])
    assert not answer.truncated


def test_a_file_shorter_than_promised_is_noticed(wire: Wire, file: BinaryIO) -> None:
    """The connection must be closed then, or the next response would be taken for the missing bytes."""
    answer = response(wire)

    _, body = sent_file(wire, answer, file, [("Content-Length", str(len(CONTENT) + 1))])

    assert same(body, CONTENT)
    assert answer.truncated


@pytest.mark.parametrize("fields", [[], [("Content-Length", str(len(CONTENT) + 5))], [("Content-Length", "10")], [("Content-Length", "3")]])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_what_was_written_comes_before_the_file(wire: Wire, file: BinaryIO, fields: list[tuple[str, str]], version: str) -> None:
    """The head went out once more between the two, and the file's first bytes were taken for written."""
    answer = response(wire, version=version)

    _, body = sent_file(wire, answer, file, fields, before=b"first")

    assert same(body, (b"first" + CONTENT)[: int(fields[0][1]) if fields else None])
    assert answer.sent == len(body)
    assert not answer.truncated


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_empty_file_has_a_head(wire: Wire, tmp_path: Path, method: str) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with open(tmp_path / "empty", "rb") as file:
        head, body = sent_file(wire, response(wire, method), file, [("Content-Length", "0")])

    assert head[0] == "HTTP/1.1 200 OK"
    assert body == b""


def test_a_head_request_for_a_file_tells_its_length_and_sends_nothing_of_it(wire: Wire, file: BinaryIO) -> None:
    head, body = sent_file(wire, response(wire, "HEAD"), file, [("Content-Length", str(len(CONTENT)))])

    assert f"Content-Length: {len(CONTENT)}" in head
    assert body == b""


@pytest.mark.parametrize(
    "open_other",
    [
        lambda: io.BytesIO(CONTENT),
        lambda: tempfile.SpooledTemporaryFile(),
        lambda: os.fdopen(os.open("/proc/self/stat", os.O_RDONLY), "rb"),
        lambda: piped(b"from a pipe"),
    ],
    ids=["BytesIO", "spooled", "proc", "pipe"],
)
def test_what_is_no_regular_file_is_read(wire: Wire, open_other: Callable[[], Any]) -> None:
    with open_other() as file:
        if isinstance(file, tempfile.SpooledTemporaryFile):
            file.write(b"spooled")
            file.seek(0)

        _, body = sent_file(wire, response(wire), file, [])

    assert body


def piped(data: bytes) -> BinaryIO:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return os.fdopen(reader, "rb")


def test_sendfile_can_be_switched_off(wire: Wire, file: BinaryIO) -> None:
    """gunicorn's --no-sendfile: for file systems where the system call is wrong."""
    _, body = sent_file(wire, response(wire, sendfile=False), file, [("Content-Length", str(len(CONTENT)))])

    assert same(body, CONTENT)
    assert sum(map(len, wire.sends)) > len(CONTENT)


def test_a_file_that_shrinks_while_it_is_sent_cannot_pass_for_whole(wire: Wire, tmp_path: Path) -> None:
    """A chunk's size is said before its bytes: all that is left is to break off."""

    class Shrinking(io.FileIO):
        """Is cut when its position was asked for: after its size was."""

        def tell(self) -> int:
            os.truncate(self.name, 100)
            return 0

    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with Shrinking(path) as file:
        answer = response(wire)
        answer.start_response("200 OK", [])
        with pytest.raises(OSError, match="shrank"):
            answer.write_file(FileWrapper(file))

    assert not wire.received().endswith(b"0\r\n\r\n")


def test_a_client_that_goes_away_during_a_file_is_no_error_of_the_apps(wire: Wire, file: BinaryIO) -> None:
    answer = response(wire)
    answer.start_response("200 OK", [("Content-Length", str(len(CONTENT)))])
    wire.hang_up()

    with pytest.raises(ClientGone):
        answer.write_file(FileWrapper(file))


def test_a_file_that_cannot_be_read_is_the_apps_error_while_there_is_no_head_yet(wire: Wire, tmp_path: Path) -> None:
    """It was taken for the client's end: the head was sent, then nothing, and no line in the log."""
    with open(tmp_path / "file", "wb+") as file:
        file.write(CONTENT)
    with open(tmp_path / "file", "ab") as file:
        file.seek(0)
        answer = response(wire)
        answer.start_response("200 OK", [("Content-Length", str(len(CONTENT)))])
        with pytest.raises(OSError, match="Bad file descriptor"):
            answer.write_file(FileWrapper(file))

    assert not answer.headers_sent
