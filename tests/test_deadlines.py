"""The watcher of requests: it ends one in its thread alone, loses no thread by it, and is patient with clients to a point."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from isowsgi.inside.deadlines import ClientWait, Job, Patience, RequestTimeout, Watcher
from isowsgi.inside.stacks import Stacks
from isowsgi.shared.containment import Containment
from isowsgi.shared.judgement import Question
from isowsgi.shared.messages import Limits
from isowsgi.shared.rows import ANSWERED, BY_WATCHER, INTERNAL_ERRORS, RESPONSES, TIMEOUTS
from isowsgi.shared.scoreboard import Scoreboard
from tests.conftest import DEADLINE_S, ROOT


def nobody_is_stuck(mount: int, reason: str) -> None:
    pytest.fail(f"{mount}: {reason}")


def test_a_thread_that_is_interrupted_again_and_again_goes_on() -> None:
    """With a lock between the two, Python 3.14 left it locked when the exception came just then: the thread and the watcher hung.

    In a process of its own: where an exception was raised for a thread that ended before it came, Python 3.11 hangs at the next
    `sys.settrace`, which other tests use.
    """
    subprocess.run([sys.executable, "-c", "from tests import test_deadlines; test_deadlines.interrupt_often()"], cwd=ROOT, check=True)


def interrupt_often() -> None:
    sys.setswitchinterval(1e-5)  # threads take turns far more often than they do otherwise
    board = Scoreboard()
    board.allot(1, [0])
    job = Job(0, board.thread_rows(1, [0], 0))
    served, interrupted, escaped = 0, 0, []
    is_over = threading.Event()

    def serve() -> None:
        nonlocal served
        job.enter()
        while not is_over.is_set():
            connection: Any = SimpleNamespace(
                response=None, reader=SimpleNamespace(taken=0), key=5, waiting_ns=0, gateway=SimpleNamespace(mount=0)
            )
            try:
                serve_one(connection)
            except RequestTimeout as exc:
                escaped.append(exc)
            served += 1

    def serve_one(connection: Any) -> None:
        """As `Service.serve` does it."""
        try:
            job.begin(connection, 0, b"GET / HTTP/1.1\r\n", time.monotonic_ns())
            try:
                job.ending.enter_app()
                sum(range(5000))
            finally:
                job.ending.leave_app()
        except RequestTimeout:
            pass
        while job.is_serving:
            try:
                job.end()
            except RequestTimeout:
                continue

    def watch() -> None:
        nonlocal interrupted
        while not is_over.is_set():
            interrupted += job.ending.time_out(job.ending.number, lambda: True, lambda is_answered: None, RequestTimeout)

    threads = [threading.Thread(target=target, daemon=True) for target in (serve, watch)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + DEADLINE_S
    while (served < 1_000 or interrupted < 100) and time.monotonic() < end:
        time.sleep(0.01)
    is_over.set()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), f"hangs after {served} requests and {interrupted} tries to interrupt"
    assert not escaped
    assert served >= 1_000
    assert interrupted >= 10


@pytest.mark.parametrize(
    ("is_cut_already", "is_waiting", "answered"),
    [(False, False, "504 Gateway Timeout"), (False, True, "408 Request Timeout"), (True, False, None)],
)
def test_a_request_is_timed_out_once_and_counted_as_what_was_answered(is_cut_already: bool, is_waiting: bool, answered: str | None) -> None:
    """The supervisor does it too, from outside, when nothing seems to run in here."""
    board = Scoreboard()
    board.allot(1, [0])
    job = Job(0, board.thread_rows(1, [0], 0))
    rows = board.control_rows(1, [0])
    log = logging.getLogger("test")
    client, sock = socket.socketpair()
    with client, sock:
        reader = SimpleNamespace(taken=0, is_waiting=is_waiting)
        connection: Any = SimpleNamespace(
            is_taken=False, response=None, reader=reader, key=5, waiting_ns=0, gateway=SimpleNamespace(mount=0), sock=sock,
            progress=lambda: (0, 0, 0), waits_for_client=lambda: "",
        )  # fmt: skip
        counted: list[str] = []
        stacks, containment = Stacks(lambda: True, frames_are_own=False), Containment(log, rows[0].words)
        watcher = Watcher(
            [job], LIMITS, log, nobody_is_stuck, stacks, rows, containment, lambda mount, kind, type_, *more: counted.append(type_)
        )
        job.begin(connection, 0, b"GET / HTTP/1.1\r\n", 0)
        if is_cut_already:
            Question(job.row.words, 1).decide(True)

        for now in (10, 11, 12):
            watcher.look(now)

        job.end()
    assert counted == ([answered] if answered else [])
    words, status = rows[0].words, int((answered or "5")[0])
    counts = words[TIMEOUTS], words[RESPONSES + status], job.row.words[ANSWERED]
    assert counts == (len(counted), len(counted), BY_WATCHER)


def test_one_request_that_cannot_be_looked_at_does_not_keep_the_others_from_it() -> None:
    board = Scoreboard()
    board.allot(1, [0])
    jobs = [Job(number, board.thread_rows(1, [0], number)) for number in range(2)]
    rows = board.control_rows(1, [0])
    log = logging.getLogger("test")
    reader = SimpleNamespace(taken=0, is_waiting=False)
    bad: Any = SimpleNamespace(is_taken=False, response=None, reader=reader, key=5, waiting_ns=0, gateway=SimpleNamespace(mount=0))
    good: Any = SimpleNamespace(**vars(bad), progress=lambda: (0, 0, 0), waits_for_client=lambda: "")
    watcher = Watcher(jobs, LIMITS, log, nobody_is_stuck, Stacks(lambda: True, frames_are_own=False), rows, Containment(log, rows[0].words))
    for job, connection in zip(jobs, (bad, good), strict=True):
        job.begin(connection, 0, b"GET / HTTP/1.1\r\n", 0)

    watcher.look(10)

    assert rows[0].words[INTERNAL_ERRORS] == 1
    assert jobs[1].since == 10
    for job in jobs:
        job.end()


# Clients.

LIMITS = Limits(
    request_timeout_s=1.0, body_timeout_s=10.0, send_timeout_s=20.0, min_rate=100, slow_request_s=0.0, queue=0, queue_timeout_s=0.0
)
PATIENCE = Patience(body_s=10, send_s=20, min_rate=100)


@pytest.mark.parametrize(
    ("what", "waited_s", "still_s", "moved", "is_timed_out"),
    [
        ("body", 10, 10, 0, False),  # the kernel ends the wait, and the thread answers
        ("body", 10.5, 0, 0, True),
        ("body", 10.5, 0, 100, False),
        ("body", 11.5, 0, 100, True),
        ("body", 10_000, 0, 1_000_000, False),
        ("send", 19, 19, 0, False),
        ("send", 20, 20, 10_000_000, True),
        ("send", 21.5, 0, 100, True),
        ("send", 10_000, 1, 1_000_000, False),
    ],
)
def test_a_client_is_timed_out_when_it_stands_still_or_is_too_slow_in_all(
    what: str, waited_s: float, still_s: float, moved: int, is_timed_out: bool
) -> None:
    assert bool(PATIENCE.fault(what, waited_s, still_s, moved)) == is_timed_out


def test_0_is_for_ever() -> None:
    for_ever = Patience(body_s=0, send_s=0, min_rate=100)
    at_any_rate = Patience(body_s=10, send_s=10, min_rate=0)

    assert not for_ever.fault("body", 1e6, 1e6, 0)
    assert not for_ever.fault("send", 1e6, 1e6, 0)
    assert not at_any_rate.fault("body", 1e6, 9, 1)
    assert at_any_rate.fault("send", 1e6, 10, 1)


def test_only_the_time_that_a_thread_waits_for_the_client_counts() -> None:
    wait = ClientWait()
    for now, what in [
        (100, "send"),
        (100.25, "send"),
        (100.5, ""),
        (150, ""),
        (150.25, "send"),
        (150.5, "send"),
        (150.75, "body"),
        (151, "body"),
    ]:
        wait.look(now, 1, what, 0, 0)

    assert wait.waited_s == 0.75


def test_time_in_which_nobody_looked_is_not_held_against_the_client() -> None:
    """On a machine that stood still for two seconds a thread that was just about to return from a send was taken for one that waits."""
    wait = ClientWait()
    wait.look(100, 1, "send", 0, 0)
    wait.look(102.5, 1, "send", 0, 0)

    assert (wait.waited_s, wait.still_s) == (0.5, 0.5)


def test_each_request_has_its_own_time() -> None:
    wait = ClientWait()
    wait.look(100, 1, "send", 0, 1000)
    wait.look(100.25, 1, "send", 0, 1500)
    assert (wait.waited_s, wait.taken()) == (0.25, 500)

    wait.look(100.5, 2, "send", 0, 1600)
    assert (wait.waited_s, wait.still_s, wait.taken()) == (0, 0, 0)


def test_a_client_stands_still_from_its_last_byte_on() -> None:
    wait = ClientWait()
    for now, taken in [(100, 0), (100.25, 5), (100.5, 5), (100.75, 5)]:
        wait.look(now, 1, "send", 0, taken)

    assert wait.still_s == 0.5
