"""Memory that a walled process writes in the place of the worker's scoreboard, and what of it the worker believes.

Every other instance maps the worker's whole region: it counts in its own rows, and could write in its neighbours', and in the acceptor's. A
process in a sandbox, or of another user, may do that on purpose. So it gets a region of its own, in which only its rows are used. What
concerns it alone (whose request a thread serves, how long) the worker reads there. What others see, the counters, is copied to the
scoreboard about once a second, as far as it can be so; what the acceptor and the worker decide by is never copied.

A connection's arrival, and where it comes from, which are the worker's to say, are copied to there when the connection is lent.

On the acceptor's thread.
"""

from __future__ import annotations

import contextlib
import os
import time
from array import array
from collections.abc import Callable, Sequence

from isowsgi.shared.messages import BootOrder
from isowsgi.shared.origins import Origins
from isowsgi.shared.rows import (
    ANSWERED,
    ARRIVALS,
    AT_CAPACITY,
    BUCKETS,
    BUSY,
    BUSY_SINCE,
    ERROR_AT,
    ERROR_LENGTH,
    ISOLATION,
    LOADING,
    MOUNT,
    QUEUED,
    RELOADS,
    REQUESTS,
    RESPONSES,
    SENDING_NS,
    STOPPING,
    Row,
)
from isowsgi.shared.scoreboard import Scoreboard

# Words of a row that count requests, all but REQUESTS itself. The others are the worker's own, or isowsgi's mistakes. CLOSED is not among
# these: the worker counts by itself which connections a process has closed, and takes on others by that.
_COUNTERS = ((RESPONSES, RELOADS), (BUCKETS, SENDING_NS + 1))

# Most that is believed of a counter: nanoseconds of 100 days. A sum over a worker's rows stays far below what a word holds.
_MOST = 1 << 53

# Most requests that are believed to wait.
_MOST_QUEUED = 1_000_000


class OwnRows:
    """One process'.

    Args:
        board: the worker's scoreboard, with the rows that the order names.
        order: the boot order.
        origins_fd: of the worker's table of origins; None: there is none.
        on_claimed: takes how many requests more the process says that it has begun to serve.

    Attributes:
        region: what the process writes.
        fds: descriptors for it, by their names in `messages.Descriptors`.

    Raises:
        OSError: no descriptor or no memory is left.
    """

    def __init__(self, board: Scoreboard, order: BootOrder, origins_fd: int | None, on_claimed: Callable[[int], None]) -> None:
        self._on_claimed = on_claimed
        self._theirs = None if origins_fd is None else Origins(origins_fd)
        self._origins = None
        self._owned = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            self.region = Scoreboard()
            undo.callback(os.close, self.region.fd)
            self.fds = {"board": self.region.fd}
            if self._theirs is not None:
                self._origins = Origins()
                undo.callback(self._origins.close)
                self.fds["origins"] = self._origins.fd
            self._owned = undo.pop_all()
        self._rows = list(_pairs(board, self.region, order))
        self._row0, self._acceptor = self.region.row(0).words, board.row(0).words
        self._arrivals, self._their_arrivals = self.region.arrivals(), board.arrivals()
        for number, (theirs, ours) in enumerate(self._rows):
            is_of = order.members[number % len(order.members)].mount
            theirs.words[MOUNT], theirs.words[ISOLATION] = is_of + 1, ours.words[ISOLATION]
        self._since = [ours.words.tolist() for _, ours in self._rows]  # of instances that had these rows before

    def close(self) -> None:
        """Close the descriptors; what was mapped goes with who holds it."""
        self._owned.close()

    def lend(self, fd: int) -> None:
        """Let the process know what is known of a connection, before it gets it."""
        if fd < ARRIVALS:
            self._arrivals[fd] = self._their_arrivals[fd]
        if self._theirs is not None and self._origins is not None:
            self._theirs.copy(fd, self._origins)

    def exchange(self) -> None:
        """Let the process know what the worker says to all, and put on the scoreboard what it has written."""
        for word in (AT_CAPACITY, STOPPING):
            self._row0[word] = self._acceptor[word]
        now_ms = int(time.monotonic() * 1000)
        for (theirs, ours), since in zip(self._rows, self._since, strict=True):
            if claimed := _count(theirs.words, ours.words, since):
                self._on_claimed(claimed)
            _show(theirs, ours, now_ms)


def _pairs(board: Scoreboard, region: Scoreboard, order: BootOrder) -> Sequence[tuple[Row, Row]]:
    first = order.place.first_row
    count = len(order.members) * (1 + order.serving.threads)
    return [(region.row(number), board.row(number)) for number in range(first, first + count)]


def _count(theirs: memoryview, ours: memoryview, since: Sequence[int]) -> int:
    """Take over counters, which only grow; return how many requests there are more."""
    for first, end in _COUNTERS:
        known = ours[first:end].tolist()
        both = zip(theirs[first:end].tolist(), since[first:end], known, strict=True)
        said = [min(max(word + before, old), _MOST) for word, before, old in both]
        if said != known:
            ours[first:end] = array("q", said)
    requests = min(max(theirs[REQUESTS] + since[REQUESTS], ours[REQUESTS]), _MOST)
    grown, ours[REQUESTS] = requests - ours[REQUESTS], requests
    return grown


def _show(theirs: Row, ours: Row, now_ms: int) -> None:
    """Take over what is so just now, for people to see."""
    ours.copy_texts(theirs)
    words, said = ours.words, theirs.words
    words[BUSY_SINCE] = min(max(said[BUSY_SINCE], 0), now_ms)
    words[ANSWERED] = int(said[ANSWERED] != 0)
    words[BUSY] = int(said[BUSY] != 0)  # that it serves one, and not whose: nobody finds a connection by it
    words[QUEUED] = min(max(said[QUEUED], 0), _MOST_QUEUED)
    words[LOADING] = int(said[LOADING] != 0)
    words[ERROR_AT] = min(max(said[ERROR_AT], 0), int(time.time()))
    words[ERROR_LENGTH] = max(said[ERROR_LENGTH], 0)
