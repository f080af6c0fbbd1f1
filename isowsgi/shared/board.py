"""All of the scoreboard: the head with the regions' states and the retired counters, the master's verbs, and what readers get.

The module `scoreboard` says how it works.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from isowsgi.shared import errortotals
from isowsgi.shared.rows import (
    CRASHES,
    HEAD_BYTES,
    REGION_BYTES,
    RETIRED_BYTES,
    RETIRED_OFFSET,
)
from isowsgi.shared.scoreboard import END_COUNTERS, FIRST_COUNTER, Counters, RegionReading, Scoreboard, Totals, add
from isowsgi.shared.sharedmemory import GRANULE, TURN_MASK, Text, make_memory

# The board's own head: words.
_SEQUENCE = 0  # odd while the master moves counters from a region to the retired ones
_REGIONS = 1  # how many there ever were
_STATES = 64  # from here on one for each region: 1 while a worker has it
_MAX_REGIONS = GRANULE // 8 - _STATES

# How long a region rests before another worker gets it: a child process of a worker that was killed may still write to it for a moment.
_REST_S = 60.0

# How often a reader tries again while the master moves counters, which takes it some 0.1 ms. After that the sequence cannot be right.
_MOST_TRIES = 200


class Reading(NamedTuple):
    """What was read of a board at one moment."""

    totals: Totals  # of all workers that ever lived
    regions: list[RegionReading]  # those that live
    errors: errortotals.ErrorTotals  # of all workers that ever lived, as far as they had reported them


class Board:
    """All of it, with the workers' regions.

    Args:
        fd: of an existing one, which stays the caller's; None makes a new one.
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = make_memory("isowsgi-scoreboard", HEAD_BYTES, fcntl.F_SEAL_SHRINK)  # it grows with each region
            self._own_totals: Totals | None = {}
            self._own_errors: errortotals.ErrorTotals = {}
        else:
            self._own_totals = None
        self.fd = fd
        self._count = 0  # of regions; the master's
        self._memory = mmap.mmap(fd, HEAD_BYTES)
        self._words = memoryview(self._memory)[:GRANULE].cast("q")
        self._retired = Text(self._memory, RETIRED_OFFSET, RETIRED_BYTES)
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
            end = HEAD_BYTES + (number + 1) * REGION_BYTES
            if os.fstat(self.fd).st_size < end:  # a child process may have made it longer, and shorter it may not become
                os.ftruncate(self.fd, end)
            self._count = number + 1
        region = Scoreboard(self.fd, number)
        region.erase()  # the worker that had it before may have written to it late
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
            errortotals.add(self._own_errors, errortotals.reported(region.report()), own)
            counts = [[*key, counters.requests, *counters.words] for key, counters in totals.items()]
            data = json.dumps([counts, errortotals.rows(self._own_errors)]).encode()
            if len(data) > self._retired.capacity:  # what errors are called is the apps' choice: no other counter may stop for it
                self._own_errors = {}
                data = json.dumps([counts, []]).encode()
            self._words[_SEQUENCE] = sequence
            self._retired.write(data)
        finally:
            self._words[_STATES + region.region] = 0
            self._words[_SEQUENCE] = (sequence + 1) & TURN_MASK
            region.erase()  # all zero again, and no memory used
            region.close()
            self._resting.append((now, region.region))

    # For anyone.

    def read(self) -> Reading:
        """Return the counters of all workers that ever lived, each counted once, and what the living ones say."""
        for _ in range(_MOST_TRIES):
            sequence = self._words[_SEQUENCE]
            totals, errors = self._retired_totals()
            regions_there = (os.fstat(self.fd).st_size - HEAD_BYTES) // REGION_BYTES
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
            errortotals.add(errors, errortotals.reported(region.report))
        return Reading(totals, regions, errors)

    @classmethod
    def look(cls, fd: int) -> Reading:
        """Return what can be read of an existing one now; for who reads it once.

        Raises:
            OSError, ValueError, MemoryError: it cannot be mapped.
        """
        board = cls(fd)
        try:
            return board.read()
        finally:
            board.close()

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

    def _retired_totals(self) -> tuple[Totals, errortotals.ErrorTotals]:
        if self._own_totals is not None:
            return dict(self._own_totals), dict(self._own_errors)
        try:
            rows, errors = json.loads(self._retired.read() or b"[[], []]")
            totals = {(pattern, isolation): Counters(requests, tuple(words)) for pattern, isolation, requests, *words in rows}
            return totals, errortotals.from_rows(errors)
        except (ValueError, TypeError, RecursionError):  # overwritten by another process
            return {}, {}


def _crash() -> Counters:
    return Counters(0, tuple(int(word == CRASHES) for word in range(FIRST_COUNTER, END_COUNTERS)))
