"""How much memory each instance has: measured a little at a time, and only after the worker has grown or shrunk.

An interpreter measures itself, see `inside.heap`: it is asked for one look after the other, with pauses between.
A process is what the kernel says of it: its own pages, and its share of those that others have too (PSS). Interpreters that share a GIL
share the allocator of small blocks: what it has grown by since the last time is divided among those whose objects have grown.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.shared import messages, pymalloc
from isowsgi.shared.interpreters import OWN_GIL, PROCESS
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.processmemory import pss_bytes, rss_bytes
from isowsgi.worker.slots import Instance

# By how much the worker's memory must have changed since an interpreter was measured before it is again: so much, and a part of the whole.
NEWS_BYTES = 2 * 1024 * 1024
_NEWS_SHARE = 64

# How many are measured at a time; of those that share a GIL, one.
_AT_A_TIME = 4

# An interpreter that serves requests is asked after so long in any case: one app may have grown by what another has given back.
_OLDEST_S = 600.0

# A pause after each look, as a multiple of how long it took, and at least: so an app loses 6 % of its time while it is measured.
_PAUSES, _LEAST_PAUSE_S, _LONGEST_PAUSE_S = 15, 0.02, 5.0

# How long to wait for one look: C code may hold the GIL.
_ANSWER_S = 5.0

# How long all readings of processes' memory in one tick may take; one is 1 ms for 80 MiB, in the kernel.
_READING_S = 0.002


class Later(Protocol):
    def __call__(self, delay_s: float, callback: Callable[[], object], /) -> None: ...


class _Last(NamedTuple):
    """When an instance was last measured."""

    requests: int  # that it had served
    at: float
    rss: int  # of the worker


class Meter:
    """Measures the instances of one worker.

    Args:
        deployments: returns all that have instances.
    """

    def __init__(self, deployments: Callable[[], Sequence[Deployment]]) -> None:
        self._deployments = deployments
        self._later: Later = lambda delay_s, callback, /: None
        self._asked: dict[Instance, float] = {}  # when each that is being measured was asked for its latest look
        self._wanted: set[Instance] = set()  # those that shall be measured whatever they have done
        self._last: dict[Instance, _Last] = {}
        self._sharers = Sharers()
        self._next_process = 0

    def start(self, later: Later) -> None:
        """Begin; before the first mount is loaded."""
        self._later = later
        self._sharers.note(pymalloc.bytes_in_use())

    @property
    def is_measuring(self) -> bool:
        """Whether any of those is left that `sweep` has asked for."""
        return bool(self._wanted)

    def sweep(self, now: float) -> None:
        """Measure all interpreters, from now on."""
        self._wanted = set(self._interpreters())
        self._ask_some(now)

    def tick(self, now: float) -> None:
        """Look at some processes, and ask interpreters that may have changed; about once a second."""
        self._read_processes()
        self._forget()
        for deployment in self._deployments():
            deployment.trend.add(memory_of(deployment), now)
        for instance in [each for each, at in self._asked.items() if now - at > _ANSWER_S or each.state in ENDS]:
            del self._asked[instance]
            self._wanted.discard(instance)
        self._ask_some(now)

    def on_measured(self, instance: Instance, report: messages.Measured, now: float) -> None:
        """Take in what one look has found. An answer that nobody waits for changes nothing."""
        if instance not in self._asked:
            return
        if not report.is_whole:
            self._asked[instance] = now
            if instance.isolation == OWN_GIL and instance.memory >= 0 and report.small >= 0:
                instance.memory = report.small + report.large  # of the round before
            pause_s = min(max(_PAUSES * report.took_s, _LEAST_PAUSE_S), _LONGEST_PAUSE_S)
            self._later(pause_s, lambda: self._look_again(instance))
            return
        del self._asked[instance]
        self._wanted.discard(instance)
        self._last[instance] = _Last(instance.requests(), now, rss_bytes())
        instance.objects = report.objects
        if instance.isolation == OWN_GIL:
            small = report.small if report.small >= 0 else report.weight
            _settle(instance, small + report.large)
        else:
            self._sharers.take(instance, report)
        self._ask_some(now)

    def _ask_some(self, now: float) -> None:
        """Ask as many as may be measured at a time, the likeliest to have grown first: those that have served most since."""
        found = sorted(self._candidates(now), key=self._served)
        while found and len(self._asked) < _AT_A_TIME:
            instance = found.pop()
            if instance.isolation == OWN_GIL or all(each.isolation == OWN_GIL for each in self._asked):
                self._ask(instance, now)
        if all(each.isolation == OWN_GIL for each in (*self._asked, *found)):
            for instance, size in self._sharers.divide().items():
                _settle(instance, size)

    def _candidates(self, now: float) -> list[Instance]:
        found = [each for each in self._interpreters() if each not in self._asked]
        # Those that are loaded at the same time are measured together, so that what they share is divided among all of them.
        is_any_booting = any(each.state is State.BOOTING for deployment in self._deployments() for each in deployment.slots.all())
        new = [] if is_any_booting else [each for each in found if each not in self._last]
        rss = rss_bytes()
        known = [(each, self._last[each]) for each in found if each in self._last]
        stale = [each for each, last in known if abs(rss - last.rss) > max(NEWS_BYTES, rss // _NEWS_SHARE)]
        # Who has served nothing has hardly changed; but if nobody has, some thread of an app's has been at work.
        stale = [each for each in stale if self._served(each)] or stale
        old = [each for each, last in known if now - last.at > _OLDEST_S and self._served(each)]
        return list({*new, *stale, *old, *(self._wanted & {*found})})

    def _ask(self, instance: Instance, now: float) -> None:
        if instance.state is State.SERVING and instance.tell(messages.Measure()):
            self._asked[instance] = now

    def _look_again(self, instance: Instance) -> None:
        if self._asked.pop(instance, None) is not None:
            self._ask(instance, time.monotonic())

    def _read_processes(self) -> None:
        processes = [
            each for deployment in self._deployments() for each in deployment.slots.all() if each.isolation == PROCESS and not each.has_gone
        ]
        deadline = time.monotonic() + _READING_S
        for _ in processes:
            self._next_process = (self._next_process + 1) % len(processes)
            instance = processes[self._next_process]
            if instance.pid is not None and (size := pss_bytes(instance.pid)) is not None:
                instance.memory = size
                if instance.is_loaded and instance.memory_at_boot < 0:
                    instance.memory_at_boot = size
            if time.monotonic() > deadline:
                return

    def _interpreters(self) -> list[Instance]:
        return [
            each
            for deployment in self._deployments()
            for each in deployment.slots.all()
            if each.state is State.SERVING and each.isolation != PROCESS
        ]

    def _served(self, instance: Instance) -> int:
        """Return how many requests it has had since it was measured."""
        last = self._last.get(instance)
        return instance.requests() - (0 if last is None else last.requests)

    def _forget(self) -> None:
        alive = {each for deployment in self._deployments() for each in deployment.slots.all()}
        for gone in self._last.keys() - alive:
            del self._last[gone]
        self._wanted &= alive
        self._sharers.forget(alive)


class Sharers:
    """Divides among interpreters what the allocator that they share has grown by.

    The main interpreter shares it too: what it has before the first mount is loaded is no mount's.
    """

    def __init__(self) -> None:
        self._total: int | None = None  # what the allocator had when it was last divided
        self._now: int | None = None
        self._weights: dict[Instance, int] = {}  # then
        self._small: dict[Instance, float] = {}
        self._reports: dict[Instance, messages.Measured] = {}  # since

    def note(self, total: int | None) -> None:
        self._total = total

    def take(self, instance: Instance, report: messages.Measured) -> None:
        """Take in what was found of one of them."""
        self._reports[instance] = report
        self._now = report.small if report.small >= 0 else None

    def forget(self, alive: set[Instance]) -> None:
        """Take what belonged to instances that have ended for given back."""
        for gone in self._weights.keys() - alive:
            del self._weights[gone]
            if self._total is not None:
                self._total -= int(self._small.get(gone, 0.0))
            self._small.pop(gone, None)
            self._reports.pop(gone, None)

    def divide(self) -> dict[Instance, int]:
        """Return the sizes of those of which something was found since the last time."""
        reports, self._reports = self._reports, {}
        if not reports:
            return {}
        changes = {each: report.weight - self._weights.get(each, 0) for each, report in reports.items()}
        self._weights |= {each: report.weight for each, report in reports.items()}
        if self._total is None or self._now is None:  # then the objects' own sizes must do
            self._small |= {each: float(report.weight) for each, report in reports.items()}
        else:
            grown, self._total = self._now - self._total, self._now
            parts = {each: change for each, change in changes.items() if change * grown > 0}
            for each, change in parts.items():
                self._small[each] = max(self._small.get(each, 0.0) + grown * change / sum(parts.values()), 0.0)
        return {each: int(self._small.get(each, 0.0)) + report.large for each, report in reports.items()}


def _settle(instance: Instance, size: int) -> None:
    instance.memory = size
    if instance.memory_at_boot < 0:
        instance.memory_at_boot = size


def memory_of(deployment: Deployment) -> int | None:
    """Return what its instances have together; None if nothing is known of those that serve."""
    sizes = [each.memory for each in deployment.slots.all() if each.memory >= 0 and each.state not in ENDS]
    return sum(sizes) if sizes else None
