"""How a worker leaves while balancers still send it clients.

When all of gunicorn stops, everything is served for `[worker] lame_duck` more seconds, but `/ready` answers 503 and each connection's next
response is its last. A balancer looks at `/ready` and sends its clients elsewhere before the listeners close; otherwise it would learn of
that by connections that are refused.

Where another worker keeps serving (SIGHUP, SIGTTOU), there is no need of that, and a 503 would take the whole host from its clients.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from isowsgi.shared.board import Board
from isowsgi.shared.containment import Containment
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker.parts import Parts

# How long it may take until all workers have had the signal: gunicorn's master sends it to one after the other.
_ALL_TOLD_S = 0.5

# How often it is looked whether they have, and how long the loop waits for an event otherwise.
_LOOK_S = 0.05
_TURN_S = 1.0


class LameDuck:
    """See the module's text. On the loop's thread, which it turns.

    Args:
        region: the worker's part of the scoreboard.
        log: gunicorn's logger.
    """

    def __init__(self, parts: Parts, region: Scoreboard, containment: Containment, log: Any) -> None:
        self._parts = parts
        self._region = region
        self._call: Callable[..., bool] = containment.call
        self._log = log
        self._goes_alone = True

    def serve(self, latest: float) -> None:
        """Serve on for as long as `lame_duck` says; at once back if that is 0, or if another worker keeps serving.

        Args:
            latest: when to be back in any case; monotonic seconds.
        """
        lame_duck_s = self._parts.supervisor.table.config.limits.lame_duck
        if not lame_duck_s:
            return
        until = min(time.monotonic() + lame_duck_s, latest)
        self._region.acceptor_row().say_stopping()
        told = min(time.monotonic() + _ALL_TOLD_S, until)
        while self._has_company() and time.monotonic() < told:
            self._parts.loop.turn(_LOOK_S)
        if self._has_company():
            return
        self._call("report to the scoreboard", self._parts.supervisor.publish, True)
        left_s = max(until - time.monotonic(), 0.0)
        self._log.info("stopping in %.1f s (lame_duck): requests are still served, and /ready answers 503", left_s)
        while (now := time.monotonic()) < until:
            self._parts.loop.turn(min(_TURN_S, until - now))

    def _has_company(self) -> bool:
        self._goes_alone = True  # as far as is known, if nothing can be mapped
        self._call("scoreboard", self._look)
        return not self._goes_alone

    def _look(self) -> None:
        regions = Board.look(self._region.fd).regions
        self._goes_alone = all(each.is_stopping for each in regions if each.number != self._region.region)
