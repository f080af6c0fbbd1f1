"""What the scoreboard costs: `python -m bench.scoreboard`.

First the recording alone, in nanoseconds for one request; the limit is 1 us. With `--server` also a hello app by wrk, with all counters and
without those that a request pays for, in turns; the limit is 0.95 of without. Each figure is the median of its rounds.

The server without counters runs from a copy of the package in which they are cut out: no setting is worth a branch in each request.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import sentinel

from isowsgi.inside.deadlines import Job
from isowsgi.shared.rows import ANSWERED, BY_APP, RESPONSES
from isowsgi.shared.scoreboard import Scoreboard

LIMIT_NS = 1000
LIMIT_SHARE = 0.95

CHECKOUT = Path(__file__).parent.parent

# What is cut out, by file: a line, and what stands there instead.
CUTS = {
    "inside/deadlines.py": {
        "            elapsed_ns = monotonic_ns() - self._began_ns\n": "",
        "            response, taken = connection.response, connection.reader.taken\n": "            response, taken = None, 0\n",
        "                sent, sending_ns = response.sent, response.sending_ns\n": "                pass\n",
        "            if connection.waiting_ns + sending_ns <= SHORT_WAIT_NS:\n": "            if True:\n",
        "                self.row.end(elapsed_ns, taken, sent)\n": "                self.row.say_idle()\n",
        "                self.row.end_slow(elapsed_ns, connection.waiting_ns, sending_ns, taken, sent)\n": "                pass\n",
        "        job.take_cpu()\n": "",
    },
    "inside/http.py": {("        self.board[self._word] += 1  # by no verb of the row: each request would pay for the call\n"): ""},
}

HELLO = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"hello\\n"]
"""

_ONE_MOUNT = '[mounts]\n"/" = "hello:application"\n'


class _Reader:
    taken = 0


class _Response:
    sent = 6
    sending_ns = 0


class _Connection:
    """What a job reads of one."""

    def __init__(self) -> None:
        self.key = 7
        self.waiting_ns = 0
        self.reader = _Reader()
        self.response: object = sentinel.none


def recording_ns() -> tuple[float, float]:
    """Return what one request costs to record, and what of it was there before there were counters: busy, and which line."""
    board = Scoreboard()
    board.set_mounts(["/"])
    job = Job(0, board.thread_rows(board.allot(1, [0], "own-gil"), [0], 0))
    job.enter()
    words = job.row.words
    connection, response = _Connection(), _Response()
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def request() -> None:
        job.begin(connection, 0, head, time.monotonic_ns())
        connection.response = response
        words[ANSWERED] = BY_APP
        words[RESPONSES + 2] += 1
        job.end()

    def without() -> None:
        job.row.begin(8, head, time.monotonic_ns())
        connection.response = response
        words[ANSWERED] = BY_APP
        words[2] = 0

    number = 100_000
    # In time of this thread on a processor: what other programs take of it meanwhile is none of the recording's.
    timings = (timeit.repeat(what, timer=time.thread_time, number=number, repeat=7) for what in (request, without))
    whole, before = (min(timing) / number * 1e9 for timing in timings)
    return whole, before


def without_counters(folder: Path) -> None:
    """Put a copy of the package there, without what a request pays for."""
    shutil.copytree(CHECKOUT / "isowsgi", folder / "isowsgi", ignore=shutil.ignore_patterns("__pycache__"))
    for name, cuts in CUTS.items():
        path = folder / "isowsgi" / name
        text = path.read_text()
        for line, instead in cuts.items():
            assert text.count(line) == 1, f"{name} has changed: {line!r}"
            text = text.replace(line, instead)
        path.write_text(text)


class Hello:
    """A gunicorn with one hello app, or what a config says, from one of the two packages.

    Args:
        path: where else modules are.
    """

    def __init__(self, folder: Path, package: Path, config: str = _ONE_MOUNT, path: Sequence[Path] = ()) -> None:
        folder.mkdir()
        (folder / "hello.py").write_text(HELLO)
        (folder / "isowsgi.toml").write_text(config)
        log = folder / "log"
        command = [sys.executable, "-m", "gunicorn", "-k", "isowsgi.Worker", "--no-control-socket", "-b", "127.0.0.1:0"]
        # Not this checkout's: `python -m` would put the working directory before PYTHONPATH.
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (package, *path))), "PYTHONSAFEPATH": "1"}
        with open(log, "wb") as output:
            self._process = subprocess.Popen([*command, "isowsgi.toml"], cwd=folder, env=environ, stderr=output)
        end = time.monotonic() + 30
        while "serving" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            assert self._process.poll() is None, log.read_text()
            time.sleep(0.05)
        found = re.search(r"Listening at: (http://\S+)", log.read_text())
        assert found is not None, log.read_text()
        self.url = found[1]

    def requests_per_s(self, seconds: float) -> float:
        command = ["wrk", "-t1", "-c8", f"-d{seconds:g}s", self.url + "/"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = re.search(r"Requests/sec:\s+([\d.]+)", output)
        assert found is not None, output
        return float(found[1])

    def worker(self) -> int:
        """Return its process id."""
        (pid,) = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(pid)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", action="store_true", help="measure a server too (needs wrk)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    whole, before = recording_ns()
    print(f"a request's rows: {whole:.0f} ns, of these {whole - before:.0f} for counters; the limit is {LIMIT_NS} ns")
    good = whole < LIMIT_NS
    if options.server:
        share = _share(options.rounds, options.seconds)
        good = good and share >= LIMIT_SHARE
    return 0 if good else 1


def _share(rounds: int, seconds: float) -> float:
    with tempfile.TemporaryDirectory(prefix="isowsgi-bench-") as name:
        folder = Path(name)
        without_counters(folder / "package")
        servers = {"with": Hello(folder / "with", CHECKOUT), "without": Hello(folder / "without", folder / "package")}
        try:
            figures: dict[str, list[float]] = {name: [] for name in servers}
            for server in servers.values():
                server.requests_per_s(1)
            for turn in range(rounds):
                for name in sorted(servers, reverse=bool(turn % 2)):
                    figures[name].append(servers[name].requests_per_s(seconds))
        finally:
            for server in servers.values():
                server.stop()
    medians = {name: statistics.median(values) for name, values in figures.items()}
    shares = [with_ / without for with_, without in zip(figures["with"], figures["without"], strict=True)]
    share = statistics.median(shares)
    print(f"hello: {medians['with']:,.0f} requests/s with, {medians['without']:,.0f} without; the median of {rounds} pairs is {share:.3f}")
    return share


if __name__ == "__main__":
    raise SystemExit(main())
