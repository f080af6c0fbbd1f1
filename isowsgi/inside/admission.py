"""The queue of requests that wait for a thread of an instance: how many may, and for how long; the others are answered 503.

While every thread is busy, none polls, and what becomes ready waits in the instance's epoll set. Then the control thread counts it from
time to time and turns away what is too much: the latest comers, and those who waited too long. So a flood on one mount takes neither
another mount's threads nor memory without end.
"""

from __future__ import annotations

import time
from collections import deque

from isowsgi.inside.runner import Runner
from isowsgi.inside.serve import Service
from isowsgi.inside.wsgi import Connection
from isowsgi.shared import answers
from isowsgi.shared.messages import Limits

# Told to a client whose request has waited for a thread too long, or came behind too many others.
_TURNED_AWAY = answers.plain(answers.UNAVAILABLE, "The app is busy with other requests. Try again soon.", answers.RETRY_SOON_S)


class Admission:
    """Judges those who wait; on the control thread.

    Args:
        limits: how many requests may wait, and for how long.
    """

    def __init__(self, runner: Runner[Connection], service: Service, limits: Limits) -> None:
        self._runner = runner
        self._service = service
        self.set_limits(limits)
        # What was served last when a waiting connection was first seen, and when that was: one that was served since starts to wait from
        # zero.
        self._since: dict[int, tuple[tuple[Connection, object], float]] = {}
        self.waiting = 0  # how many did, when last looked at

    def set_limits(self, limits: Limits) -> None:
        self._limit, self._timeout_s = limits.queue, limits.queue_timeout_s

    def look(self, give_back: bool) -> None:
        """Turn away what is too much, if all threads are busy.

        Args:
            give_back: whether the instance drains: then others can serve what waits here.
        """
        if not all(job.connection is not None for job in self._service.jobs):
            self._since.clear()
            self.waiting = 0
        elif give_back:
            self._runner.shed(self._service, self._give_back)
        else:
            self._runner.shed(self._service, self._judge)

    def _give_back(self, ready: deque[int]) -> None:
        while ready:
            self._service.give_back_waiting(ready.popleft())

    def _judge(self, ready: deque[int]) -> None:
        now = time.monotonic()
        since = {}
        for fd in ready:
            served = self._service.last_served(fd)
            before = self._since.get(fd)
            since[fd] = before if before is not None and before[0] == served else (served, now)
        self._since = since
        while len(ready) > self._limit:
            self._service.turn_away(ready.pop(), _TURNED_AWAY)
        while ready and self._timeout_s and now - since[ready[0]][1] > self._timeout_s:
            self._service.turn_away(ready.popleft(), _TURNED_AWAY)
        self.waiting = len(ready)
