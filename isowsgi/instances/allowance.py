"""How much a walled process may say to its worker in a second: what is more costs the worker's other mounts time, and is no mistake."""

from __future__ import annotations

from isowsgi.shared.wire import MessageError

# Bytes in a second, each report counted with some more for what it costs to look at it: some 8,000 small reports, or a few profiles of the
# largest size that is taken. To read so much takes a tenth of a second.
_MOST_BYTES = 8 << 20
_EACH_BYTES = 1024


class Allowance:
    """One process'. Time is monotonic seconds."""

    def __init__(self) -> None:
        self._since = 0.0
        self._said = 0

    def take(self, size: int, now: float, count: int = 1) -> None:
        """Count a report, or so many packets.

        Args:
            size: their bytes.

        Raises:
            MessageError: that is too much.
        """
        if now - self._since >= 1.0:
            self._since, self._said = now, 0
        self._said += size + count * _EACH_BYTES
        if self._said > _MOST_BYTES:
            raise MessageError("its process floods the worker with messages")
