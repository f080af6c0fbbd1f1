"""What a request takes, whatever the machine does meanwhile: bytecode instructions and system calls. `make bench ARGS=counts`.

A hello app and Flask's smallest on a kept connection, and hello on a new connection for each request, whose instructions are those of the
acceptor and of the app's interpreter together. Instructions are counted by sys.monitoring (CPython 3.12 and later), system calls by strace.
Both slow the server down; neither changes what it does for a request.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from bench.scoreboard import CHECKOUT, Hello

# Requests before those that count: what is made once for an app or a connection is made then.
WARM_UP = 100

# Requests that count, and how many of these must agree. What disturbs one (once a second a Date field is made, and on a busy machine one
# waits for its thread) makes it longer; so the least that was seen several times is what a request takes.
_COUNTED = 100
_AGREE = 5

# Requests in each round of counting system calls, and rounds.
_TRACED, _ROUNDS = 50, 5

# Not calls: the sum of all. And those that grow with the time that requests take: control threads look at the others every 2 ms, and a
# thread waits for the GIL.
_OF_TIME = frozenset({"total", "poll", "futex", "clock_gettime", "restart_syscall"})

# Before a new connection, so that the server has dealt with the one before: what it does for two at once counts for neither.
_PAUSE_S = 0.002

_CONFIG = """
[defaults]
isolation = "own-gil"

[mounts]
"/" = "counted:hello_application"
"/flask" = "counted:flask_application"
"/main" = { app = "counted:acceptor", isolation = "main" }
"""

# Whose instructions are isowsgi's own part, what it calls of the standard library included: the rest is the app's and its framework's.
_OURS = ("/isowsgi/", "/gunicorn/", "/socket.py:", "/enum.py:")


class Failed(Exception):
    """It cannot be counted here; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked for."""

    title: str
    path: str
    is_kept: bool


LOADS = {
    "hello": Load(title="hello, kept connection", path="/", is_kept=True),
    "flask": Load(title="Flask, kept connection", path="/flask/", is_kept=True),
    "new": Load(title="hello, a new connection each", path="/", is_kept=False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What one request takes.

    Attributes:
        functions: bytecode instructions by file and function; empty before CPython 3.12.
        calls: system calls by name, as far as they grow with the requests.
        problem: why there are no system calls; "" if there are.
    """

    functions: dict[str, int]
    calls: dict[str, int]
    problem: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS=counts", description=__doc__.partition("\n")[0])
    parser.add_argument("--package", type=Path, default=CHECKOUT, help="another checkout whose isowsgi is counted")
    parser.add_argument("--by-function", action="store_true", help="list the instructions by function too")
    options = parser.parse_args()
    try:
        with served(options.package) as server:
            found = {load: count(server, load) for load in LOADS.values()}
    except Failed as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    _show(found, options.by_function)
    return 0


@contextmanager
def served(package: Path) -> Iterator[Hello]:
    """Serve what is counted."""
    with tempfile.TemporaryDirectory(prefix="isowsgi-bench-") as name:
        server = Hello(Path(name) / "counts", package, config=_CONFIG, path=(CHECKOUT / "bench" / "apps",))
        try:
            for load in (*LOADS.values(), Load(title="", path="/main/", is_kept=True)):
                ask(server.url, load, 1)
            yield server
        finally:
            server.stop()


def count(server: Hello, load: Load) -> Counts:
    """Return what a request of a load takes."""
    ask(server.url, load, WARM_UP)
    functions = instructions(server.url, load) if hasattr(sys, "monitoring") else {}
    try:
        return Counts(functions=functions, calls=system_calls(server, load))
    except Failed as exc:
        return Counts(functions=functions, calls={}, problem=str(exc))


def instructions(url: str, load: Load) -> dict[str, int]:
    """Return the bytecode instructions of a request by function, in all interpreters that have to do with it."""
    apps = [load.path] if load.is_kept else [load.path, "/main/"]
    found: dict[str, int] = {}
    for app in apps:
        _get(url, f"{app}begin")
        ask(url, load, _COUNTED, _PAUSE_S)
        for name, taken in _undisturbed(json.loads(_get(url, f"{app}end"))).items():
            found[name] = found.get(name, 0) + taken
    return found


def _undisturbed(requests: list[dict[str, int]]) -> dict[str, int]:
    agreeing = Counter(sum(functions.values()) for functions in requests)
    seen_often = [total for total, times in agreeing.items() if times >= _AGREE]
    if not seen_often:
        raise Failed(f"no {_AGREE} of {len(requests)} requests took the same number of instructions; the machine is too busy")
    return next(functions for functions in requests if sum(functions.values()) == min(seen_often))


def ours(functions: dict[str, int]) -> int:
    """Return the instructions that are neither the app's nor its framework's."""
    return sum(count for name, count in functions.items() if any(part in name for part in _OURS))


def system_calls(server: Hello, load: Load) -> dict[str, int]:
    """Return the system calls of a request by name: the least of some rounds, for a head that comes late takes a few more.

    Raises:
        Failed: strace is not there, or must not look.
    """
    if shutil.which("strace") is None:
        raise Failed("expected strace on PATH (Debian: strace)")
    rounds = [_system_calls(server, load) for _ in range(_ROUNDS)]
    return min(rounds, key=lambda calls: sum(calls.values()))


def _system_calls(server: Hello, load: Load) -> dict[str, int]:
    with tempfile.NamedTemporaryFile("r") as output:
        command = ["strace", "-f", "-c", "-U", "name,calls", "-o", output.name, "-p", str(server.worker())]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None, "it is a pipe"
        said = ""
        for line in tracer.stderr:
            said = line.strip()
            if "attached" in line:  # "... attached with 21 threads": then it has all of them
                break
        else:
            tracer.stderr.close()
            tracer.wait()
            raise Failed(f"strace cannot look at the worker: {said}")
        try:
            ask(server.url, load, _TRACED)
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.communicate()
        calls = re.findall(r"^(\w+)\s+(\d+)$", output.read(), re.MULTILINE)
    return {name: each for name, times in calls if name not in _OF_TIME and (each := round(int(times) / _TRACED))}


def ask(url: str, load: Load, requests: int, pause_s: float = 0.0) -> None:
    """Ask so many times, each request as soon as the one before it is answered, or a pause later."""
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 80)
    head = f"GET {load.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: {'keep-alive' if load.is_kept else 'close'}\r\n\r\n".encode()
    sock: socket.socket | None = None
    for _ in range(requests):
        if sock is None:
            sock = socket.create_connection(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(head)
        _answer(sock)
        if not load.is_kept:
            sock.close()
            sock = None
            time.sleep(pause_s)
    if sock is not None:
        sock.close()


def _get(url: str, path: str) -> bytes:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80)) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        return _answer(sock)


def _answer(sock: socket.socket) -> bytes:
    """Return the body of a response that says its length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _received(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    if length is None or not head.startswith(b"HTTP/1.1 200 "):
        raise Failed(f"expected a page, got {head[:60]!r}")
    while len(body) < int(length[1]):
        body += _received(sock)
    return body


def _received(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise Failed("expected an answer, and the server has closed the connection")
    return data


def _show(found: dict[Load, Counts], by_function: bool) -> None:
    console = Console()
    table = Table("a request of", "instructions", "of these isowsgi's", "system calls", "which")
    for load, counts in found.items():
        which = " ".join(
            f"{name}:{times}" if times > 1 else name for name, times in sorted(counts.calls.items(), key=lambda item: -item[1])
        )
        calls = str(sum(counts.calls.values())) if counts.calls else "?"
        table.add_row(load.title, str(sum(counts.functions.values())), str(ours(counts.functions)), calls, which or counts.problem)
    console.print(table)
    if by_function:
        for load, counts in found.items():
            table = Table("function", "instructions", title=load.title)
            for name, taken in sorted(counts.functions.items(), key=lambda item: -item[1]):
                file, _, function = name.rpartition(":")
                table.add_row(f"{Path(file).parent.name}/{Path(file).name} {function}", str(taken))
            console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
