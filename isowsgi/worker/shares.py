"""How many connections a mount may have that it does not answer: so that neighbours always get some.

A connection that was handed over is the instance's, and nobody else can tell whether it will ever be looked at. So hand-overs are counted
against what the instance does: each request that it begins, turns away or whose connection it closes is one that no longer waits. A walled
process may say anything of that, so of it only connections count that have come back or were closed, as it has no other word in this. An
instance gets no further ones once the requests that wait for it are half of all connections that those before it have left. More wait with
the acceptor: as long as the instance does anything, to be handed over later; else to be answered 503.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

# Share of the limit from which on an instance's progress is looked at: until then a hand-over costs an addition.
_LOOK_SHARE = 16

# How long an instance for which requests wait may do nothing until it counts as one that does not answer.
STALLED_S = 2.0


class Server(Protocol):
    """What must be known of an instance."""

    def progress(self) -> int:
        """Return a number that grows by one or more for each connection that it deals with."""

    def is_at_leisure(self) -> bool:
        """Whether no connection that it has waits for a thread."""

    def has_ended(self) -> bool: ...


@dataclass(slots=True)
class _Waiting:
    progress: int
    since: float  # when it was seen to make progress last, or when the first was handed over
    count: int = 0


class Shares:
    """Counts what waits. For the acceptor's thread.

    Args:
        limit: of the worker's connections.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._look_from = max(limit // _LOOK_SHARE, 1)
        self._waiting: dict[Server, _Waiting] = {}

    def may_have(self, server: Server, now: float) -> bool:
        """Whether an instance may have one more connection; if so, that is counted."""
        waiting = self._waiting.get(server)
        if waiting is None:
            waiting = self._waiting[server] = _Waiting(server.progress(), now)
        if waiting.count >= self._look_from:
            self._look(server, waiting, now)
            others = sum(each.count for each in self._waiting.values()) - waiting.count
            if waiting.count >= max((self._limit - others) // 2, 1):
                return False
        waiting.count += 1
        return True

    def is_stalled(self, server: Server, now: float) -> bool:
        """Whether an instance that has reached its share does not answer."""
        waiting = self._waiting.get(server)
        return waiting is not None and now - waiting.since >= STALLED_S

    def tick(self, now: float) -> None:
        """Take note of progress, and forget those for whom nothing waits; called about once a second."""
        for server, waiting in list(self._waiting.items()):
            self._look(server, waiting, now)
            if not waiting.count or server.has_ended():
                del self._waiting[server]

    def _look(self, server: Server, waiting: _Waiting, now: float) -> None:
        progress = server.progress()
        made = progress - waiting.progress
        if made < 0:  # the board may hold anything; counters only grow
            waiting.progress = progress
        elif made:
            # Then nothing waits, whatever has become of the connections that were counted.
            waiting.count = 0 if server.is_at_leisure() else max(waiting.count - made, 0)
            waiting.progress, waiting.since = progress, now
