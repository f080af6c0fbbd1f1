"""Boots take turns: at most as many instances are loaded at a time as there are cores, so that each is done before its `boot_timeout`.

Loading an app is mostly work for a processor. Twenty apps at once on two cores took each twenty times as long; all timed out together,
and tried again together, for ever. So they wait in a line, in the order of the config file, and the time of a boot begins with its turn.
The second of a mount's `instances` waits behind the other mounts. Mounts for which requests wait are first. An app that waits for
something while it is loaded, as a database, keeps no core busy: while half of the machine is idle, one more is let in each second. A mount
on trial has no place: trials have a limit of their own, and apps without one would wait for them.

Replacements do not wait here: they have a queue of their own, see `reloadqueue`. On the acceptor's thread; nothing
here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

# Share of the machine's time that is idle when one more may begin. Not what this worker leaves: others may keep the cores from it.
_IDLE_SHARE = 0.5

# How long a boot keeps others waiting: one without a `boot_timeout` may never end.
_LONGEST_TURN_S = 60.0

# How often the log says how far it is, while some wait.
_TELL_S = 10.0


class Loading(Protocol):
    """What is needed of a deployment's slots."""

    def booting(self) -> int:
        """Return how many instances are being loaded."""
        ...


class Bootable(Protocol):
    """What is needed of a deployment."""

    name: str

    @property
    def slots(self) -> Loading:
        """Where its instances are."""
        ...

    def start(self, now: float) -> None:
        """Ask for its turn once more, if it still has a use for it."""
        ...


class Boots:
    """The line of one worker.

    Args:
        most: boots at a time, while they keep the cores busy.
        log: gunicorn's logger.
        call: calls a function and contains what it raises, see `Containment.call`.
        times: returns how long the machine's cores have been idle so far, and how long they have been there, in any unit.
    """

    def __init__(self, most: int, log: Any, call: Callable[..., object], times: Callable[[], tuple[int, int]]) -> None:
        self._most = most
        self._log = log
        self._call = call
        self._times = times
        self._waiting: list[Bootable] = []
        self._hurried: set[Bootable] = set()  # those of them that are first: requests wait for these
        self._loading: dict[Bootable, float] = {}  # since when
        self._called: Bootable | None = None  # while it is told to start
        self._let_in = 0  # how many more than `most`, as the cores are idle
        self._looked: tuple[int, int] | None = None  # what `times` said at the last look
        self._told_at = 0.0
        self._done = 0

    def take(self, deployment: Bootable, now: float) -> bool:
        """Return whether a deployment may load one instance at once; if not, it is told to start when it may."""
        if deployment is self._called or (not self._waiting and self._has_room(now)):
            self._called = None  # for one instance
            self._loading[deployment] = now
            return True
        if deployment not in self._waiting:
            self._waiting.append(deployment)
            if len(self._waiting) == 1:
                self._told_at = now
        return False

    def hurry(self, deployment: Bootable) -> None:
        """Let one that waits come before those that nobody asks for: a request waits for it.

        Not before others for which a request waits: a mount whose clients all wait is not asked for again, and would never have its turn
        while others are.
        """
        if deployment in self._waiting and deployment not in self._hurried:
            self._waiting.remove(deployment)
            self._waiting.insert(len(self._hurried), deployment)
            self._hurried.add(deployment)

    def leave(self, deployment: Bootable) -> None:
        """Take a deployment out of the line; it no longer needs its turn."""
        if deployment in self._waiting:
            self._waiting.remove(deployment)
        self._hurried.discard(deployment)

    def pass_on(self, now: float) -> None:
        """Tell who is next to start; called when a boot may have ended, and about once a second."""
        while self._has_room(now) and self._waiting:
            self._called = self._waiting[0]
            self.leave(self._called)
            self._call(f"{self._called.name}: its turn to be loaded", self._called.start, now)
            self._called = None
        if not self._waiting:
            self._let_in = 0

    def tick(self, now: float) -> None:
        """Let one more in if the cores are idle; about once a second."""
        if not self._waiting:
            self._looked = None
            return
        before, self._looked = self._looked, self._times()
        if before is not None and self._looked[1] > before[1]:
            share = (self._looked[0] - before[0]) / (self._looked[1] - before[1])
            self._let_in += share >= _IDLE_SHARE
        self.pass_on(now)
        if self._waiting and now - self._told_at >= _TELL_S:
            self._told_at = now
            names = ", ".join(deployment.name for deployment in self._loading)
            self._log.info("loading %s; %d mounts wait for their turn, %d are done", names, len(self._waiting), self._done)

    def _has_room(self, now: float) -> bool:
        for deployment, since in list(self._loading.items()):
            if not deployment.slots.booting():
                self._done += deployment not in self._waiting  # else more of its instances are to come
                del self._loading[deployment]
            elif now - since > _LONGEST_TURN_S:
                del self._loading[deployment]
        return sum(deployment.slots.booting() for deployment in self._loading) < self._most + self._let_in


def boots_at_a_time(workers: int) -> int:
    """Return how many boots a worker may begin at a time, so that all workers together keep the cores busy."""
    return max(len(os.sched_getaffinity(0)) // max(workers, 1), 1)


def machine_times() -> tuple[int, int]:
    """Return how many ticks all cores together have been idle, and how many there were; both 0 where the kernel does not say."""
    try:
        with open("/proc/stat", "rb") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]  # user, nice, system, idle, iowait, irq, softirq, steal
    except (OSError, ValueError):
        return 0, 0
    return (ticks[3] + ticks[4], sum(ticks)) if len(ticks) > 4 else (0, 0)
