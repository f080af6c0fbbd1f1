"""The scoreboard: one block of shared memory per worker that every instance writes and anyone reads (Apache's word).

A row of 64-bit counters for each serving thread, written by that thread alone, so no lock is needed; and a few words of the
acceptor's. The block is a memfd: its descriptor, an int, is all that an interpreter needs to open it.
"""

from __future__ import annotations

import mmap
import os

# Words of a row. Eight of 8 bytes: a row is one cache line, so two threads on two cores do not share one.
REQUESTS = 0  # requests whose head was taken from the connection
CLOSED = 1  # connections that this thread closed
ROW_WORDS = 8

# Words of row 0, the acceptor's.
AT_CAPACITY = 0  # 1 while the worker has as many connections as worker_connections allows


class Scoreboard:
    """The block, mapped into this interpreter.

    Args:
        rows: how many rows the block has, row 0 included.
        fd: the memfd of an existing block, which stays the caller's; None makes a new one, all zero.
    """

    def __init__(self, rows: int, fd: int | None = None) -> None:
        size = rows * ROW_WORDS * 8
        self.rows = rows
        self.fd = os.memfd_create("isowsgi-scoreboard") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, size)
        self.words = memoryview(mmap.mmap(self.fd, size)).cast("q")

    def row(self, number: int) -> memoryview:
        """Return one row; its owner may write to it."""
        return self.words[number * ROW_WORDS : (number + 1) * ROW_WORDS]

    def total(self, word: int) -> int:
        """Return the sum of one word over all rows but the acceptor's."""
        return sum(self.words[ROW_WORDS + word :: ROW_WORDS])
