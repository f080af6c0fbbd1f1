"""The watcher of requests: it ends one in its thread alone, and loses no thread by it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from isowsgi.inside.deadlines import Job, RequestTimeout
from isowsgi.scoreboard import Scoreboard
from tests.conftest import DEADLINE_S


@pytest.fixture
def switch_often() -> Iterator[None]:
    """Let threads take turns far more often than they do otherwise."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_a_thread_that_is_interrupted_again_and_again_goes_on(switch_often: None) -> None:
    """With a lock between the two, Python 3.14 left it locked when the exception came just then: the thread and the watcher hung."""
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
                in_app=False, response=None, reader=SimpleNamespace(taken=0), worker_fd=5, gateway=SimpleNamespace(mount=0)
            )
            try:
                serve_one(connection)
            except RequestTimeout as exc:
                escaped.append(exc)
            served += 1

    def serve_one(connection: Any) -> None:
        """As `Service.serve` does it."""
        try:
            job.begin(connection, b"GET / HTTP/1.1\r\n", time.monotonic_ns())
            connection.in_app = True
            try:
                sum(range(50))
            finally:
                connection.in_app = False
        except RequestTimeout:
            pass
        while job.connection is not None or job.interrupted:
            try:
                job.end()
            except RequestTimeout:
                continue

    def watch() -> None:
        nonlocal interrupted
        while not is_over.is_set():
            job.interrupt()
            interrupted += 1

    threads = [threading.Thread(target=target, daemon=True) for target in (serve, watch)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + DEADLINE_S
    while (served < 20_000 or interrupted < 20_000) and time.monotonic() < end:
        time.sleep(0.01)
    is_over.set()
    for thread in threads:
        thread.join(1)
        assert not thread.is_alive(), f"hangs after {served} requests and {interrupted} tries to interrupt"
    assert not escaped
    assert served >= 20_000
