"""What each serving thread is doing, and the ladder for one whose request makes no progress.

Progress is a byte from the client or to it. A request without any for `request_timeout`:

1. its client is answered: 408 if the app waits for the client's body, else 504; or cut off, if the response had begun. The
   connection is shut down, which also wakes a thread that waits for the client;
2. at the same time `RequestTimeout` is raised in its thread alone. CPython delivers it between two bytecodes, so a thread inside C
   code (a sleep, a lock, a query) gets it when that code returns;
3. still there after a grace: the thread is stuck. That is reported, and the deployment replaces the instance.

A request that ends or makes progress in that very moment is not disturbed, see `ending`.

The time in which a thread waits for its client has its own limits, see `Patience`. A client that is too slow is answered, or cut off, in
the same way; nothing needs to be raised, as the call that waits fails then.

All on the control thread. C code that holds the interpreter's own GIL stops that thread too: then `instances.judge` does the first and the
third from outside, by the scoreboard.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Mapping
from time import monotonic_ns  # by its own name: each request pays for a look into a module
from typing import Any, NamedTuple

from isowsgi.inside.ending import Ending
from isowsgi.inside.stacks import Stacks
from isowsgi.shared import answers
from isowsgi.shared.containment import Containment
from isowsgi.shared.errorgroups import CUT, TIMEOUT
from isowsgi.shared.messages import Limits
from isowsgi.shared.rows import BUSY_SINCE, CPU_NS, MOUNT, PROGRESS_AT, REQUESTS, RESPONSES, SHORT_WAIT_NS, TIMEOUTS, Row

# How long a thread may take to unwind after RequestTimeout was raised in it.
INTERRUPT_GRACE_S = 2.0

# Most that passes for a client's time from one look to the next. Looks are a quarter of a second apart, unless nothing of this process runs
# for a while: then its clients are not to blame.
_MOST_STEP_S = 0.5


class RequestTimeout(BaseException):
    """Raised in a thread whose request made no progress for `request_timeout` seconds.

    Not an Exception, so that a handler for all of an app's errors does not take it for one of them.
    """


class Patience(NamedTuple):
    """How long clients are waited for.

    Attributes:
        body_s: for any byte of a body; 0 is for ever.
        send_s: for a client to take any byte of a response; 0 is for ever.
        min_rate: bytes/s that a client must come to in all the time that its request's thread waits for it, the limit above excepted; else
            one byte just before each limit would hold a thread for days. 0 is none.
    """

    body_s: float
    send_s: float
    min_rate: float

    def fault(self, what: str, waited_s: float, still_s: float, moved: int) -> str:
        """Say why a client is too slow to wait for, or return "".

        Args:
            what: that it is waited for: "body" or "send".
            waited_s: for how long in all.
            still_s: since it last moved a byte.
            moved: bytes so far.
        """
        limit_s = self.body_s if what == "body" else self.send_s
        if not limit_s:
            return ""
        if what == "send" and still_s >= limit_s:  # for bodies the kernel enforces the limit, to the millisecond
            return f"the client read none of the response for {still_s:.1f} s"
        if self.min_rate and waited_s > limit_s + moved / self.min_rate:
            return f"the client sent or read only {moved} bytes in the {waited_s:.1f} s that a thread waited for it"
        return ""


class ClientWait:
    """How long the thread of a request has waited for its client, as far as looking now and then shows."""

    __slots__ = ("_at", "_delivered", "_reads", "_request", "_start", "_what", "still_s", "waited_s")

    def __init__(self) -> None:
        self._request: Any = None
        self._what = ""
        self._at = 0.0
        self.waited_s = 0.0  # in all
        self.still_s = 0.0  # since it last moved a byte
        self._reads = self._delivered = self._start = 0

    def look(self, now: float, request: int, what: str, reads: int, delivered: int) -> None:
        """Note the state of the request now.

        Args:
            request: its number.
            what: the client is waited for; "" if it is not.
            reads, delivered: change with each byte that the client sends, or takes.
        """
        if request != self._request:
            self._request, self.waited_s, self.still_s, self._start = request, 0.0, 0.0, delivered
        elif what and what == self._what:
            step_s = min(now - self._at, _MOST_STEP_S)
            self.waited_s += step_s
            self.still_s = self.still_s + step_s if (reads, delivered) == (self._reads, self._delivered) else 0.0
        else:
            self.still_s = 0.0
        self._at, self._what, self._reads, self._delivered = now, what, reads, delivered

    def taken(self) -> int:
        """Return how many bytes the client has taken since the request was first seen, if it is one of TCP."""
        return max(self._delivered - self._start, 0)


class Job:
    """What one serving thread is doing.

    Written by its thread, but for what the watcher notes of it.
    """

    __slots__ = (
        "_began_ns", "_clock", "_cpu_ns",
        "client", "connection", "cut", "ending", "ident", "interrupt_at", "is_serving", "mark", "number", "row", "rows", "since", "slow",
        "stuck_at",
    )  # fmt: skip

    def __init__(self, number: int, rows: Mapping[int, Row]) -> None:
        self.number = number
        self.rows = rows
        self.row = next(iter(rows.values()))  # of the current request's mount, or the last one's
        self.ident = 0
        self.is_serving = False  # whether a request has begun and not ended
        self.connection: Any = None  # whose request it is, for the watcher
        self.ending = Ending()
        self._began_ns = 0
        self._clock: int | None = None  # of the thread's CPU time
        self._cpu_ns = 0  # that it showed last
        # The watcher's notes:
        self.mark: Any = None  # changes with every sign of progress
        self.since = 0.0  # monotonic seconds when it last did
        self.cut = 0  # number of the request that timed out last
        self.interrupt_at = math.inf  # monotonic seconds when that request is interrupted, if it was not
        self.stuck_at = math.inf  # and when its thread counts as stuck
        self.client = ClientWait()
        self.slow = 0  # number of the thread's request that was last logged as slow

    def enter(self) -> None:
        """Say that the calling thread is the one."""
        self.ident = threading.get_ident()
        self.ending.enter_thread()
        # Taken by the thread itself: asked for a thread that has ended, pthread_getcpuclockid may crash. The clock then is an error only.
        self._clock = time.pthread_getcpuclockid(self.ident)
        for row in self.rows.values():
            row.say_thread(threading.get_native_id())

    def take_cpu(self) -> None:
        """Add what the thread has used of a processor since the last call to its row; by the control thread.

        Not by the thread at each request's end: the system call is longer than all the rest of the counting (410 of 680 ns), and a request
        that never ends would show nothing.
        """
        now_ns = self.cpu_ns()
        if now_ns is not None:
            self.row.words[CPU_NS] += now_ns - self._cpu_ns
            self._cpu_ns = now_ns

    def cpu_ns(self) -> int | None:
        """Return what the thread has used of a processor in all its time; None: it has not begun yet, or has ended."""
        if self._clock is None:
            return None
        try:
            return time.clock_gettime_ns(self._clock)
        except OSError:  # the thread has ended
            self._clock = None
            return None

    def begin(self, connection: Any, mount: int, data: bytes, now_ns: int) -> None:
        row = self.row = self.rows[mount]
        self._began_ns = now_ns
        connection.response = None
        row.begin(connection.key, data, now_ns)
        connection.ending = self.ending
        self.ending.begin(row.words)
        self.is_serving = True
        self.connection = connection

    def pass_on(self) -> None:
        """Say that the current request is counted by whoever has its connection next, and not at its end here."""
        self.connection = None

    def line(self) -> str:
        """Return the first line of the current request, or ""."""
        return self.row.line() if self.is_serving else ""

    def end(self) -> bool:
        """Say that the request is over, and count it; to be called again if RequestTimeout comes out of it.

        Returns:
            whether the request had timed out.
        """
        connection, self.connection = self.connection, None
        if connection is not None:
            elapsed_ns = monotonic_ns() - self._began_ns
            response, taken = connection.response, connection.reader.taken
            if response is None:
                sent = sending_ns = 0
            else:
                sent, sending_ns = response.sent, response.sending_ns
            if connection.waiting_ns + sending_ns <= SHORT_WAIT_NS:
                self.row.end(elapsed_ns, taken, sent)
            else:
                self.row.end_slow(elapsed_ns, connection.waiting_ns, sending_ns, taken, sent)
            if taken:
                connection.reader.taken = 0
        else:
            self.row.say_idle()
        is_timed_out = self.ending.end()
        self.is_serving = False
        return is_timed_out


class Watcher:
    """Looks after the jobs of an instance, on its control thread.

    Args:
        limits: how long a request may go without progress, how long it may last before its stack is logged, once, and how long clients are
            waited for.
        log: the instance's log.
        report_stuck: takes the stack of a thread that did not end.
        stacks: of this interpreter's threads.
        rows: the control thread's, by the mount's number.
        containment: the instance's.
        count_error: of a request that is ended here: takes the mount's number, the kind and type of error, the request's first line, a
            text, and the stack of the thread, if that is known.
    """

    def __init__(
        self,
        jobs: list[Job],
        limits: Limits,
        log: Any,
        report_stuck: Callable[[int, str], None],
        stacks: Stacks,
        rows: Mapping[int, Row],
        containment: Containment,
        count_error: Callable[[int, str, str, str, str, str], None] = lambda *facts: None,
    ) -> None:
        self._jobs = jobs
        self.set_limits(limits)
        self._log = log
        self._report_stuck = report_stuck
        self._stacks = stacks
        self._containment = containment
        self._rows = rows
        self._count_error = count_error

    def set_limits(self, limits: Limits) -> None:
        self._timeout_s, self._slow_s = limits.request_timeout_s, limits.slow_request_s
        self._patience = Patience(limits.body_timeout_s, limits.send_timeout_s, limits.min_rate)

    def is_anyone_busy(self) -> bool:
        return any(job.connection is not None for job in self._jobs)

    def look(self, now: float) -> None:
        """Note who made progress, and act on those who did not for too long.

        Args:
            now: monotonic seconds.
        """
        for job in self._jobs:
            self._containment.call("check of a request", self._look_at, job, now)

    def _look_at(self, job: Job, now: float) -> None:
        job.take_cpu()
        number = job.ending.number  # before the connection: a number that is too old does no harm
        connection = job.connection
        if connection is None:
            job.mark = None
            return
        if connection.is_taken:  # it is unknown what counts as progress, and whose turn it is to send
            job.mark = None
            job.row.words[PROGRESS_AT] = int(now * 1000)
            return
        if number == job.cut:
            self._look_at_timed_out(job, number, now)
        else:
            self._look_at_progress(job, number, connection, now)
        if self._slow_s:
            self._look_for_slow(job, now)

    def _look_at_progress(self, job: Job, number: int, connection: Any, now: float) -> None:
        mark = _mark(number, connection)
        if mark != job.mark:
            words = job.row.words
            # It may have begun after this look: where threads fight for the GIL one took a tenth of a second.
            job.mark, job.since = mark, max(now, words[BUSY_SINCE] / 1000)
            words[PROGRESS_AT] = int(now * 1000)
        elif self._timeout_s and now - job.since >= self._timeout_s:
            self._time_out(job, connection, now)
            return
        self._look_at_client(job, connection, mark, now)

    def _look_at_timed_out(self, job: Job, number: int, now: float) -> None:
        """Interrupt the thread of a request that timed out, or report the thread as stuck; the client is gone."""
        if now >= job.interrupt_at:
            self._log.warning("interrupting a request %.1f s after it timed out: %s", self._timeout_s, job.row.line())
            job.interrupt_at, job.stuck_at = math.inf, now + INTERRUPT_GRACE_S
            job.ending.interrupt(number, RequestTimeout)
        elif now >= job.stuck_at:
            job.stuck_at = math.inf
            self._report_stuck(job.row.words[MOUNT] - 1, f"{job.row.line()}\n{self._stacks.of(job.ident)}")

    def _look_at_client(self, job: Job, connection: Any, mark: Any, now: float) -> None:
        request, (reads, sent, taken) = mark
        what = connection.waits_for_client()
        job.client.look(now, request, what, reads, taken)
        if not what:
            return
        is_counted = connection.sock.family != socket.AF_UNIX  # there the kernel does not say how much was taken
        moved = connection.reader.taken if what == "body" else job.client.taken() if is_counted else sent
        fault = self._patience.fault(what, job.client.waited_s, job.client.still_s, moved)
        if fault:

            def act(is_answered: bool) -> None:
                connection.reader.is_timed_out = True
                self._cut(connection, is_answered)  # that ends the call in which the thread waits

            line = job.row.line()
            if job.ending.time_out(request, lambda: not connection.is_taken and connection.waits_for_client() == what, act, None):
                job.cut, job.interrupt_at, job.stuck_at = request, now + (self._timeout_s or math.inf), math.inf
                self._log.info("%s; closing its connection: %s", fault, line)
                self._count_error(connection.gateway.mount, CUT, "client too slow", line, fault, "")

    def _look_for_slow(self, job: Job, now: float) -> None:
        words = job.row.words
        number, lasted_s = words[REQUESTS], now - words[BUSY_SINCE] / 1000
        if lasted_s >= self._slow_s and number != job.slow:
            job.slow = number
            self._log.warning("slow request, %.1f s so far: %s\n%s", lasted_s, job.row.line(), self._stacks.of(job.ident))

    def _time_out(self, job: Job, connection: Any, now: float) -> None:
        mark, waited_s = job.mark, now - job.since
        number = mark[0]
        line, stack = job.row.line(), self._stacks.of(job.ident)
        statuses: list[str] = []  # that the client was answered; "": none

        def act(is_answered: bool) -> None:
            self._rows[connection.gateway.mount].words[TIMEOUTS] += 1
            statuses.append(self._cut(connection, is_answered))

        # The stack's lines were read from files, which takes time: the request may have made progress.
        if job.ending.time_out(number, lambda: not connection.is_taken and _mark(number, connection) == mark, act, RequestTimeout):
            job.cut, job.interrupt_at, job.stuck_at = number, math.inf, now + INTERRUPT_GRACE_S
            self._log.warning("no progress for %.1f s, request timed out: %s\n%s", waited_s, line, stack)
            text = f"no progress for {waited_s:.1f} s"
            for status in statuses:  # else who cut it off from outside has counted it
                self._count_error(connection.gateway.mount, TIMEOUT, status or "response cut", line, text, stack)

    def _cut(self, connection: Any, is_answered: bool) -> str:
        """Shut down the connection of a request that timed out, after a status for its client if one may still be sent; return that."""
        status = ""
        try:
            if is_answered:
                status = answers.TOO_LATE if connection.reader.is_waiting else answers.TIMED_OUT
                # Before it is sent, so that nobody counts one before we do.
                self._rows[connection.gateway.mount].words[RESPONSES + int(status[0])] += 1
                connection.sock.send(answers.plain(status), socket.MSG_DONTWAIT)
        except OSError:
            pass  # the client is gone, or has not read for long
        try:
            connection.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        return status


def _mark(number: int, connection: Any) -> Any:
    """Return what changes with every sign of progress of a request."""
    return number, connection.progress()
