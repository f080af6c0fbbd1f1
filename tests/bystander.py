"""Tells whether this machine stood still: what a test measured at such a time says nothing about a server."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import ParamSpec

# Tests whose subject has a time limit of about a second ask that nothing stops for so long, in seconds.
STOP_S = 0.25

# How often a disturbed test is tried.
_TRIES = 3

P = ParamSpec("P")


class Bystander:
    """A thread that only sleeps and so notices when nothing here runs: a delay at such a time says nothing about a server.

    Virtual machines stand still for seconds now and then, and so do a session's processes on a machine with many busy ones.

    Attributes:
        longest_s: the longest time that it was kept from running, once the block is left.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._end.wait(0.02):
            now = time.monotonic()
            self.longest_s, last = max(self.longest_s, now - last), now


def again_if_disturbed(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test again that failed, if nothing ran here for a while meanwhile; for limits of a second or so, on either side.

    A failure without such a stop is a failure at once, and so is the third. The test has to start servers of its own, by `serve`.
    """

    @functools.wraps(test)
    def run(*args: P.args, **options: P.kwargs) -> None:
        for tries_left in reversed(range(_TRIES)):
            with Bystander() as bystander:
                try:
                    return test(*args, **options)
                except BaseException as exc:  # pytest's own failures are no Exceptions
                    failure = exc
            if bystander.longest_s < STOP_S or not tries_left or isinstance(failure, KeyboardInterrupt):
                raise failure
        raise AssertionError("the last try has returned or raised")

    return run
