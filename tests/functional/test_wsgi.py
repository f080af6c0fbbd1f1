"""HTTP and PEP 3333, end to end: what goes over the wire, and what an app may rely on."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bystander import again_if_disturbed
from tests.conftest import Server, StartServer, eventually, receive_all, running_server
from tests.raw import Client

FILE_TEXT = b"0123456789" * 3
BIG_FILE_BYTES = 20 * 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that need no settings of their own; each finds its own lines in the log by a name."""
    folder = tmp_path_factory.mktemp("wsgi")
    (folder / "file.bin").write_bytes(FILE_TEXT)
    with (folder / "big.bin").open("wb") as file:
        for number in range(BIG_FILE_BYTES // 4096):
            file.write(number.to_bytes(8) * 512)
    config = f"""
        [mounts]
        "/hello" = "hello:environ"
        "/responses" = {{ app = "responses", threads = 8 }}
        "/bodies" = "bodies"
        "/files" = {{ app = "files", env = {{ FILE = "{folder}/file.bin" }} }}
        "/big" = {{ app = "files", env = {{ FILE = "{folder}/big.bin" }} }}
        "/validated" = "linted:validated"
        "/linted" = "linted:linted"
        "/both" = "linted:both"
        "/broken" = "crashes_on_import"
        """
    access = ["--access-logfile", str(folder / "access.log"), "--access-logformat", '"%(r)s" %(s)s %(b)s %({isowsgi.mount}e)s']
    with running_server(folder, config, *access, wait_for=8) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server) as client:
        yield client


def access_line(server: Server, request: str) -> str:
    """Wait for a request's line in the access log, and return what follows the request in it."""
    path = server.folder / "access.log"
    found = eventually(
        lambda: re.search(f'^"{re.escape(request)}" (.*)$', path.read_text(), re.MULTILINE), f"an access line for {request!r}"
    )
    assert isinstance(found, re.Match)
    return str(found[1])


# start_response.


def test_a_list_of_one_chunk_goes_out_as_it_is(client: Client) -> None:
    answer = client.ask("/responses/listed")

    assert (answer.version, answer.status, answer.reason, answer.body) == ("HTTP/1.1", 200, "OK", b"listed")
    assert answer.fields["content-length"] == "6"
    assert answer.fields["connection"] == "keep-alive"
    assert "date" in answer.fields
    assert answer.fields["server"].startswith("gunicorn")


def test_an_empty_body_still_has_a_head(client: Client) -> None:
    answer = client.ask("/responses/empty")

    assert (answer.status, answer.reason, answer.body, answer.whole) == (200, "Nothing To Say", b"", True)
    assert client.ask("/responses/listed").body == b"listed"


def test_exc_info_before_the_head_replaces_status_and_all_headers(client: Client) -> None:
    """gunicorn adds the second call's headers to the first one's, and keeps the first one's Content-Length."""
    answer = client.ask("/responses/replaces_the_head")

    assert (answer.status, answer.reason, answer.body) == (500, "Found Out", b"longer than four bytes")
    assert answer.fields["x-second"] == "2"
    assert "x-first" not in answer.fields
    assert "content-length" not in answer.fields


def test_empty_chunks_do_not_send_the_head(client: Client) -> None:
    """PEP 3333: the head goes out with the first byte of the body, so an app may change its mind until then."""
    answer = client.ask("/responses/replaces_the_head_after_empty_chunks")

    assert (answer.status, answer.body) == (503, b"sorry")


def test_exc_info_after_the_head_is_raised_again_and_cuts_the_response(server: Server, client: Client) -> None:
    answer = client.ask("/responses/is_too_late_to_replace_the_head")

    assert (answer.status, answer.body, answer.whole) == (200, b"begun", False)
    assert client.is_closed()
    server.wait_for_log(r"/responses #1: Error handling request GET /responses/is_too_late\w+ after its response had begun\n")
    server.wait_for_log(r"LookupError: found out after the head was sent")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("starts_twice", "AssertionError: .*"),
        ("never_starts", "AssertionError: .* without calling start_response"),
        ("raises", "RuntimeError: raised before start_response"),
        ("raises_before_its_body", "RuntimeError: raised before the first chunk"),
        ("exits", "SystemExit: an app that exits"),
        ("interrupts", "KeyboardInterrupt"),
        ("stops_iterating", "StopIteration"),
        ("breaks_a_pipe", "BrokenPipeError: the database has gone away"),
        ("text_not_bytes", "TypeError: 'text' is not a byte.*"),
        ("injects_by_value", "InvalidResponseHeader.*: .*"),
        ("injects_by_name", "InvalidResponseHeaderName.*: .*"),
        ("injects_by_status", "ValueError: Invalid status .*"),
        ("injects_by_hint", "InvalidResponseHeader.*: .*"),
        ("gives_a_status_without_digits", "ValueError: Invalid status 'OK'"),
        ("gives_a_length_without_digits", "ValueError: .*"),
    ],
)
def test_an_apps_mistake_before_the_head_is_a_500_with_its_traceback_in_the_log(
    server: Server, client: Client, name: str, error: str
) -> None:
    """Whatever it raises, SystemExit and StopIteration too, ends its request only; and nothing of a forbidden header reaches a client."""
    answer = client.ask(f"/responses/{name}")

    assert (answer.status, answer.whole) == (500, True)
    assert b"Internal Server Error" in answer.body
    assert not {"set-cookie", "x-lost", "x-name"} & answer.fields.keys()
    assert client.is_closed()
    server.wait_for_log(rf"/responses #1: Error handling request GET /responses/{name}\n(?:.*\n)+?.*{error}\n")
    assert access_line(server, f"GET /responses/{name} HTTP/1.1").startswith("500 ")


def test_the_page_of_an_error_has_no_body_for_head(client: Client) -> None:
    assert client.ask("/responses/raises", "HEAD").status == 500
    assert client.is_closed()


def test_a_mount_serves_on_after_any_of_these(server: Server) -> None:
    with Client(server) as client:
        assert client.ask("/responses/exits").status == 500
    with Client(server) as client:
        assert client.ask("/responses/listed").status == 200


# write(), iterables and their end.


def test_what_is_written_comes_before_what_is_returned(client: Client) -> None:
    assert client.ask("/responses/writes").body == b"written, twice, then returned"
    assert client.ask("/responses/listed").body == b"listed"


def test_an_error_after_write_cuts_the_response_and_is_an_access_line_too(server: Server, client: Client) -> None:
    answer = client.ask("/responses/writes_and_raises")

    assert (answer.status, answer.body, answer.whole) == (200, b"written", False)
    server.wait_for_log(r"RuntimeError: raised after write\(\)")
    assert access_line(server, "GET /responses/writes_and_raises HTTP/1.1") == "200 7 /responses"


def test_start_response_may_be_called_as_late_as_in_the_first_next(client: Client) -> None:
    assert client.ask("/responses/starts_in_the_generator").body == b"started by the first next()"


def test_each_chunk_is_sent_before_the_next_one_is_asked_for(server: Server, client: Client) -> None:
    client.send("GET /responses/streams HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.head().fields["transfer-encoding"] == "chunked"
    assert client.chunk() == b"first"

    with Client(server) as other:
        other.ask("/responses/release")
    assert (client.chunk(), client.chunk()) == (b"second", b"")


def test_the_body_is_closed_at_its_end(server: Server, client: Client) -> None:
    assert client.ask("/responses/closes?at-its-end").body == b"ab"
    server.wait_for_log(r"/responses #1: closed: at-its-end\n")


def test_the_body_is_closed_when_its_iteration_raises(server: Server, client: Client) -> None:
    answer = client.ask("/responses/raises_in_its_body?after-an-error")

    assert (answer.status, answer.body, answer.whole) == (200, b"one", False)
    assert client.is_closed()
    server.wait_for_log(r"/responses #1: closed: after-an-error\n")
    server.wait_for_log(r"after its response had begun\n(?:.*\n)+?  \| RuntimeError: raised within the body\n")


def test_the_body_is_closed_when_the_client_goes_away(server: Server) -> None:
    """A client that leaves is no error of anybody's: it leaves no traceback."""
    with Client(server) as client:
        client.send("GET /responses/endless?left-alone HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.head().status == 200

    server.wait_for_log(r"/responses #1: closed: left-alone\n")
    assert "/responses/endless" not in server.log()


def test_an_error_in_close_comes_too_late_for_the_client(server: Server, client: Client) -> None:
    answer = client.ask("/responses/raises_in_close")

    assert (answer.status, answer.body) == (200, b"done")
    server.wait_for_log(r"RuntimeError: raised in close\(\)")


# Framing.


def test_a_body_of_unknown_length_is_chunked(client: Client) -> None:
    answer = client.ask("/responses/closes")

    assert answer.fields["transfer-encoding"] == "chunked"
    assert client.ask("/responses/listed").body == b"listed"


def test_a_body_of_unknown_length_ends_with_the_connection_for_http_1_0(server: Server) -> None:
    with Client(server) as client:
        client.send("GET /responses/closes HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = client.answer()

    assert (answer.version, answer.body) == ("HTTP/1.0", b"ab")
    assert answer.fields["connection"] == "close"
    assert "transfer-encoding" not in answer.fields


def test_http_1_0_keeps_a_connection_when_asked_to(client: Client) -> None:
    for _ in range(2):
        client.send("GET /responses/listed HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
        answer = client.answer()
        assert (answer.body, answer.fields["connection"]) == (b"listed", "keep-alive")
    client.send("GET /responses/listed HTTP/1.0\r\n\r\n")
    assert client.answer().fields["connection"] == "close"
    assert client.is_closed()


@pytest.mark.parametrize("name", ["listed", "closes", "empty", "writes"])
def test_a_head_request_has_the_fields_and_no_body(client: Client, name: str) -> None:
    answer = client.ask(f"/responses/{name}", "HEAD")

    assert answer.status == 200
    assert answer.fields.get("content-length") == {"listed": "6"}.get(name)
    assert client.ask("/responses/listed").body == b"listed"


def test_204_has_neither_body_nor_length(client: Client) -> None:
    answer = client.ask("/responses/no_content")

    assert answer.status == 204
    assert not {"content-length", "transfer-encoding"} & answer.fields.keys()
    assert client.ask("/responses/listed").body == b"listed"


def test_304_has_no_body_and_may_tell_the_length(client: Client) -> None:
    answer = client.ask("/responses/not_modified")

    assert (answer.status, answer.fields["etag"], answer.fields["content-length"]) == (304, '"1"', "5")
    assert "transfer-encoding" not in answer.fields
    assert client.ask("/responses/listed").body == b"listed"


def test_fewer_bytes_than_promised_close_the_connection_with_a_warning(server: Server, client: Client) -> None:
    """Anything else that is sent on this connection would be taken for the missing bytes."""
    answer = client.ask("/responses/too_short")

    assert (answer.fields["content-length"], answer.body, answer.whole) == ("10", b"four", False)
    server.wait_for_log(
        r"\[WARNING\] /responses #1: GET /responses/too_short: the app sent 4 bytes of the 10 that its Content-Length promised"
    )


def test_more_bytes_than_promised_are_cut(client: Client) -> None:
    assert client.ask("/responses/too_long").body == b"four"
    assert client.ask("/responses/listed").body == b"listed"


def test_early_hints_come_before_the_response(client: Client) -> None:
    client.send("GET /responses/hints HTTP/1.1\r\nHost: x\r\n\r\n")

    first, second, final = client.answer(), client.answer(), client.answer()
    assert (first.status, first.fields) == (103, {"link": "</style.css>; rel=preload; as=style"})
    assert (second.status, second.fields) == (103, {"link": "</app.js>; rel=preload; as=script"})
    assert (final.status, final.body) == (200, b"after the hints")


def test_http_1_0_gets_no_early_hints(client: Client) -> None:
    client.send("GET /responses/hints HTTP/1.0\r\n\r\n")
    assert client.answer().status == 200


# wsgi.file_wrapper.


@pytest.mark.parametrize(
    ("name", "framing", "body"),
    [
        ("whole", "30", FILE_TEXT),
        ("without_length", "chunked", FILE_TEXT),
        ("from_an_offset", "chunked", FILE_TEXT[10:]),
        ("from_an_offset_with_length", "7", FILE_TEXT[10:17]),
        ("shorter_than_the_file", "5", FILE_TEXT[:5]),
        ("behind_its_end", "chunked", b""),
        ("in_memory", "9", b"in memory"),
        ("from_a_pipe", "chunked", b"from a pipe"),
        ("after_write", "12", b"written, 012"),
        ("without_a_size", "chunked", Path("/proc/version").read_bytes()),
        ("wrapped_but_not_returned", "chunked", FILE_TEXT),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_wrapped_file_is_sent_from_where_it_stands(client: Client, name: str, framing: str, body: bytes, method: str) -> None:
    answer = client.ask(f"/files/{name}", method)

    assert answer.status == 200
    if framing != "chunked":
        assert answer.fields["content-length"] == framing
    elif method == "GET":
        assert answer.fields["transfer-encoding"] == "chunked"
    assert answer.body == (body if method == "GET" else b"")
    assert client.ask("/responses/listed").body == b"listed"


def test_a_wrapped_file_ends_with_the_connection_for_http_1_0(server: Server) -> None:
    head, _, body = server.exchange(b"GET /files/without_length HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")

    assert body == FILE_TEXT
    assert b"chunked" not in head


def test_a_wrapped_file_is_read_where_sendfile_is_switched_off(serve: StartServer) -> None:
    server = serve(f'[mounts]\n"/" = {{ app = "files", env = {{ FILE = "{__file__}" }} }}', "--no-sendfile")

    for path in ("/whole", "/without_length"):
        assert server.get(path).content == Path(__file__).read_bytes()


def test_a_wrapped_file_shorter_than_promised_closes_the_connection(server: Server, client: Client) -> None:
    answer = client.ask("/files/longer_than_the_file")

    assert (answer.fields["content-length"], answer.body, answer.whole) == ("31", FILE_TEXT, False)
    server.wait_for_log(r"/files #1: GET /files/longer_than_the_file: the app sent 30 bytes of the 31")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_wrapped_file_is_closed(server: Server, client: Client, method: str) -> None:
    client.ask(f"/files/closed?by-{method}", method)
    server.wait_for_log(rf"/files #1: closed: by-{method}\n")


@pytest.mark.parametrize("name", ["whole", "without_length"])
def test_a_slow_reader_of_a_big_file_gets_it_whole_and_keeps_nobody_waiting(server: Server, name: str) -> None:
    """20 MB are more than all socket buffers hold, so sendfile() must go on where it stopped."""
    with Client(server) as slow:
        slow.send(f"GET /big/{name} HTTP/1.1\r\nHost: x\r\n\r\n")
        framing = slow.head().fields
        with Client(server) as other:  # the same mount: another thread of it polls by now
            assert other.ask("/big/shorter_than_the_file").status == 200
        if name == "without_length":
            assert framing["transfer-encoding"] == "chunked"
            assert int(slow.read(9), 16) == BIG_FILE_BYTES
        digest = hashlib.sha256()
        for _ in range(BIG_FILE_BYTES // 8192):
            digest.update(slow.read(8192))
        if name == "without_length":
            assert slow.read(7) == b"\r\n0\r\n\r\n"

        assert digest.hexdigest() == hashlib.sha256((server.folder / "big.bin").read_bytes()).hexdigest()
        assert slow.ask("/responses/listed").body == b"listed"


# Requests' bodies.

BODY = "one\ntwo\n\nlast"

READINGS = {
    "whole": BODY,
    "length": len(BODY),
    "in_pieces": ["", "one", "\ntwo\n\nlast", "", "", ""],
    "more_than_there_is": BODY,
    "by_line": ["one\n", "two\n", "\n", "last"],
    "by_short_lines": ["one\n", "two\n", "\n", "last"],
    "by_iteration": ["one\n", "two\n", "\n", "last"],
    "lines": ["one\n", "two\n", "\n", "last"],
    "mixed": ["one\n", "tw", "o\n", "\nlast"],
    "half_read": "one\n",
}


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_wsgi_input_reads_as_a_file_does_and_ends_with_the_body(client: Client, name: str, framing: str) -> None:
    """Also where the app reads on: it must not wait for bytes that are the next request's."""
    head = f"POST /bodies/{name} HTTP/1.1\r\nHost: x\r\n"
    if framing == "length":
        client.send(f"{head}Content-Length: {len(BODY)}\r\n\r\n{BODY}")
    else:
        client.send(f"{head}Transfer-Encoding: chunked\r\n\r\n5\r\n{BODY[:5]}\r\n8;ext=1\r\n{BODY[5:]}\r\n0\r\n\r\n")

    assert json.loads(client.answer().body) == READINGS[name]
    assert client.ask("/responses/listed").body == b"listed"


def test_a_request_without_a_body_has_an_empty_input(client: Client) -> None:
    assert json.loads(client.ask("/bodies/in_pieces").body) == ["", "", "", "", "", ""]


def test_a_chunked_body_may_come_byte_by_byte(client: Client) -> None:
    """Each byte in a packet of its own, head included, so every partial state of the reader is seen."""
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = f"POST /bodies/whole HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{len(BODY):x}\r\n{BODY}\r\n0\r\nA: b\r\nC: d\r\n\r\n"
    for byte in data:
        client.send(byte)

    assert json.loads(client.answer().body) == BODY
    assert client.ask("/responses/listed").body == b"listed"


@pytest.mark.parametrize("trailers", ["", "X-Checksum: 1\r\n", "X-One: 1\r\nX-Two: 2\r\n"])
def test_trailers_are_read_with_the_body(client: Client, trailers: str) -> None:
    client.send(f"POST /bodies/whole HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n00\r\n{trailers}\r\n")

    assert json.loads(client.answer().body) == "abc"
    assert client.ask("/responses/listed").body == b"listed"


@pytest.mark.parametrize(
    "chunks",
    [
        "x\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nbad trailer\r\n\r\n",
        "3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n",
    ],
)
@pytest.mark.parametrize("name", ["whole", "unread"])
def test_a_bad_chunk_is_a_400_or_at_least_the_connections_end(server: Server, client: Client, chunks: str, name: str) -> None:
    """What follows such a body cannot be told from it; an app that never read it has answered already. No traceback: it is the client's."""
    before = server.log().count("Traceback")
    client.send(f"POST /bodies/{name} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}GET /hello HTTP/1.1\r\n\r\n")

    assert client.answer().status == (400 if name == "whole" else 200)
    assert client.is_closed()
    assert server.log().count("Traceback") == before


def test_a_clients_percent_signs_are_no_format_of_the_log(server: Server) -> None:
    """Such a line was lost, and a "Logging error" with a traceback came in its place."""
    with Client(server) as client:
        client.send("POST /bodies/whole HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%s%d\r\n")
        assert client.answer().status == 400
    server.wait_for_log(r"/bodies #1: Invalid request from ip=127\.0\.0\.1: .*%s%d")


def test_a_body_cut_by_the_client_ends_there_or_ends_the_request(server: Server) -> None:
    """By its length an app can tell, as in gunicorn; the missing end of a chunked body is an error, of which nobody is told."""
    with Client(server) as client:
        client.send("POST /bodies/whole HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
        client.end_sending()
        assert json.loads(client.answer().body) == "abc"
    with Client(server) as client:
        client.send("POST /bodies/whole HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc")
        client.end_sending()
        assert client.is_closed()
    with Client(server) as client:
        assert client.ask("/bodies/length").status == 200


def test_a_large_body_is_read_whole(client: Client) -> None:
    body = b"0123456789abcdef" * 200_000
    assert json.loads(client.ask("/bodies/length", "POST", body=body).body) == len(body)
    client.send("POST /bodies/length HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    for start in range(0, len(body), 50_000):
        piece = body[start : start + 50_000]
        client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    client.send("0\r\n\r\n")
    assert json.loads(client.answer().body) == len(body)


def test_the_app_is_told_that_input_ends(client: Client) -> None:
    client.send("POST /bodies/unread HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert json.loads(client.answer().body) == [True, None, "chunked"]
    assert json.loads(client.ask("/bodies/unread", "POST", body=b"abc").body) == [True, "3", None]


@pytest.mark.parametrize("name", ["unread", "half_read"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_connection_outlives_a_small_body_that_nobody_read(client: Client, name: str, framing: str) -> None:
    body = "x" * 5000
    for _ in range(2):
        if framing == "length":
            client.send(f"POST /bodies/{name} HTTP/1.1\r\nContent-Length: 5000\r\n\r\n{body}")
        else:
            client.send(f"POST /bodies/{name} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n{body}\r\n0\r\n\r\n")
        client.send("GET /hello/next HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.answer().status == 200
        assert json.loads(client.answer().body)["PATH_INFO"] == "/next"


@pytest.mark.parametrize("name", ["unread", "half_read"])
def test_an_answer_reaches_a_client_whose_large_body_nobody_reads(server: Server, name: str) -> None:
    """It ends the connection: to read 4 MB away costs more than a new one. But a reset would take the answer with it."""
    with Client(server) as client:
        client.send_what_fits(b"POST /bodies/%b HTTP/1.1\r\nContent-Length: 4000000\r\n\r\n" % name.encode() + bytes(4_000_000))

        assert client.answer().status == 200
        assert client.is_closed()


def test_100_continue_is_said_once_before_the_body(client: Client) -> None:
    client.send("POST /bodies/whole HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert client.answer()[:2] == (100, "Continue")
    client.send("abc")
    assert json.loads(client.answer().body) == "abc"
    assert client.ask("/responses/listed").body == b"listed"


def test_http_1_0_is_not_told_to_continue(client: Client) -> None:
    client.send("POST /bodies/whole HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc")
    assert client.answer().status == 200


def test_another_expectation_is_a_417(client: Client) -> None:
    assert client.ask("/bodies/whole", "POST", "Expect: miracles\r\n", b"abc").status == 417
    assert client.is_closed()


# Keep-alive, pipelines, mounts.


def test_each_request_of_a_connection_finds_its_own_mount(client: Client) -> None:
    """A proxy sends all mounts' requests on the connections it keeps."""
    for _ in range(3):
        assert json.loads(client.ask("/hello/a").body)["isowsgi.mount"] == "/hello"
        assert json.loads(client.ask("/bodies/whole", "POST", body=b"abc").body) == "abc"
        assert client.ask("/responses/listed").body == b"listed"
        assert client.ask("/files/whole").body == FILE_TEXT


def test_a_404_ends_the_connection_it_came_by(client: Client) -> None:
    assert client.ask("/hello").status == 200
    assert client.ask("/nowhere").status == 404
    assert client.is_closed()


@pytest.mark.parametrize("fields", ["Connection: close\r\n", "Connection: Close\r\n"])
def test_connection_close_is_honoured(client: Client, fields: str) -> None:
    answer = client.ask("/responses/listed", fields=fields)

    assert (answer.body, answer.fields["connection"]) == (b"listed", "close")
    assert client.is_closed()


def test_without_keep_alive_every_response_closes(serve: StartServer) -> None:
    server = serve('[mounts]\n"/" = "hello"', "--keep-alive", "0")
    with Client(server) as client:
        answer = client.ask("/")
        assert (answer.body, answer.fields["connection"]) == (b"Hello, world\n", "close")
        assert client.is_closed()


def test_an_idle_connection_is_closed_after_its_time(serve: StartServer) -> None:
    server = serve('[mounts]\n"/" = "hello"', "--keep-alive", "1")
    with Client(server) as client:
        assert client.ask("/").fields["connection"] == "keep-alive"
        assert client.is_closed()


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    client.send("".join(f"GET /hello/{number} HTTP/1.1\r\nHost: x\r\n\r\n" for number in range(50)))

    assert [json.loads(client.answer().body)["PATH_INFO"] for _ in range(50)] == [f"/{number}" for number in range(50)]


def test_pipelined_requests_to_different_mounts_are_answered_in_order(client: Client) -> None:
    """A body's end is the next request's start, which may be another interpreter's: not a byte too much may be read."""
    pipeline = [
        ("GET /hello/1 HTTP/1.1\r\nHost: x\r\n\r\n", "/1"),
        (f"POST /bodies/whole HTTP/1.1\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}", BODY),
        ("POST /hello/2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "/2"),
        (f"POST /bodies/whole HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n{BODY}\r\n0\r\nA: b\r\n\r\n", BODY),
        ("GET /hello/3 HTTP/1.1\r\nHost: x\r\n\r\n", "/3"),
        ("POST /bodies/unread HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", [True, None, "chunked"]),
        ("POST /bodies/half_read HTTP/1.1\r\nContent-Length: 8\r\n\r\none\ntwo\n", "one\n"),
        ("\r\nGET /hello/4 HTTP/1.1\r\nHost: x\r\n\r\n", "/4"),
        ("HEAD /responses/listed HTTP/1.1\r\nHost: x\r\n\r\n", None),
        ("GET /hello/5 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "/5"),
    ]
    client.send("".join(request for request, _ in pipeline))

    for request, expected in pipeline:
        answer = client.answer(request.lstrip().partition(" ")[0])
        assert answer.status == 200
        if expected is not None:
            read = json.loads(answer.body)
            assert (read["PATH_INFO"] if isinstance(read, dict) else read) == expected
    assert client.is_closed()


def test_what_follows_connection_close_is_not_served(client: Client) -> None:
    client.send("GET /responses/listed HTTP/1.1\r\nConnection: close\r\n\r\nGET /responses/listed HTTP/1.1\r\n\r\n")

    assert client.answer().body == b"listed"
    assert client.is_closed()


# The access log, trusted proxies, checkers.


def test_the_access_log_tells_requests_and_their_mounts(server: Server, client: Client) -> None:
    client.ask("/responses/listed?logged")
    client.ask("/files/whole?logged")
    assert access_line(server, "GET /responses/listed?logged HTTP/1.1") == "200 6 /responses"
    assert access_line(server, "GET /files/whole?logged HTTP/1.1") == "200 30 /files"

    length = len(client.ask("/nowhere?logged").body)
    assert access_line(server, "GET /nowhere?logged HTTP/1.1") == f"404 {length} -"


def test_a_500_and_a_400_of_a_mount_are_logged_as_the_mounts(server: Server, client: Client) -> None:
    assert client.ask("/responses/raises?logged").status == 500
    assert re.fullmatch(r"500 \d+ /responses", access_line(server, "GET /responses/raises?logged HTTP/1.1"))
    with Client(server) as other:
        other.send("POST /bodies/whole?bad-chunk HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n")
        assert other.answer().status == 400
    assert re.fullmatch(r"400 \d+ /bodies", access_line(server, "POST /bodies/whole?bad-chunk HTTP/1.1"))


def test_a_trusted_proxy_may_say_that_it_was_reached_by_tls(client: Client) -> None:
    assert json.loads(client.ask("/hello").body)["wsgi.url_scheme"] == "http"
    assert json.loads(client.ask("/hello", fields="X-Forwarded-Proto: https\r\n").body)["wsgi.url_scheme"] == "https"
    assert json.loads(client.ask("/hello").body)["wsgi.url_scheme"] == "http"


def test_a_trusted_proxy_may_say_what_prefix_it_serves(client: Client) -> None:
    """The proxy's prefix comes off before the mounts are looked at, and goes before the mount's in SCRIPT_NAME."""
    seen = json.loads(client.ask("/outer/hello/a", fields="SCRIPT_NAME: /outer\r\n").body)
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("/outer/hello", "/a")
    seen = json.loads(client.ask("/hello/a").body)
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("/hello", "/a")
    assert client.ask("/elsewhere/hello/a", fields="SCRIPT_NAME: /outer\r\n").status == 500


def test_a_proxy_that_is_not_trusted_may_say_nothing(serve: StartServer) -> None:
    server = serve('[mounts]\n"/" = "hello:environ"', "--forwarded-allow-ips", "192.0.2.1")
    with Client(server) as client:
        seen = json.loads(client.ask("/outer/a", fields="X-Forwarded-Proto: https\r\nSCRIPT_NAME: /outer\r\n").body)
        assert (seen["wsgi.url_scheme"], seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("http", "", "/outer/a")


@pytest.mark.parametrize("mount", ["/validated", "/linted", "/both"])
def test_wsgis_checkers_find_nothing_to_object_to(server: Server, mount: str) -> None:
    """wsgiref.validate asserts, werkzeug's lint warns, and here a warning is an exception: each would be a 500."""
    with Client(server) as client:
        for path in (mount, f"{mount}/", f"{mount}/a%20b?c=d&e"):
            assert client.ask(path).body == b"0 bytes"
            assert client.ask(path, "HEAD").fields["content-length"] == "7"
            assert client.ask(path, "POST", "Content-Type: text/plain\r\n", b"abc").body == b"3 bytes"
            assert client.ask(path, "OPTIONS").status == 200
        for name, pieces in {"reading": b"one|\n|two\n|three", "reading_lines": b"one\n|tw|o\n|three"}.items():
            if name == "reading" or mount == "/validated":
                client.send(f"POST {mount}/{name} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nd\r\none\ntwo\nthree\r\n0\r\n\r\n")
                assert client.answer().body == pieces
        assert client.ask(f"{mount}/not_modified").status == 304
        client.send(f"GET {mount} HTTP/1.0\r\n\r\n")
        assert client.answer().body == b"0 bytes"
    assert len(re.findall(rf"{mount} #\d+: linted: a line\n", server.log())) >= 4
    assert not re.search(rf"{mount} #\d+: Error", server.log())


# Refusals.

REFUSALS = {
    "a garbage line": (b"garbage\r\n\r\n", 400),
    "a bare line feed at the line's end": (b"GET /hello HTTP/1.1\nHost: x\n\n", 400),
    "a bare line feed in the fields": (b"GET /hello HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    "a line in another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "a lower-case method": (b"get /hello HTTP/1.1\r\n\r\n", 400),
    "a version nobody knows": (b"GET /hello HTTP/3.0\r\n\r\n", 400),
    "a field without a colon": (b"GET /hello HTTP/1.1\r\nHost\r\n\r\n", 400),
    "a space before the colon": (b"GET /hello HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    "a folded field": (b"GET /hello HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),
    "a control character": (b"GET /hello HTTP/1.1\r\nA: b\x00\r\n\r\n", 400),
    "two hosts": (b"GET /hello HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    "two lengths": (b"POST /hello HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
    "a length and chunks": (b"POST /hello HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "a length with a sign": (b"POST /hello HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
    "no mount": (b"GET /nowhere HTTP/1.1\r\n\r\n", 404),
    "a long line": (b"GET /hello?" + b"x" * 5000 + b" HTTP/1.1\r\n\r\n", 414),
    "a long line without an end": (b"GET /hello?" + b"x" * 5000, 414),
    "a long field": (b"GET /hello HTTP/1.1\r\nA: " + b"x" * 9000 + b"\r\n\r\n", 431),
    "many fields": (b"GET /hello HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
    "a head of more than 64 KiB": (b"GET /hello HTTP/1.1\r\n" + b"A: %b\r\n" % (b"x" * 8000) * 9 + b"\r\n", 431),
    "CONNECT": (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", 501),
    "CONNECT of a path": (b"CONNECT /hello HTTP/1.1\r\nHost: x\r\n\r\n", 501),
    "an unknown transfer coding": (b"POST /hello HTTP/1.1\r\nTransfer-Encoding: rot13\r\n\r\n", 501),
    "a mount that could not be loaded": (b"GET /broken HTTP/1.1\r\n\r\n", 503),
}


@pytest.mark.parametrize("more_bytes", [0, 10_000, 300_000])
@pytest.mark.parametrize("request_and_status", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_reaches_its_client(server: Server, request_and_status: tuple[bytes, int], more_bytes: int) -> None:
    """Also one that sent more than was read: to close with unread bytes resets the connection, and may take the answer with it."""
    request, status = request_and_status
    with Client(server) as client:
        client.send_what_fits(request + b"x" * more_bytes)
        answer = client.answer()

        assert (answer.status, answer.whole) == (status, True)
        assert answer.fields["connection"] == "close"
        assert client.is_closed()


def test_a_refused_head_request_has_no_body(server: Server) -> None:
    assert server.exchange(b"HEAD /nowhere HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")


def test_a_mount_that_could_not_be_loaded_says_when_to_come_again_and_the_others_serve(server: Server, client: Client) -> None:
    answer = client.ask("/broken/x")

    assert (answer.status, answer.reason) == (503, "Service Unavailable")
    assert int(answer.fields["retry-after"]) > 0
    assert server.get("/hello").status_code == 200
    server.wait_for_log(r"/broken #1: cannot load 'crashes_on_import:application': ZeroDivisionError")


@again_if_disturbed
def test_a_head_that_does_not_end_is_a_408(serve: StartServer) -> None:
    """On a new connection and on one that served a request before; who says nothing at all is just closed."""
    server = serve('[acceptor]\nhead_timeout = 1\n[mounts]\n"/" = "hello"')
    parts = ("GET /", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: x\r\n")
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(2 * len(parts))]
        silent = stack.enter_context(Client(server))
        for number, client in enumerate(clients):
            if number >= len(parts):
                assert client.ask("/").status == 200
            client.send(parts[number % len(parts)])

        assert [(client.answer().status, client.is_closed()) for client in clients] == [(408, True)] * len(clients)
        assert silent.is_closed()


def test_limits_are_gunicorns_settings(serve: StartServer) -> None:
    limits = ["--limit-request-line", "100", "--limit-request-fields", "5", "--limit-request-field_size", "50"]
    server = serve('[mounts]\n"/" = "hello"', *limits)
    for head, status in [
        (b"GET /" + b"x" * 86 + b" HTTP/1.1\r\n", 200),
        (b"GET /" + b"x" * 87 + b" HTTP/1.1\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5, 200),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 6, 431),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 45 + b"\r\n", 200),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 46 + b"\r\n", 431),
    ]:
        with server.connect() as sock:
            sock.sendall(head + b"\r\n")
            assert sock.recv(12) == b"HTTP/1.1 %d" % status


def test_a_client_that_resets_leaves_nothing_behind(server: Server) -> None:
    """Before, within and after a request: the server neither logs an error nor keeps the descriptor."""
    with Client(server) as client:
        client.ask("/hello")
    worker = server.workers()[0]

    def descriptors() -> int:
        return len(list(Path(f"/proc/{worker}/fd").iterdir()))

    log = server.log()
    before = descriptors()
    for part in (b"", b"GET /hello", b"GET /hello HTTP/1.1\r\n\r\n", b"POST /bodies/whole HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"):
        for _ in range(5):
            sock = server.connect()
            sock.sendall(part)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
    eventually(lambda: descriptors() <= before, "all descriptors are closed")
    assert "Error" not in server.log()[len(log) :]


def test_responses_of_many_connections_do_not_mix(server: Server) -> None:
    clients = [Client(server) for _ in range(20)]
    try:
        for round_ in range(5):
            for number, client in enumerate(clients):
                client.send(f"POST /bodies/whole HTTP/1.1\r\nContent-Length: 6\r\n\r\n{number:03}{round_:03}")
            for number, client in enumerate(clients):
                assert json.loads(client.answer().body) == f"{number:03}{round_:03}"
    finally:
        for client in clients:
            client.close()


def test_a_half_closed_client_gets_its_answer(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /hello/half HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        assert b'"PATH_INFO": "/half"' in receive_all(sock)
