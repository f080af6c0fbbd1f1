"""Clients that send requests over and over while a test does something to the server, and the account of what came of each.

    with Load(server.connect, ["/a", "/b"], clients=4) as load:
        server.send_signal(signal.SIGHUP)
        ...
    assert load.failures == []

The rule of the account: from the moment a client has sent a byte of a request it must get a whole answer. A connection that is refused,
or that the server closed while nothing was asked on it, is no failure: the client takes another one.
"""

from __future__ import annotations

import itertools
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from types import TracebackType

from tests.conftest import DEADLINE_S, WHOLE, Server

# Pause of a client whose connection was refused, so that it does not take the CPU from the server it waits for.
_REFUSED_PAUSE_S = 0.02

# Pause of a client after each answer, also of those that tests write themselves. Five clients without one take both cores for themselves,
# mostly in the clients, while what the test waits for (a server that starts, a reload) gets what is left: with 4 ms they still send some
# 1,000 requests/s, and the tests that use them take half the CPU time. Whole runs have none.
PAUSE_S = 0.0 if WHOLE else 0.004


@contextmanager
def asked(server: Server, *paths: str, pause_s: float = 0.0) -> Iterator[None]:
    """Have each path asked for over and over, one after the other on one connection, with a pause before each round."""
    ends = threading.Event()

    def ask() -> None:
        connection = HTTPConnection(server.host, server.port, timeout=DEADLINE_S)
        while not ends.wait(pause_s):
            for path in paths:
                connection.request("GET", path)
                assert connection.getresponse().read()
        connection.close()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


class Load:
    """Threads, each a client with one connection at a time.

    Args:
        connect: opens a connection, with a time limit set on it.
        paths: asked for in turn.
        clients: how many ask at once.
        keep_alive: whether a client goes on using its connection as long as the server lets it; otherwise each request has its own.
        expected: statuses that count as an answer; any other is a failure.

    Attributes:
        failures: what went wrong, one line for each request.
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        paths: Sequence[str],
        *,
        clients: int = 4,
        keep_alive: bool = True,
        expected: Sequence[int] = (200,),
    ) -> None:
        self._connect = connect
        self._paths = itertools.cycle(paths)
        self._keep_alive = keep_alive
        self._expected = expected
        self._stop = threading.Event()
        self._first_answers = threading.Barrier(clients + 1)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self.failures: list[str] = []

    @property
    def sent(self) -> int:
        return self._counts["sent"]

    @property
    def answered(self) -> int:
        return self._counts["answered"]

    @property
    def refused(self) -> int:
        """How many connections were refused before anything was sent."""
        return self._counts["refused"]

    @property
    def connections(self) -> int:
        return self._counts["connections"]

    def __enter__(self) -> Load:
        """Start; on return every client has had its first answer, or none will."""
        for thread in self._threads:
            thread.start()
        self._first_answers.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _run(self) -> None:
        sock: socket.socket | None = None
        is_first = True
        while not self._stop.is_set():
            if sock is not None and _was_closed(sock):
                sock.close()
                sock = None
            is_new = sock is None
            sock = sock or self._open()
            if sock is not None and not self._ask(sock, is_new):
                sock.close()
                sock = None
            if is_first:
                is_first = False
                self._first_answers.wait()
            self._stop.wait(PAUSE_S)
        if sock is not None:
            sock.close()

    def _open(self) -> socket.socket | None:
        try:
            sock = self._connect()
        except OSError:
            self._count("refused")
            time.sleep(_REFUSED_PAUSE_S)
            return None
        self._count("connections")
        return sock

    def _ask(self, sock: socket.socket, is_new: bool) -> bool:
        """Exchange one request; return whether the connection can be used again."""
        with self._lock:
            path = next(self._paths)
        connection = "keep-alive" if self._keep_alive else "close"
        self._count("sent")
        name = sock.getsockname()
        try:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n\r\n".encode())
            with HTTPResponse(sock, method="GET") as response:
                response.begin()
                response.read()
        except (OSError, HTTPException) as exc:
            self.failures.append(f"{path} from {name}{', a new connection' if is_new else ''}: {type(exc).__name__}: {exc}")
            return False
        self._count("answered")
        if response.status not in self._expected:
            self.failures.append(f"{path} from {name}: status {response.status}")
        return self._keep_alive and not response.will_close


def _was_closed(sock: socket.socket) -> bool:
    """Whether the server closed an idle connection; it has nothing to say on one otherwise."""
    return bool(select.select([sock], [], [], 0)[0])
