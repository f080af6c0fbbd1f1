"""What `isowsgi profile` costs: `python -m bench.profiles [--rounds 7] [--seconds 2] [--only own-gil]`. Needs wrk, and Flask.

An app and a neighbour in each isolation, with one connection that asks without a pause. Rounds with a profile of the app (100 samples a
second, by request) and without take turns, and each figure is the median of the ratios of two that follow one another: of the requests
per second of the app that is profiled, and of its neighbour's, while the app that is profiled gets 100 requests a second. Beside it: what
the control threads, which take the samples, use of a processor for each second that is profiled, and what they use without. That says more
than the rates on a machine that has other things to do; it needs CPython 3.14, which tells the kernel how threads are called.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from bench.tls import wrk
from isowsgi.cli import client
from isowsgi.cli.answers import Told
from isowsgi.shared import controlmessages, interpreters
from isowsgi.shared.interpreters import OWN_GIL, PROCESS, SHARED_GIL
from tests.conftest import Server, running_server
from tests.load import asked

APPS = {"hello": "hello", "flask": "profiled_flask:app"}

FILES = {"profiled_flask.py": 'import flask\napp = flask.Flask(__name__)\n\n@app.route("/")\ndef hello():\n    return "hello"\n'}

CONFIG = (
    '[control]\nfolder = "control"\n[defaults]\nisolation = "{isolation}"\nthreads = 2\n[mounts]\n"/app" = "{app}"\n"/other" = "{app}"\n'
)

# Of the app that is profiled while its neighbour is measured.
_PAUSE_S = 0.01

# How long a profile lasts beyond what is measured.
_LONGER_S = 1.0


@contextmanager
def profiled(server: Server, seconds: float) -> Iterator[None]:
    """Have the app sampled for as long as the block lasts."""
    places = client.find(str(server.folder / "isowsgi.toml"), None)
    request = controlmessages.Profile(mount="/app", seconds=seconds + _LONGER_S, rate=100, by_request=True)
    told: list[Told[controlmessages.MountProfile]] = []
    thread = threading.Thread(target=lambda: told.extend(client.ask(places, request, seconds + 30)))
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert not any(isinstance(each.answer, controlmessages.Error) for each in told), told


# How their name begins for the kernel, which keeps 15 characters.
_CONTROL = "isowsgi-control"


def control_ns(server: Server) -> int:
    """Return what the control threads of gunicorn's processes have used of a processor (proc(5), schedstat)."""
    pids, total = [server.process.pid], 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # one that ends meanwhile
                pids += map(int, (thread / "children").read_text().split())
                if (thread / "comm").read_text().strip() == _CONTROL:
                    total += int((thread / "schedstat").read_text().split()[0])
    return total


class Ratios:
    """What is left of a path's requests per second with a profile, and what the control threads use of a processor, round by round.

    Attributes:
        costs: milliseconds a second, without and with a profile.
    """

    def __init__(self, server: Server, path: str, rounds: int, seconds: int) -> None:
        self._server, self._url, self._seconds = server, f"http://127.0.0.1:{server.port}{path}", seconds
        self.rates: list[float] = []
        self.costs: tuple[list[float], list[float]] = [], []
        wrk(self._url, 1, 1)
        for number in range(rounds):
            found = {has_profile: self._measure(has_profile) for has_profile in ((True, False) if number % 2 else (False, True))}
            self.rates.append(found[True] / found[False])

    def _measure(self, has_profile: bool) -> float:
        with profiled(self._server, self._seconds) if has_profile else nullcontext():
            began, before = time.monotonic(), control_ns(self._server)
            rate = wrk(self._url, 1, self._seconds)[0]
            used_ns = control_ns(self._server) - before
            self.costs[has_profile].append(used_ns / 1e6 / (time.monotonic() - began))
            return rate

    def __str__(self) -> str:
        rate, low, high = (100 * find(self.rates) for find in (statistics.median, min, max))
        without, used = map(statistics.median, self.costs)
        return f"{rate:5.1f} % of its requests ({low:.1f} to {high:.1f}), control threads {used:.1f} ms/s, without {without:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--only", choices=(OWN_GIL, SHARED_GIL, PROCESS))
    parser.add_argument("--app", choices=tuple(APPS), default="flask")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("bench/profiles.py: not found: wrk", file=sys.stderr)
        return 1
    has_own = interpreters.own_gil_error() is None
    for isolation in (OWN_GIL, SHARED_GIL, PROCESS) if options.only is None else (options.only,):
        if not interpreters.can_profile(isolation, has_own):
            print(f"{isolation:10}  {interpreters.why_not_profiled(isolation)}")
            continue
        config = CONFIG.format(isolation=isolation, app=APPS[options.app])
        with (
            tempfile.TemporaryDirectory(prefix="isowsgi-bench-") as folder,
            running_server(Path(folder), config, files=FILES, wait_for=2) as server,
        ):
            print(f"{isolation:10}  {options.app}: {Ratios(server, '/app/', options.rounds, options.seconds)}", flush=True)
            with asked(server, "/app/", pause_s=_PAUSE_S):
                print(f"{'':10}  its neighbour: {Ratios(server, '/other/', options.rounds, options.seconds)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
