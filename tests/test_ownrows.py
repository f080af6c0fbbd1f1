"""Memory of a walled process: whatever stands in it, the worker's scoreboard says nothing about others by it, and nothing impossible."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest

from isowsgi.instances.allowance import Allowance
from isowsgi.instances.counters import CountedInstance
from isowsgi.instances.ownrows import OwnRows
from isowsgi.shared.messages import BootOrder
from isowsgi.shared.origins import Origin, Origins
from isowsgi.shared.rows import (
    AT_CAPACITY,
    BUCKETS,
    BUSY,
    BUSY_SINCE,
    CLOSED,
    ERROR_AT,
    INTERNAL_ERRORS,
    MOUNT,
    REQUESTS,
    RESPONSES,
    STOPPING,
    Region,
)
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.shared.wire import MessageError
from tests.conftest import any_seed
from tests.orders import any_order

THREADS = 2
MOUNTS = ["/neighbour", "/walled"]


class Walled:
    """A worker's scoreboard, a neighbour's rows on it, and a walled process' memory."""

    def __init__(self) -> None:
        self.board = Scoreboard()
        self.board.set_mounts(MOUNTS)
        self.neighbour = self.board.allot(THREADS, [0], "own-gil")
        self.first = self.board.allot(THREADS, [1], "process")
        order = any_order("process", first_row=self.first, threads=THREADS)
        self.order: BootOrder = order.replace(members=[order.members[0].replace(mount=1)])
        self.claimed: list[int] = []
        self.origins = Origins()
        self.own = OwnRows(self.board, self.order, self.origins.fd, self.claimed.append)

    def close(self) -> None:
        self.own.close()
        self.origins.close()
        os.close(self.board.fd)


@pytest.fixture
def walled() -> Iterator[Walled]:
    made = Walled()
    yield made
    made.close()


def test_what_a_process_counts_is_on_the_scoreboard_a_moment_later(walled: Walled) -> None:
    region = Region(walled.own.fds["board"], 0)  # as the process maps it
    [row] = region.thread_rows(walled.first, [1], 0).values()
    row.begin(7, b"GET /walled HTTP/1.1\r\n", time.monotonic_ns())
    row.count_response(200)
    walled.own.exchange()

    reading = walled.board.read()
    assert [(busy.pattern, busy.line) for busy in reading.busy] == [("/walled", "GET /walled HTTP/1.1")]
    row.end(1000, 0, 5)
    row.set_error("ValueError: x")
    walled.own.exchange()
    counters = walled.board.totals()["/walled", "process"]
    assert (counters.requests, counters.get(RESPONSES + 2)) == (1, 1)
    reading = walled.board.read()
    assert reading.busy == []
    assert [error.text for error in reading.errors] == ["ValueError: x"]
    assert sum(walled.claimed) == 1


def test_what_the_worker_says_to_all_and_of_a_connection_reaches_the_process(walled: Walled) -> None:
    walled.board.acceptor_row().set_at_capacity(True)
    walled.board.acceptor_row().say_stopping()
    walled.board.arrivals()[9] = 1234
    walled.origins.write(9, Origin(("10.0.0.1", 1), ("10.0.0.2", 2), {"HTTPS": "on" * 900}))
    walled.own.exchange()
    walled.own.lend(9)

    region = Region(walled.own.fds["board"], 0)
    assert (region.row(0).words[AT_CAPACITY], region.row(0).words[STOPPING], region.arrivals()[9]) == (1, 1, 1234)
    assert Origins(walled.own.fds["origins"]).read(9) == walled.origins.read(9)
    with pytest.raises(ValueError, match=r"Expecting value|no origin"):
        Origins(walled.own.fds["origins"]).read(8)


def test_counters_go_on_where_those_of_an_instance_before_ended(walled: Walled) -> None:
    walled.board.row(walled.first + 1).words[REQUESTS] = 100
    walled.own.close()
    walled.own = OwnRows(walled.board, walled.order, None, walled.claimed.append)
    region = Region(walled.own.fds["board"], 0)
    assert region.row(walled.first + 1).words[REQUESTS] == 0, "of which it is told nothing"
    region.row(walled.first + 1).words[REQUESTS] = 3
    walled.own.exchange()

    assert walled.board.row(walled.first + 1).words[REQUESTS] == 103
    assert walled.claimed == [3]


def test_random_words_are_nobody_elses_and_nothing_that_cannot_be(walled: Walled) -> None:
    """Hostile numbers: negative, larger than a sum may become, of other mounts, later than now."""
    chance = random.Random(any_seed())
    board, own = walled.board, Region(walled.own.fds["board"], 0)
    instance = CountedInstance(walled.order, board, walled.own.region)
    instance._connection_of = lambda key: None  # type: ignore[method-assign] # as `ProcessInstance` does for what it has not lent
    own_rows = {1 + MOUNTS.index("/walled"), *range(walled.first, walled.first + 1 + THREADS)}  # in the first is counted what is cut off
    others = [number for number in range(board.rows_used()) if number not in own_rows]
    before = {number: bytes(board.row(number).words) for number in others}
    hostile = [-1, -(2**63), 2**63 - 1, 2**62, 0, 1, 2, 7, 2**53]
    for _ in range(200):
        for number in (0, *range(walled.first, walled.first + 1 + THREADS)):
            words = own.row(number).words
            for place in range(len(words)):
                words[place] = chance.choice(hostile) if chance.random() < 0.7 else chance.getrandbits(63)
        last = board.totals()["/walled", "process"]
        walled.own.exchange()

        now = board.totals()["/walled", "process"]
        assert now.requests >= last.requests
        assert all(new >= old for new, old in zip(now.words, last.words, strict=True))
        assert now.requests <= (1 + THREADS) << 53
        for number in range(walled.first, walled.first + 1 + THREADS):
            words = board.row(number).words
            assert (words[MOUNT], words[CLOSED], words[INTERNAL_ERRORS]) == (2, 0, 0)
            assert words[BUSY] in (0, 1)
            assert 0 <= words[BUSY_SINCE] <= time.monotonic() * 1000
            assert 0 <= words[ERROR_AT] <= time.time()
            assert 0 <= words[BUCKETS] <= 1 << 53
        assert {mount for mount, _ in board.in_flight()} == set()
        assert board.loading() == []
        board.read()
        assert isinstance(instance.requests() + instance.progress(), int)
        assert len(instance.in_flight(time.monotonic())) == len(instance.requests_in_flight()) <= THREADS
        instance._judge.cut_off(0.0, time.monotonic())
        assert {mount for mount, _ in instance._judge.cuts} <= {1}

    assert {number: bytes(board.row(number).words) for number in others} == before
    assert sum(walled.claimed) == board.total(REQUESTS)


def test_a_process_that_says_too_much_in_a_second_is_not_listened_to() -> None:
    allowance = Allowance()
    for second in range(3):
        for _ in range(200):
            allowance.take(10_000, float(second))
    for _ in range(8000):
        allowance.take(10, 9.0)
    with pytest.raises(MessageError, match="floods the worker"):
        allowance.take(200_000, 9.9)
    for _ in range(30):
        allowance.take(200_000, 11.0)
