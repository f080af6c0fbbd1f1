"""The load in a process of its own, so that its work and its pauses are not those of the process that measures.

    python -m soak.load PORT SEED [MOUNT ...]

With mounts, it is a light load on these; without, the soak's. Both sides speak JSON, a line each. In:
`{"arrived": [mount, worker, generation, at]}`; `{"phase": "quiet 1"}`, by which times are told apart; `{"rename": ["quiet 1", "quiet"]}`,
which counts those of one phase with another; `{"stop": true}`. The end of the input ends the process at once. Out: once a second the
counts, each thing that is no ordinary answer, and at last "end".
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from soak.clients import Account, Arrivals, Shared, crowd, light
from soak.site import LAZY, MOUNTS, PROCESSES

ROOT = Path(__file__).parent.parent

# How long the clients may take to end their requests once told to stop: the longest wait for a byte, and some.
_END_S = 120.0

# How often the process looks whether it runs at all.
_TICK_S = 0.1


class Load:
    """The process as its parent sees it.

    Args:
        on_event: takes what it says, on a thread of its own.
        mounts: to put a light load on; none: it is the soak's load.
    """

    def __init__(self, port: int, seed: int, on_event: Callable[[dict[str, Any]], None], mounts: Sequence[str] = ()) -> None:
        self._on_event = on_event
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "soak.load", str(port), str(seed), *mounts],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            process_group=0,  # Ctrl-C is for the parent, which ends it
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def tell_arrival(self, mount: str, worker: int, generation: int, at: float) -> None:
        self._say({"arrived": [mount, worker, generation, at]})

    def begin_phase(self, name: str) -> None:
        self._say({"phase": name})

    def rename_phase(self, old: str, new: str) -> None:
        self._say({"rename": [old, new]})

    def stop(self) -> bool:
        """Let every client end its request; False if the process did not end well."""
        self._say({"stop": True})
        self._reader.join(_END_S)
        is_well = not self._reader.is_alive()
        self.kill()
        return is_well and self._process.returncode == 0

    def kill(self) -> None:
        try:
            self._process.wait(1.0 if not self._reader.is_alive() else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        with self._lock:
            self._output.close()
            with contextlib.suppress(OSError):  # what was not read any more
                self._input.close()

    def _say(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            try:
                self._input.write(json.dumps(message) + "\n")
            except (OSError, ValueError):  # it ended; whoever waits for it will see
                return

    def _read(self) -> None:
        for line in self._output:
            self._on_event(json.loads(line))


# The process itself.


def main(arguments: Sequence[str]) -> int:
    port, seed = map(int, arguments[:2])
    mounts = arguments[2:]
    output = threading.Lock()

    def tell(event: Mapping[str, Any]) -> None:
        with output:
            print(json.dumps(event), flush=True)

    account, arrivals, stop = Account(tell), Arrivals(), threading.Event()
    shared = Shared(
        address=("127.0.0.1", port),
        mounts=mounts or MOUNTS,
        processes=[mount for each in PROCESSES.values() for mount in each],
        lazy=LAZY,
        account=account,
        arrivals=arrivals,
        stop=stop,
    )
    threads = [threading.Thread(target=client.run) for client in (light if mounts else crowd)(shared, seed)]
    threading.Thread(target=_listen, args=(account, arrivals, stop), daemon=True).start()
    threading.Thread(target=_watch_for_stalls, args=(account,), daemon=True).start()
    for thread in threads:
        thread.start()
    while not stop.wait(1.0):
        tell({"event": "counts", "at": time.monotonic(), "counts": account.counts()})
    for thread in threads:
        thread.join()
    tell(
        {
            "event": "end",
            "at": time.monotonic(),
            "counts": account.counts(),
            "small": account.latencies(),
            "phases": account.latencies_by_phase(),
            "stall_s": account.longest_stall_s(),
        }
    )
    return 0


def _listen(account: Account, arrivals: Arrivals, stop: threading.Event) -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "arrived" in message:
            arrivals.add(*message["arrived"])
        if "phase" in message:
            account.phase = message["phase"]
        if "rename" in message:
            account.rename_phase(*message["rename"])
        if "stop" in message:
            stop.set()
            return
    os._exit(1)  # the parent is gone


def _watch_for_stalls(account: Account) -> None:
    """Sleep and notice when nothing here runs: virtual machines stand still for seconds now and then, and so do busy ones."""
    last = time.monotonic()
    while True:
        time.sleep(_TICK_S)
        now = time.monotonic()
        if now - last > 2 * _TICK_S:
            account.note_stall(now, now - last - _TICK_S)
        last = now


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
