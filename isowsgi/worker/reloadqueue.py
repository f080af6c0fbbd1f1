"""Loads beside what serves take turns: one mount at a time, and in all workers together no more than half of the cores are busy with it.

Loading takes a processor from all apps that serve, and there are two generations in memory meanwhile. So however many mounts must be
replaced, or are new in a table that is applied, their neighbours notice no more than the load of one. With three workers that loaded one
each, two cores were busy with nothing else, and the neighbours' p99 was twice as long. First boots do not wait: nobody serves their
requests, see `bootqueue`.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from isowsgi.shared.applied import LastApplied

# How long a load keeps others waiting: an app that hangs in its import must not keep them from their new code.
TURN_S = 10.0

# How long a worker waits for the others at most. The kernel frees the place of one that dies, and gunicorn kills one that hangs after 30 s.
_MOST_WAIT_S = 30.0

# How often it looks whether there is a place, while it waits for one.
LOOK_S = 0.02


class Replaceable(Protocol):
    """What is needed of a deployment."""

    def is_replacing(self) -> bool:
        """Whether a new generation is on its way beside what serves."""
        ...

    def go_on(self, now: float) -> None:
        """Ask for its turn once more, if it still has a use for it."""
        ...


class Places:
    """How many workers may load something at a time; all of them see the same.

    Args:
        shared: what the workers share; None: there is nobody to wait for.
        count: of places.
        first: number of the first one.
    """

    def __init__(self, shared: LastApplied | None = None, count: int = 1, first: int = 0) -> None:
        self._shared = shared
        self._count = count
        self._first = first
        self._held: int | None = None

    @property
    def are_shared(self) -> bool:
        return self._shared is not None

    def take(self) -> bool:
        """Return whether the worker has a place; it may have had it before."""
        if self._shared is None or self._held is not None:
            return True
        numbers = range(self._first, self._first + self._count)
        self._held = next((number for number in numbers if self._shared.take_place(number)), None)
        return self._held is not None

    def give_back(self) -> None:
        if self._shared is not None and self._held is not None:
            self._shared.give_place(self._held)
            self._held = None

    def for_ends(self) -> Places:
        """Return the place of the one worker that may free interpreters, see `departures`."""
        return Places(self._shared, 1, self._first + self._count)


class Turns:
    """Who may begin to load, in the order in which they asked.

    Args:
        places: those of all workers.
        look_again: has `pass_on` called once, in `LOOK_S`.
    """

    def __init__(self, places: Places | None = None, look_again: Callable[[], None] = lambda: None) -> None:
        self._places = places or Places()
        self._look_again = look_again
        self._waiting: list[Replaceable] = []
        self._called: Replaceable | None = None  # while it is told to continue
        self._holder: Replaceable | None = None
        self._since = 0.0
        self._waits_since: float | None = None

    def take(self, deployment: Replaceable, now: float) -> bool:
        """Return whether a deployment has its turn and begins at once; if not, it is told to continue when its turn comes."""
        is_next = deployment is self._called or not self._waiting
        if self._is_taken(now) or not is_next or not self._has_place(now):
            if deployment not in self._waiting:
                self._waiting.append(deployment)
            return False
        self._holder, self._since, self._waits_since = deployment, now, None
        return True

    def leave(self, deployment: Replaceable) -> None:
        """Take a deployment out of the line; it no longer needs its turn."""
        if deployment in self._waiting:
            self._waiting.remove(deployment)

    def pass_on(self, now: float) -> None:
        """Tell the next deployment to continue; called when a load may have ended, and about once a second."""
        if self._is_taken(now):
            return
        if self._holder is not None:
            self._holder = None
            self._places.give_back()
            if self._waiting and self._places.are_shared:
                self._look_again()  # another worker may be the next
                return
        try:
            while self._waiting and not self._is_taken(now) and self._has_place(now):
                self._called = self._waiting.pop(0)
                self._called.go_on(now)
        finally:  # else one that failed would have its turn before all others for ever
            self._called = None
            if self._holder is None:
                self._places.give_back()

    def end(self) -> None:
        """Leave the place to other workers: this one stops, and begins nothing any more."""
        self._waiting.clear()
        self._places.give_back()

    def _is_taken(self, now: float) -> bool:
        return self._holder is not None and self._holder.is_replacing() and now - self._since < TURN_S

    def _has_place(self, now: float) -> bool:
        if self._places.take():
            return True
        if self._waits_since is None:
            self._waits_since = now
        if now - self._waits_since < _MOST_WAIT_S:
            self._look_again()
            return False
        return True


def places_at_a_time() -> int:
    """Return in how many workers something may be loaded at a time: half of the cores are left to requests."""
    return max(len(os.sched_getaffinity(0)) // 2, 1)
