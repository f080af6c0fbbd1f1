"""Requests that end just when they time out: does each client get an answer of its own, and is nobody interrupted for another?

The command runs it for minutes, in each isolation: `python -m tests.race --minutes 10`; the suite for seconds.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from isowsgi.shared import interpreters
from tests.apps.ends_at_the_limit import LIMIT_S
from tests.conftest import Server, running_server

ISOLATIONS = tuple(dict.fromkeys([interpreters.best_isolation(), interpreters.SHARED_GIL, interpreters.PROCESS]))

CONFIG = """
[mounts]
"/" = { app = "ends_at_the_limit", request_timeout = LIMIT, threads = 8, isolation = "ISOLATION" }
"""


class Race:
    """Clients of a server with the config above; half of what they ask for ends about when it times out.

    Attributes:
        counts: answers by status and by whether the request was long; what a client saw of a connection that was cut off.
        wrong: what must not be, one line each.
    """

    def __init__(self, server: Server, clients: int, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._server = server
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(random.Random(seed + number), number)) for number in range(clients)]

    def run(self, seconds: float) -> None:
        for thread in self._threads:
            thread.start()
        time.sleep(seconds)
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        self.wrong += [line for line in self._server.log().splitlines() if "WRONGLY" in line or "internal error" in line]

    def _ask(self, rng: random.Random, client: int) -> None:
        sock = None
        number = 0
        while not self._is_over.is_set():
            if sock is None:
                sock = self._server.connect()
            number += 1
            is_long = rng.random() < 0.5
            took = LIMIT_S * rng.uniform(0.85, 1.6) if is_long else rng.choice([0, 0, 0.001, 0.01])
            how = rng.choice(["spin", "sleep", "nap"]) if is_long else "nap"
            sent = time.monotonic()
            name = f"{took:.4f},{how},{sent!r},{client}.{number}"
            may_end = partial(self._may_end, sent)
            sock.sendall(f"GET /?{name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            status: int | str
            try:
                with HTTPResponse(sock, method="GET") as response:
                    response.begin()
                    status, body, is_kept = response.status, response.read(), not response.will_close
                    what = self._judge(name, may_end(), response.status, body)
            except (HTTPException, OSError, ValueError) as exc:
                # A thread that has claimed the status may be cut off before it has sent it.
                status, is_kept, what = f"none ({type(exc).__name__})", False, ""
                if not may_end() or not isinstance(exc, (ConnectionError, HTTPException)):
                    what = f"no answer: {exc!r}"
            with self._lock:
                self.counts[f"{'long' if is_long else 'short'}: {status}"] += 1
                if what:
                    self.wrong.append(f"{name}: {what}")
            if not is_kept:
                sock.close()
                sock = None
        if sock is not None:
            sock.close()

    @staticmethod
    def _may_end(began: float) -> bool:
        """Whether a request has lasted so long that it may time out: on a busy machine a short one may, too."""
        return time.monotonic() - began >= 0.9 * LIMIT_S

    @staticmethod
    def _judge(name: str, may_end: bool, status: int, body: bytes) -> str:
        """Return what is wrong with an answer.

        Args:
            may_end: whether it has lasted so long that it may have timed out.
        """
        if status == 200:
            return "" if body == name.encode() else f"another's body: {body!r}"
        if status == 504 and may_end:
            return "" if body == b"504 Gateway Timeout\n" else f"the body of a 504: {body!r}"
        return f"status {status}: {body!r:.200}"


def race(folder: Path, isolation: str, seconds: float, seed: int, clients: int = 12) -> Race:
    with running_server(folder, CONFIG.replace("ISOLATION", isolation).replace("LIMIT", str(LIMIT_S))) as server:
        found = Race(server, clients, seed)
        found.run(seconds)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.race", description=__doc__.splitlines()[0])
    parser.add_argument("isolations", nargs="*", choices=[*ISOLATIONS, []], help=f"of {', '.join(ISOLATIONS)}; all if none is given")
    parser.add_argument("--minutes", type=float, default=1.0, help="in each isolation")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    failed = 0
    for isolation in options.isolations or ISOLATIONS:
        with tempfile.TemporaryDirectory() as folder:
            found = race(Path(folder), isolation, options.minutes * 60, options.seed)
        failed += bool(found.wrong)
        print(f"{isolation}: {dict(sorted(found.counts.items()))}; {len(found.wrong)} wrong", *found.wrong[:20], sep="\n  ", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
