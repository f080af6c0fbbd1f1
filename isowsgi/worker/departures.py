"""Interpreters that are being freed: their threads have ended, and their objects go. On the acceptor's thread.

What frees an object may be the app's code, a `__del__` for instance, and nobody can say when that returns. An interpreter that is not freed
in time is left behind: the log says so, and it counts as stuck.
"""

from __future__ import annotations

from typing import Any

from isowsgi.worker.slots import Instance

# How long that may take, from its turn on. It takes milliseconds; more on a busy machine.
_LIMIT_S = 10.0


class Departures:
    """One worker's."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._began: dict[Instance, float] = {}  # monotonic seconds

    def add(self, instance: Instance, now: float) -> None:
        """Take note of an instance that is being freed from now on."""
        self._began[instance] = now

    def overdue(self) -> int:
        """Return how many are left behind."""
        return sum(instance.is_overdue for instance in self._began)

    def tick(self, now: float) -> None:
        self._began = {instance: began for instance, began in self._began.items() if not instance.has_gone}
        for instance, began in self._began.items():
            if instance.is_in_line:
                self._began[instance] = now
            elif now - began > _LIMIT_S and not instance.is_overdue:
                instance.is_overdue = True
                text = "%s: ended, but its interpreter was not freed within %d s: a __del__ of its app does not return; leaving it behind"
                self._log.error(text, instance.tag, _LIMIT_S)
