"""The runner scheme: of an instance's threads one polls and serves; the others stand by.

Threads awake in one interpreter fight for its GIL, so while requests are short one thread does everything. A standby takes over only
when the runner has been inside one request for about two ticks of the monitor, as Go's sysmon retakes a processor from a thread in a
long system call. Measured on CPython 3.14, 8 connections, 8 threads, requests/s of a hello and a Flask app: all threads polling 12,100 and
5,350; leader/follower 14,700 and 4,900; runner 19,200 and 7,370, as fast as one thread alone.

The baton is a lock held by the one thread that polls. Each request has a turn, and the thread that first writes down that the turn is its
own decides the baton's fate: the thread that comes out of the request and polls again, another one that does, or the monitor, which
releases the baton for a standby. `dict.setdefault` is atomic, so exactly one gets it and never do two threads poll. Hence also: only the
holder of the baton touches connections that no request is served on, and parts from any.

An app can raise an exception in any thread that it knows (PyThreadState_SetAsyncExc): to end a request that takes too long, mostly, and
sometimes late. Then it comes between any two bytecodes here. So a thread notes what it must know to continue before it acts, in its hand;
a turn can be asked again whose it is; and what the source lost of its events, it gets by `repair`.
"""

from __future__ import annotations

import _thread
import time
from collections import deque
from collections.abc import Callable, Container, Iterable
from typing import Any, Generic, Protocol, TypeVar

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

    def abandon(self, fd: int) -> C | None:
        """End the request that the calling thread was serving, whatever its result; None if the connection is gone."""

    def repair(self, in_service: Container[int]) -> None:
        """Have every connection that no thread serves fire again if it has something to say; under the baton.

        Args:
            in_service: those that others serve.
        """

    def repair_later(self) -> None:
        """Have the holder of the baton do it."""


# How long the baton may be held by a thread that has not said so yet, until that can only be the one which asks.
_UNSAID_S = 1.0


# Disturbances in a row, without a request served between them, from which on a thread sleeps before it continues, and for how many seconds:
# what fails again at once would take a core, and fill the log.
_MOST_AT_ONCE = 3
_PAUSE_S = 0.1


def is_from_outside(exc: BaseException) -> bool:
    """Whether an exception was raised by another thread, as far as it shows: from there comes a class, and so no arguments."""
    return not isinstance(exc, Exception) or not (exc.args or isinstance(exc, (AssertionError, MemoryError, StopIteration)))


class _Hand:
    """What one thread holds."""

    __slots__ = ("disturbance", "disturbances", "fd", "served", "turn")

    def __init__(self) -> None:
        self.fd = -1  # of the connection that it serves
        self.turn: dict[int, Any] | None = None  # its latest; None: it may only have the baton if it has just got it
        self.disturbance: BaseException | None = None
        self.disturbances = 0  # in a row, at the same number of requests served
        self.served = -1

    def has_baton(self) -> bool:
        return self.turn is not None and self.turn.setdefault(0, self) is self


class Runner(Generic[C]):
    """The threads' shared state.

    Args:
        rouse: wakes the monitor; called when a request begins while it rests.
    """

    def __init__(self, rouse: Callable[[], None], on_disturbance: Callable[[BaseException], None] = lambda exc: None) -> None:
        self._rouse = rouse
        self._on_disturbance = on_disturbance
        self._baton = _thread.allocate_lock()
        self._holder: Any = None  # who has said that the baton is his
        self._turn: dict[int, Any] = {0: None}  # the latest; empty while that request is served and nobody has claimed it
        self._hands: list[_Hand] = []
        self._ready: deque[int] = deque()
        self.served = 0  # requests begun so far; the monitor compares it between ticks
        self.resting = True  # whether the monitor sleeps until it is roused
        self.stopping = False

    @property
    def in_request(self) -> bool:
        """Whether the holder of the baton is inside a request."""
        return not self._turn

    def in_service(self) -> set[int]:
        """Return the connections that threads serve, and those that wait for one; for the holder of the baton."""
        return {*(hand.fd for hand in self._hands), *self._ready}

    def work(self, source: Source[C]) -> None:
        """Be one of the threads, until `stopping` is set, the source's poll was made to return, and nothing is ready any more."""
        hand = _Hand()
        self._hands.append(hand)
        while True:
            try:
                while True:
                    try:
                        if hand.disturbance is not None:
                            self._pause(hand)
                            self._recover(source, hand)
                        self._take_turns(source, hand)
                        return
                    except BaseException as exc:
                        hand.disturbance = exc
            except BaseException as exc:  # another one, just there
                hand.disturbance = exc

    def retake(self) -> bool:
        """Let a standby poll while the runner's request runs; False if the request has just ended."""
        mine = object()
        if self._turn.setdefault(0, mine) is not mine:
            return False
        self._holder = None
        self._baton.release()
        return True

    def shed(self, source: Source[C], judge: Callable[[deque[int]], None]) -> None:
        """Look through the connections that wait while all threads are busy; without effect while one polls.

        Args:
            judge: takes those ready, longest waiting first, and removes those that shall not be served; it owns what it removes.
        """
        if self._baton.acquire(blocking=False):
            self._holder = self
            try:
                self._ready.extend(source.poll(False))
                judge(self._ready)
            except BaseException:
                source.repair_later()  # what was polled or judged by then is in nobody's hand
                raise
            finally:
                self._holder = None
                self._baton.release()

    def _take_turns(self, source: Source[C], hand: _Hand) -> None:
        while True:
            if not hand.has_baton():
                hand.turn = None
                self._baton.acquire()
                self._holder = hand
                hand.turn = self._turn = {0: hand}
            if not self._run(source, hand):
                hand.turn = None
                self._baton.release()
                return

    def _run(self, source: Source[C], hand: _Hand) -> bool:
        """Poll and serve with the baton held; True when it was retaken, False when the instance stops."""
        ready, poll, serve, settle = self._ready, source.poll, source.serve, source.settle
        turn: dict[int, Any]
        while True:
            while not ready:
                if not self.stopping:
                    ready.extend(poll(True))
                    continue
                ready.extend(poll(False))
                if not ready:
                    return False
            hand.fd = fd = ready.popleft()
            hand.turn = self._turn = turn = {}
            self.served += 1
            if self.resting:
                self._rouse()
            connection = serve(fd)
            if turn.setdefault(0, hand) is not hand:
                # It was retaken. If the next one is inside a request by now, and nobody has retaken it there, it is this thread's turn.
                turn = self._turn
                if turn.setdefault(0, hand) is not hand:
                    hand.fd = -1
                    source.settle_later(connection)
                    return True
                hand.turn = turn
                self._holder = hand
            hand.fd = -1
            settle(connection)

    def _pause(self, hand: _Hand) -> None:
        """Sleep a little, if a thread gets nothing but exceptions."""
        if hand.served != self.served:
            hand.served, hand.disturbances = self.served, 0
        hand.disturbances += 1
        if hand.disturbances >= _MOST_AT_ONCE:
            time.sleep(_PAUSE_S)

    def _recover(self, source: Source[C], hand: _Hand) -> None:
        """Find out what was going on when an exception came, and put it right. It may come again meanwhile, and this be called again."""
        has_baton = hand.has_baton() if hand.turn is not None else self._find_baton(hand)
        if has_baton:
            self._holder = hand
            hand.turn = self._turn = {0: hand}
        fd = hand.fd
        connection = source.abandon(fd) if fd >= 0 else None
        hand.fd = -1
        if connection is not None:
            if has_baton:
                source.settle(connection)
            else:
                source.settle_later(connection)
        if has_baton:
            self._ready.clear()
            source.repair(self.in_service())
        else:
            source.repair_later()
        disturbance, hand.disturbance = hand.disturbance, None
        if disturbance is not None:
            self._on_disturbance(disturbance)

    def _find_baton(self, hand: _Hand) -> bool:
        """Whether a thread that was about to take the baton, or to release it, has it."""
        end = time.monotonic() + _UNSAID_S
        while time.monotonic() < end:
            if self._baton.acquire(timeout=_UNSAID_S / 20):
                return True
            if self._holder is not None and self._holder is not hand:
                return False
        return True
