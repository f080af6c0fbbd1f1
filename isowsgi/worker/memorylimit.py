"""Memory limits: over `max_rss`, the mount that grew most is replaced; if that does not help, the worker. Over its own limit, a mount is.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.shared.interpreters import PROCESS
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.meter import Meter
from isowsgi.worker.processmemory import rss_bytes

_MIB = 1024 * 1024

# How long a mount may take to be replaced, and to give its memory back, before the next look at the whole; and how long the mounts may take
# to be measured before one is chosen by what is known.
_PAUSE_S, _MEASURING_S = 30.0, 15.0

# The part of what is too much that a mount must have grown by to be the cause, where others could not be measured.
_EXPLAINS = 0.5


class MemoryWatch:
    """Watches one worker.

    Args:
        deployments: returns those of the table that serves.
        max_rss: returns the limit in MiB; 0: none.
        meter: measures their instances.
    """

    def __init__(self, deployments: Callable[[], Sequence[Deployment]], max_rss: Callable[[], int], meter: Meter) -> None:
        self._deployments = deployments
        self._max_rss = max_rss
        self._meter = meter
        self._next = 0.0
        self._has_acted = False
        self._is_measuring = False  # whether a mount is chosen once all are measured

    def tick(self, now: float) -> None:
        """Over the limit, have every mount measured, then replace the one that has grown most since it was loaded."""
        max_rss = self._max_rss()
        if not max_rss or (now >= self._next and self.used_mib() <= max_rss):
            self._has_acted = self._is_measuring = False
        elif self._is_measuring:
            if not self._meter.is_measuring or now >= self._next:
                self._is_measuring = False
                self._replace_one(now)
                self._next = now + _PAUSE_S
        elif now >= self._next and not self._has_acted:
            self._has_acted = self._is_measuring = True
            self._next = now + _MEASURING_S
            self._meter.sweep(now)

    def _replace_one(self, now: float) -> None:
        serving = [
            (instance, deployment)
            for deployment in self._deployments()
            for instance in deployment.slots.all()
            if instance.state is State.SERVING
        ]
        measured = [
            (instance.memory - instance.memory_at_boot, deployment)
            for instance, deployment in serving
            if instance.memory >= 0 and instance.memory_at_boot >= 0
        ]
        used, limit = self.used_mib(), self._max_rss()
        text = f"the worker and its processes use {used} MiB, max_rss is {limit}, and "
        grown, deployment = max(measured, key=lambda pair: pair[0], default=(-1, None))
        # A heap that grows faster than it can be looked at is among those that are not known, and requests make it grow.
        unknown = [each for each in serving if self._meter.is_unknown(each[0])]
        if unknown and grown < _EXPLAINS * (used - limit) * _MIB:
            _, deployment = max(unknown, key=lambda pair: pair[0].requests())
            text += f"of the mounts whose memory could not be measured within {_MEASURING_S:.0f} s this one has served most"
        else:
            text += f"this mount grew most, by {grown // _MIB} MiB"
        if deployment is not None and (unknown or grown >= 0):
            deployment.replace(text, now)

    def used_mib(self) -> int:
        """Return the memory of the worker, and of the processes that its mounts have."""
        processes = [
            each.memory
            for deployment in self._deployments()
            for each in deployment.slots.all()
            if each.isolation == PROCESS and each.state not in ENDS
        ]
        return (rss_bytes() + sum(size for size in processes if size > 0)) // _MIB

    def restart_reason(self, now: float) -> str | None:
        is_late = self._has_acted and not self._is_measuring and now > self._next
        if is_late and self._max_rss() and (used := self.used_mib()) > self._max_rss():
            return f"it uses {used} MiB with its processes, max_rss is {self._max_rss()}, even after the mount that grew most was replaced"
        return None
