"""Put load on a server from a process of its own, so that neither its GIL nor its pauses are the measuring program's.

    python tests/load_process.py http://127.0.0.1:8000/blog --connections 2 --seconds 1 [--close] [--pause 0.01]

Each connection sends its next request as soon as it has an answer, or a pause after that. Without pauses that is a few thousand
requests/s from one core, enough where the app is slow or a delay is looked for. The process starts, connects, prints "ready" and begins
when a line comes on its standard input.
"""

from __future__ import annotations

import argparse
import json
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

# A connection that hears nothing for so long is given up and counted as an error.
_SILENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a load.

    Attributes:
        requests: answered in full.
        errors: connections that failed or were given up, each with the request on it.
        seconds: from the first request to the last answer.
        p50_ms, p99_ms, max_ms: from the request, or the connect of a new connection, to the answer's last byte; 0 without any.
        statuses: how many answers had which status.
    """

    requests: int
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    statuses: dict[str, int] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


class LoadProcess:
    """A load process, connected and waiting for `go`; a context manager that ends it."""

    def __init__(self, url: str, *, connections: int = 2, seconds: float = 1.0, close: bool = False, pause_s: float = 0.0) -> None:
        command = [sys.executable, "-I", "-S", __file__, url, "--connections", str(connections), "--seconds", str(seconds)]
        command += ["--close"] if close else []
        command += ["--pause", str(pause_s)] if pause_s else []
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        if self._output.readline() != "ready\n":
            self.__exit__()
            raise RuntimeError(f"the load process could not connect to {url}")

    def __enter__(self) -> LoadProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def go(self) -> None:
        """Begin; returns at once."""
        self._input.write("go\n")

    def stop(self) -> None:
        """Let it end with the answers to the requests under way, before its time; returns at once."""
        self._process.terminate()

    def result(self) -> Result:
        """Wait for the end."""
        return Result(**json.loads(self._output.readline()))


def run_load(*urls: str, connections: int = 2, seconds: float = 1.0, close: bool = False) -> list[Result]:
    """Load some URLs at the same time, each from a process of its own, and return the results in the same order."""
    loads = [LoadProcess(url, connections=connections, seconds=seconds, close=close) for url in urls]
    try:
        for load in loads:
            load.go()
        return [load.result() for load in loads]
    finally:
        for load in loads:
            load.__exit__()


# The process itself.


class _Client:
    """One connection, with one request on it or none."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self._address = address
        self._request = request
        self.connect()
        self.began = 0.0  # when the request under way began; 0: none is
        self.data = b""
        self._length = -1  # of the whole answer; -1 until its head is here

    def connect(self) -> None:
        self.sock = socket.create_connection(self._address, _SILENCE_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, began: float) -> None:
        self.began, self.data, self._length = began, b"", -1
        self.sock.sendall(self._request)

    def receive(self) -> bool:
        """Take what is there; True once the answer is complete."""
        chunk = self.sock.recv(262_144)
        if not chunk:
            raise ConnectionError("closed by the server")
        self.data += chunk
        if self._length < 0 and (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].lower()
            start = head.find(b"\r\ncontent-length:")
            if start < 0:
                raise ConnectionError("an answer without Content-Length is not for this load generator")
            self._length = end + 4 + int(head[start + 17 :].split(b"\r\n", 1)[0])
        return 0 <= self._length <= len(self.data)


def _run(clients: list[_Client], seconds: float, close: bool, pause_s: float) -> Result:
    poller = select.epoll()
    by_fd: dict[int, _Client] = {}
    latencies: list[float] = []
    statuses: dict[str, int] = {}
    errors = 0
    pausing: deque[tuple[float, _Client]] = deque()  # until when; first come first

    def begin(client: _Client, now: float) -> None:
        nonlocal errors
        try:
            if client.sock.fileno() < 0:
                client.connect()
            client.send(now)
        except OSError:
            errors += 1
            client.sock.close()
            return
        fd = client.sock.fileno()
        if fd not in by_fd:
            by_fd[fd] = client
            poller.register(fd, select.EPOLLIN)

    def end(fd: int) -> None:
        poller.unregister(fd)
        by_fd.pop(fd).sock.close()

    began = last = time.monotonic()
    until = began + seconds

    def stop(*_: object) -> None:
        nonlocal until
        until = 0.0

    signal.signal(signal.SIGTERM, stop)
    for client in clients:
        begin(client, time.monotonic())
    while by_fd:
        ready = poller.poll(min(1.0, max(pausing[0][0] - time.monotonic(), 0)) if pausing else 1.0)
        while pausing and (time.monotonic() >= until or pausing[0][0] <= time.monotonic()):
            _, client = pausing.popleft()
            if client.sock.fileno() in by_fd and time.monotonic() >= until:
                end(client.sock.fileno())
            elif time.monotonic() < until:
                begin(client, time.monotonic())
        for fd, _ in ready:
            if fd not in by_fd:
                continue
            client = by_fd[fd]
            try:
                if not client.receive():
                    continue
            except OSError:
                errors += 1
                end(fd)
                continue
            last = time.monotonic()
            latencies.append(last - client.began)
            status = client.data[9:12].decode("latin-1")
            statuses[status] = statuses.get(status, 0) + 1
            if close or last >= until:
                end(fd)
            if last < until and pause_s:
                pausing.append((last + pause_s, client))
            elif last < until:
                begin(client, last)
        if not ready:
            now = time.monotonic()
            for fd in [fd for fd, client in by_fd.items() if now - client.began > _SILENCE_S]:
                errors += 1
                end(fd)
    latencies.sort()

    def percentile(share: float) -> float:
        return latencies[min(int(len(latencies) * share), len(latencies) - 1)] * 1000 if latencies else 0.0

    return Result(
        requests=len(latencies),
        errors=errors,
        seconds=last - began,
        p50_ms=percentile(0.5),
        p99_ms=percentile(0.99),
        max_ms=percentile(1),
        statuses=statuses,
    )


def _main() -> None:
    parser = argparse.ArgumentParser(description="Put load on a URL; prints the result as JSON.")
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between an answer and the next request")
    parser.add_argument("--close", action="store_true", help="a new connection for each request")
    options = parser.parse_args()
    parts = urlsplit(options.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    fields = ["Connection: close"] if options.close else []
    request = "\r\n".join([f"GET {target} HTTP/1.1", f"Host: {parts.netloc}", *fields, "\r\n"]).encode("latin-1")
    clients = [_Client((parts.hostname or "127.0.0.1", parts.port or 80), request) for _ in range(options.connections)]
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(asdict(_run(clients, options.seconds, options.close, options.pause))), flush=True)


if __name__ == "__main__":
    _main()
