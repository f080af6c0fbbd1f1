"""Samples what the threads of an app do, for `isowsgi profile`.

By the control thread: it wakes up a few hundred times a second anyway while a request is served, so that a sample costs no switch of the
GIL that would not have been. A sample walks over the frames of the threads that serve a request, and adds the time since the last sample
to a tree of calls. By each thread's CPU clock, or by the time that has passed: that counts for threads inside a request only. What runs
between requests, or is no serving thread of the instance, mostly waits for something to do, and so its time on a processor counts.

A thread that waits for the GIL gets it after the switch interval (5 ms), or earlier when the running thread waits for something. So what
waits often would get the time of what computes just before. So the interval is shorter while an interpreter with a GIL of its own is
sampled.

Nothing here calls the app's code, and no frame is kept longer than a sample takes.
"""

from __future__ import annotations

import math
import sys
import time
from bisect import bisect_right  # C code
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from isowsgi.inside.deadlines import Job
from isowsgi.inside.stacks import app_threads, fact_of, frame_of, is_own_file, name_of
from isowsgi.inside.templates import django_line, is_django_node, jinja_line, jinja_lines
from isowsgi.shared import wire
from isowsgi.shared.calltree import CallTree
from isowsgi.shared.messages import Profile

# Calls that are told apart: some hundred for a small app, some thousand for a large one. A node takes some 250 bytes while it is counted.
MOST_NODES = 20_000

# Innermost frames of a stack that are looked at. A page of Django has 60 to 90; one more costs 0.1 us.
MOST_FRAMES = 250

# Request lines that are told apart, and characters of each; and of the names of functions and files.
MOST_REQUESTS = 200
_MOST_CHARS = 300

# What a node takes in JSON, and a frame beside its names: brackets, three numbers of up to seven digits. And what JSON makes of a character
# that is not ASCII, at most: two escaped surrogates.
_NODE_CHARS = 28
_CHARS_OF_OTHERS = 12

# The switch interval meanwhile, in seconds: a tenth of CPython's default. Shorter than what an app computes between two waits; longer
# than a switch takes, which is some microseconds.
_SWITCH_S = 0.0005

# Threads of the app's own that are looked at.
_MOST_OTHERS = 200

_OTHER_REQUESTS = "(other requests)"
_NO_REQUEST = "(no request)"
_OTHER_TEXT = ("(other lines)", "<isowsgi>", 0)

# What is spent in this package alone: requests are read, answers sent and logged.
_OURS = ("(isowsgi)", "<isowsgi>", 0)


class LineTable:
    """The lines of a function's instructions, by their offset.

    Made once for a function and not looked through for each place in it: 1,000 places in one of 20,000 lines took 2 s, and a control thread
    that is away for that long counts as stuck.

    Args:
        code: the function's.
    """

    def __init__(self, code: Any) -> None:
        self._first = int(code.co_firstlineno)
        self._entries = list(code.co_lines())
        self._starts = [start for start, _, _ in self._entries]

    def line(self, offset: int) -> int:
        """Return the line of an instruction."""
        place = bisect_right(self._starts, offset) - 1
        if place < 0:
            return self._first
        _, end, line = self._entries[place]
        return int(line or self._first) if offset < end else self._first


class Tree:
    """Calls as they are seen. A call is told by a place: a function's code and the offset of the instruction; or by what is told of it."""

    def __init__(self) -> None:
        self.is_cut = False
        self._children: dict[tuple[int, int, int], int] = {}  # of a node, by code and offset
        self._parents: list[int] = []
        self._places: list[tuple[int, int]] = []
        self._times_us: list[int] = []
        self._texts: dict[tuple[str, str, int], tuple[str, str, int]] = {}
        self._django: set[int] = set()  # code of Django's that renders a node
        self._codes: dict[int, Any] = {}  # kept, so that its number stays its own
        self._frames: dict[tuple[int, int], tuple[str, str, int]] = {}
        self._lines: dict[int, LineTable] = {}
        self._jinja: dict[int, list[tuple[int, int]]] = {}  # of code that Jinja made

    def path(self, frame: Any) -> list[tuple[Any, int]]:
        """Return the calls that led to a frame, innermost first."""
        path: list[tuple[Any, int]] = []
        codes = self._codes
        while frame is not None and len(path) < MOST_FRAMES:
            code = frame.f_code
            if id(code) not in codes and len(codes) < MOST_NODES:
                codes[id(code)] = code
                if is_django_node(code):
                    self._django.add(id(code))
                elif (table := jinja_lines(frame.f_globals)) is not None:
                    self._jinja[id(code)] = table
            if id(code) in self._django and (line := django_line(frame)) is not None:
                path.append((self.text(line), 0))
            path.append((code, frame.f_lasti))
            frame = frame.f_back
        return path

    def text(self, frame: tuple[str, str, int]) -> tuple[str, str, int]:
        """Return the one that stands for all that are equal to it."""
        if frame not in self._texts and len(self._texts) >= MOST_NODES:
            return _OTHER_TEXT
        return self._texts.setdefault(frame, frame)

    def add(self, path: Sequence[tuple[Any, int]], time_us: int) -> None:
        """Add time to a place.

        Args:
            path: of calls, innermost first.
        """
        node, children = -1, self._children
        for code, offset in reversed(path):
            key = (node, id(code), offset)
            child = children.get(key)
            if child is None:
                if len(self._parents) >= MOST_NODES:
                    self.is_cut = True
                    break
                child = children[key] = len(self._parents)
                self._parents.append(node)
                self._places.append(key[1:])
                self._times_us.append(0)
                self._codes[key[1]] = code
            node = child
        if node >= 0:
            self._times_us[node] += time_us

    def told(self, samples: int, seconds: float, most_chars: int) -> CallTree:
        """Return all that was added; what lies under the app's frames on every stack is left out, as long as there are such.

        Args:
            most_chars: of its JSON, some more or less; the time of what does not fit counts for what called it.
        """
        left = most_chars
        frames: dict[tuple[str, str, int], int] = {}
        nodes: list[tuple[int, int, int]] = []
        numbers: list[tuple[int, bool]] = []  # of each node: its place in what is told, and whether no call of the app's is above it
        for parent, place, time_us in zip(self._parents, self._places, self._times_us, strict=True):
            above, is_first = numbers[parent] if parent >= 0 else (-1, True)
            code = self._codes[place[0]]
            is_text = isinstance(code, tuple)  # a request or a line of a template
            if is_first and not is_text and is_own_file(code.co_filename):
                numbers.append((above, True))
                if time_us:
                    nodes.append((above, frames.setdefault(_OURS, len(frames)), time_us))
            else:
                frame = code if is_text else self._frame(place)
                left -= _NODE_CHARS + (0 if frame in frames else _chars(frame))
                if left < 0:
                    self.is_cut = True
                    numbers.append((above, False))
                    if above >= 0:
                        nodes[above] = (*nodes[above][:2], nodes[above][2] + time_us)
                    continue
                numbers.append((len(nodes), is_first and is_text))
                nodes.append((above, frames.setdefault(frame, len(frames)), time_us))
        return CallTree(samples=samples, seconds=round(seconds, 3), is_cut=self.is_cut, frames=list(frames), nodes=nodes)

    def _frame(self, place: tuple[int, int]) -> tuple[str, str, int]:
        found = self._frames.get(place)
        if found is None:
            code = self._codes[place[0]]
            if place[0] not in self._lines:
                self._lines[place[0]] = LineTable(code)
            line, table = self._lines[place[0]].line(place[1]), self._jinja.get(place[0])
            line = line if table is None else jinja_line(table, line)
            # As `str` does it: a code object's names may be of a class of the app's.
            name = str.__getitem__(code.co_qualname, slice(_MOST_CHARS))
            found = name, str.__getitem__(code.co_filename, slice(-_MOST_CHARS, None)), line
            self._frames[place] = found
        return found


def _chars(frame: tuple[str, str, int]) -> int:
    """Return how much of the answer a frame takes at most."""
    return _NODE_CHARS + sum(len(text) * (1 if text.isascii() else _CHARS_OF_OTHERS) for text in frame[:2])


class _Clocks:
    """CPU clocks of threads, and what they showed when their time was last told."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def take_us(self, thread: int, now_ns: int | None) -> int:
        """Return the time that a thread has used since it was last asked for, in microseconds."""
        if now_ns is None:
            return 0
        before = self._seen.get(thread)
        self._seen[thread] = now_ns
        return 0 if before is None else max(now_ns - before, 0) // 1000


def clock_of(native_id: object) -> int | None:
    """Return the CPU clock of a thread of this process by its kernel's number, in nanoseconds; None if there is no such thread.

    By the clock's number, as glibc's `pthread_getcpuclockid` makes it (linux/include/linux/posix-timers.h: CPUCLOCK_SCHED and
    CPUCLOCK_PERTHREAD_MASK). Asked for a thread that has ended that function may crash, and the kernel says EINVAL.
    """
    if type(native_id) is not int or not 0 < native_id < 1 << 28:
        return None
    try:
        return time.clock_gettime_ns((~native_id << 3) | 6)
    except OSError:
        return None


class _Run:
    """One profile that is being taken."""

    def __init__(self, order: Profile, now: float) -> None:
        self.order = order
        self.began = self.last = now
        self.end = now + order.seconds
        self.samples = 0
        self.tree = Tree()
        self.clocks = _Clocks()
        self.labels: set[str] = set()

    def label(self, job: Job) -> str:
        """Return what the request of a thread is called: its method and path."""
        line = " ".join(job.row.line().split(" ")[:2]).partition("?")[0][:_MOST_CHARS]
        if line not in self.labels and len(self.labels) >= MOST_REQUESTS:
            line = _OTHER_REQUESTS
        self.labels.add(line)
        return line


class Profiler:
    """An instance's; all on its control thread.

    Args:
        jobs: returns the serving threads.
        report: takes the number of the question and what was found.
        isolation: of the instance.
        is_safe: returns whether stacks can be read without a crash, just now.

    Attributes:
        next_at: monotonic seconds when `take` is due; never while nothing is sampled.
    """

    def __init__(
        self,
        jobs: Callable[[], Sequence[Job]],
        report: Callable[[int, str], None],
        isolation: str,
        is_safe: Callable[[], bool] = lambda: True,
    ) -> None:
        self._jobs = jobs
        self._report = report
        self._is_safe = is_safe
        self._has_own_gil = isolation in ("own-gil", "process")
        self._sees_others = isolation != "main"  # where they are the worker's own
        self._run: _Run | None = None
        self._interval_before = 0.0
        self.next_at = math.inf

    def start(self, order: Profile, now: float) -> None:
        self._drop()
        if not self._is_safe():  # asked all the same: the worker refuses it before
            self._report(order.ask, "")
            return
        run = self._run = _Run(order, now)
        # What was used until now is no sample's.
        for job in self._jobs():
            run.clocks.take_us(job.ident, job.cpu_ns())
        for ident, thread in self._others().items():
            run.clocks.take_us(ident, clock_of(fact_of(thread, "_native_id")))
        if self._has_own_gil:
            self._interval_before = sys.getswitchinterval()
            sys.setswitchinterval(min(_SWITCH_S, self._interval_before))
        self.next_at = now + 1 / order.rate

    def drop(self, ask: int) -> None:
        """End the profile that was asked for by a number; nobody wants it."""
        if self._run is not None and self._run.order.ask == ask:
            self._drop()

    def finish(self, now: float) -> None:
        """Report what was found so far, if anything is sampled."""
        run = self._run
        if run is not None:
            self._drop()
            try:
                tree = run.tree.told(run.samples, now - run.began, run.order.most_chars)
                text = wire.text(tree)
            except Exception:
                self._report(run.order.ask, "")
                raise
            self._report(run.order.ask, text)

    def take(self, now: float) -> None:
        """Take a sample; the last one is followed by the report."""
        run = self._run
        if run is None:
            self.next_at = math.inf
            return
        if not self._is_safe():  # any more: an interpreter with another GIL has come
            self.finish(now)
            return
        passed_us = int((now - run.last) * 1e6)
        run.last = now
        run.samples += 1
        # Before the sample: if that raises, the next one must not be due at once, over and over.
        self.next_at = max(self.next_at + 1 / run.order.rate, now)
        try:
            self._sample(run, passed_us)
        except Exception:  # no memory, or what an app has made of a frame's variables
            self._drop()
            self._report(run.order.ask, "")
            raise
        if now >= run.end:
            self.finish(now)

    def _sample(self, run: _Run, passed_us: int) -> None:
        idents = set()
        for job in self._jobs():
            idents.add(job.ident)
            connection = job.connection
            if connection is None or connection.gateway.mount != run.order.mount:
                continue
            is_waiting = connection.is_taken  # who has taken its connection over may wait for days
            time_us = run.clocks.take_us(job.ident, job.cpu_ns()) if run.order.cpu or is_waiting else passed_us
            if time_us:
                self._add(run, job.ident, run.label(job) if run.order.by_request else None, time_us)
        for ident, thread in self._others().items():
            if ident not in idents:
                time_us = run.clocks.take_us(ident, clock_of(fact_of(thread, "_native_id")))
                if time_us:
                    self._add(run, ident, _NO_REQUEST if run.order.by_request else None, time_us)

    def _add(self, run: _Run, ident: int, label: str | None, time_us: int) -> None:
        path = run.tree.path(frame_of(ident))
        if path:
            if label is not None:
                path.append((run.tree.text((label, "", 0)), 0))
            run.tree.add(path, time_us)

    def _others(self) -> Mapping[int, Any]:
        """Return the threads that the app's `threading` knows and that are none of isowsgi's, by their numbers."""
        if not self._sees_others:
            return {}
        found = [(ident, thread) for ident, thread in list(app_threads.items()) if not name_of(thread).startswith("isowsgi-")]
        return dict(found[:_MOST_OTHERS])

    def _drop(self) -> None:
        if self._run is not None and self._has_own_gil and sys.getswitchinterval() <= _SWITCH_S:  # else the app has set another one since
            sys.setswitchinterval(self._interval_before)
        self._run = None
        self.next_at = math.inf
