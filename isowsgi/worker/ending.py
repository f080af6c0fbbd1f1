"""How a worker ends what it serves, within the time that gunicorn's master leaves it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from isowsgi.shared.containment import Containment
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker.lameduck import LameDuck
from isowsgi.worker.parts import Parts

# How long the exit functions of all apps together may take when gunicorn wants a quick stop, for its master may kill 2 s after the signal;
# and how much of graceful_timeout is theirs when requests would take all of it.
_EXIT_FUNCTIONS_S = 1.4

# How much earlier than gunicorn's master, which kills at graceful_timeout, a worker gives up waiting.
_GRACE_MARGIN_S = 0.5

# How often at least gunicorn is told that the worker lives, and it is looked whether all has ended.
_TURN_S = 0.1


class Ending:
    """Ends the apps of one worker. On the loop's thread, which it turns.

    Args:
        region: the worker's part of the scoreboard.
        notify: tells gunicorn's master that the worker lives.
        graceful_s: after how long gunicorn's master kills.
        log: gunicorn's logger.
    """

    def __init__(
        self, parts: Parts, region: Scoreboard, containment: Containment, notify: Callable[[], object], graceful_s: float, log: Any
    ) -> None:
        self._parts = parts
        self._region = region
        self._containment = containment
        self._notify = notify
        self._grace_s = max(graceful_s - _GRACE_MARGIN_S, 0)
        self._log = log

    def gracefully(self, with_lame_duck: bool) -> None:
        """Answer all that was accepted, then let the apps end, within graceful_timeout.

        Args:
            with_lame_duck: serve on for a while if all of gunicorn stops: see `lameduck`.
        """
        parts, call = self._parts, self._containment.call
        deadline = time.monotonic() + self._grace_s
        answers_due = deadline - min(_EXIT_FUNCTIONS_S, self._grace_s / 2)
        if with_lame_duck:
            call("lame duck", LameDuck(parts, self._region, self._containment, self._log).serve, answers_due)
        self._region.acceptor_row().say_clean_exit()  # whatever the master does to it from here on is no crash
        parts.watcher.is_stopping = True
        call("control socket", parts.control.close)
        call("stop", parts.acceptor.stop)
        call("stop", parts.supervisor.finish)
        while parts.acceptor.open_connections() > parts.supervisor.lost_connections() and time.monotonic() < answers_due:
            self._turn(answers_due)
        self._end_instances(deadline)

    def quickly(self) -> None:
        """Let the apps end while there is time for it: gunicorn's master may kill at any moment."""
        self._end_instances(time.monotonic() + _EXIT_FUNCTIONS_S)

    def _end_instances(self, deadline: float) -> None:
        parts, call = self._parts, self._containment.call
        call("control socket", parts.control.close)
        call("stop", parts.supervisor.stop)
        while not parts.supervisor.has_ended() and time.monotonic() < deadline:
            self._turn(deadline)
        for tag in parts.supervisor.abandon():
            self._log.warning("%s: did not end in time; the worker exits without waiting for it", tag)

    def _turn(self, deadline: float) -> None:
        self._containment.call("heartbeat", self._notify)
        self._parts.loop.turn(min(_TURN_S, max(deadline - time.monotonic(), 0)))
