"""What gunicorn's arbiter sees of a worker that cannot begin."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.workers import base

from isowsgi.master.workerplan import Plan
from isowsgi.shared.board import Board
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker import gunicorn
from isowsgi.worker.gunicorn import Worker
from isowsgi.worker.ownlogs import OwnLogs


def begin(monkeypatch: pytest.MonkeyPatch, is_from_the_start: bool, board: Board | None = None, workers: int = 1) -> Any:
    """Let a worker begin for which there is no thread."""

    def fail(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(gunicorn, "_FORK_AGAIN_S", 0.01)
    monkeypatch.setattr(base.Worker, "init_process", fail)
    worker: Any = object.__new__(Worker)
    worker._has_share = True
    worker._share = SimpleNamespace(is_from_the_start=is_from_the_start, config=None, vouched=None)
    worker._board = Scoreboard() if board is None else board.new_region([], 0.0)
    worker.cfg = SimpleNamespace(workers=workers, uid=os.geteuid())
    worker.log, worker.booted, worker._exit_code, worker.sockets = None, False, 0, []
    with pytest.raises(RuntimeError, match="new thread"):
        worker.init_process()
    if board is None:
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


@pytest.mark.parametrize("is_reaped", [False, True])
def test_the_first_start_ends_only_when_the_last_of_its_workers_has_failed(monkeypatch: pytest.MonkeyPatch, is_reaped: bool) -> None:
    """The first of two that failed stopped gunicorn, though the other served."""
    board = Board()
    first = begin(monkeypatch, True, board, workers=2)
    assert first.booted
    if is_reaped:
        board.retire(first._board, None, 0.0)

    second = begin(monkeypatch, True, board, workers=2)

    assert not second.booted
    assert second._exit_code == Arbiter.WORKER_BOOT_ERROR
    board.close()
    os.close(board.fd)


def test_the_last_to_fail_ends_nothing_if_a_retry_of_another_one_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board()
    first = begin(monkeypatch, True, board, workers=2)
    first._board.publish({"mounts": [{"state": "failed"}, {}, {"state": "serving"}]})

    second = begin(monkeypatch, True, board, workers=2)

    assert second.booted
    assert second._exit_code != Arbiter.WORKER_BOOT_ERROR
    board.close()
    os.close(board.fd)


def test_a_log_that_no_mount_has_any_more_is_no_reason_to_replace_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `isowsgi apply` had removed a mount, each SIGUSR1 replaced the worker if its log could not be opened."""
    monkeypatch.setattr(base.Worker, "handle_usr1", lambda *args: None)
    config = SimpleNamespace(mounts=[SimpleNamespace(log=None), SimpleNamespace(log="/none/kept.log")])
    worker: Any = object.__new__(Worker)
    worker._logs = OwnLogs([], {"/none/gone.log": -1})
    worker.alive, worker.log = True, logging.getLogger("test")
    worker._parts = SimpleNamespace(supervisor=SimpleNamespace(table=SimpleNamespace(config=config), reopen_logs=None))
    worker._containment = SimpleNamespace(call=lambda *args: True)

    worker.handle_usr1(0, None)
    assert worker.alive

    worker._logs.of_mounts["/none/kept.log"] = -1
    worker.handle_usr1(0, None)
    assert not worker.alive


def test_a_region_of_its_own_goes_with_its_worker() -> None:
    region = Scoreboard()

    Plan()._retire(region, None)

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(region.fd)
