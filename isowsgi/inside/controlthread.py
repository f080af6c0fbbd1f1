"""The control thread of an instance: takes the supervisor's orders, and is the runner's monitor and, before 3.13, the ticker.

It runs no app code and takes no lock that app code may hold, so it answers also while every serving thread is busy.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from isowsgi.inside.runner import Runner
from isowsgi.shared import messages
from isowsgi.shared.containment import Containment
from isowsgi.shared.messages import Report

# A request that lasts two ticks loses the baton. Go's sysmon retakes after 20 us to 10 ms; a tick costs the runner a switch of the GIL.
_TICK_MS = 2

# The monitor sleeps after so many ticks without a request, until the runner rouses it: an idle instance costs no CPU time.
_TICKS_TO_REST = 50

# 3.11, 3.12: with a tick of 5 ms the longest time that a busy app keeps all others from running was 41 ms, with 20 ms it was 130.
_TICKER_MS = 5

# How often requests in flight, those that wait, and watched files are looked at.
_LOOK_S = 0.25


class Duty(Protocol):
    """What else the control thread looks after."""

    def __call__(self, now: float) -> bool:
        """Do what is due.

        Args:
            now: monotonic seconds.

        Returns:
            whether to be called again soon, even if no request begins meanwhile.
        """


class Sampling(Protocol):
    """What is due at its own times, see `profiler.Profiler`."""

    next_at: float  # monotonic seconds

    def take(self, now: float) -> None: ...


class Control:
    """Runs in its own thread from before the app is loaded until the instance is closed.

    Args:
        channel: the supervisor's seqpacket socket; one message a packet, either way, see `messages`.
        runner: whose monitor this is.
        rouse_fd: an eventfd that `rouse` writes to.
        needs_ticker: whether other interpreters starve without a thread that gives up the GIL again and again.
        orders: what to do for each kind of order.
        on_lost: called when the supervisor is gone.
        duty: see `Duty`; called some times a second while there is something to look after.
        sampling: see `Sampling`.
        containment: ends what an order or the duty raises; neither may cost the instance this thread.
    """

    def __init__(
        self,
        *,
        channel: socket.socket,
        runner: Runner[Any],
        rouse_fd: int,
        needs_ticker: bool,
        orders: dict[type, Callable[[Any], None]],
        on_lost: Callable[[], None],
        duty: Duty,
        sampling: Sampling,
        containment: Containment,
    ) -> None:
        self._channel = channel
        self._runner = runner
        self._rouse_fd = rouse_fd
        self._needs_ticker = needs_ticker
        self._orders = orders
        self._on_lost = on_lost
        self._duty = duty
        self._sampling = sampling
        self._containment = containment
        self._ended = False

    def report(self, report: Report) -> None:
        """Tell the supervisor; from any thread."""
        self._send(report, 0)

    def report_if_room(self, report: Report) -> bool:
        """Tell the supervisor, unless it has so much to read yet that the caller would have to wait; from any thread.

        Returns:
            whether it was told.
        """
        return self._send(report, socket.MSG_DONTWAIT)

    def _send(self, report: Report, flags: int) -> bool:
        try:
            self._channel.send(messages.encode(report), flags)
            return True
        except OSError as exc:
            if exc.errno == errno.EMSGSIZE:  # many extension modules with long names; without the report the mount would never serve
                try:
                    self._channel.send(messages.encode(messages.shortened(report)), flags)
                    return True
                except OSError:
                    return False
            return False  # the worker is on its way out, or there is no room

    def rouse(self) -> None:
        """Wake the monitor; called by the runner when a request begins while the monitor rests."""
        self._runner.resting = False
        os.eventfd_write(self._rouse_fd, 1)

    def end(self) -> None:
        """Let `run` return."""
        self._ended = True
        os.eventfd_write(self._rouse_fd, 1)

    def run(self) -> None:
        runner = self._runner
        poller = select.poll()
        poller.register(self._channel, select.POLLIN)
        poller.register(self._rouse_fd, select.POLLIN)
        seen = quiet_ticks = 0
        next_look = 0.0
        has_duty = False
        while not self._ended:
            for fd, _ in poller.poll(self._tick(has_duty)):
                if fd == self._rouse_fd:
                    os.eventfd_read(self._rouse_fd)
                elif not self._obey():
                    poller.unregister(self._channel)
                    self._on_lost()
            now = time.monotonic()
            if now >= self._sampling.next_at:
                self._containment.call("a sample for a profile", self._sampling.take, now)
            if now >= next_look:
                next_look = now + _LOOK_S
                has_duty = self._do_duty(now)
            if runner.resting:
                seen = -1
            elif runner.served != seen:
                seen, quiet_ticks = runner.served, 0
            elif runner.in_request:
                runner.retake()
                has_duty = True  # that request still runs
            else:
                quiet_ticks += 1
                if quiet_ticks > _TICKS_TO_REST:
                    has_duty = self._do_duty(now)  # what the last requests left to be noted
                    self._rest()

    def _tick(self, has_duty: bool) -> float | None:
        """Return how long to sleep, in milliseconds; None: until an order comes."""
        if self._sampling.next_at != math.inf:
            return max(min((self._sampling.next_at - time.monotonic()) * 1000, _TICK_MS), 0)
        if self._needs_ticker:
            return _TICKER_MS
        if not self._runner.resting:
            return _TICK_MS
        return _LOOK_S * 1000 if has_duty else None

    def _rest(self) -> None:
        # In this order: a request that begins meanwhile either sees `resting`, or is seen here.
        self._runner.resting = True
        if self._runner.in_request:
            self._runner.resting = False

    def _obey(self) -> bool:
        """Carry out one order; False when the supervisor is gone."""
        try:
            packet = self._channel.recv(65536)
        except OSError:
            return False
        if packet:
            self._containment.call("an order", self._carry_out, packet)
        return bool(packet)

    def _carry_out(self, packet: bytes) -> None:
        order = messages.decode_order(packet)
        self._orders[type(order)](order)

    def _do_duty(self, now: float) -> bool:
        try:
            return self._duty(now)
        except Exception:
            self._containment.failed("periodic check by the control thread")
            return True
