"""When a mount that failed is tried again: with pauses that double. Values only; time is monotonic seconds and passed in."""

from __future__ import annotations

# Waits before a mount that failed to boot is tried again: doubled each time.
_FIRST_S = 1.0
_MOST_S = 60.0

# How soon it is tried again for lack of descriptors or threads; deployments are looked at once a second. And for how long requests wait for
# that: an app that takes all descriptors of its worker for a moment costs its neighbours time and no request, and a lasting lack is told to
# clients before they give up.
_LACK_S = 0.5
_LACK_WAIT_S = 10.0

# Doublings that count: 2**6 s is more than `_MOST_S`, and after a thousand a power is too large for a float.
_MOST_DOUBLINGS = 6

# An instance that ends unexpectedly after so long is started again at once; sooner, with growing pauses. Short enough that a mount which
# crashes twice a minute is away for as long as it boots, and not for most of the time; long enough that its boots take little of a core.
LONG_LIFE_S = 10.0


class Backoff:
    """One deployment's.

    Attributes:
        retry_at: when it is tried again; None: nothing is planned.
        crashes: ends of instances soon after their start, one after the other.
        lacks_since: since when it cannot be loaded for lack of descriptors or threads; None: there is none, or there are other reasons.
    """

    def __init__(self) -> None:
        self.retry_at: float | None = None
        self.crashes = 0
        self.lacks_since: float | None = None
        self._failures = 0

    def plan(self, now: float, lacks: bool = False) -> float:
        """Plan the next try after a boot that failed; return in how many seconds it is.

        Args:
            lacks: whether it failed for lack of descriptors or threads.
        """
        self.lacks_since = None if not lacks else now if self.lacks_since is None else self.lacks_since
        if self.is_worth_waiting(now):
            self.retry_at = now + _LACK_S
            return _LACK_S
        wait_s = _wait_s(self._failures)
        self._failures += 1
        self.retry_at = now + wait_s
        return wait_s

    def after_end(self, lived_s: float, now: float) -> float:
        """Plan what follows an instance that ended unexpectedly; return in how many seconds the next one starts, 0 for at once."""
        self.crashes = 0 if lived_s > LONG_LIFE_S else self.crashes + 1
        if self.crashes < 2:
            return 0.0
        wait_s = _wait_s(self.crashes - 2)
        self.retry_at = now + wait_s
        return wait_s

    def succeeded(self) -> None:
        """Take note that an instance serves."""
        self._failures = 0
        self.lacks_since = None

    def give_up(self) -> None:
        """Plan nothing any more."""
        self.retry_at = self.lacks_since = None

    def is_worth_waiting(self, now: float) -> bool:
        """Whether requests wait although nothing is being loaded: a lack is most likely over in a moment."""
        return self.lacks_since is not None and now - self.lacks_since < _LACK_WAIT_S

    def left_s(self, now: float) -> float | None:
        """Return after how many seconds it is tried again; None if that is not planned."""
        return None if self.retry_at is None else max(round(self.retry_at - now, 1), 0.0)


def _wait_s(doublings: int) -> float:
    wait_s: float = min(_FIRST_S * 2 ** min(doublings, _MOST_DOUBLINGS), _MOST_S)
    return wait_s
