"""Rows of the scoreboard: who writes which word, and where they lie. What an app's interpreter loads of the scoreboard.

See `scoreboard` for what a region is and `board` for all of them together. Each app's interpreter and process pays for what is in here, so
it holds no more than they need: the words, the verbs of a row, and a region mapped so that rows can be had of it.
"""

from __future__ import annotations

import mmap
import struct
import time
from bisect import bisect_left
from collections.abc import Sequence

from isowsgi.shared.sharedmemory import GRANULE, make_memory, text_bytes

# Words of every row. The first eight are one cache line.
REQUESTS = 0  # requests whose head was taken from the connection
CLOSED = 1  # connections that this thread closed
BUSY = 2  # key of the connection whose request is being served, see `handover.key_of`; 0: none
ANSWERED = 3  # who gave the current request's client its status: 0 nobody so far, BY_APP, or BY_WATCHER
BUSY_SINCE = 4  # monotonic milliseconds when the current request began
MOUNT = 6  # the mount's number, plus 1; 0: none
THREAD = 7  # of the thread that writes the row, the kernel's number; 0: none has begun to serve
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
BUSY_NS = 23  # spent in requests that have ended, without SENDING_NS: whoever reads between two writes sees no sum that falls later
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
TENANT_STARTS = 34  # in a template's row, where row 0 has ACCEPTED: tenants that came; and the next: that ended for others
TENANT_EVICTIONS = 35
HANDSHAKES = 35  # of TLS that ended well; this one and the next by the relay's thread, see `tls`
HANDSHAKE_FAILURES = 36
INTERNAL_ERRORS = 37  # isowsgi's own mistakes that were contained; counted where they are contained, see `containment`
FAILED_STARTS = 38  # of workers that gunicorn started with and that have nothing to serve; row 0
SENDS = 39  # no counter: files on their way to slow clients without a thread, see `inside.sender`; control row, by the baton's holder
BUCKETS = 40  # requests that have ended, by how long they took: see BUCKET_LIMITS_S; row 0: a probe's waits for the shared GIL
# Requests that waited long for a thread, or whose client was waited for long while the response was sent, are counted here instead, once in
# each of the four: by how long they took, the same without the time of sending, how long they waited, and how long they were sent.
SLOW_BUCKETS = 58
SLOW_APP_BUCKETS = 76
WAITINGS = 94  # these two: see WAIT_LIMITS_S
SENDINGS = 110
WAITING_NS = 126  # the sums of the latter two
SENDING_NS = 127

# Words of row 0, the acceptor's.
AT_CAPACITY = 0  # 1 while the worker has as many connections as worker_connections allows
CLEAN_EXIT = 1  # 1 once the worker has begun to exit by itself
ROWS_USED = 2  # rows that were ever allotted, row 0 included
STOPPING = 3  # 1 from before the listeners are closed: the next response on each connection is its last
OWN_GILS = 4  # 1 from before the worker's first interpreter with an own GIL is made: see `interpreters.can_see_stacks`

# What a request took at most, in seconds, to be counted in a bucket; one more has no limit. From a hello to a request that times out.
BUCKET_LIMITS_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LIMITS_NS = tuple(int(limit * 1e9) for limit in BUCKET_LIMITS_S)

# What a request waited at most, to be counted in a bucket. Nearly all wait for less than the first: then nothing is written of it, and a
# reader knows their number, as it is that of the requests in BUCKETS. So a request pays for it only if it has waited.
WAIT_LIMITS_S = BUCKET_LIMITS_S[2:]
_WAIT_NS = _LIMITS_NS[2:]
SHORT_WAIT_NS = _WAIT_NS[0]

# Words that say what is so just now, and not how often it was.
_OF_THE_MOMENT = (BUSY, ANSWERED, BUSY_SINCE, BEAT, THREAD, QUEUED, LOADING, PROGRESS_AT, SENDS)

# Names stand on the board as numbers; append only.
ISOLATIONS = ("own-gil", "shared-gil", "main", "process")

_WORDS_END = 128
_LINE_WORDS = 24
_ERROR_WORDS = 32
ROW_WORDS = _WORDS_END + _LINE_WORDS + _ERROR_WORDS
_ROW_BYTES = ROW_WORDS * 8  # 23 cache lines
_LINE_OFFSET = _WORDS_END * 8
_ERROR_OFFSET = _LINE_OFFSET + _LINE_WORDS * 8
LINE_BYTES = _LINE_WORDS * 8
_LINE = struct.Struct(f"{LINE_BYTES}s")  # packs what is longer cut off, and what is shorter with zeros behind; faster than a slice
ERROR_BYTES = _ERROR_WORDS * 8

# Rows that a region has before it is full. Nothing is used of a row that no thread writes to: the memory is given page by page.
ROWS = 64 * 1024

# Most bytes of a text. A thousand mounts need some 40 KiB for their names, and 2 MiB for a report.
NAMES_BYTES = 1 << 20
REPORT_BYTES = 8 << 20
RETIRED_BYTES = 8 << 20

NAMES_OFFSET = -(-ROWS * _ROW_BYTES // GRANULE) * GRANULE
REPORT_OFFSET = NAMES_OFFSET + text_bytes(NAMES_BYTES)
ARRIVALS_OFFSET = REPORT_OFFSET + text_bytes(REPORT_BYTES)

# Connections whose arrival at the acceptor can be noted, by their descriptors' numbers: fs.nr_open allows no more unless it was raised.
ARRIVALS = 1 << 20

REGION_BYTES = ARRIVALS_OFFSET + ARRIVALS * 8

# The board's own head, and the retired counters behind it; the regions follow.
RETIRED_OFFSET = GRANULE
HEAD_BYTES = RETIRED_OFFSET + text_bytes(RETIRED_BYTES)


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
        words[REQUESTS] += 1
        words[BUSY] = key

    def end(self, elapsed_ns: int, bytes_in: int, bytes_out: int) -> None:
        """Say that the request has ended, and count it."""
        words = self.words
        words[BUSY] = 0
        words[BUSY_NS] += elapsed_ns
        words[BUCKETS + bisect_left(_LIMITS_NS, elapsed_ns)] += 1
        words[BYTES_OUT] += bytes_out
        if bytes_in:  # which most requests have none of, and nearly all responses
            words[BYTES_IN] += bytes_in

    def end_slow(self, elapsed_ns: int, waiting_ns: int, sending_ns: int, bytes_in: int, bytes_out: int) -> None:
        """Say that a request has ended for whose thread or client was waited, and count it.

        Args:
            waiting_ns: for a thread, before it began.
            sending_ns: for the client, of the elapsed time.
        """
        words = self.words
        words[BUSY] = 0
        words[BUSY_NS] += elapsed_ns - sending_ns
        words[WAITING_NS] += waiting_ns
        words[SENDING_NS] += sending_ns
        words[SLOW_BUCKETS + bisect_left(_LIMITS_NS, elapsed_ns)] += 1
        words[SLOW_APP_BUCKETS + bisect_left(_LIMITS_NS, elapsed_ns - sending_ns)] += 1
        words[WAITINGS + bisect_left(_WAIT_NS, waiting_ns)] += 1
        words[SENDINGS + bisect_left(_WAIT_NS, sending_ns)] += 1
        words[BYTES_OUT] += bytes_out
        words[BYTES_IN] += bytes_in

    def say_idle(self) -> None:
        """Say that no request is served, where its end was interrupted and so may not say it."""
        self.words[BUSY] = 0

    def line(self) -> str:
        return bytes(self._line).partition(b"\r")[0].rstrip(b"\0").decode("latin-1")

    def set_error(self, text: str) -> None:
        """Note what the app raised, and when."""
        octets = text.encode("utf-8", "replace")[:ERROR_BYTES]
        self._error[: len(octets)] = octets
        self.words[ERROR_LENGTH] = len(octets)
        self.words[ERROR_AT] = int(time.time())

    def error(self) -> str:
        return bytes(self._error[: max(self.words[ERROR_LENGTH], 0)]).decode("utf-8", "ignore")

    def copy_texts(self, other: Row) -> None:
        """Take over the texts of another row, but not how long the error is."""
        self._line[:], self._error[:] = other._line, other._error

    def count_response(self, status: int) -> None:
        """Count a response that nobody's thread gives; before the client can have it."""
        self.words[RESPONSES + status // 100] += 1

    def count_turned_away(self) -> None:
        """Count a request that was answered 503, as it waited for a thread too long or behind too many others."""
        self.words[TURNED_AWAY] += 1
        self.words[RESPONSES + 5] += 1

    def count_internal_errors(self, count: int) -> None:
        self.words[INTERNAL_ERRORS] += count

    def say_thread(self, native_id: int) -> None:
        """Say which thread writes this row, when it begins to serve."""
        self.words[THREAD] = native_id

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

    def count_gil_wait(self, waited_ns: int) -> None:
        """Count how long the probe waited for the GIL that the worker's interpreters share; by its thread alone."""
        words = self.words
        words[BUSY_NS] += waited_ns
        words[BUCKETS + bisect_left(_LIMITS_NS, waited_ns)] += 1

    def count_failed_start(self) -> None:
        self.words[FAILED_STARTS] += 1

    @property
    def is_at_capacity(self) -> bool:
        return self.words[AT_CAPACITY] == 1

    def set_at_capacity(self, is_full: bool) -> None:
        """Say whether the worker has as many connections as it may."""
        self.words[AT_CAPACITY] = int(is_full)

    @property
    def is_stopping(self) -> bool:
        return self.words[STOPPING] == 1

    def say_stopping(self) -> None:
        """Say that the next response on each connection is its last."""
        self.words[STOPPING] = 1

    @property
    def has_left_cleanly(self) -> bool:
        return self.words[CLEAN_EXIT] == 1

    def say_clean_exit(self) -> None:
        """Say that the worker exits by itself: from here on its end is no crash."""
        self.words[CLEAN_EXIT] = 1


class Region:
    """A worker's part of the board, mapped into this interpreter.

    Args:
        fd: the board's, which stays the caller's; None makes a board with one region, all zero.
        number: which one.
    """

    def __init__(self, fd: int | None = None, number: int = 0) -> None:
        if fd is None:
            fd = make_memory("isowsgi-scoreboard", HEAD_BYTES + REGION_BYTES)
        self.fd = fd
        self.region = number
        self._memory = mmap.mmap(fd, REGION_BYTES, offset=HEAD_BYTES + number * REGION_BYTES)

    def row(self, number: int) -> Row:
        return Row(self._memory, number)

    def acceptor_row(self) -> AcceptorRow:
        return AcceptorRow(self._memory, 0)

    def control_rows(self, first: int, mounts: Sequence[int]) -> dict[int, Row]:
        """Return the control rows of a block, by the mount's number."""
        return {mount: self.row(first + place) for place, mount in enumerate(mounts)}

    def thread_rows(self, first: int, mounts: Sequence[int], thread: int) -> dict[int, Row]:
        """Return the rows of one thread in a block, by the mount's number."""
        return self.control_rows(first + len(mounts) * (1 + thread), mounts)

    def arrivals(self) -> memoryview:
        """Return when the next request of each connection came, in monotonic nanoseconds, by the number of the worker's descriptor.

        The acceptor notes it before it hands a connection over, so its new owner may read it; as what stands in `origins`.
        """
        return memoryview(self._memory)[ARRIVALS_OFFSET : ARRIVALS_OFFSET + ARRIVALS * 8].cast("q")

    def close(self) -> None:
        """Let go of the memory; not of the descriptor."""
        try:
            self._memory.close()
        except BufferError:  # a row is still held; the mapping is freed with it
            pass
