"""Uses the standard library in one interpreter after another one has ended: what C code keeps for the whole process shows then.

`python -m tests.neighbours [NAME...]` tries each module in a process of its own, in both orders of ending, with each kind of interpreter
that this release has; one line for each that fails, and an exit code. `--together` uses all of them in one process: that takes
seconds, and is what the test suite does.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path

from isowsgi.shared import interpreters
from isowsgi.shared.interpreters import OWN_GIL, SHARED_GIL

# By module: code that uses it.
USES = {
    name: code.strip()
    for name, _, code in (
        part.partition("\n") for part in Path(__file__).with_name("standard_library.txt").read_text(encoding="utf-8").split("\n## ")[1:]
    )
}

# What each interpreter runs; before 3.13 an error's text is all that comes out of it.
_USE = """
import traceback
for name, code in USES:
    try:
        exec(code, {"__name__": name})
    except BaseException:
        raise AssertionError(name + ": " + traceback.format_exc().strip().replace(chr(10), " | ")[-400:]) from None
"""

# Parts of Python that some builds lack: not a finding.
_MAY_BE_MISSING = ("bz2", "lzma", "sqlite3", "ctypes", "_curses", "tomllib")

# One module in one process, six interpreters; most take 0.3 s.
_LIMIT_S = 120.0


class Neighbour:
    """An interpreter with its keeper thread, as a worker has them; runs code when it is told to."""

    def __init__(self, isolation: str) -> None:
        self._isolation = isolation
        self._orders: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._keeper = threading.Thread(target=self._keep)
        self._keeper.start()
        self.run(f"import sys\nfor name in {interpreters.BLOCKED_MODULES!r}:\n    sys.modules[name] = None\nimport threading")

    def run(self, code: str) -> None:
        self._orders.put(code)
        failure = self._answers.get()
        if failure is not None:
            raise AssertionError(failure)

    def end(self) -> None:
        self._orders.put(None)
        self._keeper.join()

    def _keep(self) -> None:
        handle = interpreters.create(self._isolation)
        while (code := self._orders.get()) is not None:
            self._answers.put(interpreters.run(handle, code))
        interpreters.destroy(handle)


def try_out(names: Iterable[str], isolation: str) -> None:
    """Use modules beside a neighbour that ends, the older one and the younger one; raise if that is noticed."""
    interpreters.preload()
    code = f"USES = {[(name, USES[name]) for name in names]!r}\n{_USE}"
    for ends_first in (0, 1):
        pair = [Neighbour(isolation), Neighbour(isolation)]
        for neighbour in pair:
            neighbour.run(code)
        pair.pop(ends_first).end()
        [left] = pair
        left.run(code)
        late = Neighbour(isolation)
        late.run(code)
        left.end()
        late.run(code)
        late.end()


def kinds() -> list[str]:
    """Return the kinds of interpreters that this release has."""
    return [SHARED_GIL] if interpreters.own_gil_error() else [OWN_GIL, SHARED_GIL]


def main() -> int:
    names = [name for name in sys.argv[1:] if not name.startswith("--")]
    if "--child" in sys.argv:
        isolation, *names = names
        try:
            try_out(names, isolation)
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # keepers still wait for orders
        os._exit(0)
    names = [name for name in names or USES if name not in _MAY_BE_MISSING or _is_here(name)]
    portions = [names] if "--together" in sys.argv else [[name] for name in names]
    failed = 0
    for isolation in kinds():
        for portion in portions:
            command = [sys.executable, "-m", "tests.neighbours", "--child", isolation, *portion]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
                code, output = done.returncode, done.stderr.strip()
            except subprocess.TimeoutExpired:
                code, output = -1, "no end"
            if code:
                failed += 1
                print(f"{isolation}: {' '.join(portion)[:60]}: exit code {code}: {' | '.join(output.splitlines()[-4:])}", flush=True)
    print(f"{interpreters.version_text()}: {len(portions)} x {', '.join(kinds())}: {failed} failed")
    return min(failed, 99)


def _is_here(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
