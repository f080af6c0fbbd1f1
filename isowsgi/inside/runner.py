"""The runner scheme: of an instance's threads one polls and serves; the others stand by.

Threads awake in one interpreter fight for its GIL, so while requests are short one thread does everything. A standby takes over only
when the runner has been inside one request for about two ticks of the monitor, as Go's sysmon retakes a processor from a thread in a
long system call. Measured on CPython 3.14, 8 connections, 8 threads, requests/s of a hello and a Flask app: all threads polling 12,100 and
5,350; leader/follower 14,700 and 4,900; runner 19,200 and 7,370, as fast as one thread alone.

The baton is a lock held by the one thread that polls. Whoever pops the turn token owns the baton's fate: the runner that comes out of
its request and goes on polling, or the monitor, which releases the baton for a standby. `list.pop` is atomic, so exactly one gets it
and never do two threads poll. Hence also: only the holder of the baton touches connections that are idle.
"""

from __future__ import annotations

import _thread
from collections import deque
from collections.abc import Callable, Iterable


class Runner:
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

    def work(self, poll: Callable[[bool], Iterable[int]], serve: Callable[[int], None]) -> None:
        """Be one of the threads, until `stopping` is set, `poll` was made to return, and nothing is ready any more.

        Args:
            poll: returns the descriptors of connections that are ready, each disarmed; waits for some unless told not to.
            serve: serves one; raises nothing.
        """
        while True:
            self._baton.acquire()
            if not self._run(poll, serve):
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

    def _run(self, poll: Callable[[bool], Iterable[int]], serve: Callable[[int], None]) -> bool:
        """Poll and serve with the baton held; True when it was retaken, False when the instance stops."""
        ready, turn = self._ready, self._turn
        while True:
            if not ready:
                stopping = self.stopping
                ready.extend(poll(not stopping))
                if not ready and stopping:
                    return False
                continue
            fd = ready.popleft()
            turn.append(None)
            self.served += 1
            if self.resting:
                self._rouse()
            serve(fd)
            try:
                turn.pop()
            except IndexError:
                return True
