"""What walls cost: hello through a process behind each kind of wall, beside one through a plain process: `python -m bench.walls`.

All mounts are of one worker; it, they and the client are pinned to one core, so a request takes what all of them together do for it.
A round asks each mount on a connection of its own, the plain one just before or just after it. A ratio is the plain one's time by the
other's, the median over the rounds, with a 95 % interval by bootstrap. `/null` is a second plain process: its ratio is the noise. As root,
`/owned` has a user of its own too.
"""

from __future__ import annotations

import argparse
import os
import random
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
"/walled" = { app = "hello", sandbox = { connect = [] }, umask = "027", limits = { memory = "256M", files = 256, file_size = "100M" } }
"""
_OWNED = """
"/owned" = { app = "hello", user = "20001:20001", sandbox = { connect = [] }, limits = { memory = "256M", files = 256, file_size = "1M" } }
"""
_RESAMPLES = 4000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=1500, help="to each mount in each round")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    is_root = os.geteuid() == 0
    paths = ["/plain", "/null", "/sandbox", "/walled", *(["/owned"] if is_root else [])]
    with tempfile.TemporaryDirectory(prefix="isowsgi-bench-") as name:
        os.chmod(name, 0o755)  # for the users
        arguments = ["--keep-alive", "600", *(["--user", "nobody"] if is_root else [])]
        with running_server(Path(name), _CONFIG + (_OWNED if is_root else ""), *arguments, wait_for=len(paths)) as server:
            ratios, plain = measure(server, paths, options.rounds, options.requests)
    print(f"Python {sys.version.split()[0]}, load average {os.getloadavg()[0]:.1f}, /plain: {plain:,.0f} requests/s")
    chance = random.Random(0)
    for path in paths[1:]:
        low, high = _interval(ratios[path], chance)
        print(f"{path:10} {statistics.median(ratios[path]):.3f} times that, {low:.3f} to {high:.3f}")
    return 0


def measure(server: Server, paths: list[str], rounds: int, requests: int) -> tuple[dict[str, list[float]], float]:
    """Return the ratios of each wall, and the plain one's requests/s."""
    clients = {path: Client(server) for path in paths}
    for path in paths:
        _ask(clients[path], path, requests)
    ratios: dict[str, list[float]] = {path: [] for path in paths[1:]}
    plain = []
    for number in range(rounds):
        for path in paths[1:]:
            pair = [path, "/plain"] if number % 2 else ["/plain", path]
            took = {each: _ask(clients[each], each, requests) for each in pair}
            ratios[path].append(took["/plain"] / took[path])
            plain.append(requests / took["/plain"])
    for client in clients.values():
        client.close()
    return ratios, statistics.median(plain)


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


def _interval(values: list[float], chance: random.Random) -> tuple[float, float]:
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return medians[int(_RESAMPLES * 0.025)], medians[int(_RESAMPLES * 0.975)]


if __name__ == "__main__":
    sys.exit(main())
