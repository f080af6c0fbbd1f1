"""The runner scheme: of an instance's threads one polls and serves; the others stand by.

Threads awake in one interpreter fight for its GIL, so while requests are short one thread does everything. A standby takes over only
when the runner has been inside one request for about two ticks of the monitor, as Go's sysmon retakes a processor from a thread in a
long system call. Measured on CPython 3.14, 8 connections, 8 threads, requests/s of a hello and a Flask app: all threads polling 12,100 and
5,350; leader/follower 14,700 and 4,900; runner 19,200 and 7,370, as fast as one thread alone.

The baton is a lock held by the one thread that polls. Whoever pops the turn token owns the baton's fate: the runner that comes out of
its request and goes on polling, or the monitor, which releases the baton for a standby. `list.pop` is atomic, so exactly one gets it
and never do two threads poll. Hence also: only the holder of the baton touches connections that no request is served on, and parts
from any.
"""

from __future__ import annotations

import _thread
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

C = TypeVar("C")


class Source(Protocol[C]):
    """Where the work comes from; see `serve.Service`."""

    def poll(self, wait: bool) -> Iterable[int]:
        """Return descriptors of connections that are ready, none of them twice before it is settled; wait for some if asked to."""

    def serve(self, fd: int) -> C:
        """Serve one request; raises nothing."""

    def settle(self, connection: C) -> None:
        """Let a connection wait for its next request, or part from it; under the baton."""

    def settle_later(self, connection: C) -> None:
        """Have the holder of the baton settle a connection."""


class Runner(Generic[C]):
    """The threads' shared state.

    Args:
        rouse: wakes the monitor; called when a request begins while it rests.
    """

    def __init__(self, rouse: Callable[[], None]) -> None:
        self._rouse = rouse
        self._baton = _thread.allocate_lock()
        self._turn: list[None] = []
        self._ready: deque[int] = deque()
        self.served = 0  # requests begun so far; the monitor compares it between ticks
        self.resting = True  # whether the monitor sleeps until it is roused
        self.stopping = False

    @property
    def in_request(self) -> bool:
        """Whether the holder of the baton is inside a request."""
        return bool(self._turn)

    def work(self, source: Source[C]) -> None:
        """Be one of the threads, until `stopping` is set, the source's poll was made to return, and nothing is ready any more."""
        while True:
            self._baton.acquire()
            if not self._run(source):
                self._baton.release()
                return

    def retake(self) -> bool:
        """Let a standby poll while the runner's request goes on; False if the request has just ended."""
        try:
            self._turn.pop()
        except IndexError:
            return False
        self._baton.release()
        return True

    def shed(self, source: Source[C], judge: Callable[[deque[int]], None]) -> None:
        """Look through the connections that wait while all threads are busy; without effect while one polls.

        Args:
            judge: takes those ready, longest waiting first, and removes those that shall not be served; it owns what it removes.
        """
        if self._baton.acquire(blocking=False):
            try:
                self._ready.extend(source.poll(False))
                judge(self._ready)
            finally:
                self._baton.release()

    def _run(self, source: Source[C]) -> bool:
        """Poll and serve with the baton held; True when it was retaken, False when the instance stops."""
        ready, turn, serve, settle = self._ready, self._turn, source.serve, source.settle
        while True:
            if not ready:
                stopping = self.stopping
                ready.extend(source.poll(not stopping))
                if not ready and stopping:
                    return False
                continue
            fd = ready.popleft()
            turn.append(None)
            self.served += 1
            if self.resting:
                self._rouse()
            connection = serve(fd)
            try:
                turn.pop()
            except IndexError:
                source.settle_later(connection)
                return True
            settle(connection)
