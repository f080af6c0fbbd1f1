"""What a worker has counted of its mounts, as `isowsgi status` is told it. On the acceptor's thread."""

from __future__ import annotations

from isowsgi.shared import rows
from isowsgi.shared.controlmessages import MountCounts
from isowsgi.shared.scoreboard import Counters, Scoreboard, wholes


def counts_of(board: Scoreboard) -> dict[str, MountCounts]:
    """Return the counters of each mount by its pattern, over all isolations it had in this worker."""
    return {pattern: _counts(counters) for pattern, counters in wholes(board.totals()).items()}


def _counts(counters: Counters) -> MountCounts:
    return MountCounts(
        requests=counters.requests,
        responses=[counters.get(rows.RESPONSES + place) for place in range(1, 6)],
        cpu_s=counters.get(rows.CPU_NS) / 1e9,
        busy_s=(counters.get(rows.BUSY_NS) + counters.get(rows.SENDING_NS)) / 1e9,
        waiting_s=counters.get(rows.WAITING_NS) / 1e9,
        sending_s=counters.get(rows.SENDING_NS) / 1e9,
        bytes_in=counters.get(rows.BYTES_IN),
        bytes_out=counters.get(rows.BYTES_OUT),
        exceptions=counters.get(rows.EXCEPTIONS),
        timeouts=counters.get(rows.TIMEOUTS),
        turned_away=counters.get(rows.TURNED_AWAY),
        buckets=list(counters.buckets()),
        app_buckets=list(counters.app_buckets()),
        waiting_buckets=list(counters.waiting_buckets()),
        sending_buckets=list(counters.sending_buckets()),
    )
