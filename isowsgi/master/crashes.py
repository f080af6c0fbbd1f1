"""Whose crash it was: read in gunicorn's master from the scoreboard of a worker that died.

A subinterpreter is no wall against a crash: a segmentation fault or `os._exit` in one app ends the worker and every app in it. What
can be done is to name the app, and to keep one that does it again and again out of the next worker.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from gunicorn.workers.workertmp import WorkerTmp

from isowsgi.configuration import Config, checks
from isowsgi.configuration.faults import Fault
from isowsgi.shared.scoreboard import Scoreboard

# The verdict on a mount that was being loaded when its worker died: the next worker loads it only after a trial in another process.
SUSPECT = "suspect"

# Patterns of those that are remembered.
_MOST_SUSPECTS = 1000


class Ledger:
    """Counts the crashes of each mount, over workers; the master's.

    Args:
        crashes: how many are too many.
        window_s: in what time.
    """

    def __init__(self, crashes: int, window_s: float) -> None:
        self._crashes = crashes
        self._window_s = window_s
        self._times: dict[str, deque[float]] = {}

    def record(self, pattern: str, now: float) -> bool:
        """Note a crash of a mount that was alone in flight; True if it is one too many."""
        times = self._times.setdefault(pattern, deque(maxlen=self._crashes))
        times.append(now)
        return len(times) == self._crashes and now - times[0] <= self._window_s


class CrashReport:
    """Says in the log what a worker was doing when it died, and decides which mount is quarantined.

    Args:
        board: the dead worker's.
        config: what it served.
        verdicts: patterns of mounts that crashed too often, by verdict: "quarantine", "process" or SUSPECT; some are added.
    """

    def __init__(self, board: Scoreboard, config: Config, ledger: Ledger, verdicts: Mapping[str, set[str]], log: Any) -> None:
        self._board = board
        self._config = config
        self._ledger = ledger
        self._verdicts = verdicts
        self._log = log

    def write(self, pid: object) -> str | None:
        """Return the pattern of the mount that is blamed, "" if none is, or None if it was no crash."""
        if self._board.acceptor_row().has_left_cleanly:
            return None
        in_flight = self._board.in_flight()
        mounts = sorted({mount for mount, _ in in_flight})
        if not in_flight:
            self._suspect(pid, [self._name_of(mount) for mount in sorted(set(self._board.loading()))])
            return ""
        requests = "; ".join(f"{self._board.pattern_of(mount)}: {line}" for mount, line in in_flight)
        self._log.error("worker %s died while serving %s", pid, requests)
        if len(mounts) > 1:
            self._log.error(
                "worker %s died with requests of %d mounts in flight; the crash is attributed to none of them", pid, len(mounts)
            )
            return ""
        pattern = self._board.pattern_of(mounts[0])
        mount = next((mount for mount in self._config.mounts if mount.pattern == pattern), None)
        if mount is None:
            return pattern  # it is in no table any more
        is_too_often = self._ledger.record(mount.pattern, time.monotonic())
        if is_too_often and mount.on_crash in self._verdicts:
            self._verdicts[mount.on_crash].add(mount.pattern)
            self._log.error("%s: crashed %d workers; %s", mount.pattern, self._config.limits.crashes, _VERDICTS[mount.on_crash])
        return mount.pattern

    def _name_of(self, mount: int) -> str:
        """Return the pattern of a mount that was being loaded, also of one in a table that was only prepared: it costs a trial at most."""
        claimed = self._board.claimed[mount] if mount < len(self._board.claimed) else ""
        try:
            return str(checks.pattern(claimed))
        except Fault:
            return self._board.pattern_of(mount)

    def _suspect(self, pid: object, loading: list[str]) -> None:
        loading = [pattern for pattern in loading if pattern]
        if not loading:
            self._log.error("worker %s died with no request in flight", pid)
            return
        self._log.error("worker %s died while loading %s; it will be loaded in a trial process first", pid, ", ".join(loading))
        self._verdicts[SUSPECT].update(loading[: max(_MOST_SUSPECTS - len(self._verdicts[SUSPECT]), 0)])


_VERDICTS = {
    "quarantine": "quarantined: it answers 503 until gunicorn reloads (SIGHUP)",
    "process": "it runs in its own process until gunicorn reloads (SIGHUP)",
}


class WatchedTmp(WorkerTmp):  # type: ignore[misc] # gunicorn is not annotated
    """gunicorn's file for a worker's heartbeat. The master closes it once it has reaped the worker: the only sign of that it gives.

    Args:
        on_reaped: called then, in the process that made this object; a forked sibling closes its copy too.
    """

    def __init__(self, cfg: Any, on_reaped: Callable[[], None]) -> None:
        super().__init__(cfg)
        self._maker = os.getpid()
        self._on_reaped = on_reaped

    def close(self) -> None:
        super().close()
        if os.getpid() == self._maker:
            self._on_reaped()
