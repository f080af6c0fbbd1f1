"""How much interpreters have grown since they were measured: estimated each second by the pages that their threads have touched.

To look at all objects of an app takes seconds, and then it is as of their begin. What the worker has grown by the kernel knows at once, and
of each thread how many pages it was the first to touch. A leak is made of fresh pages. So what the worker has grown by is divided among the
instances by what their serving threads have touched; none gets more than it has touched, and what other threads have grown by is nobody's.

What is touched may be given back at once, as a large buffer is. The looks at an app's objects say which part it kept, and that part of what
it touches counts from then on. Whatever the estimate, the next look replaces it.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from isowsgi.shared import residentmemory
from isowsgi.worker.slots import Instance

# Where the kernel makes large pages of its own accord, one that is touched may be 512 small ones. Then only the parts are known, and not
# how much anybody has touched at most.
_LARGE_PAGES, _LARGE_PAGE_BYTES = "/sys/kernel/mm/transparent_hugepage/enabled", 512 * residentmemory.PAGE_BYTES

# Less growth of the worker is nobody's: its memory goes up and down by as much.
_LEAST_GROWTH_BYTES = 1024 * 1024

# While there is less, it counts from a new begin after so long, or as soon as it is less than so much a second: who touched much before has
# no part in what comes then.
_WINDOW_S, _LEAST_RATE = 10.0, 64 * 1024

# How many threads are read in one tick, of those that have served since the last one: 64 take a millisecond. The others are next.
_MOST_READINGS = 64

# The least part of what an app touches that counts; and from how much on a look says what was kept of it.
_LEAST_KEPT, _TELLING_BYTES = 1 / 1024, 256 * 1024


class _Thread(NamedTuple):
    """What was last read of one thread."""

    requests: int = 0
    is_busy: bool = False
    faults: residentmemory.Faults | None = None  # None: it has done nothing yet


class _Mark(NamedTuple):
    """A moment from which on an instance's growth is estimated."""

    at: float
    level: int  # the worker's memory
    touched: int  # bytes at most, by the instance's threads
    counted: float  # the same, as far as it counts
    total: float  # the same of all instances


class _Round(NamedTuple):
    """When the look at all its objects began."""

    mark: _Mark
    memory: int  # what it had by the look before; -1: there was none
    touched: int  # bytes since


class _Account:
    """Of one instance.

    Attributes:
        kept: the part of what its threads touch that it keeps.
        told: `touched`, when it was last known that nothing had grown since.
        carried: bytes that it has grown by until its mark.
        since: and since then.
    """

    __slots__ = ("carried", "counted", "kept", "round", "since", "threads", "told", "touched")

    def __init__(self) -> None:
        self.threads: dict[int, _Thread] = {}
        self.touched = self.told = self.carried = self.since = 0
        self.counted, self.kept = 0.0, 1.0
        self.round: _Round | None = None


class FreshPages:
    """Keeps `Instance.grown` of one worker's interpreters."""

    def __init__(self) -> None:
        self._accounts: dict[Instance, _Account] = {}
        self._marks: dict[Instance, _Mark] = {}  # of those that have touched something lately
        self._total = 0.0  # bytes that count, of all instances
        self._requests: Mapping[Instance, int] = {}  # at the last tick
        self._level: int | None = None  # then
        self._page_bytes = _most_page_bytes()
        self._waiting: dict[Instance, None] = {}  # whose threads shall be read, who waits longest first

    def tick(self, requests: Mapping[Instance, int], level: int, now: float) -> None:
        """Read the threads of those that have served, and estimate.

        Args:
            requests: that each instance has begun to serve.
            level: the worker's memory, without what loads and ends of interpreters have changed.
        """
        before = _Mark(now, level if self._level is None else self._level, 0, 0.0, self._total)
        self._waiting |= dict.fromkeys(each for each, count in requests.items() if self._requests.get(each) != count)
        self._requests, self._level = requests, level
        readings, waiting, self._waiting = 0, list(self._waiting), {}
        for place, instance in enumerate(waiting):
            if readings >= _MOST_READINGS:
                self._waiting = {**dict.fromkeys(waiting[place:]), **self._waiting}
                break
            if instance in requests:
                account = self._accounts.setdefault(instance, _Account())
                touched, counted = account.touched, account.counted
                readings += self._read(instance, account)
                if account.touched != touched and instance not in self._marks:
                    self._marks[instance] = before._replace(touched=touched, counted=counted)
                if any(thread.is_busy for thread in account.threads.values()):
                    self._waiting[instance] = None
        for instance, mark in list(self._marks.items()):
            self._estimate(instance, mark, level, now)

    def begin(self, instance: Instance, level: int, now: float) -> None:
        """Take in that the look at all objects of an instance begins."""
        account = self._accounts.setdefault(instance, _Account())
        self._read(instance, account)
        memory = instance.memory if instance.memory_at_boot >= 0 else -1
        account.round = _Round(self._mark(account, level, now), memory, account.touched - account.told)

    def see(self, instance: Instance, size: int) -> None:
        """Take in what is known of an instance in the midst of that look."""
        if (account := self._accounts.get(instance)) is not None:
            account.carried -= size - instance.memory  # it was among what it was estimated to have grown by
            instance.grown = max(account.carried + account.since, 0)
        instance.memory = size

    def settle(self, instance: Instance, size: int, known: int, level: int, now: float) -> None:
        """Take in what an instance has, by all its objects; what it has grown by since the look began may be among it or not.

        Args:
            known: bytes that it has grown by since, and that are among it.
        """
        account = self._accounts.setdefault(instance, _Account())
        self._read(instance, account)
        estimate = size
        if instance.memory >= 0:
            estimate = instance.memory + account.carried + self._since(account, self._marks.get(instance), level)
        most, begin = 0, account.round
        if begin is not None:
            if begin.memory >= 0 and begin.touched >= _TELLING_BYTES:
                account.kept = min(max((size - begin.memory) / begin.touched, _LEAST_KEPT), 1.0)
            kept = int(account.kept * (account.touched - begin.mark.touched))
            most = max(min(self._since(account, begin.mark, level), kept) - known, 0)
        instance.memory = size
        instance.grown = account.carried = min(max(estimate - size, 0), most)
        account.since, account.told, account.round = 0, account.touched, None
        self._marks[instance] = self._mark(account, level, now)

    def forget(self, alive: set[Instance]) -> None:
        for gone in self._accounts.keys() - alive:
            del self._accounts[gone]
            self._marks.pop(gone, None)

    def _read(self, instance: Instance, account: _Account) -> int:
        """Take in what an instance's threads have touched since they were last read; return how many were."""
        is_new, fresh, readings = not account.threads, 0, 0
        for number, thread in enumerate(instance.serving_threads()):
            last = account.threads.get(number, _Thread())
            is_first = is_new and not number  # the thread that has loaded the app: what it touched for that is no growth
            if thread.requests == last.requests and not (thread.is_busy or last.is_busy or is_first):
                continue
            readings += 1
            if (faults := residentmemory.faults_of(thread.native_id)) is None:
                continue
            if last.faults is None or last.faults.start == faults.start:
                fresh += max(faults.pages - (last.faults.pages if last.faults else 0), 0) * (not is_first)
            account.threads[number] = _Thread(thread.requests, thread.is_busy, faults)
        account.touched += fresh * self._page_bytes
        account.counted += fresh * self._page_bytes * account.kept
        self._total += fresh * self._page_bytes * account.kept
        return readings

    def _mark(self, account: _Account, level: int, now: float) -> _Mark:
        return _Mark(now, level, account.touched, account.counted, self._total)

    def _since(self, account: _Account, mark: _Mark | None, level: int) -> int:
        """Return an instance's part of what the worker has grown by since a moment."""
        if mark is None or account.counted == mark.counted:
            return 0
        part = max(level - mark.level, 0) * (account.counted - mark.counted) / (self._total - mark.total)
        return min(int(part), account.touched - mark.touched)

    def _estimate(self, instance: Instance, mark: _Mark, level: int, now: float) -> None:
        account = self._accounts[instance]
        is_growth = level - mark.level >= _LEAST_GROWTH_BYTES
        account.since = self._since(account, mark, level) if is_growth else 0
        instance.grown = max(account.carried + account.since, 0)
        passed_s = now - mark.at
        if not is_growth and (passed_s > _WINDOW_S or level - mark.level <= passed_s * _LEAST_RATE):
            account.told = account.touched
            if account.touched == mark.touched:
                del self._marks[instance]
            else:
                self._marks[instance] = self._mark(account, level, now)


def _most_page_bytes() -> int:
    try:
        return _LARGE_PAGE_BYTES if b"[always]" in residentmemory.read(_LARGE_PAGES) else residentmemory.PAGE_BYTES
    except OSError:
        return residentmemory.PAGE_BYTES
