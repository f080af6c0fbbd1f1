"""A re-entrant lock for logging that is given up after a second: an interrupted request may never release it."""

from __future__ import annotations

import _thread
from typing import Any

# How long the lock may be held before it counts as left behind. A line takes microseconds to write, or as long as a full pipe takes to
# empty: then the next one waits for the pipe.
_PATIENCE_S = 1.0


class PatientLock:
    """Stands in for `threading.RLock` where a thread may be interrupted while it holds it, by an exception that others raise in it.

    On CPython 3.14 such an exception may come between a `with` statement's taking the lock and its block, and then nobody gives it back.
    Who has waited for long enough gets another lock, and the one that was left behind is forgotten. What it protects must bear that two
    threads are inside: for a log, two lines at once.
    """

    def __init__(self) -> None:
        self._lock = _thread.RLock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not blocking:
            return self._lock.acquire(False)
        while not self._lock.acquire(timeout=_PATIENCE_S):
            self._lock = _thread.RLock()
        return True

    def release(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:  # it has taken so long that it was forgotten
            return

    def _at_fork_reinit(self) -> None:
        self._lock = _thread.RLock()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: Any) -> None:
        self.release()
