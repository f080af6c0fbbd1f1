"""TLS by gunicorn's settings: what apps learn, what clients get, and what clients may do to it."""

from __future__ import annotations

import http.client
import json
import os
import random
import select
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.bystander import again_if_disturbed
from tests.certificates import Authority
from tests.conftest import APPS, DEADLINE_S, Server, StartServer, eventually, receive_all, run_gunicorn, running_server
from tests.load import Load
from tests.pressure import close_all, cpu_s_over, wait_until_closed

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")

CONFIG = """
[mounts]
"/environ" = "hello:environ"
"/bodies" = "bodies"
"/big" = "big"
"/hello" = "hello"
"/p/environ" = { app = "hello:environ", isolation = "process" }
"/p/bodies" = { app = "bodies", isolation = "process" }
"/p/big" = { app = "big", isolation = "process" }
"""
PLACES = pytest.mark.parametrize("prefix", ["", "/p"], ids=["interpreter", "process"])

MEGABYTES = random.Random(7).randbytes(10_000_000)

# A client that asks for it to be ended in TLS and gets a bare end of the connection raises; so all that such a one reads is whole.
STRICT = {"suppress_ragged_eofs": False}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def options(authority: Authority) -> list[str]:
    certificate, key = authority.sign("server")
    return ["--certfile", str(certificate), "--keyfile", str(key)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), CONFIG, *options, "--keep-alive", "20", wait_for=7) as server:
        yield server


@pytest.fixture
def context(authority: Authority) -> ssl.SSLContext:
    return authority.client_context()


def connect(server: Server, context: ssl.SSLContext, **wrapping: Any) -> ssl.SSLSocket:
    """Open a TLS connection; closed before the server is ended at the latest."""
    return context.wrap_socket(server.connect(), server_hostname="localhost", **{**STRICT, **wrapping})


def ask(sock: socket.socket, path: str, *fields: str, body: bytes = b"", method: str = "GET") -> http.client.HTTPResponse:
    """Exchange a request on a connection."""
    length = (f"Content-Length: {len(body)}",) if body else ()
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *length, *fields, "\r\n"])
    sock.sendall(head.encode() + body)
    response = http.client.HTTPResponse(sock, method=method)
    response.begin()
    return response


def environ_of(sock: socket.socket, path: str = "/environ", *fields: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(ask(sock, path, *fields).read())
    return facts


def open_fds(server: Server) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in server.workers())


class HandMade:
    """A client of TLS that sends what the test wants, when it wants."""

    def __init__(self, server: Server, context: ssl.SSLContext) -> None:
        self.sock = server.connect()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def __enter__(self) -> HandMade:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    def do(self, function: Any, *arguments: Any) -> Any:
        """Call a function of the session until it wants no more of the server."""
        while True:
            try:
                return function(*arguments)
            except ssl.SSLWantReadError:
                self.flush()
                if data := self.sock.recv(65536):
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()
            finally:
                self.flush()

    def flush(self) -> None:
        if self.outgoing.pending:
            self.sock.sendall(self.outgoing.read())

    def read_to_the_end(self) -> bytes:
        chunks: list[bytes] = []
        while True:
            try:
                chunk = self.do(self.tls.read, 65536)
            except ssl.SSLZeroReturnError:  # both have said their end
                chunk = b""
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)


# What apps learn.


@PLACES
def test_an_app_learns_who_asks_and_by_what_tls(server: Server, context: ssl.SSLContext, prefix: str) -> None:
    with connect(server, context) as sock:
        host, port = sock.getsockname()
        seen = environ_of(sock, prefix + "/environ")
        cipher = sock.cipher()

    assert cipher is not None
    assert {name: seen[name] for name in seen if name.startswith(("SSL_", "REMOTE_", "SERVER_P", "wsgi.url"))} == {
        "wsgi.url_scheme": "https",
        "REMOTE_ADDR": host,
        "REMOTE_PORT": str(port),
        "SERVER_PORT": str(server.port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SSL_PROTOCOL": "TLSv1.3",
        "SSL_CIPHER": cipher[0],
        "SSL_CIPHER_USEKEYSIZE": str(cipher[2]),
        "SSL_CLIENT_VERIFY": "NONE",
    }


def test_facts_are_there_also_when_gunicorns_parser_reads_the_request(server: Server, context: ssl.SSLContext) -> None:
    with connect(server, context) as sock:
        sock.sendall(b"POST /environ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
        response = http.client.HTTPResponse(sock)
        response.begin()
        seen = json.loads(response.read())

    assert (seen["body"], seen["SSL_PROTOCOL"], seen["wsgi.url_scheme"]) == ("hi", "TLSv1.3", "https")


def test_two_mounts_on_one_connection(server: Server, context: ssl.SSLContext) -> None:
    with connect(server, context) as sock:
        ports = {environ_of(sock, path)["REMOTE_PORT"] for path in ("/environ", "/p/environ", "/environ")}
        answers = [ask(sock, "/hello").read() for _ in range(3)]

        assert ports == {str(sock.getsockname()[1])}
        assert answers == [b"Hello, world\n"] * 3


# Bodies.


@PLACES
def test_ten_megabytes_in_and_out_on_one_connection(server: Server, context: ssl.SSLContext, prefix: str) -> None:
    with connect(server, context) as sock:
        taken = ask(sock, prefix + "/bodies/length", body=MEGABYTES, method="POST").read()
        given = ask(sock, prefix + "/big").read()

    assert (json.loads(taken), len(given)) == (10_000_000, 10 * 1024 * 1024)


def test_a_body_arrives_as_it_was_sent(server: Server, context: ssl.SSLContext) -> None:
    body = MEGABYTES[:1_000_000]
    with connect(server, context) as sock:
        seen = json.loads(ask(sock, "/bodies/whole", body=body, method="POST").read())

    assert seen.encode("latin-1") == body


ECHO = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", environ["CONTENT_LENGTH"])])
    while chunk := environ["wsgi.input"].read(100_000):
        yield chunk
"""


def test_both_directions_at_once_and_neither_waits_for_the_other(serve: StartServer, options: list[str], context: ssl.SSLContext) -> None:
    """The client sends on while its answer comes, and at first reads none of it: every buffer between the two fills up."""
    server = serve('[mounts]\n"/" = { app = "echo", pythonpath = "." }', *options, files={"echo.py": ECHO})
    body = MEGABYTES[:3_000_000]
    with connect(server, context) as sock:
        sock.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        sock.setblocking(False)
        sent, received = 0, bytearray()
        end = time.monotonic() + DEADLINE_S
        while sent < len(body) and time.monotonic() < end:
            try:
                sent += sock.send(body[sent : sent + 50_000])
            except ssl.SSLWantWriteError:
                if select.select([], [sock], [], 0.02)[1]:
                    continue
                try:  # all is full: make a little room
                    received += sock.recv(30_000)
                except ssl.SSLWantReadError:
                    continue
        sock.setblocking(True)
        sock.settimeout(DEADLINE_S)
        received += receive_all(sock)

    assert received.partition(b"\r\n\r\n")[2] == body


def test_a_file_arrives_whole(serve: StartServer, options: list[str], context: ssl.SSLContext, tmp_path: Path) -> None:
    """It goes by sendfile() into the socket pair."""
    (tmp_path / "file").write_bytes(MEGABYTES)
    server = serve(f'[mounts]\n"/" = {{ app = "files", env = {{ FILE = "{tmp_path}/file" }} }}', *options)
    with connect(server, context) as sock:
        assert ask(sock, "/whole").read() == MEGABYTES
        assert ask(sock, "/without_length").read() == MEGABYTES


def test_a_big_response_before_a_close_arrives_whole_and_ends_in_tls(server: Server, context: ssl.SSLContext) -> None:
    with connect(server, context) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        whole = receive_all(sock)  # raises without an end in TLS

    assert len(whole.partition(b"\r\n\r\n")[2]) == 10 * 1024 * 1024


def test_a_response_whose_request_was_not_read_arrives_all_the_same(server: Server, context: ssl.SSLContext) -> None:
    with connect(server, context) as sock:
        sock.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + b"x" * 60_000)
        answer = receive_all(sock)

    assert answer.startswith(b"HTTP/1.1 404 ")


def test_a_head_in_many_records(server: Server, context: ssl.SSLContext) -> None:
    with connect(server, context) as sock:
        for byte in b"GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n":
            sock.sendall(bytes([byte]))
        answer = receive_all(sock)

    assert answer.endswith(b"Hello, world\n")


def test_curl_is_content(server: Server, authority: Authority) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    url = f"https://localhost:{server.port}"
    command = [
        "curl",
        "-sS",
        "--fail",
        "--noproxy",
        "*",
        "--cacert",
        str(authority.path),
        f"{url}/hello",
        f"{url}/hello",
        "--tls-max",
        "1.2",
    ]

    assert subprocess.run(command, capture_output=True, check=True, timeout=DEADLINE_S).stdout == b"Hello, world\n" * 2


# Ends.


def test_a_client_that_has_said_its_end_in_tls_gets_its_answer(server: Server, context: ssl.SSLContext) -> None:
    with HandMade(server, context) as client:
        client.do(client.tls.do_handshake)
        client.tls.write(b"GET /environ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        client.flush()

        assert client.read_to_the_end().startswith(b"HTTP/1.1 200 OK")


def test_a_client_that_has_shut_its_side_without_a_word_gets_its_answer(server: Server, context: ssl.SSLContext) -> None:
    with HandMade(server, context) as client:
        client.do(client.tls.do_handshake)
        client.tls.write(b"GET /environ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.flush()
        client.sock.shutdown(socket.SHUT_WR)

        assert client.read_to_the_end().startswith(b"HTTP/1.1 200 OK")


def test_suppress_ragged_eofs_off_drops_such_a_client(serve: StartServer, options: list[str], context: ssl.SSLContext) -> None:
    server = serve(
        '[mounts]\n"/" = "slow"', "-c", "gunicorn.conf.py", *options, files={"gunicorn.conf.py": "suppress_ragged_eofs = False\n"}
    )
    with HandMade(server, context) as client:
        client.do(client.tls.do_handshake)
        client.tls.write(b"GET /?s=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.flush()
        server.wait_for_log("begun s=1")
        client.sock.shutdown(socket.SHUT_WR)
        with pytest.raises((ssl.SSLEOFError, ConnectionError)):
            client.read_to_the_end()


def test_an_idle_connection_is_closed_in_tls(serve: StartServer, options: list[str], context: ssl.SSLContext) -> None:
    server = serve('[mounts]\n"/" = "hello"', "--keep-alive", "1", *options)
    with connect(server, context) as sock:
        assert ask(sock, "/").read() == b"Hello, world\n"
        assert sock.recv(1) == b""


# Clients that are no clients.


def test_plain_http_is_told_so(server: Server) -> None:
    assert server.exchange(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 403 Forbidden\r\n")


def test_no_client_leaves_anything_behind(server: Server, context: ssl.SSLContext) -> None:
    """Plaintext, garbage, half a handshake, a whole one and nothing more, half a request, an answer that nobody reads, a reset."""
    hello = HandMade(server, context)
    with pytest.raises(ssl.SSLWantReadError):
        hello.tls.do_handshake()
    greeting = hello.outgoing.read()
    hello.sock.close()
    before = settled_fds(server)
    for _ in range(5):
        for data in (b"GET / HTTP/1.0\r\n\r\n", os.urandom(200), greeting, greeting[:100], b""):
            sock = server.connect()
            sock.sendall(data)
            sock.close()
        connect(server, context).close()
        for data in (
            b"GET /hel",
            b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /bodies/length HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
        ):
            with connect(server, context) as client:
                client.sendall(data)
        abrupt = connect(server, context)
        abrupt.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        abrupt.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closing it is a reset
        abrupt.close()
    with connect(server, context) as client:
        assert ask(client, "/hello").read() == b"Hello, world\n"

    eventually(lambda: open_fds(server) <= before, f"no more than {before} descriptors")
    assert "Traceback" not in server.log()


def settled_fds(server: Server) -> int:
    """Return how many descriptors the worker has when nothing is open."""
    last = -1

    def is_steady() -> bool:
        nonlocal last
        now = open_fds(server)
        is_same, last = now == last, now
        return is_same

    eventually(is_steady)
    return last


def test_clients_that_read_nothing_keep_nobody(server: Server, context: ssl.SSLContext) -> None:
    deaf = [connect(server, context) for _ in range(20)]
    for client in deaf:
        client.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
    with connect(server, context) as sock:
        assert ask(sock, "/hello").read() == b"Hello, world\n"
    for client in deaf:
        client.close()


def test_clients_that_wait_cost_no_cpu_time(serve: StartServer, options: list[str], context: ssl.SSLContext) -> None:
    """A hang-up, or an end, that nobody wants to hear of just now is told by a level-triggered set again and again."""
    sleeps = 'app = "sleeps", threads = 8, env = { GATE = "gate" }'
    server = serve(f'[mounts]\n"/slow" = {{ {sleeps} }}\n"/big" = {{ app = "big", request_timeout = 1 }}', *options, wait_for=2)
    slow, big = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n"
    upload = slow.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 10000000\r\n\r\n")
    with ExitStack() as stack:
        clients = [stack.enter_context(HandMade(server, context)) for _ in range(8)]
        for client, data in zip(clients, [b"", b"GET /sl", slow, slow, big, big, upload, upload], strict=True):
            client.do(client.tls.do_handshake)
            client.tls.write(data)
            client.flush()
        server.wait_for_log("asleep", 4)
        for client in clients[6:]:  # more than the buffers between it and an app that does not read
            client.sock.setblocking(False)
            while True:
                client.tls.write(MEGABYTES[:16_000])
                data = client.outgoing.read()
                try:
                    if client.sock.send(data) < len(data):
                        break
                except BlockingIOError:
                    break
        with pytest.raises(ssl.SSLWantReadError):
            clients[2].tls.unwrap()
        clients[2].flush()
        for client in clients[3::2]:  # one of each kind
            client.sock.shutdown(socket.SHUT_WR)
        server.wait_for_log("/big #1: no progress for", 2)  # and shut its end, which cannot be told to the clients yet
        [worker] = server.workers()

        eventually(lambda: cpu_s_over(worker, 1) < 0.1, "a second in which nothing is done")  # the memory of each app is measured before
        (server.folder / "gate").touch()


@again_if_disturbed
def test_a_client_that_says_nothing_is_closed_after_head_timeout(serve: StartServer, options: list[str], context: ssl.SSLContext) -> None:
    server = serve('[mounts]\n"/" = "hello"\n[acceptor]\nhead_timeout = 1', *options)
    with HandMade(server, context) as silent, HandMade(server, context) as half, connect(server, context) as handshake_only:
        with pytest.raises(ssl.SSLWantReadError):
            half.tls.do_handshake()
        half.sock.sendall(half.outgoing.read()[:50])

        assert (silent.sock.recv(1), half.sock.recv(1)) == (b"", b"")
        with pytest.raises(ssl.SSLEOFError):
            handshake_only.recv(1)
    with connect(server, context) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n")

        assert sock.recv(100).startswith(b"HTTP/1.1 408 ")


def test_silent_clients_yield_when_there_are_as_many_as_there_may_be(
    serve: StartServer, options: list[str], context: ssl.SSLContext
) -> None:
    """They do after a tenth of head_timeout, and no more of them than there must; at its end all are closed."""
    server = serve('[mounts]\n"/" = "hello"\n[acceptor]\nhead_timeout = 15', "--worker-connections", "3", *options)
    silent = [server.connect() for _ in range(3)]
    with connect(server, context) as sock:
        assert ask(sock, "/").read() == b"Hello, world\n"
    assert wait_until_closed(silent, 0)["open"] >= 1
    close_all(silent)


# Certificates.


def test_an_app_learns_the_clients_certificate(serve: StartServer, options: list[str], authority: Authority) -> None:
    certificate = authority.sign("client", "/O=Käse, Wurst/CN=Alice")
    server = serve(CONFIG, *options, "--ca-certs", str(authority.path), "--cert-reqs", "2", wait_for=7)
    with connect(server, authority.client_context(certificate)) as sock:
        for prefix in ("", "/p"):
            seen = environ_of(sock, prefix + "/environ", "SSL-CLIENT-VERIFY: forged", "SSL_CLIENT_S_DN: CN=Mallory")

            assert {name: seen[name] for name in seen if "SSL_CLIENT" in name and "_V_" not in name and "SERIAL" not in name} == {
                "HTTP_SSL_CLIENT_VERIFY": "forged",
                "SSL_CLIENT_VERIFY": "SUCCESS",
                "SSL_CLIENT_S_DN": "CN=Alice,O=Käse\\, Wurst".encode().decode("latin-1"),
                "SSL_CLIENT_I_DN": "CN=Test Authority",
                "SSL_CLIENT_CERT": certificate[0].read_text(),
            }


def test_a_client_without_its_certificate_is_told_so(serve: StartServer, options: list[str], authority: Authority) -> None:
    server = serve(
        '[mounts]\n"/" = "hello:environ"', *options, "--ca-certs", str(authority.path), "--cert-reqs", "2", "--log-level", "debug"
    )
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"), connect(server, authority.client_context()) as sock:
        sock.recv(1)  # with TLS 1.3 a client learns of it only now
    server.wait_for_log("TLS with .* failed: .*PEER_DID_NOT_RETURN_A_CERTIFICATE")


def test_a_new_certificate_comes_with_sighup_and_a_bad_one_changes_nothing(serve: StartServer, authority: Authority) -> None:
    files = authority.sign("server", "/CN=first", name="changing")
    server = serve('[mounts]\n"/" = "hello"', "--certfile", str(files[0]), "--keyfile", str(files[1]))
    context = authority.client_context()

    def subject() -> str:
        with connect(server, context) as sock:
            assert ask(sock, "/").read() == b"Hello, world\n"
            certificate: Any = sock.getpeercert()
        name: str = certificate["subject"][0][0][1]
        return name

    assert subject() == "first"
    authority.sign("server", "/CN=second", name="changing")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("serving", 2)
    eventually(lambda: subject() == "second")

    files[0].write_text("no certificate")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("serving", 3)
    server.wait_for_log("gunicorn's TLS settings: cannot make a TLS context from .*changing.pem")
    assert subject() == "second"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--certfile", "bad.pem"], "Error: gunicorn's TLS settings: cannot make a TLS context from certfile 'bad.pem'"),
        (["--certfile", "bad.pem", "--ca-certs", "none.pem"], "Error: gunicorn setting ca_certs: cannot read 'none.pem': No such file"),
        (["--certfile", "none.pem"], 'certfile "none.pem" does not exist'),
        (["--cert-reqs", "2"], "Error: gunicorn setting cert_reqs: client certificates need TLS"),
    ],
)
def test_what_gives_no_tls_is_an_error_at_start(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "isowsgi.toml").write_text(f'[mounts]\n"/" = {{ app = "hello", pythonpath = ["{APPS}"] }}\n')
    (tmp_path / "bad.pem").write_text("no certificate\n")

    done = run_gunicorn(tmp_path, *arguments, "isowsgi.toml")

    assert done.returncode == 1
    assert message in done.stdout


def test_an_empty_certfile_is_no_certfile(serve: StartServer) -> None:
    """As gunicorn has it; conf files write `certfile = os.environ.get("CERT", "")`."""
    server = serve('[mounts]\n"/" = "hello"', "--certfile", "")

    assert server.get("/").text == "Hello, world\n"


def test_the_hook_makes_the_context(serve: StartServer, options: list[str], context: ssl.SSLContext) -> None:
    hook = """
    def ssl_context(conf, default_ssl_context_factory):
        import ssl
        context = default_ssl_context_factory()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context
    """
    server = serve('[mounts]\n"/" = "hello:environ"', *options, files={"gunicorn.conf.py": hook})
    with connect(server, context) as sock:
        assert environ_of(sock, "/")["SSL_PROTOCOL"] == "TLSv1.2"


def test_workers_take_up_each_others_sessions(serve: StartServer, options: list[str], context: ssl.SSLContext) -> None:
    server = serve('[mounts]\n"/" = "hello"', "--workers", "2", *options, wait_for=2)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # 1.3 sends its tickets later
    with connect(server, context) as sock:
        session = sock.session
    reused = []
    for _ in range(6):
        with connect(server, context, session=session) as sock:
            reused.append(sock.session_reused)

    assert reused == [True] * 6


# The worker's life.


def test_replacing_mounts_and_workers_under_load_loses_no_request(serve: StartServer, options: list[str], context: ssl.SSLContext) -> None:
    server = serve(
        '[mounts]\n"/a" = { app = "hello", touch = "touched" }\n"/b" = "hello"\n"/p" = { app = "hello", isolation = "process" }',
        "--keep-alive", "20", *options, wait_for=3,
    )  # fmt: skip
    with Load(lambda: connect(server, context), ["/a/", "/b/", "/p/"], clients=3) as load:
        (server.folder / "touched").write_text("1")
        server.wait_for_log("/a #2: serving")
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("serving", 7)
        (server.folder / "touched").write_text("2")
        server.wait_for_log("serving", 8)
        eventually(lambda: load.connections > 3)

    assert load.failures == []
    assert load.answered > 50


def test_a_stopping_worker_sends_what_it_owes(serve: StartServer, options: list[str], context: ssl.SSLContext) -> None:
    server = serve('[mounts]\n"/" = "big"', *options)
    with connect(server, context) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        begun = sock.recv(1000)
        server.send_signal(signal.SIGTERM)
        server.wait_for_log("Handling signal: term")
        whole = begun + receive_all(sock)

    assert len(whole.partition(b"\r\n\r\n")[2]) == 10 * 1024 * 1024


@again_if_disturbed
def test_a_request_that_takes_too_long_is_answered_504(serve: StartServer, options: list[str], context: ssl.SSLContext) -> None:
    server = serve('[mounts]\n"/" = { app = "slow", request_timeout = 1 }', *options)
    with connect(server, context) as sock:
        assert ask(sock, "/?s=2.5").status == 504


def test_connections_are_counted(serve: StartServer, options: list[str], context: ssl.SSLContext) -> None:
    mounts = '[mounts]\n"/" = "hello"\n"/-/status" = { app = "isowsgi.status:application", isolation = "process" }'
    server = serve(mounts, *options, wait_for=2)
    server.exchange(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    with connect(server, context) as sock:
        acceptor = json.loads(ask(sock, "/-/status/status.json").read())["acceptor"]
        text = ask(sock, "/-/status/metrics").read().decode()

    assert (acceptor["accepted"], acceptor["tls_handshakes"], acceptor["tls_handshake_failures"]) == (2, 1, 1)
    assert "\nisowsgi_tls_handshakes_total 1.0\n" in text


def test_unix_sockets_speak_tls_too(serve: StartServer, options: list[str], context: ssl.SSLContext, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    server = serve('[mounts]\n"/" = "hello:environ"', *options, "--bind", f"unix:{path}", bind=None)
    with closing(socket.socket(socket.AF_UNIX)) as plain:
        plain.bind("\0isowsgi-tls-test-client")  # whatever a client calls itself
        plain.settimeout(DEADLINE_S)
        plain.connect(path)
        with context.wrap_socket(plain, server_hostname="localhost") as sock:
            seen = environ_of(sock, "/")

    assert (seen["wsgi.url_scheme"], seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("https", "localhost", "443")
    assert seen["REMOTE_ADDR"] == "\0isowsgi-tls-test-client"
    assert server.stop() == 0
