"""The scoreboard: shared memory that every instance writes and anyone reads (Apache's word).

`rows` knows how a row looks, this module how a worker's rows are allotted and read, and `board` what is common to all workers.

One memfd for all of gunicorn, the **board**, made in the master before its first fork. Each worker has a **region** of it: rows of 64-bit
words, and two texts. So a descriptor, an int, is all that an interpreter, a child process or the master needs to read every worker's
counters, and the master can still read what a dead worker was doing.

A region's rows. Row 0 is the acceptor's. Then comes one for each mount that the worker had at its start, written by the main interpreter.
The others are allotted as they are needed: a row for each mount that is added later, and a block for each instance. A block has a control
row for each mount that the instance serves, written by its control thread, then a row for each pair of thread and mount, written by that
thread. Each word has one writer, so no lock is needed, and a reader sees each word whole.

Counters only grow, also when a block passes on to the next instance of the same mounts: a mount's total is the sum over its rows, and an
instance's own is what was added since it began. When the master has reaped a worker it adds its counters to the **retired** ones, so
the sum over retired and living workers never goes back; `board.Board.read` takes both under one sequence lock.

Every process that has the descriptor may write anything anywhere, by a mistake in C code if by nothing else. So the memory is sealed: it
cannot be cut off under its readers. What is read of it is brought into bounds before it is used. And what the master must be sure of (how
many regions there are, what the retired workers counted) it keeps in private memory; the board has a copy for readers.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from isowsgi.shared.rows import (
    ANSWERED,
    BUCKET_LIMITS_S,
    BUCKETS,
    BUSY,
    BUSY_SINCE,
    ERROR_AT,
    ISOLATION,
    ISOLATIONS,
    LOADING,
    MOUNT,
    NAMES_BYTES,
    NAMES_OFFSET,
    QUEUED,
    REPORT_BYTES,
    REPORT_OFFSET,
    REQUESTS,
    RESPONSES,
    ROW_WORDS,
    ROWS,
    ROWS_USED,
    SENDING_NS,
    SENDINGS,
    SENDS,
    SLOW_APP_BUCKETS,
    SLOW_BUCKETS,
    WAIT_LIMITS_S,
    WAITINGS,
    Region,
    Row,
)
from isowsgi.shared.sharedmemory import Text

# Words that are summed over rows and kept when a worker ends: all from the first class of responses to the last sum, and REQUESTS.
FIRST_COUNTER = RESPONSES + 1
END_COUNTERS = SENDING_NS + 1
_BUCKETS = len(BUCKET_LIMITS_S) + 1  # one has no limit


def faults(patterns: Sequence[str]) -> list[str]:
    """Return why a worker's region cannot hold these mounts; known before anything is made."""
    found = []
    if (names := len(json.dumps(list(patterns)))) > NAMES_BYTES:
        found.append(f"mounts: {len(patterns)} patterns of {names} bytes in all are too long; expected {NAMES_BYTES} at most")
    if len(patterns) >= ROWS // 4:  # a mount's own row, and one instance with a thread beside the one that it replaces
        found.append(f"mounts: {len(patterns)} are too many; expected fewer than {ROWS // 4}")
    return found


class Counters(NamedTuple):
    """The sums over some rows."""

    requests: int
    words: tuple[int, ...]  # from FIRST_COUNTER on

    def get(self, word: int) -> int:
        return self.requests if word == REQUESTS else self.words[word - FIRST_COUNTER]

    def buckets(self) -> tuple[int, ...]:
        """Return how many requests fell into each bucket."""
        return self._with(SLOW_BUCKETS)

    def app_buckets(self) -> tuple[int, ...]:
        """Return the same without the time in which a thread waited for the client to take the response."""
        return self._with(SLOW_APP_BUCKETS)

    def waiting_buckets(self) -> tuple[int, ...]:
        """Return how many requests had waited how long for a thread, by WAIT_LIMITS_S."""
        return self._waits(WAITINGS)

    def sending_buckets(self) -> tuple[int, ...]:
        """Return for how many requests the client was waited for how long, by WAIT_LIMITS_S."""
        return self._waits(SENDINGS)

    def _with(self, slow: int) -> tuple[int, ...]:
        return tuple(map(int.__add__, self._from(BUCKETS, _BUCKETS), self._from(slow, _BUCKETS)))

    def _waits(self, first: int) -> tuple[int, ...]:
        short, *long = self._from(first, len(WAIT_LIMITS_S) + 1)
        return (sum(self._from(BUCKETS, _BUCKETS)) + short, *long)

    def _from(self, first: int, count: int) -> tuple[int, ...]:
        return self.words[first - FIRST_COUNTER : first - FIRST_COUNTER + count]

    def plus(self, other: Counters) -> Counters:
        return Counters(self.requests + other.requests, tuple(map(int.__add__, self.words, other.words)))


ZERO = Counters(0, (0,) * (END_COUNTERS - FIRST_COUNTER))

# By pattern and isolation. What is known of no isolation (a mount's own row) has "" there; the acceptor's row has "" for both.
Totals = dict[tuple[str, str], Counters]


def add(totals: Totals, more: Mapping[tuple[str, str], Counters]) -> None:
    """Add counters to others, in place."""
    for key, counters in more.items():
        totals[key] = totals[key].plus(counters) if key in totals else counters


def wholes(totals: Totals) -> dict[str, Counters]:
    """Return each mount's counters over all isolations it ever had, by pattern."""
    found: dict[str, Counters] = {}
    for (pattern, _), counters in totals.items():
        if pattern:
            found[pattern] = found[pattern].plus(counters) if pattern in found else counters
    return found


class Busy(NamedTuple):
    """A request that is being served."""

    row: int
    pattern: str
    line: str
    since_ms: int  # monotonic
    has_head: bool  # whether its client has a status already


class RowError(NamedTuple):
    """What an app raised out of a request."""

    pattern: str
    at: int  # seconds since the epoch
    text: str


class RegionReading(NamedTuple):
    """What was read of a worker."""

    number: int
    totals: Totals
    busy: list[Busy]
    queued: dict[str, int]  # by pattern
    sends: dict[str, int]  # files on their way that no thread sends, by pattern
    errors: list[RowError]
    report: dict[str, Any] | None  # what it says of itself; None until it does
    is_stopping: bool  # whether the next response on each of its connections is the last


_encode = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` would make one for each part


def text_of(facts: Mapping[str, Any]) -> str:
    """Return a part of a report as the board has it."""
    return _encode(facts)


class Scoreboard(Region):
    """A worker's region as the worker itself has it, and who reads what it says.

    Args:
        fd, number: as for `Region`.
    """

    def __init__(self, fd: int | None = None, number: int = 0) -> None:
        super().__init__(fd, number)
        self._words = memoryview(self._memory)[:NAMES_OFFSET].cast("q")
        self._names = Text(self._memory, NAMES_OFFSET, NAMES_BYTES)
        self._report = Text(self._memory, REPORT_OFFSET, REPORT_BYTES)
        self._patterns: list[str] | None = None
        self._is_made_here = False  # whether the patterns are ours, and not what was read
        self._used = self.rows_used()
        self.claimed: list[str] = []  # what the worker, or whoever had the board, called its mounts; by `learn_mounts`
        self._mount_rows: dict[int, int] = {}  # of mounts that were added later, by their numbers
        self._free_mounts: dict[str, list[int]] = {}  # numbers that no mount has any more, by pattern
        self._blocks: dict[int, tuple[int, tuple[int, ...], str]] = {}
        self._free: dict[tuple[int, tuple[int, ...], str], list[int]] = {}

    # For the master, before the fork.

    def set_mounts(self, patterns: Sequence[str]) -> None:
        """Say which mounts the worker serves, by number, and reserve a row for each; once, before anything is allotted."""
        assert self._used == 1, "the mounts' rows follow the acceptor's"
        self._names.write(json.dumps(list(patterns)).encode())
        self._patterns, self._is_made_here = list(patterns), True
        self._used = self._words[ROWS_USED] = 1 + len(patterns)
        for number in range(len(patterns)):
            self.mount_row(number).words[MOUNT] = number + 1

    # For the worker's main interpreter.

    def mount_row(self, mount: int) -> Row:
        """Return the row of a mount, for what the main interpreter counts of it."""
        return self.row(self._mount_rows.get(mount, 1 + mount))

    def add_mount(self, pattern: str) -> int:
        """Return a number for one more mount.

        A number that another mount with this pattern had before is used again, so that what was counted under it stays the pattern's.

        Raises:
            MemoryError: the region is full.
        """
        if free := self._free_mounts.get(pattern):
            return free.pop()
        patterns = [*self._names_of_mounts(), pattern]
        names = json.dumps(patterns).encode()
        if self._used == ROWS or len(names) > NAMES_BYTES:
            raise MemoryError(f"the scoreboard has {ROWS} rows and {NAMES_BYTES} bytes for the patterns of mounts, and all are taken")
        number = len(patterns) - 1
        row, self._used = self._used, self._used + 1
        self._mount_rows[number] = row
        self.row(row).words[MOUNT] = number + 1
        self._names.write(names)  # before anybody counts the row in
        self._patterns = patterns
        self._words[ROWS_USED] = self._used
        return number

    def free_mount(self, number: int) -> None:
        """Let the next mount with the same pattern have a number, once nothing of this one's is left."""
        self._free_mounts.setdefault(self._names_of_mounts()[number], []).append(number)

    def allot(self, threads: int, mounts: Sequence[int], isolation: str = "") -> int:
        """Reserve a block of rows for an instance and return the first one's number.

        First a control row for each mount, in order, then for each thread one for each mount: `control_rows`, `thread_rows`. An instance
        that serves one mount has its control row first and a row for each thread behind it. A thread that serves several mounts counts each
        request, and says that it is busy, in the row of the request's mount. A block is reused for the same mounts and isolation only.

        Raises:
            MemoryError: the region is full.
        """
        key = (threads, tuple(mounts), isolation)
        rows = len(mounts) * (1 + threads)
        if free := self._free.get(key):
            first = free.pop()
        elif self._used + rows > ROWS:
            raise MemoryError(f"the scoreboard has {ROWS} rows, one for each thread, and all are taken")
        else:
            first, self._used = self._used, self._used + rows
            code = ISOLATIONS.index(isolation) + 1 if isolation else 0
            for offset in range(rows):
                words = self.row(first + offset).words
                words[MOUNT], words[ISOLATION] = mounts[offset % len(mounts)] + 1, code
            self._words[ROWS_USED] = self._used
        self._blocks[first] = key
        return first

    def give_back(self, first: int) -> None:
        """Let another instance of the same mounts have a block that no thread writes to any more."""
        key = threads, mounts, _ = self._blocks.pop(first)
        for number in range(len(mounts) * (1 + threads)):
            self.row(first + number).clear()
        self._free.setdefault(key, []).append(first)

    def publish(self, report: Mapping[str, Any], mounts: Sequence[str] = ()) -> None:
        """Say what is no counter: states, stacks, sizes.

        Args:
            mounts: the report's, each as JSON; see `text_of`.

        Raises:
            ValueError: it is longer than the room for it.
        """
        text = text_of(report)
        if mounts:
            text = f'{text[:-1]}, "mounts": [{", ".join(mounts)}]}}'
        self._report.write(text.encode("utf-8", "replace"))

    # For the master, once the worker is reaped.

    def learn_mounts(self, known: Container[str]) -> None:
        """Take in the patterns of mounts that the worker added. Whoever has the board may have written any: those not known become ""."""
        self._patterns = None
        self.claimed = self._names_of_mounts()
        self._patterns = [name if name in known else "" for name in self.claimed]

    def pattern_of(self, mount: int) -> str:
        """Return the pattern of a mount, "" if it is not known."""
        return self._pattern(mount + 1)

    # For anyone.

    def report(self) -> dict[str, Any] | None:
        """Return what the worker published last."""
        try:
            report = json.loads(self._report.read() or b"null")
        except (ValueError, RecursionError):  # overwritten by another process, or being erased
            return None
        return report if isinstance(report, dict) else None

    def in_flight(self) -> list[tuple[int, str]]:
        """Return mount and request line of all that is being served in this process, or was when it died; from any process.

        What child processes serve is not among it.
        """
        rows = (self.row(number) for number in range(1, self.rows_used()))
        return [(mount, row.line()) for row in rows if row.words[BUSY] and (mount := self._mount_here(row.words)) is not None]

    def loading(self) -> list[int]:
        """Return the mounts whose apps are being loaded in this process, or were when it died; from any process."""
        rows = (self.row(number).words for number in range(1, self.rows_used()))
        return [mount for words in rows if words[LOADING] and (mount := self._mount_here(words)) is not None]

    def total(self, word: int, first: int = 1, rows: int | None = None, every: int = 1) -> int:
        """Return the sum of one word over rows, or over every nth of them; by default over all that were allotted."""
        end = first + rows if rows is not None else self._used
        return sum(self._words[first * ROW_WORDS + word : end * ROW_WORDS : ROW_WORDS * every])

    def responses_by_mount(self) -> dict[int, tuple[int, int]]:
        """Return how many responses each mount's rows have counted, and how many 5xx among them, by the mount's number; quick."""
        end = self.rows_used() * ROW_WORDS
        columns = [self._words[ROW_WORDS + RESPONSES + place : end : ROW_WORDS].tolist() for place in range(1, 6)]
        mounts = self._words[ROW_WORDS + MOUNT : end : ROW_WORDS].tolist()
        found: dict[int, tuple[int, int]] = {}
        for mount, failed, whole in zip(mounts, columns[4], map(sum, zip(*columns, strict=True)), strict=True):
            before = found.get(mount - 1, (0, 0))
            found[mount - 1] = before[0] + whole, before[1] + failed
        return found

    def totals(self) -> Totals:
        """Return the counters of each mount and isolation, and the acceptor's."""
        sums: dict[tuple[int, int], list[list[int]]] = {}
        words = self._words
        for start in range(0, self.rows_used() * ROW_WORDS, ROW_WORDS):
            key = (words[start + MOUNT], words[start + ISOLATION]) if start else (0, 0)
            row = [words[start + REQUESTS] if start else 0, *words[start + FIRST_COUNTER : start + END_COUNTERS]]
            sums.setdefault(key, []).append(row)
        totals: Totals = {}
        for (mount, isolation), rows in sums.items():
            requests, *rest = (max(sum(column), 0) for column in zip(*rows, strict=True))
            name = ISOLATIONS[isolation - 1] if 0 < isolation <= len(ISOLATIONS) else ""
            add(totals, {(self._pattern(mount), name): Counters(requests, tuple(rest))})
        return totals

    def read(self) -> RegionReading:
        """Return all that can be known of the worker."""
        if not self._is_made_here:
            self._patterns = None  # the region may have become another worker's
        busy, errors = [], []
        queued: dict[str, int] = {}
        sends: dict[str, int] = {}
        for number in range(1, self.rows_used()):
            row = self.row(number)
            words, pattern = row.words, self._pattern(row.words[MOUNT])
            if words[BUSY]:
                busy.append(Busy(number, pattern, row.line(), words[BUSY_SINCE], bool(words[ANSWERED])))
            if words[QUEUED]:
                queued[pattern] = queued.get(pattern, 0) + words[QUEUED]
            if words[SENDS] > 0:
                sends[pattern] = sends.get(pattern, 0) + words[SENDS]
            if words[ERROR_AT]:
                errors.append(RowError(pattern, words[ERROR_AT], row.error()))
        return RegionReading(self.region, self.totals(), busy, queued, sends, errors, self.report(), self.acceptor_row().is_stopping)

    def close(self) -> None:
        """Let go of the memory; not of the descriptor."""
        for part in (self._names, self._report):
            part.release()
        self._words.release()
        super().close()

    def erase(self) -> None:
        """Make all of it zero, and give the memory back; by the master, while no worker has it."""
        self._memory.madvise(mmap.MADV_REMOVE)
        self._used = 1

    def rows_used(self) -> int:
        """Return how many rows were ever allotted."""
        return min(max(self._words[ROWS_USED], 1), ROWS)

    def _mount_here(self, words: memoryview) -> int | None:
        """Return the number of a row's mount; None if there is none such, or if the row is a child process'."""
        mount = words[MOUNT] - 1
        is_elsewhere = words[ISOLATION] == ISOLATIONS.index("process") + 1
        return None if is_elsewhere or not 0 <= mount < len(self._names_of_mounts()) else mount

    def _pattern(self, mount_word: int) -> str:
        if not mount_word:
            return ""
        patterns = self._names_of_mounts()
        return patterns[mount_word - 1] if 0 < mount_word <= len(patterns) else f"mount {mount_word - 1}"

    def _names_of_mounts(self) -> list[str]:
        if self._patterns is None:
            try:
                names = json.loads(self._names.read() or b"[]")
            except ValueError:  # as for the report
                names = []
            self._patterns = [str(name) for name in names] if isinstance(names, list) else []
        return self._patterns
