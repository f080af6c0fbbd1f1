"""What walls cost: hello through a process behind each kind of wall, beside one through a plain process: `python -m bench.walls`.

All mounts are of one worker; it, they and the client are pinned to one core, so a request takes what all of them together do for it.
A round asks each mount once, on a connection of its own, and another one is first each time. A ratio is the plain one's time in a round by
the other's, the median over the rounds; what differs by chance between two starts of a process is seen by several servers, one after the
other. `/null` is a second plain process: its ratio is the noise. As root, `/owned` has a user of its own too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import Server, running_server
from tests.raw import Client

_CONFIG = """
[defaults]
isolation = "process"
[mounts]
"/plain" = "hello"
"/null" = "hello"
"/sandbox" = { app = "hello", sandbox = true }
"/walled" = { app = "hello", WALLS }
"""
_OWNED = '"/owned" = { app = "hello", user = "20001:20001", WALLS }\n'
_WALLS = 'sandbox = { connect = [] }, umask = "027", limits = { memory = "256M", files = 256, file_size = "100M" }'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=8, help="started one after the other")
    parser.add_argument("--rounds", type=int, default=15, help="with each server")
    parser.add_argument("--requests", type=int, default=1500, help="to each mount in each round")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    is_root = os.geteuid() == 0
    arguments = ["--keep-alive", "600", *(["--user", "nobody"] if is_root else [])]
    config = (_CONFIG + (_OWNED if is_root else "")).replace("WALLS", _WALLS)
    others = ["/null", "/sandbox", "/walled", *(["/owned"] if is_root else [])]
    print(f"Python {sys.version.split()[0]}, load average {os.getloadavg()[0]:.1f}; requests/s, times those of a plain process")
    found: dict[str, list[float]] = {path: [] for path in others}
    for _ in range(options.servers):
        with tempfile.TemporaryDirectory(prefix="isowsgi-bench-") as name:
            os.chmod(name, 0o755)  # for the users
            with running_server(Path(name), config, *arguments, wait_for=1 + len(others)) as server:
                for path, ratio in measure(server, ["/plain", *others], options.rounds, options.requests).items():
                    found[path].append(ratio)
        print("  ".join(f"{path} {ratios[-1]:.3f}" for path, ratios in found.items()), flush=True)
    for path, ratios in found.items():
        print(f"{path:10} {statistics.median(ratios):.3f}, of {min(ratios):.3f} to {max(ratios):.3f}")
    return 0


def measure(server: Server, paths: list[str], rounds: int, requests: int) -> dict[str, float]:
    """Return the ratios to the first of some mounts, each the median of all rounds."""
    clients = {path: Client(server) for path in paths}
    for path in paths:
        _ask(clients[path], path, requests)
    ratios: dict[str, list[float]] = {path: [] for path in paths[1:]}
    for number in range(rounds):
        first = number % len(paths)
        took = {path: _ask(clients[path], path, requests) for path in [*paths[first:], *paths[:first]]}
        for path in paths[1:]:
            ratios[path].append(took[paths[0]] / took[path])
    for client in clients.values():
        client.close()
    return {path: statistics.median(found) for path, found in ratios.items()}


def _ask(client: Client, path: str, times: int) -> float:
    """Ask one time after the other; return the seconds that took."""
    sock, request = client.sock, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    began = time.perf_counter()
    for _ in range(times):
        sock.sendall(request)
        answer = sock.recv(4096)
        while not answer.endswith(b"Hello, world\n"):
            more = sock.recv(4096)
            if not more:
                raise SystemExit(f"{path}: the connection was closed after {answer!r}")
            answer += more
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{path}: {answer!r}")
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
