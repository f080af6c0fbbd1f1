"""The PROXY protocol by gunicorn's settings: what apps learn of clients behind a proxy, and who may say so."""

from __future__ import annotations

import json
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isowsgi.shared import landlock
from tests.certificates import Authority
from tests.conftest import Server, StartServer, receive_all, running_server

CONFIG = """
[mounts]
"/a" = "hello:environ"
"/p" = { app = "hello:environ", isolation = "process" }
"""
# A process that is not shown where its neighbours' connections come from.
WALLED = '"/w" = { app = "hello:environ", sandbox = true }\n' if landlock.abi() else ""
GET = b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 5000 443\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int = 1, family: int = 0x11, addresses: bytes | None = None) -> bytes:
    """Return a header of version 2."""
    if addresses is None:
        addresses = socket.inet_aton("192.0.2.1") + socket.inet_aton("198.51.100.2") + struct.pack(">HH", 5000, 443)
    return SIGNATURE + bytes([0x20 | command, family]) + struct.pack(">H", len(addresses)) + addresses


SAID = {"PROXY_PROTOCOL": "TCP4", "REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "5000", "PROXY_ADDR": "198.51.100.2", "PROXY_PORT": "443"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(
        tmp_path_factory.mktemp("server"), CONFIG + WALLED, "--proxy-protocol", "auto", wait_for=2 + bool(WALLED)
    ) as server:
        yield server


def answers(data: bytes) -> list[dict[str, Any]]:
    """Return what each of the responses on a connection says of the client."""
    parts = [part for part in data.split(b"HTTP/1.1 ") if part]
    assert all(part.startswith(b"200 ") for part in parts), data
    facts = [json.loads(part.partition(b"\r\n\r\n")[2]) for part in parts]
    return [{name: value for name, value in each.items() if name.startswith(("PROXY_", "REMOTE_"))} for each in facts]


@pytest.mark.parametrize("header", [V1, v2(), v2(addresses=v2()[16:] + b"\x04\0\1x")], ids=["v1", "v2", "v2 with more"])
def test_an_app_learns_what_the_header_says(server: Server, header: bytes) -> None:
    assert answers(server.exchange(header + GET)) == [SAID]


def test_every_request_of_the_connection_comes_from_the_same_client(server: Server) -> None:
    """gunicorn's own workers forget it after the first one."""
    requests = [GET.replace(b"Connection: close\r\n", b""), GET.replace(b"/a", b"/p").replace(b"close", b"keep-alive"), GET]

    if WALLED:
        requests.insert(1, requests[1].replace(b"/p", b"/w"))
    assert answers(server.exchange(V1 + b"".join(requests))) == [SAID] * len(requests)


def test_an_ipv6_client(server: Server) -> None:
    seen = answers(server.exchange(b"PROXY TCP6 2001:db8::1 2001:db8::2 5000 443\r\n" + GET))

    assert [(each["PROXY_PROTOCOL"], each["REMOTE_ADDR"]) for each in seen] == [("TCP6", "2001:db8::1")]


def test_gunicorns_parser_and_ours_tell_the_same(server: Server) -> None:
    """A transfer coding is not for the fast path."""
    chunked = b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"

    assert answers(server.exchange(V1 + chunked)) == [SAID]


@pytest.mark.parametrize("header", [b"", v2(command=0), v2(family=0x01, addresses=b"")], ids=["none", "local", "unspecified"])
def test_without_an_address_the_socket_says_it(server: Server, header: bytes) -> None:
    with server.connect() as sock:
        port = sock.getsockname()[1]
        sock.sendall(header + GET)
        [seen] = answers(receive_all(sock))

    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("127.0.0.1", str(port))
    assert "PROXY_ADDR" not in seen


@pytest.mark.parametrize("header", [V1, v2()], ids=["v1", "v2"])
def test_a_header_that_comes_byte_by_byte(server: Server, header: bytes) -> None:
    with server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in header + GET:
            sock.sendall(bytes([byte]))

        assert answers(receive_all(sock)) == [SAID]


@pytest.mark.parametrize(
    "data",
    [
        V1 + V1 + GET,
        b"PROXY TCP4 nonsense\r\n" + GET,
        b"PROXY TCP4 " + b"1" * 100,
        SIGNATURE + b"\x31\x11\0\0" + GET,
        v2(addresses=b"short") + GET,
        GET.replace(b"close", b"keep-alive") + V1 + GET,
    ],
    ids=["twice", "bad v1", "endless v1", "bad version", "too short", "between requests"],
)
def test_what_is_no_header_is_answered_400(server: Server, data: bytes) -> None:
    answer = server.exchange(data)

    assert b"HTTP/1.1 400 Bad Request\r\n" in answer
    assert b"192.0.2.1" not in answer.partition(b"HTTP/1.1 400")[0]
    assert "Traceback" not in server.log()


def test_who_is_not_allowed_is_answered_403(serve: StartServer) -> None:
    server = serve(CONFIG, "--proxy-protocol", "v1", "--proxy-allow-from", "192.0.2.7", wait_for=2)

    assert server.exchange(V1 + GET).startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert len(answers(server.exchange(GET))) == 1
    assert server.exchange(v2() + GET).startswith(b"HTTP/1.1 400 ")  # only version 1 is spoken


def test_a_client_cannot_send_one_where_it_is_off(serve: StartServer) -> None:
    assert serve(CONFIG, wait_for=2).exchange(V1 + GET).startswith(b"HTTP/1.1 400 ")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_with_tls_it_comes_within(serve: StartServer, tmp_path: Path) -> None:
    """As in gunicorn's own workers."""
    authority = Authority(tmp_path)
    certificate, key = authority.sign("server")
    server = serve(CONFIG, "--proxy-protocol", "auto", "--certfile", str(certificate), "--keyfile", str(key), wait_for=2)
    with authority.client_context().wrap_socket(server.connect(), server_hostname="localhost") as sock:
        sock.sendall(V1 + GET.replace(b"/a", b"/p"))
        data = receive_all(sock)

    assert answers(data) == [SAID]
    assert b'"SSL_PROTOCOL": "TLSv1.3"' in data
