"""What goes wrong in the worker's loop, or in gunicorn's master, ends neither: one server to which a logger, a proxy, a config file and a
small limit of descriptors do their worst to.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT, Server, eventually, receive_all, running_server
from tests.pressure import count_open

DESCRIPTORS = 256
APP = """
import os, time
def application(environ, start_response):
    if environ["PATH_INFO"] == "/take-all":
        taken, end = [], time.monotonic() + 20
        try:
            while True:
                taken.append(os.dup(2))
        except OSError:
            while not os.path.exists("free") and time.monotonic() < end:
                time.sleep(0.01)
        finally:
            for fd in taken:
                os.close(fd)
    if environ["PATH_INFO"] == "/fork":
        os.fork()
    if environ["PATH_INFO"] == "/fork-and-exit" and not os.fork():
        raise SystemExit(3)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
"""
LOGGER = """
from gunicorn.glogging import Logger

class Raises(Logger):
    def access(self, resp, req, environ, request_time):
        raise RuntimeError("access")

    def warning(self, msg, *args, **kwargs):
        if "worker_connections" not in msg:
            raise RuntimeError("warning")
        super().warning(msg, *args, **kwargs)
"""
PROXIED = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(
        tmp_path_factory.mktemp("server"),
        '[mounts]\n"/a" = "forks"\n"/child" = { app = "forks", isolation = "process" }\n'
        '"/lazy" = { app = "forks", lazy = true }\n[defaults]\npythonpath = ["."]\nthreads = 2\n',
        "--proxy-protocol=v1", "--logger-class=raising.Raises", "--access-logfile=-", "--worker-connections=1000",
        files={"forks.py": APP, "raising.py": LOGGER},
        launcher=["sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh"],
        env={"PYTHONPATH": f"{ROOT}{os.pathsep}."},
        wait_for=2,
    ) as server:  # fmt: skip
        yield server


@pytest.fixture(autouse=True)
def nobody_is_replaced(server: Server, request: pytest.FixtureRequest) -> Iterator[None]:
    before = server.workers()
    assert len(before) == 1
    yield
    assert server.workers() == before or "config_file" in request.node.name  # which asks for it
    assert status(server, "/a") == b"200"


def status(server: Server, path: str) -> bytes:
    with socket.create_connection((server.host, server.port), 30) as sock:
        sock.sendall(PROXIED + f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return receive_all(sock)[9:12]


@pytest.mark.parametrize(
    "head",
    [b"PROXY TCP4 1.2.3.4\0 1.2.3.4 1 2\r\n", b"PROXY TCP6 ::\0 :: 1 2\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 1\0 2\r\n"],
)
def test_a_nul_in_a_proxy_header_is_a_refusal(server: Server, head: bytes) -> None:
    """It is a ValueError in gunicorn's parser, and was the end of the worker: any user of the machine could send it."""
    assert server.exchange(head + b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_what_a_logger_class_raises_costs_the_line(server: Server) -> None:
    """The acceptor's own answers are logged from the loop."""
    assert status(server, "/nowhere") == b"404"


def test_a_process_that_an_app_has_forked_ends_where_the_app_does(server: Server) -> None:
    """Both copies answered, and both told the worker what became of the same connection: it closed a neighbour's, or ended by EBADF."""
    with socket.create_connection((server.host, server.port), 30) as sock:
        sock.sendall(PROXIED + b"GET /child/fork HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert receive_all(sock).count(b"HTTP/1.1") == 1
    assert status(server, "/child/fork-and-exit") == b"200"
    assert status(server, "/child") == b"200"

    def processes() -> int:
        """Return how many processes the worker's child has; those that have ended and were not waited for do not count."""
        count = 0
        for child in children(server.workers()[0]):
            for copy in children(child):
                with open(f"/proc/{copy}/stat") as stat:
                    count += stat.read().rpartition(")")[2].split()[0] != "Z"
        return count

    eventually(lambda: processes() == 0, "the copies' end")


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            found += map(int, file.read().split())
    return found


def test_strangers_who_take_all_connections_leave_descriptors_to_everything_else(server: Server) -> None:
    """With gunicorn's default of 1000 connections and 1024 descriptors they ended the worker. Here both are smaller."""
    assert f"worker_connections is 1000, but {DESCRIPTORS} file descriptors are enough for" in server.log()
    strangers = []
    try:
        for _ in range(DESCRIPTORS):
            strangers.append(socket.create_connection((server.host, server.port), 30))
        eventually(lambda: taken(server) > DESCRIPTORS // 2, "their connections")

        server.send_signal(signal.SIGUSR1)  # something to do for the worker
        assert taken(server) < DESCRIPTORS - 10
    finally:
        for stranger in strangers:
            stranger.close()


def test_an_app_that_takes_all_descriptors_for_a_moment_costs_a_neighbour_that_is_being_loaded_no_request(server: Server) -> None:
    """It was answered 503."""
    eventually(lambda: count_open(server) == 0, "the strangers' end")  # what they still have is free again when all has been taken
    with (
        socket.create_connection((server.host, server.port), 30) as waits,
        socket.create_connection((server.host, server.port), 30) as taker,
    ):
        request = PROXIED + b"GET /lazy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        waits.sendall(request[:-10])
        taker.sendall(PROXIED + b"GET /a/take-all HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        eventually(lambda: taken(server) == DESCRIPTORS, "no descriptor left")
        waits.sendall(request[-10:])
        server.wait_for_log("/lazy #1: cannot load")
        (server.folder / "free").touch()
        assert [receive_all(sock)[9:12] for sock in (taker, waits)] == [b"200"] * 2


def taken(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.workers()[0]}/fd"))


def test_a_config_file_that_is_too_large_for_the_scoreboard_changes_nothing(server: Server) -> None:
    """It was a ValueError in gunicorn's master: SIGHUP ended all of it."""
    file = server.folder / "isowsgi.toml"
    before = file.read_text()
    names = (f'"/m{number}{"x" * 1500}" = {{ app = "forks", lazy = true }}\n' for number in range(800))
    try:
        file.write_text(before.replace("[mounts]\n", "[mounts]\n" + "".join(names)))
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("are too long; expected")
        server.wait_for_log("#1: serving", 4)  # by the next worker
        eventually(lambda: len(server.workers()) == 1, "the old worker's end")
        assert status(server, "/a") == b"200"
    finally:
        file.write_text(before)
