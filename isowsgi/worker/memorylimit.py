"""The worker's memory: over the limit, the mount that grew most is replaced; if that does not help, the worker.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence

from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.shared import messages
from isowsgi.shared.interpreters import PROCESS
from isowsgi.worker.deployment import Deployment

# How long a replaced mount's memory may take to be given back before the next look at the whole.
_PAUSE_S = 15.0


class MemoryWatch:
    """Watches one worker.

    Args:
        deployments: returns those of the table that serves.
        max_rss: returns the limit in MiB; 0: none.
    """

    def __init__(self, deployments: Callable[[], Sequence[Deployment]], max_rss: Callable[[], int]) -> None:
        self._deployments = deployments
        self._max_rss = max_rss
        self._next = 0.0
        self._has_asked = False
        self._is_deciding = False  # whether the answers are still to be looked at

    def tick(self, now: float) -> None:
        """Over the limit, ask every instance how many objects it has; the answers decide which is replaced."""
        max_rss = self._max_rss()
        if not max_rss:
            self._has_asked = self._is_deciding = False
            return
        if now < self._next:
            return
        if rss_mib() <= max_rss:
            self._has_asked = self._is_deciding = False
        elif not self._has_asked:
            self._has_asked = self._is_deciding = True
            self._next = now + _PAUSE_S
            for deployment in self._deployments():
                for instance in deployment.slots.all():
                    if instance.isolation != PROCESS and instance.state not in ENDS:  # a process has its memory to itself
                        instance.objects = -1
                        instance.tell(messages.Measure())

    def on_measured(self, now: float) -> None:
        """Replace the mount that has grown most since its boot, once all have answered.

        CPython cannot say how much memory an interpreter has; the number of its objects stands in for that. Answers that come unexpectedly,
        or after the decision, change nothing.
        """
        if not self._is_deciding:
            return
        serving = [
            (deployment, instance)
            for deployment in self._deployments()
            for instance in deployment.slots.all()
            if instance.state is State.SERVING and instance.isolation != PROCESS
        ]
        if not serving or any(instance.objects < 0 for _, instance in serving):
            return
        self._is_deciding = False
        deployment, most = max(serving, key=lambda pair: pair[1].objects - pair[1].objects_at_boot)
        grown = most.objects - most.objects_at_boot
        text = f"the worker uses {rss_mib()} MiB, max_rss is {self._max_rss()}, and this mount grew most, by {grown} objects"
        deployment.replace(text, now)
        self._next = now + _PAUSE_S

    def restart_reason(self, now: float) -> str | None:
        if self._has_asked and now > self._next and (rss := rss_mib()) > self._max_rss():
            return f"it uses {rss} MiB, max_rss is {self._max_rss()}, even after the mount that grew most was replaced"
        return None


def rss_bytes() -> int:
    """Return the memory that this process has."""
    try:
        pages = _pages()
    except (OSError, ValueError, IndexError):  # an app has closed that number; if it has another file by now, that one is not ours to close
        _statm.cache_clear()
        pages = _pages()
    return pages * os.sysconf("SC_PAGE_SIZE")


def _pages() -> int:
    return int(os.pread(_statm(os.getpid()), 128, 0).split()[1])


@functools.cache
def _statm(pid: int) -> int:
    """Return the descriptor of a process's figures. It stays open: an app may have taken all others when it is read next."""
    return os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)


def rss_mib() -> int:
    return rss_bytes() // (1024 * 1024)
