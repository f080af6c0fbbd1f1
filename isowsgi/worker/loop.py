"""The worker's loop: one epoll set, timers, and the containment of all that is called by them. One thread of the main interpreter.

Whatever a callback raises costs that one call: it is logged with its traceback and counted, and the loop continues. A descriptor whose
callback has failed is left alone for a second, for its event would come again at once. Only an epoll set that cannot be polled ends the
loop.
"""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable

from isowsgi.shared.containment import Containment

# How long a descriptor rests whose callback has failed.
_REST_S = 1.0

# How long timers are called before connections are looked at again; many may be due at the same time.
_MOST_OF_TURN_S = 0.0005

# Events taken out of the set at once.
_MAX_EVENTS = 256


class _Watched:
    """A descriptor that is no connection."""

    __slots__ = ("callback", "events", "is_late", "room", "what")

    def __init__(self, what: str, callback: Callable[[], None], events: int, is_late: bool) -> None:
        self.what = what
        self.callback = callback
        self.events = events
        self.is_late = is_late
        self.room: Callable[[], object] | None = None  # called when something can be written


class Loop:
    """See the module's text.

    Args:
        containment: where what callbacks raise ends.
    """

    def __init__(self, containment: Containment) -> None:
        self.containment = containment
        self.epoll = select.epoll()
        self.wakeups = 0
        self.on_connection: Callable[[int, int], None] = _nobody  # takes the events of descriptors that are not watched
        self._watched: dict[int, _Watched] = {}
        self._timers: list[tuple[float, int, float, str, Callable[[], object]]] = []
        self._numbers = itertools.count()  # so that timers due at once are called in order
        self._at_the_end: list[tuple[str, Callable[[], object]]] = []

    def watch(
        self, fd: int, callback: Callable[[], None], what: str = "worker", events: int = select.EPOLLIN, is_late: bool = True
    ) -> None:
        """Call back whenever a descriptor that is no connection becomes readable; the callback reads it empty.

        Args:
            what: whose work that is, for the log.
            events: that wake it.
            is_late: whether to call only after the connections' events. A mount that has come up is handed the connections that waited
                for it. An event of one of these, polled before that and looked at after it, would pass for a connection given back, and
                it would have two owners.
        """
        self.epoll.register(fd, events)
        self._watched[fd] = _Watched(what, callback, events, is_late)

    def watch_room(self, fd: int, callback: Callable[[], object] | None) -> None:
        """Call back too whenever something can be written to a descriptor that is watched; None ends that."""
        watched = self._watched.get(fd)
        if watched is None or watched.room is callback:
            return
        if (watched.room is None) != (callback is None):
            watched.events = watched.events & ~select.EPOLLOUT if callback is None else watched.events | select.EPOLLOUT
            try:
                self.epoll.modify(fd, watched.events)
            except OSError:  # it rests just now; `_wake` registers it for these events
                pass
        watched.room = callback

    def unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            try:
                self.epoll.unregister(fd)
            except OSError:  # it rests just now, or is closed
                return

    def every(self, period_s: float, callback: Callable[[], object], what: str = "worker") -> None:
        """Call back at once, and then in this distance."""
        heapq.heappush(self._timers, (time.monotonic(), next(self._numbers), period_s, what, callback))

    def later(self, delay_s: float, callback: Callable[[], object], what: str = "worker") -> None:
        """Call back once."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._numbers), 0.0, what, callback))

    def at_the_end(self, callback: Callable[[], object], what: str = "worker") -> None:
        """Call back at the end of each turn, when no event of it is left to be looked at."""
        self._at_the_end.append((what, callback))

    def turn(self, timeout_s: float) -> None:
        """Wait for events and deal with them, and with what is due.

        Raises:
            OSError, ValueError: the epoll set is broken; nothing can be served any more.
        """
        if self._timers:
            timeout_s = max(min(timeout_s, self._timers[0][0] - time.monotonic()), 0.0)
        call = self.containment.call
        call("loop", self._look_at, self.epoll.poll(timeout_s, _MAX_EVENTS))
        call("loop", self._call_timers)
        for what, callback in self._at_the_end:
            call(what, callback)

    def _look_at(self, events: list[tuple[int, int]]) -> None:
        late = []
        for fd, flags in events:
            self.wakeups += 1
            watched = self._watched.get(fd)
            if watched is None:
                self.containment.call("connection", self.on_connection, fd, flags)
            elif watched.is_late:
                late.append((fd, flags, watched))
            else:
                self._call(fd, flags, watched)
        for fd, flags, watched in late:
            if self._watched.get(fd) is watched:
                self._call(fd, flags, watched)

    def _call(self, fd: int, flags: int, watched: _Watched) -> None:
        good = True
        if flags & select.EPOLLOUT and watched.room is not None:
            good = self.containment.call(watched.what, watched.room)
        if flags & ~select.EPOLLOUT:
            good = self.containment.call(watched.what, watched.callback) and good
        if not good and self._watched.get(fd) is watched:
            self.containment.call(watched.what, self._rest, fd, watched)

    def _rest(self, fd: int, watched: _Watched) -> None:
        self.epoll.unregister(fd)
        self.later(_REST_S, lambda: self._wake(fd, watched), watched.what)

    def _wake(self, fd: int, watched: _Watched) -> None:
        if self._watched.get(fd) is not watched:
            return
        try:
            self.epoll.register(fd, watched.events)
        except OSError:  # no memory just now, or as many descriptors in sets as a user may have
            self.later(_REST_S, lambda: self._wake(fd, watched), watched.what)
            raise

    def _call_timers(self) -> None:
        """Call one that is due, and others as long as there is time; the rest is called in the next turn."""
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, number, period_s, what, callback = heapq.heappop(self._timers)
            if period_s:
                heapq.heappush(self._timers, (now + period_s, number, period_s, what, callback))
            self.containment.call(what, callback)
            if time.monotonic() - now > _MOST_OF_TURN_S:
                return


def _nobody(fd: int, flags: int) -> None:
    raise AssertionError(f"descriptor {fd} is watched by nobody")
