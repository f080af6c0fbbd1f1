"""What the scoreboard says of an instance, whatever its isolation: how much it has served, what it serves, and for whom."""

from __future__ import annotations

import socket
from typing import NamedTuple

from isowsgi.instances.judge import Judge
from isowsgi.shared.handover import dup_of
from isowsgi.shared.messages import BootOrder
from isowsgi.shared.rows import BUSY, BUSY_SINCE, CLOSED, REQUESTS, SENDS, THREAD, TURNED_AWAY, Row
from isowsgi.shared.scoreboard import Scoreboard


class ServingThread(NamedTuple):
    """What the rows of one thread say."""

    native_id: int  # the kernel's number; 0: it has not begun to serve
    requests: int  # that it has begun to serve
    is_busy: bool


class CountedInstance:
    """An instance as its rows show it.

    Args:
        order: the boot order; the rows are as it has them.
        board: the worker's scoreboard.
        rows: where its rows are, if not there.
    """

    def __init__(self, order: BootOrder, board: Scoreboard, rows: Scoreboard | None = None) -> None:
        source = self._source = rows or board
        self.isolation = order.isolation
        self.first_row = order.place.first_row
        mounts = self._mounts = [member.mount for member in order.members]
        self.threads = order.serving.threads
        self.rows: int = len(mounts) * (1 + self.threads)
        self._thread_rows = [row for thread in range(self.threads) for row in source.thread_rows(self.first_row, mounts, thread).values()]
        control_words = source.row(self.first_row).words
        self._control_rows = list(source.control_rows(self.first_row, mounts).values())
        self._judge = Judge(
            self.isolation, control_words, self._thread_rows, lambda key: self._connection_of(key), self._mount_of, self._counters_of
        )
        self._board = board
        self._requests_before = {mount: self._counted(mount) for mount in mounts}

    def requests(self, mount: int | None = None) -> int:
        """Return how many requests it has begun to serve.

        Args:
            mount: the number of one of its mounts; None: all of them.
        """
        wanted = self._mounts if mount is None else [mount]
        return sum(self._counted(each) - self._requests_before[each] for each in wanted)

    def serving_threads(self) -> list[ServingThread]:
        """Return what is known of its threads, by their numbers."""
        width = len(self._mounts)
        found = []
        for start in range(0, len(self._thread_rows), width):
            words = [row.words for row in self._thread_rows[start : start + width]]
            found.append(ServingThread(words[0][THREAD], sum(each[REQUESTS] for each in words), any(each[BUSY] for each in words)))
        return found

    def progress(self) -> int:
        """Return a number that grows by one or more for each connection that it deals with."""
        return sum(self._source.total(word, self.first_row, self.rows) for word in (REQUESTS, CLOSED, TURNED_AWAY))

    def is_busy(self) -> bool:
        return any(row.words[BUSY] for row in self._thread_rows) or any(row.words[SENDS] for row in self._control_rows)

    def has_free_thread(self) -> bool:
        return sum(row.words[BUSY] != 0 for row in self._thread_rows) < self.threads

    def is_at_leisure(self) -> bool:
        """Whether no connection that it has waits for a thread."""
        return self.has_free_thread()

    def requests_in_flight(self) -> list[str]:
        """Return the request lines that its threads are serving."""
        return [row.line() for row in self._thread_rows if row.words[BUSY]]

    def in_flight(self, now: float) -> list[tuple[str, float]]:
        """Return the request lines that its threads are serving, and for how many seconds."""
        busy = [row for row in self._thread_rows if row.words[BUSY]]
        return [(row.line(), round(max(now - row.words[BUSY_SINCE] / 1000, 0.0), 1)) for row in busy]

    def _connection_of(self, key: int) -> socket.socket | None:
        """Return a connection that this instance has, by its key on the scoreboard; None if it no longer has it."""
        return dup_of(key)

    def _mount_of(self, row: Row) -> int:
        """Return the number of the mount of a thread's row, by its place: a child process may have written any there."""
        return self._mounts[self._thread_rows.index(row) % len(self._mounts)]

    def _counters_of(self, row: Row) -> memoryview:
        return self._board.mount_row(self._mount_of(row)).words

    def _counted(self, mount: int) -> int:
        return self._source.total(REQUESTS, self.first_row + self._mounts.index(mount), self.rows, every=len(self._mounts))
