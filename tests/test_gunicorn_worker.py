"""What gunicorn's arbiter sees of a worker that cannot begin."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.workers import base

from isowsgi.master.plan import Plan
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker import gunicorn
from isowsgi.worker.gunicorn import Worker


def begin(monkeypatch: pytest.MonkeyPatch, is_from_the_start: bool) -> Any:
    """Let a worker begin for which there is no thread."""

    def fail(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(gunicorn, "_FORK_AGAIN_S", 0.01)
    monkeypatch.setattr(base.Worker, "init_process", fail)
    worker: Any = object.__new__(Worker)
    worker._share = SimpleNamespace(is_from_the_start=is_from_the_start)
    worker._board = Scoreboard()
    worker.log, worker.booted, worker._exit_code = None, False, 0
    with pytest.raises(RuntimeError, match="new thread"):
        worker.init_process()
    Plan()._retire(worker._board, None)
    return worker


def test_a_worker_that_cannot_begin_is_no_reason_to_stop_what_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arbiter looks at `booted` only, and stops all of gunicorn without it."""
    worker = begin(monkeypatch, is_from_the_start=False)

    assert worker.booted
    assert worker._exit_code not in (0, Arbiter.WORKER_BOOT_ERROR, Arbiter.APP_LOAD_ERROR)


def test_with_nothing_to_serve_the_first_start_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = begin(monkeypatch, is_from_the_start=True)

    assert not worker.booted
    assert worker._exit_code == Arbiter.WORKER_BOOT_ERROR


def test_a_region_of_its_own_goes_with_its_worker() -> None:
    region = Scoreboard()

    Plan()._retire(region, None)

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(region.fd)
