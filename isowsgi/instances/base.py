"""The worker's side of an instance, whatever its isolation: its state, its rows on the scoreboard, orders to it and reports from it."""

from __future__ import annotations

import abc
import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

from isowsgi.instances.allowance import Allowance
from isowsgi.instances.counters import CountedInstance
from isowsgi.instances.lifecycle import ENDS, Event, State, step
from isowsgi.shared import answers, messages
from isowsgi.shared.cgroups import Group, Use
from isowsgi.shared.handover import blocking
from isowsgi.shared.messages import BootOrder, Order, Report
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.shared.wire import MessageError

# Extension modules that are remembered of an instance; an app with SciPy and Torch loads some hundreds.
_MOST_EXTENSIONS = 10_000


class ShutDown(MessageError):
    """Nothing more can come from the inside."""


class HostedInstance(CountedInstance, abc.ABC):
    """One live copy of a mount's app, or of a group's apps. Its methods are the acceptor thread's alone; none of them waits.

    Args:
        order: the boot order, without the descriptors.
        board: the worker's scoreboard, with this instance's rows as the order has them.
        rows: where it writes them, if not there.

    Raises:
        OSError: no descriptor is left.
    """

    pid: int | None = None  # of its own process, if it has one and that was started
    group: Group | None = None  # of its process, once that was started, if it has one
    grouped: frozenset[str] = frozenset()  # limits that its control group has, by name, if it is in one
    can_be_killed = False  # whether a thread that does not end can be ended with its process
    has_gone = False  # whether nothing is left of it but what cannot be freed: its process has ended, its interpreter is destroyed
    is_walled = False  # whether it writes no worker's memory, and what it says is a stranger's word
    is_in_line = False  # whether it has not begun to go, as others go before it
    is_overdue = False  # whether it should have gone by now, and is waited for no longer

    def __init__(self, order: BootOrder, board: Scoreboard, rows: Scoreboard | None = None) -> None:
        super().__init__(order, board, rows)
        self.state = State.BOOTING
        self.tag = order.tag
        self.generation = order.generation
        self.is_loaded = False  # whether its app ever was
        self.boot_s = 0.0
        self.error = ""  # one line, once FAILED
        self.traceback = ""
        self.extensions: list[tuple[str, str]] = []  # name and path of each that was loaded until then
        self.refused: list[tuple[str, str, str]] = []  # name, path and error of each that refused until then
        self.unknown_extension: str | None = None  # the file that `order.loading.extensions` did not have, so the boot was stopped
        self.failed_in_hook = False  # no fault of the app or its isolation
        self.how_it_ended = ""  # if it ended unexpectedly
        self.stuck_since = 0.0  # seconds since the epoch
        self.threads_left = 0  # that the app left behind, once it ended
        self.objects = 0  # that its garbage collector knew when last asked
        self.memory = self.memory_at_boot = -1  # bytes, when last measured, and when it was loaded; -1: not yet. See `worker.meter`
        self.grown = 0  # bytes since it was measured, estimated, see `worker.freshpages`
        self.objects_at_boot = 0
        self.group_use: Use | None = None  # of its control group, when last looked at
        self._effects: dict[type, Callable[[Any], None]] = {
            messages.Ready: self._on_ready,
            messages.Failed: self._on_failed,
            messages.Extensions: lambda report: _note(self.extensions, report.extensions),
            messages.Closed: lambda report: self._on_ended(report.threads),
        }
        self.is_walled = rows is not None
        self._allowance = Allowance() if rows is not None else None  # of reports; None: as many as it likes
        self._owned = contextlib.ExitStack()  # closed by `discard`; after a start, by the side that outlives the other
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel, self._inner = (self._owned.enter_context(blocking(end)) for end in pair)
        self._channel.setblocking(False)

    @abc.abstractmethod
    def start(self) -> None:
        """Load the app, in the background.

        Raises:
            RuntimeError, MemoryError: no thread can be started; `discard` it.
        """

    @abc.abstractmethod
    def give(self, fd: int) -> None:
        """Hand a connection to this instance; the caller must not touch `fd` again until it is given back.

        Args:
            fd: a connected stream socket whose next bytes start a request; nothing of it has been consumed.
        """

    @abc.abstractmethod
    def dispose(self, destroy: bool) -> None:
        """Close what this side has, after the report that it has ended.

        Args:
            destroy: whether to end an interpreter too; without effect while a thread of the app's is left in it.
        """

    def discard(self) -> None:
        """Close everything; for an instance that could not be started, so that nobody is on the other side."""
        self._owned.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when `read` has something to read."""
        return self._channel.fileno()

    def read(self) -> Report | None:
        """Take in the next report; the state changes accordingly.

        Returns:
            the report, or None if there is none now.

        Raises:
            MessageError: it sent an invalid report; call `distrust`.
            LifecycleError: the report does not fit the state; the same.
        """
        try:
            packet = self._channel.recv(messages.MAX_PACKET_BYTES + 1)
        except BlockingIOError:
            return None
        if not packet:
            raise ShutDown("its process has shut down its socket to the worker")
        if self._allowance is not None:
            self._allowance.take(len(packet), time.monotonic())
        report = messages.decode_report(packet)
        effect = self._effects.get(type(report))
        if effect is not None:
            effect(report)
        return report

    def drain(self) -> None:
        """Let requests in flight end, and have every idle connection given back to the acceptor."""
        self._move(Event.DRAIN)
        self.tell(messages.Drain())

    def finish(self) -> None:
        """As `drain`, and say `Connection: close` in every response from now on: the worker is stopping."""
        self._move(Event.DRAIN)
        self.tell(messages.Last())

    def stop(self, frees: bool = True) -> None:
        """End the serving threads once their requests are done, then run the app's exit functions.

        Args:
            frees: whether the worker lives on, so that all that the app leaves behind must end too.
        """
        self.tell(messages.Stop(frees=frees))

    def abandon(self) -> None:
        """Give up waiting for a thread that does not end."""
        self._move(Event.DRAIN_TIMEOUT)

    def time_out_boot(self) -> None:
        """Give up waiting for its app to be loaded."""
        self._move(Event.BOOT_TIMEOUT)

    def call_stuck(self) -> None:
        """Note that a thread is stuck in its request."""
        self._move(Event.THREAD_STUCK)

    def distrust(self) -> None:
        """Note that its state is unknown: it sent an invalid report, or a thread of isowsgi in it has died."""
        self._move(Event.BROKEN)

    def tell(self, order: Order) -> bool:
        """Give an order; reports say what it led to.

        Returns:
            whether it was sent: not if the instance has ended, or has left many orders unread.
        """
        try:
            self._channel.send(messages.encode(order))
        except OSError:
            return False
        return True

    def has_ended(self) -> bool:
        return self.state in ENDS

    def kill(self) -> None:
        """End its process at once; only where `can_be_killed`."""
        raise AssertionError(f"{self.tag}: threads of an interpreter cannot be killed")

    def cut_off(self, older_than_s: float, now: float) -> bool:
        """Answer, from outside, requests that make no progress while nothing runs inside; see `judge`.

        Returns:
            whether there are any.
        """
        if self.state is State.BOOTING or self.state in ENDS:
            return False  # it has not served yet, or no longer serves
        is_any = self._judge.cut_off(older_than_s, now)
        if is_any:
            self._cut_waiting()
        return is_any

    def take_cuts(self) -> list[tuple[int, str]]:
        """Return the mount's number and the line of each request that was cut off since the last call."""
        cuts, self._judge.cuts = self._judge.cuts, []
        return cuts

    def _cut_waiting(self) -> None:
        """Answer those who wait for a thread in there, if they can be reached."""
        return

    def _on_ready(self, report: messages.Ready) -> None:
        self._move(Event.READY)
        self.is_loaded, self.boot_s, self.objects_at_boot = True, report.boot_s, report.objects
        _note(self.extensions, report.extensions)
        self.refused = report.refused

    def _on_failed(self, report: messages.Failed) -> None:
        if not self.is_loaded:  # else it failed later, and its end follows
            self._move(Event.BOOT_FAILED)
        self.error, self.traceback = report.error, report.traceback
        self.failed_in_hook = report.is_in_hook
        _note(self.extensions, report.extensions)
        self.refused, self.unknown_extension = report.refused, report.unknown_extension

    def _on_ended(self, threads_left: int) -> None:
        self.threads_left = threads_left
        if self.state is State.BOOTING:
            self.error = self.error or "the interpreter ended before the app was loaded"
            self._move(Event.BOOT_FAILED)
        elif self.state is not State.CLOSED:
            self._move(Event.ENDED)

    def _move(self, event: Event) -> None:
        before, self.state = self.state, step(self.state, event)
        if self.state is State.STUCK is not before:
            self.stuck_since = round(time.time(), 3)

    def _report_from_keeper(self, report: Report) -> None:
        self._inner.send(messages.encode(report))


def _note(known: list[tuple[str, str]], more: list[tuple[str, str]]) -> None:
    """Add extension modules to those that are known, as long as there is room."""
    known += more[: _MOST_EXTENSIONS - len(known)]


NOT_SERVED = answers.plain(answers.UNAVAILABLE, retry_after_s=answers.RETRY_SOON_S)
BROKEN_OFF = answers.plain(answers.BROKEN_OFF)
