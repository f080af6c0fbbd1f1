"""What clients and neighbours do to a worker, and what it costs the worker's process: for test_isolation.py and bench/isolation.py."""

from __future__ import annotations

import os
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import APPS, Server, receive_all
from tests.raw import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What the kernel says of a process; CPU time comes in steps of 10 ms."""

    descriptors: int
    threads: int
    cpu_s: float
    rss_mib: float

    @classmethod
    def of(cls, pid: int) -> Footprint:
        # Behind the name, which may hold anything, the fields of proc_pid_stat(5) from the third on.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return cls(
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
            threads=len(os.listdir(f"/proc/{pid}/task")),
            cpu_s=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
            rss_mib=int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20,
        )


def cpu_s_over(pid: int, seconds: float) -> float:
    """Return how much CPU time a process takes in the next seconds."""
    before = Footprint.of(pid).cpu_s
    time.sleep(seconds)
    return Footprint.of(pid).cpu_s - before


def count_open(server: Server) -> int:
    """Return how many connections the server's processes hold; those still in a listener's queue do not count."""
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        is_listening, inode = fields[3] == "0A", fields[9]
        count += int(fields[1].partition(":")[2], 16) == server.port and not is_listening and inode != "0"
    return count


class PlainProcess:
    """The CPU-bound app's work in a process without any server, for comparison; a context manager that ends it."""

    def __init__(self, seconds: float) -> None:
        command = [sys.executable, "-I", "-S", str(APPS / "cpu.py"), str(seconds)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._output.readline()

    def __enter__(self) -> PlainProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def go(self) -> None:
        """Begin; returns at once."""
        self._input.write("go\n")

    def result(self) -> int:
        """Wait for the end and return how often the work was done."""
        return int(self._output.readline())


def plain_gain(seconds: float) -> float:
    """Return how much more two plain processes compute than one: 2 on two idle cores, 1 if there is one to have."""
    with PlainProcess(seconds) as one:
        one.go()
        alone = one.result()
    with PlainProcess(seconds) as one, PlainProcess(seconds) as other:
        one.go()
        other.go()
        return (one.result() + other.result()) / alone


def raise_descriptor_limit(needed: int) -> bool:
    """Let this process and those it starts have so many descriptors; False if the system forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        return False
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return True


# Clients that are slow.


def send_half_heads(server: Server, path: str, count: int) -> list[socket.socket]:
    """Open connections on each of which a request's head never ends."""
    return _send_on_each(server, count, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Half: ")


def _send_on_each(server: Server, count: int, text: str) -> list[socket.socket]:
    socks = []
    for _ in range(count):
        sock = server.connect()
        sock.sendall(text.encode())
        socks.append(sock)
    return socks


def wait_until_closed(socks: Sequence[socket.socket], deadline_s: float) -> Counter[str]:
    """Read each connection to its end and count what came: a status, "nothing", "reset", or "open" at the deadline.

    Args:
        deadline_s: 0 reads what is there.
    """
    poller = select.epoll()
    waiting = {sock.fileno(): sock for sock in socks}
    for fd in waiting:
        poller.register(fd, select.EPOLLIN)
    got: dict[int, bytes] = dict.fromkeys(waiting, b"")
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + deadline_s
    while waiting and (events := poller.poll(max(end - time.monotonic(), 0))):
        for fd, _ in events:
            try:
                chunk = waiting[fd].recv(65536)
            except ConnectionResetError:
                outcomes["reset"] += 1
            else:
                if chunk:
                    got[fd] += chunk
                    continue
                outcomes[got[fd][9:12].decode("latin-1") or "nothing"] += 1
            poller.unregister(fd)
            del waiting[fd]
    poller.close()
    outcomes["open"] += len(waiting)
    return +outcomes


def ask_and_read_nothing(server: Server, path: str, count: int) -> list[socket.socket]:
    """Open connections that ask for something and never read it."""
    socks = []
    for _ in range(count):
        sock = socket.socket()
        # Set before the connect, so that the window never grows and the server's thread has to wait.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        sock.connect((server.host, server.port))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        socks.append(sock)
    return socks


def send_half_bodies(server: Server, path: str, count: int) -> list[socket.socket]:
    """Open connections on each of which a request's body never ends."""
    return _send_on_each(server, count, f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf")


def count_begun(socks: Sequence[socket.socket]) -> int:
    """Return on how many connections an answer has begun; reads nothing."""
    poller = select.poll()
    for sock in socks:
        poller.register(sock, select.POLLIN)
    return len(poller.poll(0))


def close_all(socks: Sequence[socket.socket]) -> None:
    for sock in socks:
        sock.close()


# Clients of all sorts. Each of them takes a server with mounts /a and /b (hello) and /big; those that wait for an answer check it.


def churn(server: Server, count: int, clients: int = 4) -> None:
    """Make so many connections, of every sort in turn, some at a time."""

    def one(number: int) -> None:
        _SORTS[number % len(_SORTS)](server)

    with ThreadPoolExecutor(clients) as pool:
        for _ in pool.map(one, range(count)):
            pass


def _request(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *fields, "\r\n"]).encode()


def _ends(server: Server, data: bytes, status: bytes) -> None:
    answer = server.exchange(data)
    assert answer[9:12] == status, f"expected {status!r}, got {answer[:200]!r}"


def _stays_on(server: Server) -> None:
    """Three requests for two mounts, then it closes."""
    with Client(server) as client:
        for path in ("/a", "/b", "/a"):
            answer = client.ask(path)
            assert (answer.status, answer.body) == (200, b"Hello, world\n"), answer


def _wants_it_closed(server: Server) -> None:
    _ends(server, _request("/a", "Connection: close"), b"200")


def _moves_and_wants_it_closed(server: Server) -> None:
    with Client(server) as client:
        assert client.ask("/b").status == 200
        assert client.ask("/a", fields="Connection: close\r\n").status == 200
        assert client.is_closed()


def _is_lost(server: Server) -> None:
    _ends(server, _request("/nowhere"), b"404")


def _talks_nonsense(server: Server) -> None:
    _ends(server, b"\x16\x03\x01\x02\x00\r\n\r\n", b"400")


def _closes_its_half(server: Server) -> None:
    with Client(server) as client:
        client.send(_request("/a"))
        client.end_sending()
        assert client.answer().body == b"Hello, world\n"
        assert client.is_closed()


def _says_nothing(server: Server) -> None:
    server.connect().close()


def _leaves(server: Server, data: bytes, *, reset: bool, read: int = 0) -> None:
    with server.connect() as sock:
        sock.sendall(data)
        if read:
            sock.recv(read)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _leaves_within_the_head(server: Server) -> None:
    _leaves(server, _request("/a")[:-9], reset=False)


def _resets_within_the_head(server: Server) -> None:
    _leaves(server, _request("/a")[:-9], reset=True)


def _leaves_before_the_answer(server: Server) -> None:
    _leaves(server, _request("/a"), reset=False)


def _resets_before_the_answer(server: Server) -> None:
    _leaves(server, _request("/a"), reset=True)


def _resets_while_idle(server: Server) -> None:
    _leaves(server, _request("/b"), reset=True, read=65536)


def _leaves_within_the_answer(server: Server) -> None:
    _leaves(server, _request("/big"), reset=False, read=100)


def _resets_within_the_answer(server: Server) -> None:
    _leaves(server, _request("/big"), reset=True, read=100)


def _leaves_within_the_body(server: Server) -> None:
    _leaves(server, b"POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf", reset=False)


def _resets_within_the_body(server: Server) -> None:
    _leaves(server, b"POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf", reset=True)


def _sends_more_than_is_read(server: Server) -> None:
    """An answer must reach also a client whose body nobody reads."""
    with server.connect() as sock:
        sock.sendall(_request("/a", "Connection: close", "Content-Length: 20000") + b"x" * 20000)
        assert receive_all(sock)[9:12] == b"200"


_SORTS: list[Callable[[Server], None]] = [
    _stays_on,
    _wants_it_closed,
    _moves_and_wants_it_closed,
    _is_lost,
    _talks_nonsense,
    _closes_its_half,
    _says_nothing,
    _leaves_within_the_head,
    _resets_within_the_head,
    _leaves_before_the_answer,
    _resets_before_the_answer,
    _resets_while_idle,
    _leaves_within_the_answer,
    _resets_within_the_answer,
    _leaves_within_the_body,
    _resets_within_the_body,
    _sends_more_than_is_read,
]
