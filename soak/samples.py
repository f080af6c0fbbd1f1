"""Descriptors, threads and memory of the server's processes, once in a while."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from soak.site import Process, Site, rss_mib

# How long a process may be without its parent before it counts as an orphan; the kernel kills a worker's child at the worker's end.
_ORPHAN_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one process has."""

    pid: int
    started: int  # by which it differs from an earlier one with the same number
    age_s: float
    descriptors: int
    threads: int
    rss_mib: float

    @classmethod
    def of(cls, process: Process) -> Figures | None:
        """Return a process's figures; None if it has just ended."""
        try:
            return cls(
                pid=process.pid,
                started=process.started,
                age_s=round(process.age_s, 1),
                descriptors=len(os.listdir(f"/proc/{process.pid}/fd")),
                threads=len(os.listdir(f"/proc/{process.pid}/task")),
                rss_mib=rss_mib(process.pid),
            )
        except OSError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The server at one moment.

    Attributes:
        at: monotonic seconds.
        orphans: processes whose parent has ended before them, and not just now.
    """

    at: float
    master: Figures
    workers: list[Figures]
    children: list[Figures]
    orphans: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Sampler:
    """Takes samples on a thread of its own until `stop`.

    Args:
        on_mistake: takes the text of an exception of ours.
    """

    def __init__(self, site: Site, every_s: float, on_mistake: Callable[[str], None]) -> None:
        self.samples: list[Sample] = []
        self._site = site
        self._every_s = every_s
        self._on_mistake = on_mistake
        self._lost_since: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:  # else it was interrupted before it was started
            self._thread.join()

    def take(self) -> Sample | None:
        """Take a sample; None if gunicorn has ended."""
        now = time.monotonic()
        processes = self._site.processes()
        by_pid = {process.pid: process for process in processes}
        if (master := by_pid.get(self._site.master)) is None or (figures := Figures.of(master)) is None:
            return None
        # A worker's children may have children: a trial, or the interpreter that a wrapper script starts.
        lost = {process.pid for process in processes if process.parent not in by_pid and process is not master}
        self._lost_since = {pid: self._lost_since.get(pid, now) for pid in lost}
        return Sample(
            at=now,
            master=figures,
            workers=[found for process in processes if process.parent == master.pid and (found := Figures.of(process))],
            children=[
                found
                for process in processes
                if process.parent in by_pid and process.parent != master.pid and (found := Figures.of(process))
            ],
            orphans=sum(now - since > _ORPHAN_S for since in self._lost_since.values()),
        )

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._every_s):
                if (sample := self.take()) is None:
                    return
                self.samples.append(sample)
        except Exception as exc:
            self._on_mistake(f"{type(exc).__name__} in the taking of samples: {exc}")
