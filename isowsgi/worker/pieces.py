"""Long work of the acceptor's thread, in pieces: some of them at a time, and a pause after each step, in which requests are routed.

A step that is long holds up more than the requests that come meanwhile. It keeps a core, and the main interpreter's GIL, from the threads
that serve: the kernel looks once in some milliseconds whether another one should run. A pause gives both away.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

# CPU time after which a step ends: half of what a request takes in all.
STEP_S = 0.0005

# How long a pause is at least; the loop waits for whole milliseconds.
PAUSE_S = 0.002


class Later(Protocol):
    """Calls back once, see `Loop.later`."""

    def __call__(self, delay_s: float, callback: Callable[[], object], what: str = ..., /) -> None: ...


class Pieces:
    """One work at a time: an iterator, each item of which is a piece that has been done.

    Args:
        what: whose work it is, for the log.
        later: None until there is a loop: then all is done at once.
        clock: CPU seconds of this thread.
    """

    def __init__(self, what: str, later: Later | None = None, clock: Callable[[], float] = time.thread_time) -> None:
        self._what = what
        self._later = later
        self._clock = clock
        self._work: Iterator[object] | None = None
        self._is_planned = False

    def start(self, later: Later) -> None:
        """Have a loop from now on."""
        self._later = later

    @property
    def is_under_way(self) -> bool:
        return self._work is not None

    def begin(self, work: Iterator[object], at_once: bool = False) -> None:
        """Do a work after a pause; what is left of the one before is done first, at once.

        Args:
            at_once: whether the first step comes before the pause: a short work is over then, and the loop need not wake up again for it.
        """
        is_late = self.is_under_way
        self.finish()
        self._work = work
        if at_once and not is_late and self._later is not None:
            self._step()
        else:
            self._go_on()

    def finish(self) -> None:
        """Do what is left, at once."""
        for _ in self._take():
            continue

    def drop(self) -> None:
        """Leave undone what is left."""
        self._work = None

    def _take(self) -> Iterator[object]:
        work, self._work = self._work, None  # so nothing is left of it if a piece fails
        return iter(()) if work is None else work

    def _go_on(self) -> None:
        if self._later is None:
            self.finish()
        elif not self._is_planned:
            self._is_planned = True
            self._later(PAUSE_S, self._as_planned, self._what)

    def _as_planned(self) -> None:
        self._is_planned = False
        self._step()

    def _step(self) -> None:
        work, until = self._take(), self._clock() + STEP_S
        for _ in work:
            if self._clock() >= until:
                self._work = work
                self._go_on()
                return
