"""How many of each mount's responses of the last minute were 5xx, in one worker."""

from __future__ import annotations

from collections import deque
from typing import Any

from isowsgi.shared.scoreboard import Scoreboard

# How far back, and how often the counters are looked at: what is told is that much too old at most.
WINDOW_S = 60.0
_STEP_S = 3.0

_Counts = dict[int, tuple[int, int]]  # by the mount's number: responses, and 5xx among them


class Recent:
    """Keeps samples of the counters.

    Args:
        board: the worker's.
    """

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self._samples: deque[tuple[float, _Counts]] = deque()

    def look(self, now: float) -> None:
        """Take a sample, if one is due.

        Args:
            now: monotonic seconds.
        """
        samples = self._samples
        if samples and now - samples[-1][0] < _STEP_S:
            return
        samples.append((now, self._board.responses_by_mount()))
        while len(samples) > 2 and now - samples[1][0] >= WINDOW_S:
            samples.popleft()

    def of(self, mount: int) -> dict[str, Any]:
        """Return what the responses of a mount were since the oldest sample."""
        if not self._samples:
            return {"seconds": 0.0, "responses": 0, "failed": 0}
        (began, before), (ended, after) = self._samples[0], self._samples[-1]
        first, last = before.get(mount, (0, 0)), after.get(mount, (0, 0))
        return {
            "seconds": round(ended - began, 1),
            "responses": max(last[0] - first[0], 0),
            "failed": max(last[1] - first[1], 0),
        }
