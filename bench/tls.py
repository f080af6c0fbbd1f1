"""What TLS costs: `python -m bench.tls [--rounds 5] [--seconds 3]`. Needs wrk and openssl.

A hello app and one that answers with 10 MiB, plain and over TLS, under isowsgi and under gunicorn's gthread worker with as many threads.
wrk has one thread and 16 connections (4 for the big answers), the certificate an EC key. The servers take turns, and each figure is the
median of its rounds.

The last lines have a neighbour that computes: in a process of its own, and one that shares its GIL with the main interpreter, where the
relay runs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isowsgi.shared import interpreters
from tests.certificates import Authority
from tests.conftest import APPS, ROOT, Server, eventually, running_server

MOUNTS = '[mounts]\n"/hello" = { app = "hello", isolation = "%s" }\n"/big" = { app = "big", isolation = "%s" }\n'
NEIGHBOUR = '[mounts]\n"/hello" = { app = "hello" }\n"/slow" = { app = "slow", isolation = "%s" }\n'

# gthread has one app in a server.
SWITCH = """
import big, hello
def application(environ, start_response):
    return (big if environ["PATH_INFO"] == "/big" else hello).application(environ, start_response)
"""

Figures = dict[str, float]


class Case:
    """One server."""

    def __init__(self, config: str, *arguments: str, busy: bool = False) -> None:
        self.config = config
        self.arguments = arguments
        self.busy = busy


@contextmanager
def served(case: Case) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="isowsgi-bench-") as folder:
        if case.config:
            with running_server(Path(folder), case.config, "--threads", "4", *case.arguments, wait_for=2) as server:
                yield server
            return
        paths = os.pathsep.join([str(ROOT), str(APPS), folder])
        options = ("-k", "gthread", "--threads", "4", *case.arguments)
        files = {"switch.py": SWITCH}
        with running_server(Path(folder), "", *options, app="switch", files=files, env={"PYTHONPATH": paths}, wait_for=0) as server:
            server.wait_for_log("Booting worker")
            server.learn_port()
            yield server


def wrk(url: str, connections: int, seconds: int, *fields: str) -> tuple[float, float, float]:
    """Return requests and megabytes a second, and half of the latencies' limit in milliseconds."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout", "30", "--latency", *(f"-H{field}" for field in fields), url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Non-2xx" not in output, output
    rate = float(re.findall(r"Requests/sec: +([\d.]+)", output)[0])
    size, unit = re.findall(r"Transfer/sec: +([\d.]+)([KMG]?)B", output)[0]
    median, scale = re.findall(r"50% +([\d.]+)(us|ms|s)", output)[0]
    return (
        rate,
        float(size) * {"": 1e-6, "K": 1024e-6, "M": 1.048576, "G": 1073.741824}[unit],
        float(median) * {"us": 1e-3, "ms": 1, "s": 1e3}[scale],
    )


def measure(case: Case, seconds: int) -> Figures:
    with served(case) as server:
        scheme = "https" if "--certfile" in case.arguments else "http"
        url = f"{scheme}://127.0.0.1:{server.port}"
        eventually(lambda: subprocess.run(["curl", "-sfk", f"{url}/hello"], capture_output=True, check=False).returncode == 0)
        if case.busy:
            return {"hello/s": (found := beside_a_busy_one(server, url, seconds))[0], "p50 ms": found[2]}
        rate, _, p50 = wrk(f"{url}/hello", 16, seconds)
        fresh, _, _ = wrk(f"{url}/hello", 16, seconds, "Connection: close")
        _, megabytes, _ = wrk(f"{url}/big", 4, seconds)
    return {"hello/s": rate, "p50 ms": p50, "connections/s": fresh, "MB/s": megabytes}


def beside_a_busy_one(server: Server, url: str, seconds: int) -> tuple[float, float, float]:
    burn = subprocess.Popen(["curl", "-sk", f"{url}/slow?burn={seconds + 2}"], stdout=subprocess.DEVNULL)
    try:
        server.wait_for_log("begun burn")
        return wrk(f"{url}/hello", 16, seconds)
    finally:
        burn.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    if missing := [program for program in ("wrk", "openssl", "curl") if shutil.which(program) is None]:
        print(f"bench/tls.py: not found: {', '.join(missing)}", file=sys.stderr)
        return 1
    best = interpreters.best_isolation()
    with tempfile.TemporaryDirectory(prefix="isowsgi-bench-") as folder:
        certificate, key = Authority(Path(folder)).sign("server")
        tls = ("--certfile", str(certificate), "--keyfile", str(key))
        cases = {
            f"isowsgi, {best}, plain": Case(MOUNTS % (best, best)),
            f"isowsgi, {best}, TLS": Case(MOUNTS % (best, best), *tls),
            "isowsgi, process, TLS": Case(MOUNTS % ("process", "process"), *tls),
            "gthread, plain": Case(""),
            "gthread, TLS": Case("", *tls),
            f"isowsgi, {best}, TLS, a busy neighbour in a process": Case(NEIGHBOUR % "process", *tls, busy=True),
            f"isowsgi, {best}, TLS, a busy neighbour that shares main's GIL": Case(NEIGHBOUR % "shared-gil", *tls, busy=True),
        }
        results: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in cases}
        for _ in range(options.rounds):
            for name, case in cases.items():
                for figure, value in measure(case, options.seconds).items():
                    results[name][figure].append(value)
    columns = ["hello/s", "p50 ms", "connections/s", "MB/s"]
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, {options.rounds} rounds of {options.seconds} s: medians\n")
    print(f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, figures in results.items():
        cells = [f"{statistics.median(figures[column]):,.4g}" if column in figures else "" for column in columns]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\nload average {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
