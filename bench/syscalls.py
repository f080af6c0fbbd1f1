"""How many system calls a request takes: `python -m bench.syscalls`. Needs strace.

A hello app, asked on one kept-alive connection again and again, then on a new connection for each request. The calls of all threads of the
worker are counted; those of its control threads, which do not grow with the requests, are there too.
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from bench.scoreboard import CHECKOUT, Hello

# Requests before the first that counts: what is made once for an app or a connection is made then.
_WARM_UP = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    if shutil.which("strace") is None:
        print("bench: expected strace on PATH (Debian: strace)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="isowsgi-bench-") as name:
        server = Hello(Path(name) / "hello", CHECKOUT)
        try:
            for what, is_kept in (("a kept connection", True), ("a new connection for each", False)):
                ask(server.url, _WARM_UP, is_kept)
                calls = count(server, options.requests, is_kept)
                print(f"\n{what}: {sum(calls.values()) / options.requests:.2f} calls a request")
                for call, times in sorted(calls.items(), key=lambda item: -item[1]):
                    if times >= options.requests / 100:
                        print(f"  {call:<16} {times / options.requests:.2f}")
        finally:
            server.stop()
    return 0


def count(server: Hello, requests: int, is_kept: bool) -> dict[str, int]:
    """Return how often each system call was made meanwhile."""
    with tempfile.NamedTemporaryFile("r") as output:
        command = ["strace", "-f", "-c", "-U", "name,calls", "-o", output.name, "-p", str(server.worker())]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        for line in tracer.stderr:
            if "attached with" in line:  # "... attached with 21 threads": then it has all of them
                break
        ask(server.url, requests, is_kept)
        tracer.send_signal(2)
        tracer.communicate()
        found = re.findall(r"^(\w+)\s+(\d+)$", output.read(), re.MULTILINE)
    return {name: int(times) for name, times in found if name != "total"}


def ask(url: str, requests: int, is_kept: bool) -> None:
    """Ask so many times, each request as soon as the one before it is answered."""
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 80)
    head = f"GET / HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: {'keep-alive' if is_kept else 'close'}\r\n\r\n".encode()
    sock: socket.socket | None = None
    for _ in range(requests):
        if sock is None:
            sock = socket.create_connection(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(head)
        answer = b""
        while not answer.endswith(b"hello\n"):
            answer += sock.recv(4096) or b"hello\n"
        if not is_kept:
            sock.close()
            sock = None
    if sock is not None:
        sock.close()


if __name__ == "__main__":
    raise SystemExit(main())
