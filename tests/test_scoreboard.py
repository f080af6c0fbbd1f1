"""The scoreboard: what one side writes the other side reads, and no two writers share a row."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isowsgi.scoreboard import AT_CAPACITY, BUSY_FD, CLOSED, LINE_BYTES, MOUNT, REQUESTS, ROWS, Scoreboard
from tests.conftest import ROOT, examples


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard()
    yield board
    os.close(board.fd)


def test_what_an_instance_counts_the_acceptor_sees(board: Scoreboard) -> None:
    """They map the same block, from nothing but its descriptor."""
    first = board.allot(2)
    instances = Scoreboard(board.fd)

    instances.row(first).words[REQUESTS] += 1
    board.row(0).words[AT_CAPACITY] = 1

    assert board.total(REQUESTS) == 1
    assert instances.row(0).words[AT_CAPACITY] == 1


def test_another_process_with_the_descriptor_sees_what_is_in_flight(board: Scoreboard) -> None:
    """The master reads it after the worker has died."""
    first = board.allot(2)
    row = board.row(first + 1)
    row.words[MOUNT] = 3 + 1
    row.words[BUSY_FD] = 9 + 1
    row.set_line(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
    code = f"from isowsgi.scoreboard import Scoreboard; print(Scoreboard({board.fd}).in_flight())"

    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    master = subprocess.run([sys.executable, "-c", code], check=True, pass_fds=[board.fd], env=environ, capture_output=True, text=True)

    assert master.stdout == "[(3, 'GET /x HTTP/1.1')]\n"


def test_a_long_request_line_is_cut(board: Scoreboard) -> None:
    row = board.row(board.allot(1))

    row.set_line(b"GET /" + b"x" * 5000)

    assert row.line() == "GET /" + "x" * (LINE_BYTES - 5)


@examples(50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**40)), max_size=20))
def test_a_total_is_the_sum_over_all_rows_but_the_acceptors(additions: list[tuple[int, int]]) -> None:
    board = Scoreboard()
    board.allot(5)
    total = 0

    for row, amount in additions:
        board.row(row).words[CLOSED] += amount
        total += amount if row else 0

    assert board.total(CLOSED) == total
    os.close(board.fd)


def test_a_block_that_was_given_back_is_allotted_again_and_its_counters_still_count(board: Scoreboard) -> None:
    first = board.allot(3)
    board.row(first + 1).words[REQUESTS] = 5
    board.give_back(first, 3)

    assert board.allot(2) != first
    assert board.allot(3) == first
    assert board.total(REQUESTS) == 5


def test_a_full_board_is_an_error_that_says_so(board: Scoreboard) -> None:
    with pytest.raises(MemoryError, match="rows"):
        board.allot(ROWS)


def test_two_rows_share_no_cache_line(board: Scoreboard) -> None:
    """Two threads that count on two cores would otherwise take one line from each other."""
    board.row(1).words[:] = memoryview(b"\xff" * 64).cast("q")

    assert set(board.row(0).words) == set(board.row(2).words) == {0}


def test_a_board_does_not_outlive_an_exec(board: Scoreboard) -> None:
    """Programs that apps start must not hold it."""
    assert not os.get_inheritable(board.fd)
