"""The snapshot: what a board with several workers says, by mount."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from isowsgi.shared import errortotals
from isowsgi.shared.board import Board
from isowsgi.shared.rows import CRASHES, QUEUED, RELOADS, REQUESTS, RESPONSES, SENDS
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.status.snapshot import patterns, snapshot, unready
from isowsgi.worker.recent import Recent


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    os.close(board.fd)


def mount(pattern: str, state: str = "serving", **more: Any) -> dict[str, Any]:
    facts = {
        "app": "a:application",
        "isolation": "own-gil",
        "reason": "auto",
        "generation": 1,
        "threads": 2,
        "parked": 0,
        "memory_bytes": 5,
    }
    return {"pattern": pattern, "state": state, **facts, "boot_error": None, "instances": [], **more}


def instance(state: str = "serving", **more: Any) -> dict[str, Any]:
    return {"tag": "/a #1", "generation": 1, "isolation": "own-gil", "state": state, "first_row": 2, "rows": 3, "objects": 5, **more}


def worker(board: Board, *mounts: dict[str, Any], started: float = 1.0, **more: Any) -> Scoreboard:
    region = board.new_region([one["pattern"] for one in mounts], 0.0)
    region.publish({"started": started, "is_accepting": True, "is_stopping": False, "mounts": mounts, **more})
    return region


def taken(board: Board) -> dict[str, Any]:
    only: dict[str, Any]
    (only,) = snapshot(board.read(), 10_000, 100.0)["mounts"]
    return only


def test_a_mount_is_the_sum_over_its_workers_living_and_dead(board: Board) -> None:
    for region in (worker(board, mount("/a")), worker(board, mount("/a"))):
        region.row(region.allot(1, [0], "own-gil") + 1).words[REQUESTS] = 3
        region.mount_row(0).words[RELOADS] = 1
    board.retire(region, "/a", 0.0)

    assert (taken(board)["requests"], taken(board)["reloads"], taken(board)["crashes"]) == (6, 2, 1)


def test_a_mount_is_what_it_is_in_the_worst_worker(board: Board) -> None:
    worker(board, mount("/a"))
    worker(board, mount("/a", "failed"))

    assert taken(board)["state"] == "failed"
    assert taken(board)["states"] == {"failed": 1, "serving": 1}
    assert not taken(board)["is_ready"]


def test_an_instance_left_behind_makes_a_mount_stuck_and_still_ready(board: Board) -> None:
    worker(board, mount("/a", instances=[instance("stuck", stack="File ..."), instance()]))

    assert taken(board)["state"] == "stuck"
    assert taken(board)["is_ready"]
    assert taken(board)["threads"] == 2, "those of the instance that serves"


def test_requests_in_flight_are_told_with_their_age_and_whether_they_are_stuck(board: Board) -> None:
    region = worker(board, mount("/a", instances=[instance("stuck", first_row=2, rows=2), instance(first_row=4, rows=2)]))
    for since, first in ((1000, region.allot(1, [0], "own-gil")), (8000, region.allot(1, [0], "own-gil"))):
        row = region.row(first + 1)
        row.begin(1, b"GET /x\r\n", since * 1_000_000)

    listed = taken(board)["requests_in_flight"]

    assert [(one["line"], one["age_s"], one["is_stuck"]) for one in listed] == [("GET /x", 9.0, True), ("GET /x", 2.0, False)]
    assert taken(board)["in_flight"] == 2


def test_the_newest_error_is_told_be_it_of_a_request_or_of_a_boot(board: Board) -> None:
    region = worker(board, mount("/a", boot_error={"at": 50.0, "text": "no module"}))
    assert taken(board)["last_error"]["text"] == "no module"

    region.row(region.allot(1, [0], "own-gil") + 1).set_error("ValueError")

    assert taken(board)["last_error"]["text"] == "ValueError"


def test_who_waits_is_counted_where_it_waits(board: Board) -> None:
    region = worker(board, mount("/a", parked=2))
    region.row(region.allot(1, [0], "own-gil")).words[QUEUED] = 3
    region.row(1).words[SENDS] = 4

    assert (taken(board)["queued"], taken(board)["parked"]) == (3, 2)
    assert taken(board)["in_flight"] == 4, "files on their way"


def test_a_worker_that_does_not_accept_says_nothing_of_what_is_ready(board: Board) -> None:
    """It is booting beside others, or on its way out."""
    assert unready(board.read()) is None

    worker(board, mount("/a"), mount("/b", "asleep"))
    worker(board, mount("/a", "booting"), mount("/b", "booting"), is_accepting=False)
    worker(board, mount("/a", "failed"), mount("/b"), is_stopping=True)
    assert unready(board.read()) == []

    worker(board, mount("/a"), mount("/b", "quarantined"))
    assert unready(board.read()) == ["/b"]


def test_a_worker_that_could_not_say_how_its_mounts_are_is_not_ready(board: Board) -> None:
    """It has no mounts then, and so none that is not ready."""
    worker(board, mount("/a"))
    worker(board, error="the report is too long for the scoreboard")

    assert unready(board.read()) is None


def test_mounts_are_those_of_the_newest_config_first(board: Board) -> None:
    worker(board, mount("/b"), mount("/a"), started=1.0)
    worker(board, mount("/c"), mount("/b"), started=2.0)

    assert patterns(board.read()) == ["/c", "/b", "/a"]


def test_the_acceptors_own_answers_are_nobodys(board: Board) -> None:
    region = worker(board, mount("/a"))
    region.row(0).words[RESPONSES + 4] = 7
    board.retire(worker(board, mount("/a")), "", 0.0)

    whole = snapshot(board.read(), 0, 0.0)

    assert whole["acceptor"]["responses"]["4xx"] == 7
    assert whole["acceptor"]["worker_crashes"] == 1
    assert board.read().totals["", ""].get(CRASHES) == 1


def test_a_worker_that_has_not_reported_yet_is_counted_and_no_more(board: Board) -> None:
    board.new_region(["/a"], 0.0)

    assert snapshot(board.read(), 0, 0.0)["workers"] == [{"worker": 0}]
    assert snapshot(board.read(), 0, 0.0)["mounts"] == []


GROUP = {
    "kind": "exception", "type": "KeyError", "place": "/a.py:1 in f", "count": 3, "first": 5.0, "at": 9.0, "generation": 1,
    "request": "GET /a", "error": "KeyError: 'a'",
}  # fmt: skip


def test_errors_of_a_type_and_place_are_the_sum_over_workers_with_the_latest_request(board: Board) -> None:
    later = {**GROUP, "count": 2, "first": 4.0, "at": 10.0, "request": "GET /b"}
    for groups in ([GROUP], [later, {**GROUP, "kind": "timeout", "count": 9}]):
        worker(board, mount("/a", errors=groups, error_types={"KeyError": 3}))

    timeout, exception = taken(board)["errors"]
    assert (timeout["kind"], timeout["count"]) == ("timeout", 9)
    assert exception == {**GROUP, "count": 5, "first": 4.0, "at": 10.0, "request": "GET /b"}
    assert taken(board)["error_types"] == {"KeyError": 6}


@pytest.mark.parametrize(
    ("app", "responses", "failed", "is_troubled"),
    [
        ("a:app", 100, 5, True),
        ("a:app", 101, 5, False),  # less than 5 %
        ("a:app", 4, 4, False),  # too few to say
        ("isowsgi.status:application", 10, 10, False),  # says that another mount is not ready
    ],
)
def test_a_mount_is_in_trouble_for_a_high_share_of_5xx_over_all_workers(
    board: Board, app: str, responses: int, failed: int, is_troubled: bool
) -> None:
    worker(board, mount("/a", app=app, recent={"seconds": 60.0, "responses": responses - 1, "failed": failed - 1}))
    worker(board, mount("/a", app=app, recent={"seconds": 5.0, "responses": 1, "failed": 1}))

    text = f"answered {failed} of {responses} requests of the last minute with 5xx"
    assert taken(board)["trouble"] == ({"level": "bad", "text": text} if is_troubled else None)


def test_what_is_recent_leaves_out_what_was_counted_more_than_a_minute_ago(board: Board) -> None:
    region = worker(board, mount("/a"), mount("/b"))
    words = region.row(region.allot(1, [1], "own-gil") + 1).words
    words[RESPONSES + 2] = words[RESPONSES + 5] = 10
    recent = Recent(region)
    assert recent.of(1)["responses"] == 0
    recent.look(0.0)
    words[RESPONSES + 5] += 3
    recent.look(1.0)  # too soon
    recent.look(30.0)
    words[RESPONSES + 2] += 1
    region.mount_row(1).words[RESPONSES + 5] += 1
    recent.look(60.0)

    assert recent.of(1) == {"seconds": 60.0, "responses": 5, "failed": 4}
    recent.look(90.0)
    assert recent.of(1) == {"seconds": 60.0, "responses": 2, "failed": 1}
    assert recent.of(0) == {"seconds": 60.0, "responses": 0, "failed": 0}


@pytest.mark.parametrize(
    "mounts", [7, [7], [{}], [{"pattern": "/a"}], [{"pattern": "/a", "error_types": 7}], [{"pattern": "/a", "error_types": {"E": -1}}]]
)
def test_what_no_worker_reports_counts_no_error(mounts: object) -> None:
    assert errortotals.reported({"mounts": mounts}) == {}


def test_types_of_errors_are_bounded_and_the_rest_is_counted_together() -> None:
    totals: errortotals.ErrorTotals = {}
    for number in range(300):
        errortotals.add(totals, {("/a", f"E{number}"): 1, ("/not here", "E"): 1}, ["/a"])

    assert sum(totals.values()) == 300
    assert len(totals) == 101
    assert totals["/a", "other"] == 200
    assert errortotals.from_rows(errortotals.rows(totals)) == totals
    for count in (float("inf"), "1", None, [1]):
        with pytest.raises(TypeError):
            errortotals.from_rows([["/a", "E", count]])
