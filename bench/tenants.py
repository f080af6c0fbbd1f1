"""Tenants: whether many that are known cost more than few: `python -m bench.tenants [--known 100 10000] [--live 50] [--turns 200]`.

A template with `exists`, one folder for each tenant. `live` of them are loaded; then `turns` others are asked one after the other, each for
the place of one that goes; then as many names as there are tenants are asked that are nobody's. Memory is the worker's resident set. The
time of a request is the median of many on one connection: of one tenant, and of five in turn, where the connection goes from one's
interpreter by the acceptor to the next one's. Each line is told as soon as it is known.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

from tests.conftest import Server, running_server
from tests.raw import Client

_REQUESTS = 2000  # of each median

_CONFIG = """
[mounts]
"/" = "hello"
[mounts."*.example/"]
app = "hello:environ"
env = {{ TENANT = "{{1}}" }}
exists = "tenants/{{1}}"
max_live = {live}
threads = 1
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--known", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--live", type=int, default=50)
    parser.add_argument("--turns", type=int, default=200)
    options = parser.parse_args()
    if min(options.known) <= options.live:
        parser.error(f"--known {min(options.known)}: needs more than --live {options.live}, as the others must not be loaded")
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores")
    for known in options.known:
        with tempfile.TemporaryDirectory(prefix="isowsgi-bench-") as name:
            for number in range(known):
                Path(name, "tenants", f"t{number}").mkdir(parents=True)
            with running_server(Path(name), _CONFIG.format(live=options.live), wait_for=1) as server:
                print(f"\n{known:,} known")
                for line in measure(server, known, options.live, options.turns):
                    print(line, flush=True)
    print(f"\nload average {os.getloadavg()[0]:.1f}")
    return 0


def measure(server: Server, known: int, live: int, turns: int) -> Iterator[str]:
    """Yield what is found out.

    Raises:
        AssertionError: a request was not answered as it should be.
    """
    (worker,) = server.workers()
    for number in range(live):
        _ask_once(server, f"t{number}.example", 200)
    yield f"{live} loaded: {_rss_mib(worker)} MiB"
    others = [f"t{(live + number * max(known // turns, 1)) % known}.example" for number in range(turns)]
    half, began = 0, time.perf_counter()
    for number, host in enumerate(others):
        _ask_once(server, host, 200)
        half = half or (_rss_mib(worker) if number >= turns // 2 else 0)
    each_ms = (time.perf_counter() - began) / turns * 1e3
    yield f"{turns} others: {half} MiB after a half, {_rss_mib(worker)} MiB after all; {each_ms:.0f} ms each"
    one, five = _median_us(server, others[-1:]), _median_us(server, others[-5:])
    yield f"a request: {one:.0f} us of one tenant, {five:.0f} us of five in turn"
    for number in range(known):
        _ask_once(server, f"stranger{number}.example", 404)
    yield f"{known:,} strangers, all 404: {_rss_mib(worker)} MiB"


def _ask_once(server: Server, host: str, status: int) -> None:
    with Client(server) as client:
        _ask(client, host, status)


def _ask(client: Client, host: str, status: int = 200) -> None:
    client.send(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")
    answer = client.answer()
    assert answer.status == status, (host, answer)


def _median_us(server: Server, hosts: Sequence[str]) -> float:
    took = []
    with Client(server) as client:
        for host in islice(cycle(hosts), _REQUESTS):
            began = time.perf_counter()
            _ask(client, host)
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


def _rss_mib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


if __name__ == "__main__":
    sys.exit(main())
