"""How much memory each instance has: measured a little at a time, and only after the worker has grown or shrunk.

An interpreter measures itself, see `inside.heap`: it is asked for one look after the other, with pauses between, one interpreter at a time.
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

# By how much the worker's memory must have changed before its interpreters are asked again.
NEWS_BYTES = 2 * 1024 * 1024

# An interpreter that serves requests is asked after so long in any case: one app may have grown by what another has given back.
_OLDEST_S = 600.0

# A pause after each look, as a multiple of how long it took, and at least: so an app loses 4 % of its time while it is measured.
_PAUSES, _LEAST_PAUSE_S, _LONGEST_PAUSE_S = 25, 0.02, 5.0

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
        self._line: list[Instance] = []  # those still to be asked in this sweep
        self._asked: Instance | None = None
        self._asked_at = 0.0
        self._last: dict[Instance, _Last] = {}
        self._rss = 0  # the worker's, when the last sweep began
        self._sharers = Sharers()
        self._next_process = 0

    def start(self, later: Later) -> None:
        """Begin; before the first mount is loaded."""
        self._later = later
        self._sharers.note(pymalloc.bytes_in_use())

    @property
    def is_measuring(self) -> bool:
        """Whether interpreters are being asked."""
        return self._asked is not None

    def sweep(self, now: float) -> None:
        """Measure all that may have changed, from now on."""
        if not self.is_measuring:
            found = self._interpreters()
            # Who has served nothing has hardly changed; but if nobody has, some thread of an app's has been at work.
            self._begin([each for each in found if self._has_served(each)] or found, now)

    def tick(self, now: float) -> None:
        """Look at some processes, and begin to ask interpreters if there is news; about once a second."""
        self._read_processes()
        self._forget()
        for deployment in self._deployments():
            deployment.trend.add(memory_of(deployment), now)
        if self._asked is not None:
            if self._asked.state in ENDS or now - self._asked_at > _ANSWER_S:
                self._ask_next(now)
            return
        found = self._interpreters()
        # Those that are loaded at the same time are measured together, so that what they share is divided among all of them.
        is_news = any(each.memory < 0 for each in found) and not self._is_any_booting()
        if is_news or (self._rss and abs(rss_bytes() - self._rss) > NEWS_BYTES):
            self.sweep(now)
        else:
            self._begin([each for each in found if self._is_old(each, now)], now)

    def on_measured(self, instance: Instance, report: messages.Measured, now: float) -> None:
        """Take in what one look has found. An answer that nobody waits for changes nothing."""
        if instance is not self._asked:
            return
        self._asked_at = now
        if not report.is_whole:
            pause_s = min(max(_PAUSES * report.took_s, _LEAST_PAUSE_S), _LONGEST_PAUSE_S)
            self._later(pause_s, lambda: self._look_again(instance))
            return
        self._last[instance] = _Last(instance.requests(), now, rss_bytes())
        instance.objects = report.objects
        if instance.isolation == OWN_GIL:
            small = report.small if report.small >= 0 else report.weight
            self._settle(instance, small + report.large)
        else:
            self._sharers.take(instance, report)
        self._ask_next(now)

    def _settle(self, instance: Instance, size: int) -> None:
        instance.memory = size
        if instance.memory_at_boot < 0:
            instance.memory_at_boot = size

    def _begin(self, instances: list[Instance], now: float) -> None:
        if instances:
            self._rss = rss_bytes()
            # Who has served most since is the likeliest to have grown.
            self._line = sorted(instances, key=self._served)
            self._ask_next(now)

    def _ask_next(self, now: float) -> None:
        self._asked = None
        while self._line and self._asked is None:
            self._ask(self._line.pop(), now)
        if self._asked is None:
            for instance, size in self._sharers.divide().items():
                self._settle(instance, size)

    def _ask(self, instance: Instance, now: float) -> None:
        if instance.state is State.SERVING and instance.tell(messages.Measure()):
            self._asked, self._asked_at = instance, now

    def _look_again(self, instance: Instance) -> None:
        if instance is self._asked:
            now = time.monotonic()
            self._ask(instance, now)
            if instance.state is not State.SERVING:
                self._ask_next(now)

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

    def _is_any_booting(self) -> bool:
        return any(each.state is State.BOOTING for deployment in self._deployments() for each in deployment.slots.all())

    def _served(self, instance: Instance) -> int:
        """Return how many requests it has had since it was measured."""
        last = self._last.get(instance)
        return instance.requests() - (0 if last is None else last.requests)

    def _has_served(self, instance: Instance) -> bool:
        return instance.memory < 0 or self._served(instance) > 0

    def _is_old(self, instance: Instance, now: float) -> bool:
        last = self._last.get(instance)
        if last is None:  # it was to be measured, and did not answer
            return False
        return now - last.at > _OLDEST_S and (self._served(instance) > 0 or abs(rss_bytes() - last.rss) > NEWS_BYTES)

    def _forget(self) -> None:
        alive = {each for deployment in self._deployments() for each in deployment.slots.all()}
        for gone in self._last.keys() - alive:
            del self._last[gone]
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


def memory_of(deployment: Deployment) -> int | None:
    """Return what its instances have together; None if nothing is known of those that serve."""
    sizes = [each.memory for each in deployment.slots.all() if each.memory >= 0 and each.state not in ENDS]
    return sum(sizes) if sizes else None
