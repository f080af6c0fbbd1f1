"""Replacements take turns: one mount at a time loads its new generation.

Loading takes a processor from all apps that serve, and there are two generations in memory meanwhile. So however many mounts must be
replaced, their neighbours notice no more than the replacement of one. First boots do not wait: nobody serves their requests.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

from typing import Protocol

# How long a replacement keeps others waiting: an app that hangs in its import must not keep them from their new code.
TURN_S = 10.0


class Replaceable(Protocol):
    """What is needed of a deployment."""

    def is_replacing(self) -> bool:
        """Whether a new generation is on its way."""
        ...

    def go_on(self, now: float) -> None:
        """Ask for its turn once more, if it still has a use for it."""
        ...


class Turns:
    """Who may begin to replace, in the order in which they asked."""

    def __init__(self) -> None:
        self._waiting: list[Replaceable] = []
        self._called: Replaceable | None = None  # while it is told to continue
        self._holder: Replaceable | None = None
        self._since = 0.0

    def take(self, deployment: Replaceable, now: float) -> bool:
        """Return whether a deployment has its turn and begins at once; if not, it is told to continue when its turn comes."""
        if self._is_taken(now) or (self._waiting and deployment is not self._called):
            if deployment not in self._waiting:
                self._waiting.append(deployment)
            return False
        self._holder, self._since = deployment, now
        return True

    def pass_on(self, now: float) -> None:
        """Tell the next deployment to continue; called when a replacement may have ended, and about once a second."""
        try:
            while self._waiting and not self._is_taken(now):
                self._called = self._waiting.pop(0)
                self._called.go_on(now)
        finally:  # else one that failed would have its turn before all others for ever
            self._called = None

    def _is_taken(self, now: float) -> bool:
        return self._holder is not None and self._holder.is_replacing() and now - self._since < TURN_S
