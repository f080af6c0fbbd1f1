"""The scoreboard: shared memory that every instance writes and anyone reads (Apache's word). The only module that knows its layout.

One memfd for all of gunicorn, the **board**, made in the master before its first fork. Each worker has a **region** of it: rows of 64-bit
words, and two texts. So a descriptor, an int, is all that an interpreter, a child process or the master needs to read every worker's
counters, and the master can still read what a dead worker was doing.

A region's rows. Row 0 is the acceptor's. Then comes one for each mount that the worker had at its start, written by the main interpreter.
The others are allotted as they are needed: a row for each mount that is added later, and a block for each instance. A block has a control
row for each mount that the instance serves, written by its control thread, then a row for each pair of thread and mount, written by that
thread. Each word has one writer, so no lock is needed, and a reader sees each word whole.

Counters only grow, also when a block passes on to the next instance of the same mounts: a mount's total is the sum over its rows, and an
instance's own is what was added since it began. When the master has reaped a worker it adds its counters to the **retired** ones, so
the sum over retired and living workers never goes back; `Board.read` takes both under one sequence lock.

Every process that has the descriptor may write anything anywhere, by a mistake in C code if by nothing else. So the memory is sealed: it
cannot be cut off under its readers. What is read of it is brought into bounds before it is used. And what the master must be sure of (how
many regions there are, what the retired workers counted) it keeps in private memory; the board has a copy for readers.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from isowsgi.shared.memory import GRANULE, TURN_MASK, Text, make_memory, text_bytes

# Words of every row. The first eight are one cache line.
REQUESTS = 0  # requests whose head was taken from the connection
CLOSED = 1  # connections that this thread closed
BUSY = 2  # key of the connection whose request is being served, see `handover.key_of`; 0: none
ANSWERED = 3  # who gave the current request's client its status: 0 nobody so far, BY_APP, or BY_WATCHER
BUSY_SINCE = 4  # monotonic milliseconds when the current request began
MOUNT = 6  # the mount's number, plus 1; 0: none
LINE_LENGTH = 7  # bytes of the request line that count
ISOLATION = 8  # place in ISOLATIONS, plus 1
ERROR_AT = 10  # seconds since the epoch when the app last raised out of a request
ERROR_LENGTH = 11
PROGRESS_AT = 13  # monotonic milliseconds when the control thread last saw the current request make progress, if it looked meanwhile
JUDGED = 14  # what the supervisor says of a request from outside, see `judgement`; it alone writes this word

# Values of ANSWERED.
BY_APP = 1
BY_WATCHER = 2  # the control thread in the instance, for a request that timed out; what is decided outside stands in JUDGED

# Words of an instance's control rows.
BEAT = 5  # monotonic milliseconds of the control thread's last look at the others; stale while an own GIL is held by C code
QUEUED = 9  # requests that wait for a thread, when last looked at
LOADING = 12  # 1 while the mount's app is being loaded

# Counters. The place of a response's class, 1 to 5 (`200 OK` is 2), is added to the first.
RESPONSES = 15  # whose head was sent; before the client can have it, so that nobody counts one before we do
BYTES_IN = 21  # of bodies
BYTES_OUT = 22  # of bodies
BUSY_NS = 23  # spent in requests that have ended
CPU_NS = 24  # of the thread; written by the control thread while it lives, see `deadlines.Job.take_cpu`
EXCEPTIONS = 25  # that the app raised out of a request
TIMEOUTS = 26  # requests that timed out for lack of progress
TURNED_AWAY = 27  # requests answered 503 because they waited too long, or too many did
RELOADS = 28  # these to BOOT_NS: a mount's row
STUCK = 29  # instances left behind
BOOTS = 30  # that ended well
BOOT_FAILURES = 31
BOOT_NS = 32  # that the former took
CRASHES = 33  # of workers, among the retired only: all, or those attributed to a mount; and of the mount's own processes, in its row
ACCEPTED = 34  # connections; these three: row 0
HANDSHAKES = 35  # of TLS that ended well; this one and the next by the relay's thread, see `tls`
HANDSHAKE_FAILURES = 36
INTERNAL_ERRORS = 37  # isowsgi's own mistakes that were contained; counted where they are contained, see `containment`
FAILED_STARTS = 38  # of workers that gunicorn started with and that have nothing to serve; row 0
BUCKETS = 40  # requests that have ended, by how long they took: see BUCKET_LIMITS_S

# Words of row 0, the acceptor's.
AT_CAPACITY = 0  # 1 while the worker has as many connections as worker_connections allows
CLEAN_EXIT = 1  # 1 once the worker has begun to exit by itself
ROWS_USED = 2  # rows that were ever allotted, row 0 included
STOPPING = 3  # 1 from before the listeners are closed: the next response on each connection is its last

# What a request took at most, in seconds, to be counted in a bucket; one more has no limit. From a hello to a request that times out.
BUCKET_LIMITS_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LIMITS_NS = tuple(int(limit * 1e9) for limit in BUCKET_LIMITS_S)

# Words that are summed over rows and kept when a worker ends: all from the first class of responses to the last bucket, and REQUESTS.
_FIRST_COUNTER = RESPONSES + 1
_END_COUNTERS = BUCKETS + len(BUCKET_LIMITS_S) + 1

# Words that say what is so just now, and not how often it was.
_OF_THE_MOMENT = (BUSY, ANSWERED, BUSY_SINCE, BEAT, QUEUED, LOADING, PROGRESS_AT)

# Names stand on the board as numbers; append only.
ISOLATIONS = ("own-gil", "shared-gil", "main", "process")

_WORDS_END = 64
_LINE_WORDS = 24
_ERROR_WORDS = 32
_ROW_WORDS = _WORDS_END + _LINE_WORDS + _ERROR_WORDS
_ROW_BYTES = _ROW_WORDS * 8  # 15 cache lines
_LINE_OFFSET = _WORDS_END * 8
_ERROR_OFFSET = _LINE_OFFSET + _LINE_WORDS * 8
LINE_BYTES = _LINE_WORDS * 8
_LINE = struct.Struct(f"{LINE_BYTES}s")  # packs what is longer cut off, and what is shorter with zeros behind; faster than a slice
ERROR_BYTES = _ERROR_WORDS * 8

# Rows that a region has before it is full. Nothing is used of a row that no thread writes to: the memory is given page by page.
ROWS = 64 * 1024

# Most bytes of a text. A thousand mounts need some 40 KiB for their names, and 2 MiB for a report.
_NAMES_BYTES = 1 << 20
_REPORT_BYTES = 8 << 20
_RETIRED_BYTES = 8 << 20

_NAMES_OFFSET = -(-ROWS * _ROW_BYTES // GRANULE) * GRANULE
_REPORT_OFFSET = _NAMES_OFFSET + text_bytes(_NAMES_BYTES)
_REGION_BYTES = _REPORT_OFFSET + text_bytes(_REPORT_BYTES)

# The board's own head: words, then the retired counters as a text; the regions follow.
_SEQUENCE = 0  # odd while the master moves counters from a region to the retired ones
_REGIONS = 1  # how many there ever were
_STATES = 64  # from here on one for each region: 1 while a worker has it
_MAX_REGIONS = GRANULE // 8 - _STATES
_RETIRED_OFFSET = GRANULE
_HEAD_BYTES = _RETIRED_OFFSET + text_bytes(_RETIRED_BYTES)

# How long a region rests before another worker gets it: a child process of a worker that was killed may still write to it for a moment.
_REST_S = 60.0

# How often a reader tries again while the master moves counters, which takes it some 0.1 ms. After that the sequence cannot be right.
_MOST_TRIES = 200


def faults(patterns: Sequence[str]) -> list[str]:
    """Return why a worker's region cannot hold these mounts; known before anything is made."""
    found = []
    if (names := len(json.dumps(list(patterns)))) > _NAMES_BYTES:
        found.append(f"mounts: {len(patterns)} patterns of {names} bytes in all are too long; expected {_NAMES_BYTES} at most")
    if len(patterns) >= ROWS // 4:  # a mount's own row, and one instance with a thread beside the one that it replaces
        found.append(f"mounts: {len(patterns)} are too many; expected fewer than {ROWS // 4}")
    return found


class Counters(NamedTuple):
    """The sums over some rows."""

    requests: int
    words: tuple[int, ...]  # from _FIRST_COUNTER on

    def get(self, word: int) -> int:
        return self.requests if word == REQUESTS else self.words[word - _FIRST_COUNTER]

    def buckets(self) -> tuple[int, ...]:
        """Return how many requests fell into each bucket."""
        return self.words[BUCKETS - _FIRST_COUNTER :]

    def plus(self, other: Counters) -> Counters:
        return Counters(self.requests + other.requests, tuple(map(int.__add__, self.words, other.words)))


ZERO = Counters(0, (0,) * (_END_COUNTERS - _FIRST_COUNTER))

# By pattern and isolation. What is known of no isolation (a mount's own row) has "" there; the acceptor's row has "" for both.
Totals = dict[tuple[str, str], Counters]


def add(totals: Totals, more: Mapping[tuple[str, str], Counters]) -> None:
    """Add counters to others, in place."""
    for key, counters in more.items():
        totals[key] = totals[key].plus(counters) if key in totals else counters


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
    errors: list[RowError]
    report: dict[str, Any] | None  # what it says of itself; None until it does


class Reading(NamedTuple):
    """What was read of a board at one moment."""

    totals: Totals  # of all workers that ever lived
    regions: list[RegionReading]  # those that live


class Row:
    """One row."""

    __slots__ = ("_error", "_line", "words")

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        octets = memoryview(memory)[number * _ROW_BYTES : (number + 1) * _ROW_BYTES]
        self.words = octets[:_LINE_OFFSET].cast("q")
        self._line = octets[_LINE_OFFSET:_ERROR_OFFSET]
        self._error = octets[_ERROR_OFFSET:]

    # Of a thread's row. Every request pays for each line of these two, see bench/scoreboard.py; so they call nothing of ours.

    def begin(self, key: int, data: bytes, now_ns: int) -> None:
        """Say that a request is served; that it is, last.

        Args:
            key: of its connection.
            data: what it begins with; its first line is noted, as far as there is room.
            now_ns: monotonic nanoseconds.
        """
        words = self.words
        words[BUSY_SINCE] = now_ns // 1_000_000
        words[ANSWERED] = 0
        _LINE.pack_into(self._line, 0, data)
        end = data.find(b"\r", 0, LINE_BYTES)
        words[LINE_LENGTH] = end if end >= 0 else min(len(data), LINE_BYTES)
        words[REQUESTS] += 1
        words[BUSY] = key

    def end(self, elapsed_ns: int, bytes_in: int, bytes_out: int) -> None:
        """Say that the request has ended, and count it."""
        words = self.words
        words[BUSY] = 0
        words[BUSY_NS] += elapsed_ns
        words[BUCKETS + bisect_left(_LIMITS_NS, elapsed_ns)] += 1
        if bytes_out:
            words[BYTES_OUT] += bytes_out
        if bytes_in:
            words[BYTES_IN] += bytes_in

    def say_idle(self) -> None:
        """Say that no request is served, where its end was interrupted and so may not say it."""
        self.words[BUSY] = 0

    def line(self) -> str:
        return bytes(self._line[: max(self.words[LINE_LENGTH], 0)]).decode("latin-1")

    def set_error(self, text: str) -> None:
        """Note what the app raised, and when."""
        octets = text.encode("utf-8", "replace")[:ERROR_BYTES]
        self._error[: len(octets)] = octets
        self.words[ERROR_LENGTH] = len(octets)
        self.words[ERROR_AT] = int(time.time())

    def error(self) -> str:
        return bytes(self._error[: max(self.words[ERROR_LENGTH], 0)]).decode("utf-8", "ignore")

    def count_response(self, status: int) -> None:
        """Count a response that nobody's thread gives; before the client can have it."""
        self.words[RESPONSES + status // 100] += 1

    def count_turned_away(self) -> None:
        """Count a request that was answered 503, as it waited for a thread too long or behind too many others."""
        self.words[TURNED_AWAY] += 1
        self.words[RESPONSES + 5] += 1

    def count_internal_errors(self, count: int) -> None:
        self.words[INTERNAL_ERRORS] += count

    # Of a control row, by its thread or the one that loads the app.

    def say_alive(self, now: float) -> None:
        """Say that the control thread runs.

        Args:
            now: monotonic seconds.
        """
        self.words[BEAT] = int(now * 1000)

    def set_queued(self, count: int) -> None:
        self.words[QUEUED] = count

    def say_loading(self, is_loading: bool) -> None:
        self.words[LOADING] = int(is_loading)

    def clear(self) -> None:
        """Say that no thread uses this row any more; called by the side that retires the thread. Counters stay."""
        for word in _OF_THE_MOMENT:
            self.words[word] = 0


class AcceptorRow(Row):
    """Row 0: what the main interpreter says and counts of the whole worker."""

    __slots__ = ()

    def count_accepted(self) -> None:
        self.words[ACCEPTED] += 1

    def count_handshake(self, succeeded: bool) -> None:
        """Count one of TLS; by the relay's thread."""
        self.words[HANDSHAKES if succeeded else HANDSHAKE_FAILURES] += 1

    def count_failed_start(self) -> None:
        self.words[FAILED_STARTS] += 1

    @property
    def is_at_capacity(self) -> bool:
        return self.words[AT_CAPACITY] == 1

    def set_at_capacity(self, is_full: bool) -> None:
        """Say whether the worker has as many connections as it may."""
        self.words[AT_CAPACITY] = int(is_full)

    def say_stopping(self) -> None:
        """Say that the next response on each connection is its last."""
        self.words[STOPPING] = 1

    @property
    def has_left_cleanly(self) -> bool:
        return self.words[CLEAN_EXIT] == 1

    def say_clean_exit(self) -> None:
        """Say that the worker exits by itself: from here on its end is no crash."""
        self.words[CLEAN_EXIT] = 1


class Scoreboard:
    """A worker's region, mapped into this interpreter.

    Args:
        fd: the board's, which stays the caller's; None makes a board with one region, all zero.
        region: which one.
    """

    def __init__(self, fd: int | None = None, region: int = 0) -> None:
        if fd is None:
            fd = make_memory("isowsgi-scoreboard", _HEAD_BYTES + _REGION_BYTES)
        self.fd = fd
        self.region = region
        self._memory = mmap.mmap(fd, _REGION_BYTES, offset=_HEAD_BYTES + region * _REGION_BYTES)
        self._words = memoryview(self._memory)[:_NAMES_OFFSET].cast("q")
        self._names = Text(self._memory, _NAMES_OFFSET, _NAMES_BYTES)
        self._report = Text(self._memory, _REPORT_OFFSET, _REPORT_BYTES)
        self._patterns: list[str] | None = None
        self._is_made_here = False  # whether the patterns are ours, and not what was read
        self._used = self.rows_used()
        self.claimed: list[str] = []  # what the worker, or whoever had the board, called its mounts; by `learn_mounts`
        self._mount_rows: dict[int, int] = {}  # of mounts that were added later, by their numbers
        self._free_mounts: dict[str, list[int]] = {}  # numbers that no mount has any more, by pattern
        self._blocks: dict[int, tuple[int, tuple[int, ...], str]] = {}
        self._free: dict[tuple[int, tuple[int, ...], str], list[int]] = {}

    def row(self, number: int) -> Row:
        return Row(self._memory, number)

    def acceptor_row(self) -> AcceptorRow:
        return AcceptorRow(self._memory, 0)

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
        if self._used == ROWS or len(names) > _NAMES_BYTES:
            raise MemoryError(f"the scoreboard has {ROWS} rows and {_NAMES_BYTES} bytes for the patterns of mounts, and all are taken")
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

    def control_rows(self, first: int, mounts: Sequence[int]) -> dict[int, Row]:
        """Return the control rows of a block, by the mount's number."""
        return {mount: self.row(first + place) for place, mount in enumerate(mounts)}

    def thread_rows(self, first: int, mounts: Sequence[int], thread: int) -> dict[int, Row]:
        """Return the rows of one thread in a block, by the mount's number."""
        return self.control_rows(first + len(mounts) * (1 + thread), mounts)

    def give_back(self, first: int) -> None:
        """Let another instance of the same mounts have a block that no thread writes to any more."""
        key = threads, mounts, _ = self._blocks.pop(first)
        for number in range(len(mounts) * (1 + threads)):
            self.row(first + number).clear()
        self._free.setdefault(key, []).append(first)

    def publish(self, report: Mapping[str, Any]) -> None:
        """Say what is no counter: states, stacks, sizes.

        Raises:
            ValueError: it is longer than the room for it.
        """
        self._report.write(json.dumps(report, ensure_ascii=False).encode("utf-8", "replace"))

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
        except ValueError:  # overwritten by another process, or being erased
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
        return sum(self._words[first * _ROW_WORDS + word : end * _ROW_WORDS : _ROW_WORDS * every])

    def totals(self) -> Totals:
        """Return the counters of each mount and isolation, and the acceptor's."""
        sums: dict[tuple[int, int], list[list[int]]] = {}
        words = self._words
        for start in range(0, self.rows_used() * _ROW_WORDS, _ROW_WORDS):
            key = (words[start + MOUNT], words[start + ISOLATION]) if start else (0, 0)
            row = [words[start + REQUESTS] if start else 0, *words[start + _FIRST_COUNTER : start + _END_COUNTERS]]
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
        for number in range(1, self.rows_used()):
            row = self.row(number)
            words, pattern = row.words, self._pattern(row.words[MOUNT])
            if words[BUSY]:
                busy.append(Busy(number, pattern, row.line(), words[BUSY_SINCE], bool(words[ANSWERED])))
            if words[QUEUED]:
                queued[pattern] = queued.get(pattern, 0) + words[QUEUED]
            if words[ERROR_AT]:
                errors.append(RowError(pattern, words[ERROR_AT], row.error()))
        return RegionReading(self.region, self.totals(), busy, queued, errors, self.report())

    def close(self) -> None:
        """Let go of the memory; not of the descriptor."""
        for part in (self._names, self._report):
            part.release()
        self._words.release()
        try:
            self._memory.close()
        except BufferError:  # a row is still held; the mapping is freed with it
            pass

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


class Board:
    """All of it, with the workers' regions.

    Args:
        fd: of an existing one, which stays the caller's; None makes a new one.
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = make_memory("isowsgi-scoreboard", _HEAD_BYTES, fcntl.F_SEAL_SHRINK)  # it grows with each region
            self._own_totals: Totals | None = {}
        else:
            self._own_totals = None
        self.fd = fd
        self._count = 0  # of regions; the master's
        self._memory = mmap.mmap(fd, _HEAD_BYTES)
        self._words = memoryview(self._memory)[:GRANULE].cast("q")
        self._retired = Text(self._memory, _RETIRED_OFFSET, _RETIRED_BYTES)
        self._resting: deque[tuple[float, int]] = deque()  # since when; which
        self._mapped: dict[int, Scoreboard] = {}  # by those who read

    # For the master.

    def new_region(self, patterns: Sequence[str], now: float) -> Scoreboard:
        """Give the worker that is forked next its own region.

        Args:
            patterns: of its mounts, by number.
            now: monotonic seconds.

        Raises:
            MemoryError: there are more workers than the board's head has room for.
        """
        if self._resting and now - self._resting[0][0] >= _REST_S:
            number = self._resting.popleft()[1]
        else:
            number = self._count
            if number == _MAX_REGIONS:
                raise MemoryError(f"the scoreboard has room for {_MAX_REGIONS} workers, and all is taken")
            end = _HEAD_BYTES + (number + 1) * _REGION_BYTES
            if os.fstat(self.fd).st_size < end:  # a child process may have made it longer, and shorter it may not become
                os.ftruncate(self.fd, end)
            self._count = number + 1
        region = Scoreboard(self.fd, number)
        region._memory.madvise(mmap.MADV_REMOVE)  # the worker that had it before may have written to it late
        region._used = 1
        region.set_mounts(patterns)
        self._words[_STATES + number] = 1
        self._words[_REGIONS] = self._count
        return region

    def retire(self, region: Scoreboard, crashed: str | None, now: float) -> None:
        """Keep what a worker counted, once it is reaped, and take its region back.

        Args:
            crashed: the pattern of the mount that the worker's crash is attributed to, "" if to none; None: it did not crash.
        """
        totals = self._own_totals
        assert totals is not None, "only who made the board retires regions"
        sequence = (self._words[_SEQUENCE] | 1) & TURN_MASK
        try:
            # Whoever has the board may have written any mount's number into a row: the sums would grow by each of them, for ever.
            own = {"", *region._names_of_mounts()}
            add(totals, {key: counters for key, counters in region.totals().items() if key[0] in own})
            if crashed is not None:
                add(totals, {("", ""): _crash()})
            if crashed:
                add(totals, {(crashed, ""): _crash()})
            data = json.dumps([[*key, counters.requests, *counters.words] for key, counters in totals.items()]).encode()
            self._words[_SEQUENCE] = sequence
            self._retired.write(data)
        finally:
            self._words[_STATES + region.region] = 0
            self._words[_SEQUENCE] = (sequence + 1) & TURN_MASK
            region._memory.madvise(mmap.MADV_REMOVE)  # all zero again, and no memory used
            region.close()
            self._resting.append((now, region.region))

    # For anyone.

    def read(self) -> Reading:
        """Return the counters of all workers that ever lived, each counted once, and what the living ones say."""
        for _ in range(_MOST_TRIES):
            sequence = self._words[_SEQUENCE]
            totals = self._retired_totals()
            regions_there = (os.fstat(self.fd).st_size - _HEAD_BYTES) // _REGION_BYTES
            count = min(max(self._words[_REGIONS], 0), regions_there, _MAX_REGIONS)
            numbers = [number for number in range(count) if self._words[_STATES + number]]
            regions = [self._map(number).read() for number in numbers]
            if sequence % 2 == 0 and self._words[_SEQUENCE] == sequence:
                break
            time.sleep(0.0005)  # the master is updating it
        for number in set(self._mapped).difference(numbers):
            self._mapped.pop(number).close()
        for region in regions:
            add(totals, region.totals)
        return Reading(totals, regions)

    def close(self) -> None:
        for region in self._mapped.values():
            region.close()
        self._retired.release()
        self._words.release()
        self._memory.close()

    def _map(self, number: int) -> Scoreboard:
        if number not in self._mapped:
            self._mapped[number] = Scoreboard(self.fd, number)
        return self._mapped[number]

    def _retired_totals(self) -> Totals:
        if self._own_totals is not None:
            return dict(self._own_totals)
        try:
            rows = json.loads(self._retired.read() or b"[]")
            return {(pattern, isolation): Counters(requests, tuple(words)) for pattern, isolation, requests, *words in rows}
        except (ValueError, TypeError):  # overwritten by another process
            return {}


def _crash() -> Counters:
    return Counters(0, tuple(int(word == CRASHES) for word in range(_FIRST_COUNTER, _END_COUNTERS)))
