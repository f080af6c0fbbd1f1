"""How a mount's memory has changed: few values, evenly spaced, over the whole life of the worker. Values only."""

from __future__ import annotations

# Values that are kept. When there are so many, every other one is dropped and the next ones come half as often; so there are between
# 16 and 32 of the whole time, whatever that is. A sparkline has a bar for each.
_MOST = 32

# Seconds between the first values.
_FIRST_STEP_S = 5.0

_MIB = 1024 * 1024


class Trend:
    """One mount's.

    Attributes:
        step_s: seconds between two values.
        mib: the values, latest last.
    """

    def __init__(self) -> None:
        self.step_s = _FIRST_STEP_S
        self.mib: list[float] = []
        self._next = 0.0

    def is_due(self, now: float) -> bool:
        return now >= self._next

    def add(self, size: int | None, now: float) -> None:
        """Take in a size in bytes, if a value is due; None: it is not known now.

        Args:
            now: monotonic seconds.
        """
        if not self.is_due(now):
            return
        self._next = now + self.step_s
        if size is None:
            if not self.mib:
                return
            size = int(self.mib[-1] * _MIB)
        self.mib.append(round(size / _MIB, 1))
        if len(self.mib) == _MOST:
            del self.mib[::2]
            self.step_s *= 2
            self._next = now + self.step_s
