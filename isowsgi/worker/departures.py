"""Interpreters that are being freed: their threads have ended, and their objects go. On the acceptor's thread.

That takes a processor for milliseconds, 35 for a Flask app, and nobody waits for it. So of all workers one at a time frees those that it
has, and not before the others have switched too where a table was applied: when three workers ended a Flask app at once, two cores were
busy with nothing else.

What frees an object may be the app's code, a `__del__` for instance, and nobody can say when that returns. An interpreter that is not freed
in time is left behind: the log says so, and it counts as stuck.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isowsgi.worker.reloadqueue import Places
from isowsgi.worker.slots import Instance

# How long that may take, from its turn on. It takes milliseconds; more on a busy machine.
_LIMIT_S = 10.0

# How long one waits until it is freed: for what else happens in that moment, and for other workers at most. The kernel frees the place of a
# worker that dies.
_PAUSE_S = 0.2
_MOST_WAIT_S = 5.0


class Departures:
    """One worker's.

    Args:
        places: where workers may free something.
        look_again: has `pass_on` called once, soon.
    """

    def __init__(self, log: Any, places: Places | None = None, look_again: Callable[[], None] = lambda: None) -> None:
        self._log = log
        self._places = places or Places()
        self._look_again = look_again
        self._waiting: dict[Instance, float] = {}  # since when, in monotonic seconds
        self._began: dict[Instance, float] = {}

    def add(self, instance: Instance, now: float) -> None:
        """Take note of an instance that is being freed from now on."""
        self._began[instance] = now

    def put_off(self, instance: Instance, now: float) -> None:
        """Have an instance disposed of, and freed, when it is its turn."""
        self._waiting[instance] = now
        self._look_again()

    def pass_on(self, now: float) -> None:
        """Free those whose turn it is."""
        self._forget()
        waited_s = now - min(self._waiting.values(), default=now)
        if waited_s >= _PAUSE_S and (self._places.take() or waited_s >= _MOST_WAIT_S):
            waiting, self._waiting = self._waiting, {}
            for instance in waiting:  # one after the other, see `interpreters`
                self.add(instance, now)
                instance.dispose(destroy=True)
        is_freeing = not all(instance.is_overdue for instance in self._began)
        if not is_freeing:
            self._places.give_back()
        if self._waiting or is_freeing:
            self._look_again()

    def end(self) -> None:
        """Free nothing more: the worker stops."""
        waiting, self._waiting = self._waiting, {}
        for instance in waiting:
            instance.dispose(destroy=False)
        self._places.give_back()

    def instances(self) -> list[Instance]:
        """Return those that have ended, and have not gone."""
        return [*self._waiting, *self._began]

    def overdue(self) -> int:
        """Return how many are left behind."""
        return sum(instance.is_overdue for instance in self._began)

    def tick(self, now: float) -> None:
        """Say which are left behind; about once a second."""
        self._forget()
        for instance, began in self._began.items():
            if instance.is_in_line:
                self._began[instance] = now
            elif now - began > _LIMIT_S and not instance.is_overdue:
                instance.is_overdue = True
                text = "%s: ended, but its interpreter was not freed within %d s: a __del__ of its app does not return; leaving it behind"
                self._log.error(text, instance.tag, _LIMIT_S)

    def _forget(self) -> None:
        self._began = {instance: began for instance, began in self._began.items() if not instance.has_gone}
