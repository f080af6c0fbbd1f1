"""The scoreboard: what one side writes the other side reads, no two writers share a word, and no count is lost or made twice."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isowsgi.shared.board import Board
from isowsgi.shared.rows import (
    AT_CAPACITY,
    BUCKET_LIMITS_S,
    BUSY,
    CLOSED,
    CRASHES,
    ERROR_BYTES,
    EXCEPTIONS,
    LINE_BYTES,
    MOUNT,
    QUEUED,
    REQUESTS,
    RESPONSES,
    ROWS,
    SENDS,
)
from isowsgi.shared.scoreboard import Scoreboard
from tests.conftest import ROOT, examples


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """One worker's part of it, with two mounts."""
    board = Scoreboard()
    board.set_mounts(["/a", "/b"])
    yield board
    os.close(board.fd)


@pytest.fixture
def whole() -> Iterator[Board]:
    whole = Board()
    yield whole
    os.close(whole.fd)


def serve(region: Scoreboard, mount: int, requests: int, isolation: str = "own-gil") -> None:
    """Have a new instance of a mount serve so many requests."""
    row = region.row(region.allot(1, [mount], isolation) + 1)
    row.words[REQUESTS] += requests


def test_what_an_instance_counts_the_acceptor_sees(board: Scoreboard) -> None:
    """They map the same region, from nothing but the board's descriptor."""
    first = board.allot(1, [0])
    instances = Scoreboard(board.fd)

    instances.row(first).words[REQUESTS] += 1
    board.row(0).words[AT_CAPACITY] = 1

    assert board.total(REQUESTS) == 1
    assert instances.row(0).words[AT_CAPACITY] == 1


def test_another_process_with_the_descriptor_sees_what_is_in_flight(board: Scoreboard) -> None:
    """The master reads it after the worker has died."""
    row = board.row(board.allot(1, [1]) + 1)
    row.begin(9 + 1, b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n", 0)
    code = f"from isowsgi.shared.scoreboard import Scoreboard; print(Scoreboard({board.fd}).in_flight())"

    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    master = subprocess.run([sys.executable, "-c", code], check=True, pass_fds=[board.fd], env=environ, capture_output=True, text=True)

    assert master.stdout == "[(1, 'GET /x HTTP/1.1')]\n"


def test_a_long_request_line_is_cut(board: Scoreboard) -> None:
    row = board.row(board.allot(1, [0]))

    row.begin(1, b"GET /" + b"x" * 5000, 0)

    assert row.line() == "GET /" + "x" * (LINE_BYTES - 5)


def test_a_long_error_is_cut_between_two_letters(board: Scoreboard) -> None:
    row = board.row(board.allot(1, [0]))

    row.set_error("x" + "ä" * 5000)

    assert row.error() == "x" + "ä" * ((ERROR_BYTES - 1) // 2)


@examples(50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**40)), max_size=20))
def test_a_total_is_the_sum_over_all_rows_but_the_acceptors(additions: list[tuple[int, int]]) -> None:
    board = Scoreboard()
    board.allot(4, [0])
    total = 0

    for row, amount in additions:
        board.row(row).words[CLOSED] += amount
        total += amount if row else 0

    assert board.total(CLOSED) == total
    os.close(board.fd)


def test_a_block_is_reused_by_the_same_mount_only_and_its_counters_still_count(board: Scoreboard) -> None:
    """So a mount's total is the sum over its rows, whatever became of its instances."""
    first = board.allot(2, [0], "own-gil")
    board.row(first + 1).words[REQUESTS] = 5
    board.row(first).words[QUEUED] = 1
    board.row(first).words[SENDS] = 2
    assert board.read().sends == {"/a": 2}
    board.row(first + 2).words[BUSY] = 7
    board.give_back(first)

    others = [board.allot(2, [1], "own-gil"), board.allot(3, [0], "own-gil"), board.allot(2, [0], "shared-gil")]

    assert first not in others
    assert board.allot(2, [0], "own-gil") == first
    assert board.total(REQUESTS) == 5
    assert board.row(first).words[SENDS] == 0
    assert board.row(first).words[QUEUED] == 0, "nobody waits for an instance that has ended"
    assert board.row(first + 2).words[BUSY] == 0, "and its threads serve nobody"


def test_a_thread_that_serves_two_mounts_has_a_row_for_each(board: Scoreboard) -> None:
    first = board.allot(2, [0, 1], "own-gil")

    assert [board.row(first + offset).words[MOUNT] - 1 for offset in range(6)] == [0, 1, 0, 1, 0, 1]


def test_totals_are_by_mount_and_isolation(board: Scoreboard) -> None:
    serve(board, 0, 2)
    serve(board, 0, 3)
    serve(board, 0, 4, "shared-gil")
    board.mount_row(1).words[RESPONSES + 5] += 1
    board.row(0).words[RESPONSES + 4] += 7

    totals = board.totals()

    assert totals["/a", "own-gil"].requests == 5
    assert totals["/a", "shared-gil"].requests == 4
    assert totals["/b", ""].get(RESPONSES + 5) == 1
    assert totals["", ""].get(RESPONSES + 4) == 7


@pytest.mark.parametrize("place", range(len(BUCKET_LIMITS_S)))
def test_a_bucket_takes_what_is_as_long_as_its_limit_and_not_longer(board: Scoreboard, place: int) -> None:
    """As Prometheus' `le` has it."""
    row = board.row(board.allot(1, [0]) + 1)
    limit_ns = int(BUCKET_LIMITS_S[place] * 1e9)

    row.end(limit_ns, 0, 0)
    row.end(limit_ns + 1, 0, 0)

    buckets = board.totals()["/a", ""].buckets()
    assert buckets[place : place + 2] == (1, 1)
    assert sum(buckets) == 2


def test_a_full_board_is_an_error_that_says_so(board: Scoreboard) -> None:
    with pytest.raises(MemoryError, match="rows"):
        board.allot(ROWS, [0])


def test_two_rows_share_no_cache_line(board: Scoreboard) -> None:
    """Two threads that count on two cores would otherwise take one line from each other."""
    board.row(4).words[:] = memoryview(b"\xff" * len(board.row(4).words) * 8).cast("q")

    assert set(board.row(3).words) == set(board.row(5).words) == {0}


def test_a_board_does_not_outlive_an_exec(board: Scoreboard) -> None:
    """Programs that apps start must not hold it."""
    assert not os.get_inheritable(board.fd)


def test_a_text_is_the_newest_one_and_whole(board: Scoreboard) -> None:
    other = Scoreboard(board.fd)
    assert other.report() is None

    for number in range(5):
        board.publish({"number": number, "filling": "x" * number * 1000})
        assert other.report() == {"number": number, "filling": "x" * number * 1000}


def test_a_text_that_is_too_long_leaves_the_one_before(board: Scoreboard) -> None:
    board.publish({"number": 1})

    with pytest.raises(ValueError, match="too long"):
        board.publish({"filling": "x" * (9 << 20)})

    assert board.report() == {"number": 1}


def test_what_a_worker_counted_stays_counted_when_it_is_gone(whole: Board) -> None:
    """Prometheus takes a counter that goes back for a restart, and its rates for nonsense."""
    reader = Board(whole.fd)
    first, second = whole.new_region(["/a", "/b"], 0.0), whole.new_region(["/a", "/b"], 0.0)
    serve(first, 0, 3)
    serve(second, 0, 4)
    before = reader.read()

    whole.retire(first, None, 1.0)

    assert [region.number for region in before.regions] == [0, 1]
    assert [region.number for region in reader.read().regions] == [1]
    assert before.totals["/a", "own-gil"].requests == reader.read().totals["/a", "own-gil"].requests == 7


def test_a_region_is_blank_for_its_next_worker_which_may_serve_other_mounts(whole: Board) -> None:
    reader = Board(whole.fd)
    first = whole.new_region(["/a", "/b"], 0.0)
    serve(first, 1, 3)
    first.publish({"pid": 1})
    reader.read()
    whole.retire(first, None, 1.0)

    again = whole.new_region(["/b"], 100.0)

    assert again.region == first.region
    assert again.report() is None
    serve(again, 0, 5)
    assert reader.read().totals["/b", "own-gil"].requests == 8


def test_a_region_rests_before_it_is_used_again(whole: Board) -> None:
    """A child process of a worker that was killed may go on counting for a moment."""
    first = whole.new_region(["/a"], 0.0)
    whole.retire(first, None, 1.0)

    assert whole.new_region(["/a"], 2.0).region != first.region


def test_a_crash_is_counted_for_all_and_for_the_mount_that_is_blamed(whole: Board) -> None:
    for crashed in (None, "", "/a"):
        whole.retire(whole.new_region(["/a"], 0.0), crashed, 0.0)

    totals = whole.read().totals

    assert totals["", ""].get(CRASHES) == 2
    assert totals["/a", ""].get(CRASHES) == 1


def test_a_reader_sees_no_count_twice_and_none_missing_while_workers_come_and_go(whole: Board) -> None:
    """The master moves counters from a region to the retired ones while others read."""
    code = f"""if True:
        import sys
        from isowsgi.shared.board import Board
        board, seen = Board({whole.fd}), []
        while True:
            totals = board.read().totals
            seen.append(totals["/a", "own-gil"].requests if ("/a", "own-gil") in totals else 0)
            if len(seen) == 1: print("reading", flush=True)
            if seen[-1] >= 300: break
        assert seen == sorted(seen), seen
        assert set(seen) <= set(range(0, 301, 3)), seen
    """
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    reader = subprocess.Popen([sys.executable, "-c", code], pass_fds=[whole.fd], env=environ, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reading\n"

    for turn in range(100):
        region = whole.new_region(["/a"], 100.0 * turn)
        serve(region, 0, 3)
        whole.retire(region, None, 100.0 * turn)

    assert reader.wait(30) == 0
    reader.stdout.close()


def test_what_went_wrong_last_is_read_with_its_mount(whole: Board) -> None:
    region = whole.new_region(["/a", "/b"], 0.0)
    row = region.row(region.allot(1, [1], "own-gil") + 1)
    row.words[EXCEPTIONS] += 1
    row.set_error("ValueError: no")

    (reading,) = whole.read().regions

    assert [(error.pattern, error.text) for error in reading.errors] == [("/b", "ValueError: no")]


# What other processes may do to it.

STRAY = (-1, -(1 << 63), (1 << 63) - 1, 1 << 40, 0)


def test_nobody_can_cut_the_memory_off_under_its_readers(whole: Board, board: Scoreboard) -> None:
    """`ftruncate` in a child process was SIGBUS in the worker, and in the master."""
    for fd in (whole.fd, board.fd):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    with pytest.raises(PermissionError):
        os.ftruncate(board.fd, 1 << 40)
    assert fcntl.fcntl(board.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL


def test_a_board_that_somebody_has_made_longer_still_takes_workers(whole: Board) -> None:
    os.ftruncate(whole.fd, 1 << 36)

    assert [whole.new_region(["/a"], 0.0).region for _ in range(2)] == [0, 1]


@pytest.mark.parametrize("value", STRAY)
def test_whatever_stands_in_a_region_its_worker_is_retired_and_what_others_counted_is_kept(whole: Board, value: int) -> None:
    """A stray write of a child process was an OverflowError in gunicorn's master, which ended all of it."""
    good, bad = whole.new_region(["/a"], 0.0), whole.new_region(["/a"], 0.0)
    serve(good, 0, 3)
    whole.retire(good, None, 0.0)
    first = bad.allot(1, [0], "own-gil")
    words = memoryview(bad._memory)[: 4 * 960].cast("q")
    for place in range(len(words)):
        words[place] = value
    words.release()

    bad.in_flight(), bad.loading(), bad.read(), bad.row(first).line(), bad.row(first).error()
    whole.retire(bad, "/a", 0.0)

    assert whole.read().totals["/a", "own-gil"].requests >= 3
    assert whole.read().totals["/a", ""].get(CRASHES) >= 1
    assert whole.new_region(["/a"], 100.0).in_flight() == []


@pytest.mark.parametrize("value", STRAY)
def test_whatever_stands_in_the_head_the_master_knows_its_regions_and_readers_come_to_an_end(whole: Board, value: int) -> None:
    reader = Board(whole.fd)
    serve(region := whole.new_region(["/a"], 0.0), 0, 3)
    for place in range(len(whole._words)):
        whole._words[place] = value
    for words in (whole._retired._head, region._names._head, region._report._head):
        for place in range(len(words)):
            words[place] = value

    reader.read()
    whole.retire(region, None, 0.0)
    assert whole.new_region(["/a"], 0.0).region == 1

    assert whole.read().totals["/a", "own-gil"].requests == 3


def test_texts_that_are_no_json_are_none(whole: Board) -> None:
    region = whole.new_region(["/a"], 0.0)
    for text in (whole._retired, region._names, region._report):
        text.write(b"\xff{")

    (reading,) = Board(whole.fd).read().regions

    assert (reading.report, reading.busy) == (None, [])


def test_a_retired_region_leaves_counters_of_its_own_mounts_only(whole: Board) -> None:
    """A stray mount's number is another key each time; the retired counters would grow until there is no room for them."""
    region = whole.new_region(["/a"], 0.0)
    row = region.row(region.allot(1, [0]))
    row.words[MOUNT], row.words[RESPONSES + 2] = 12345, 7
    region.mount_row(0).words[RESPONSES + 2] = 3

    whole.retire(region, None, 0.0)

    assert {pattern for pattern, _ in whole.read().totals} == {"", "/a"}
