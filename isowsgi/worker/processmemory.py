"""How much memory a process has, as the kernel says it: this one's, read often and without a free descriptor, and that of children."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from isowsgi.shared import residentmemory
from isowsgi.shared.interpreters import PROCESS
from isowsgi.worker.slots import Instance

_KIB = 1024

# By how much the memory of a process must have changed before it is measured again.
NEWS_BYTES = 2 * 1024 * 1024

# How long all readings of processes' memory in one tick may take. The kernel counts a PSS page by page: 1 ms for 80 MiB, 22 ms for 1 GiB;
# for a larger process its RSS must do. It is read again if the RSS has changed by NEWS_BYTES, or after so long: siblings share less when
# one ends.
_READING_S, _MOST_COUNTED_BYTES, _OLDEST_READING_S = 0.002, 1 << 30, 60.0

# No process's PSS is read again within so many times as long as it took: 1 % of the acceptor's time.
_READING_PAUSES = 100


def rss_bytes() -> int:
    """Return the memory that this process has."""
    try:
        pages = _pages()
    except (OSError, ValueError, IndexError):  # an app has closed that number; if it has another file by now, that one is not ours to close
        _statm.cache_clear()
        pages = _pages()
    return pages * residentmemory.PAGE_BYTES


def _pages() -> int:
    return int(os.pread(_statm(os.getpid()), 128, 0).split()[1])


@functools.cache
def _statm(pid: int) -> int:
    """Return the descriptor of a process's figures. It stays open: an app may have taken all others when it is read next."""
    return os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)


def rss_mib() -> int:
    return rss_bytes() // (1024 * 1024)


def pss_bytes(pid: int) -> int | None:
    """Return the memory of a child: its own, and its share of what it has in common with others (PSS).

    Where that may not be read (a process that has changed its user, `hidepid`), the whole (RSS); None if that may not be read either, or if
    the process has ended.
    """
    try:
        for line in residentmemory.read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * _KIB
    except (OSError, ValueError, IndexError):
        pass
    return residentmemory.bytes_of(pid)


class _Reading(NamedTuple):
    """Of a process's PSS."""

    size: int
    rss: int  # of the process, then
    at: float
    not_before: float  # the next one


class Processes:
    """Reads what the kernel says of processes."""

    def __init__(self) -> None:
        self._readings: dict[Instance, _Reading] = {}
        self._next = 0

    def read(self, instances: Sequence[Instance]) -> Iterator[None]:
        """Read of some what the kernel says, of one after the other."""
        processes = [each for each in instances if each.isolation == PROCESS and not each.has_gone]
        took_s = 0.0
        for _ in processes:
            self._next = (self._next + 1) % len(processes)
            began, instance = time.thread_time(), processes[self._next]
            if not instance.has_gone:  # since the one before was read
                self._read(instance)
            took_s += time.thread_time() - began
            if took_s > _READING_S:
                return
            yield

    def _read(self, instance: Instance) -> None:
        if instance.group is not None:
            instance.group_use = instance.group.use()
        if instance.pid is not None and (size := self._size_of(instance, instance.pid)) is not None:
            instance.memory = size
            if instance.is_loaded and instance.memory_at_boot < 0:
                instance.memory_at_boot = size

    def _size_of(self, instance: Instance, pid: int) -> int | None:
        """Return how much memory a process has; None: it cannot be read. Between two counts its RSS says what has changed."""
        rss = residentmemory.bytes_of(pid)
        if rss is None or rss > _MOST_COUNTED_BYTES:
            return rss
        began, last = time.monotonic(), self._readings.get(instance)
        if last is not None and (instance.memory_at_boot >= 0 or not instance.is_loaded):
            has_changed = abs(rss - last.rss) > NEWS_BYTES or began - last.at > _OLDEST_READING_S
            if began < last.not_before or not has_changed:
                return max(last.size + rss - last.rss, 0)
        started = time.thread_time()
        if (size := pss_bytes(pid)) is not None:
            not_before = time.monotonic() + _READING_PAUSES * (time.thread_time() - started)
            self._readings[instance] = _Reading(size, rss, began, not_before)
        return size

    def forget(self, alive: set[Instance]) -> None:
        for gone in self._readings.keys() - alive:
            del self._readings[gone]
