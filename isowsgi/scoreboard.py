"""The scoreboard: one block of shared memory per worker that every instance writes and anyone reads (Apache's word).

Rows of 64-bit words. Each instance has a block of rows: the first is its control thread's, then one for each serving thread. A row is
written by its thread alone, so no lock is needed. Row 0 is the acceptor's. The block is a memfd, made in gunicorn's master before the
fork: its descriptor, an int, is all that an interpreter needs to open it, and the master can still read what a dead worker was doing.

Counters only grow, also when a block passes on to another instance; who wants an instance's own remembers where it began.
"""

from __future__ import annotations

import mmap
import os

# Words of a serving thread's row. The first eight are one cache line.
REQUESTS = 0  # requests whose head was taken from the connection
CLOSED = 1  # connections that this thread closed
BUSY_FD = 2  # descriptor of the connection whose request is being served, plus 1; 0: none
HEAD_SENT = 3  # 1 once the client has the current request's status
BUSY_SINCE = 4  # monotonic milliseconds when the current request began
MOUNT = 6  # the mount's number, plus 1; set once
LINE_LENGTH = 7  # bytes of LINE that count

# Words of an instance's first row; none that `total` sums over the others.
BEAT = 5  # monotonic milliseconds of the control thread's last look at the others; stale while an own GIL is held by C code

# Words of row 0, the acceptor's.
AT_CAPACITY = 0  # 1 while the worker has as many connections as worker_connections allows
CLEAN_EXIT = 1  # 1 once the worker left of its own will
ROWS_USED = 2  # rows that were ever allotted, row 0 included
STOPPING = 3  # 1 from before the listeners are closed: the next response on each connection is its last

_ROW_WORDS = 32
_ROW_BYTES = _ROW_WORDS * 8
_LINE_OFFSET = 8 * 8  # the request line's first bytes fill the rest of the row
LINE_BYTES = _ROW_BYTES - _LINE_OFFSET

# Rows that a block has before it is full. Nothing is used of a row that no thread writes to: the memory is given page by page.
ROWS = 64 * 1024


class Row:
    """One thread's row."""

    __slots__ = ("_line", "words")

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        octets = memoryview(memory)[number * _ROW_BYTES : (number + 1) * _ROW_BYTES]
        self.words = octets[:_LINE_OFFSET].cast("q")
        self._line = octets[_LINE_OFFSET:]

    def set_line(self, data: bytes) -> None:
        """Note what request is served: as many bytes of it as there is room for, up to its first line's end."""
        end = data.find(b"\r", 0, LINE_BYTES)
        length = end if end >= 0 else min(len(data), LINE_BYTES)
        self._line[:length] = data[:length]
        self.words[LINE_LENGTH] = length

    def line(self) -> str:
        return bytes(self._line[: self.words[LINE_LENGTH]]).decode("latin-1")


class Scoreboard:
    """The block, mapped into this interpreter.

    Args:
        fd: the memfd of an existing block, which stays the caller's; None makes a new one, all zero.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("isowsgi-scoreboard") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, ROWS * _ROW_BYTES)
        self._memory = mmap.mmap(self.fd, ROWS * _ROW_BYTES)
        self._words = memoryview(self._memory).cast("q")
        self._used = 1
        self._free: dict[int, list[int]] = {}

    def row(self, number: int) -> Row:
        return Row(self._memory, number)

    def allot(self, rows: int) -> int:
        """Reserve a block of rows and return the first one's number; by the worker's main interpreter only.

        Raises:
            MemoryError: the block is full.
        """
        free = self._free.get(rows)
        if free:
            return free.pop()
        if self._used + rows > ROWS:
            raise MemoryError(f"the scoreboard has {ROWS} rows, one for each thread, and all are taken")
        first, self._used = self._used, self._used + rows
        self.row(0).words[ROWS_USED] = self._used
        return first

    def give_back(self, first: int, rows: int) -> None:
        """Let another instance have a block that no thread writes to any more."""
        self._free.setdefault(rows, []).append(first)

    def in_flight(self) -> list[tuple[int, str]]:
        """Return mount and request line of all that is being served, or was when the worker died; from any process."""
        rows = [self.row(number) for number in range(1, self.row(0).words[ROWS_USED])]
        return [(row.words[MOUNT] - 1, row.line()) for row in rows if row.words[MOUNT] and row.words[BUSY_FD]]

    def close(self) -> None:
        """Let go of the memory and of the memfd that this object made."""
        self._words.release()
        self._memory.close()
        os.close(self.fd)

    def total(self, word: int, first: int = 1, rows: int | None = None) -> int:
        """Return the sum of one word over rows; by default all that were allotted."""
        end = first + rows if rows is not None else self._used
        return sum(self._words[first * _ROW_WORDS + word : end * _ROW_WORDS : _ROW_WORDS])
