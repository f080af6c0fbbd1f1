"""How long a thread waits for the GIL that the main interpreter shares with the mounts of `shared-gil` and `main`.

Nobody can see from outside for how long a thread waits for a GIL: to the kernel it sleeps, as it does in a query or a lock. So a thread of
the main interpreter does a few times a second what each thread of such a mount does after a system call: it takes the GIL. How long that
took, less the time that it waited for a processor, goes into the acceptor's row.

It rests while no mount shares that GIL. A look costs some 30 us of a processor. It says how long a thread would have had to wait then, not
how long the requests of a mount have waited in all.
"""

from __future__ import annotations

import os
import threading
import time

from isowsgi.shared.containment import Containment
from isowsgi.shared.rows import AcceptorRow

# How often it looks: in the 30 s that the status page covers 120 times, enough for a 99th percentile.
_PERIOD_S = 0.25

# How long it sleeps without the GIL for each look; long enough that another thread takes the GIL if it wants it.
_NAP_NS = 1_000_000

# How late the kernel wakes who sleeps, at most: the timer slack of a usual thread (prctl(2), PR_SET_TIMERSLACK). It is no wait for the GIL.
_SLACK_NS = 50_000


class GilProbe:
    """Looks until the process ends; on a thread of its own.

    Args:
        row: the acceptor's, where it counts.
    """

    def __init__(self, row: AcceptorRow, containment: Containment) -> None:
        self._row = row
        self._containment = containment
        self._schedstat = -1
        self._wanted = threading.Event()

    def want(self, is_wanted: bool) -> None:
        """Say whether there is somebody to wait for."""
        if is_wanted:
            self._wanted.set()
        else:
            self._wanted.clear()

    def start(self) -> None:
        threading.Thread(target=self._run, name="isowsgi-gil-probe", daemon=True).start()

    def _run(self) -> None:
        try:
            self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # no /proc, or a kernel without it: then what it waits for a processor counts too
            pass
        while True:
            self._wanted.wait()
            self._containment.call("GIL probe", self.look)
            time.sleep(_PERIOD_S)

    def look(self) -> None:
        """Take the GIL once, and count how long that took."""
        delayed = self._delayed_ns()
        began = time.monotonic_ns()
        time.sleep(_NAP_NS / 1e9)
        late = time.monotonic_ns() - began - _NAP_NS - _SLACK_NS
        self._row.count_gil_wait(max(late - (self._delayed_ns() - delayed), 0))

    def _delayed_ns(self) -> int:
        """Return how long this thread has waited for a processor so far (the kernel's sched-stats.rst)."""
        if self._schedstat < 0:
            return 0
        return int(os.pread(self._schedstat, 100, 0).split()[1])
