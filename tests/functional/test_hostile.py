"""Clients that are slow or hostile: each stage has its time limit, and an attack leaves nothing behind.

`python bench/isolation.py --only siege,crowd` puts far more of them on a server at a time.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from isowsgi.shared import interpreters
from tests.bystander import again_if_disturbed
from tests.conftest import DEADLINE_S, Server, StartServer, any_seed, eventually, receive_all
from tests.fuzz.mutate import any_request
from tests.pressure import Footprint, ask_and_read_nothing, close_all, count_begun, count_open, send_half_bodies, send_half_heads

ISOLATIONS = [interpreters.best_isolation(), interpreters.PROCESS]

POST = b"POST /bodies/whole HTTP/1.1\r\nHost: x\r\n"
GET = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"


def start(serve: StartServer, isolation: str, more: str = "", *arguments: str, threads: int = 2) -> Server:
    """Serve apps to be attacked in one isolation, and a neighbour."""
    config = f"""
        [defaults]
        isolation = "{isolation}"
        threads = {threads}
        {more}
        [mounts]
        "/hello" = "hello"
        "/big" = "big"
        "/bodies" = "bodies"
        "/any" = "hello:environ"
        "/neighbour" = {{ app = "hello", isolation = "{interpreters.best_isolation()}", body_timeout = 60, send_timeout = 60 }}
        """
    return serve(config, *arguments, wait_for=5)


class Guard:
    """What a server was like before an attack."""

    def __init__(self, server: Server) -> None:
        self._server = server
        server.wait_for_log("the worker grew by")  # the last that is said of the start
        for path in ("/hello", "/bodies/unread", "/any", "/neighbour"):  # what is made at a first request is made
            assert server.get(path).status_code == 200
        self._workers = server.workers()
        eventually(self._is_quiet, "no connection is left")
        self._before = self._footprints()

    def check(self, attack: str) -> None:
        """Fail unless everything is as before: descriptors, threads, memory, answers of all mounts, the log."""
        server = self._server
        assert server.get("/neighbour").text == "Hello, world\n", attack
        for path in ("/hello", "/bodies/unread"):
            assert server.get(path).status_code == 200, attack
        assert len(server.get("/big").content) == 10 * 2**20, attack
        eventually(self._is_quiet, f"{attack}: no connection is left")
        try:
            eventually(self._is_as_before)
        except pytest.fail.Exception:
            pytest.fail(f"{attack}: expected {self._before}, got {self._footprints()}")
        for before, now in zip(self._before, self._footprints(), strict=True):
            assert now.rss_mib - before.rss_mib < 40, attack
        assert server.workers() == self._workers, attack
        assert "Traceback" not in server.log() + server.output(), attack

    def _is_quiet(self) -> bool:
        return count_open(self._server) == 0

    def _is_as_before(self) -> bool:
        return all(
            # Fewer threads: the one that draws the table of mounts was still there before.
            now.descriptors <= before.descriptors and now.threads <= before.threads
            for before, now in zip(self._before, self._footprints(), strict=True)
        )

    def _footprints(self) -> list[Footprint]:
        [worker] = self._workers
        tasks = Path(f"/proc/{worker}/task").iterdir()
        children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        return [Footprint.of(pid) for pid in (worker, *sorted(children))]


# Slow clients.


def connect_with_small_window(server: Server, receive_bytes: int = 256 * 1024) -> socket.socket:
    """Connect so that little is on its way that was not read: the server's thread has to wait."""
    sock = socket.socket()
    sock.settimeout(DEADLINE_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.connect((server.host, server.port))
    return sock


def read_slowly(sock: socket.socket, bytes_per_s: int) -> int:
    """Read to the end, evenly, and return how many bytes came."""
    began = time.monotonic()
    count = 0
    while data := sock.recv(16 * 1024):
        count += len(data)
        time.sleep(max(began + count / bytes_per_s - time.monotonic(), 0))
    return count


@again_if_disturbed
def test_a_download_that_moves_is_not_cut_off_however_long_it_takes(serve: StartServer) -> None:
    """A response of one piece, and one sent by the kernel, were taken for standing still from their first byte to their last."""
    server = serve(
        """
        [defaults]
        request_timeout = 1
        [mounts]
        "/big" = "big"
        "/files" = { app = "files", env = { FILE = "file" } }
        """,
        wait_for=2,
        files={"file": "x" * 10 * 2**20},
    )

    def download(path: str) -> int:
        with connect_with_small_window(server) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return read_slowly(sock, 3 * 2**20)

    with ThreadPoolExecutor(2) as pool:
        assert min(pool.map(download, ["/big", "/files/whole"])) > 10 * 2**20
    assert "no progress" not in server.log()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_client_that_stands_still_is_given_up_at_its_stages_limit(serve: StartServer, isolation: str) -> None:
    """Both limits were 60 s for every mount, so two such clients stopped a mount with two threads for a minute."""
    server = start(serve, isolation, "body_timeout = 1\nsend_timeout = 1\nrequest_timeout = 0")
    guard = Guard(server)

    bodies = send_half_bodies(server, "/bodies/whole", 2)
    assert [receive_all(sock)[:12] for sock in bodies] == [b"HTTP/1.1 408"] * 2

    readers = ask_and_read_nothing(server, "/big", 2)
    server.wait_for_log("the client read none of the response for", 2)
    assert all(len(receive_what_is_left(sock)) < 10 * 2**20 for sock in readers)
    close_all([*bodies, *readers])
    guard.check("clients that stand still")


def receive_what_is_left(sock: socket.socket) -> bytes:
    try:
        return receive_all(sock)
    except ConnectionResetError:
        return b""


@again_if_disturbed
def test_a_client_that_moves_a_byte_now_and_then_is_given_up_too(serve: StartServer) -> None:
    """Each byte was progress, so one a minute held a thread for days."""
    server = start(serve, ISOLATIONS[0], "body_timeout = 1\nsend_timeout = 1\nmin_rate = 3000000")
    guard = Guard(server)

    with server.connect() as sock:
        sock.sendall(POST + b"Content-Length: 1000\r\n\r\n")
        sock.settimeout(0.2)
        answer = b""
        for _ in range(100):
            try:
                answer = sock.recv(1000)
                break
            except TimeoutError:
                sock.sendall(b"x")
    assert answer.startswith(b"HTTP/1.1 408")
    server.wait_for_log(
        r"the client sent or read only \d+ bytes in the \d+\.\d s that a thread waited for it; closing its connection: POST /bodies"
    )

    with connect_with_small_window(server) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(150):  # its whole answer takes more; less at a time may open no window, and be no progress for a second
            if "/big #1: the client sent or read only" in server.log() or not sock.recv(50_000):
                break
            time.sleep(0.1)
    server.wait_for_log("/big #1: the client .*; closing its connection")
    assert "/big #1: the client sent or read only" in server.log()
    guard.check("clients that drip")


@again_if_disturbed
def test_a_client_that_is_slow_but_fast_enough_is_served(serve: StartServer) -> None:
    """Its whole body takes three times body_timeout."""
    server = start(serve, ISOLATIONS[0], "body_timeout = 0.5\nmin_rate = 1000")
    with server.connect() as sock:
        sock.sendall(POST + b"Content-Length: 8000\r\nConnection: close\r\n\r\n")
        for _ in range(16):
            sock.sendall(b"x" * 500)
            time.sleep(0.1)

        assert receive_all(sock).startswith(b"HTTP/1.1 200")


# Hostile clients.


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def sends(data: bytes) -> Callable[[socket.socket], None]:
    return lambda sock: sock.sendall(data)


def reads_after(data: bytes, count: int = 1) -> Callable[[socket.socket], None]:
    """Send, and wait for the first of the answer."""

    def attack(sock: socket.socket) -> None:
        sock.sendall(data)
        assert sock.recv(count)

    return attack


def ends_its_half(data: bytes) -> Callable[[socket.socket], None]:
    def attack(sock: socket.socket) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    return attack


# What a client does before it resets the connection.
STAGES = {
    "after the connect": sends(b""),
    "within the method": sends(b"G"),
    "within the line": sends(b"GET /hel"),
    "within a field": sends(GET[:30]),
    "after the head": sends(GET),
    "before a body": sends(POST + b"Content-Length: 10\r\n\r\n"),
    "within a body": sends(POST + b"Content-Length: 10\r\n\r\nhalf"),
    "within a large body": sends(POST + b"Content-Length: 10000000\r\n\r\n" + b"x" * 300_000),
    "within a chunk's size": sends(POST + b"Transfer-Encoding: chunked\r\n\r\n3;a"),
    "within a chunk": sends(POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\na"),
    "within the trailers": sends(POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n"),
    "after 100 Continue": reads_after(POST + b"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n"),
    "as the response begins": sends(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n"),
    "within the response": reads_after(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n", 100_000),
    "when idle": reads_after(GET, 1000),
    "among pipelined requests": reads_after(GET * 50),
    "among pipelined requests of all mounts": reads_after((GET + GET.replace(b"hello", b"neighbour") + GET.replace(b"hello", b"big")) * 9),
    "refused": reads_after(b"NONSENSE\r\n\r\n" + b"x" * 100_000),
    "not found, its body under way": reads_after(b"POST /x HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100_000),
    "having ended its half within the head": ends_its_half(GET[:30]),
    "having ended its half": ends_its_half(GET),
    "having ended its half within a body": ends_its_half(POST + b"Content-Length: 10\r\n\r\nhalf"),
}


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_reset_at_any_stage_leaves_nothing_behind(serve: StartServer, isolation: str) -> None:
    server = start(serve, isolation, threads=10)
    guard = Guard(server)
    for stage, attack in STAGES.items():
        with ThreadPoolExecutor(5) as pool:
            socks = [server.connect() for _ in range(10)]
            list(pool.map(attack, socks))
        for sock in socks:
            reset(sock)
        guard.check(f"a reset {stage}")


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_changed_requests_and_random_bytes_are_answered_or_closed(serve: StartServer, isolation: str) -> None:
    server = start(serve, isolation)
    guard = Guard(server)
    seed = any_seed()
    rng = random.Random(seed)

    def attack(data: bytes) -> bytes:
        with server.connect() as sock:
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            except OSError:  # closed before all was sent
                pass
            return receive_what_is_left(sock)

    requests = [any_request(rng).replace(b" /", rng.choice((b" /", b" /hello/", b" /any/"))) for _ in range(300)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attack, requests + [rng.randbytes(rng.randint(1, 3000)) for _ in range(60)]))

    assert all(answer[:7] in (b"", b"HTTP/1.") for answer in answers), seed
    assert sum(bool(answer) for answer in answers) > 200, seed
    guard.check(f"random bytes of seed {seed}")


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_siege_of_one_mount_leaves_the_others_alone_and_ends_with_the_siege(serve: StartServer, isolation: str) -> None:
    """Half heads, clients that read nothing and bodies that stall, all at once, and far more than the mount has threads."""
    server = start(serve, isolation, "queue = 20", "--worker-connections", "2000")
    guard = Guard(server)

    halves = send_half_heads(server, "/big", 200)
    readers = ask_and_read_nothing(server, "/big", 30)
    bodies = send_half_bodies(server, "/bodies/whole", 30)
    eventually(lambda: count_begun(readers) >= 2, "the threads of the mount write")

    answers = [server.get("/neighbour") for _ in range(50)]
    assert [answer.status_code for answer in answers] == [200] * 50
    # One that waited for the clients of the siege would wait until they are given up, for some 10 s at least.
    assert sorted(answer.elapsed.total_seconds() for answer in answers)[40] < 5

    close_all([*halves, *readers, *bodies])
    guard.check("a siege")
