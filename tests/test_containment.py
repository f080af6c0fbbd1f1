"""What isowsgi does about mistakes of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, NoReturn

import pytest

from isowsgi.shared.containment import Containment
from isowsgi.shared.rows import INTERNAL_ERRORS
from isowsgi.shared.scoreboard import Scoreboard
from tests.conftest import ROOT


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def error(self, message: str, *args: Any) -> None:
        self.lines.append(message % args)


def fail() -> NoReturn:
    raise ValueError("some mistake")


@pytest.fixture
def words() -> memoryview:
    return Scoreboard().row(0).words


def test_what_fails_is_logged_with_its_traceback_and_counted(words: memoryview) -> None:
    log = Log()

    assert not Containment(log, words).call("/shop #3: report 'ready'", fail)

    [line] = log.lines
    assert line.startswith("/shop #3: report 'ready': internal error, contained; please report it\nTraceback")
    assert "in fail" in line
    assert "ValueError: some mistake" in line
    assert words[INTERNAL_ERRORS] == 1


def test_what_returns_is_not_noted(words: memoryview) -> None:
    log = Log()

    assert Containment(log, words).call("x", lambda: None)

    assert log.lines == []
    assert words[INTERNAL_ERRORS] == 0


def test_the_same_mistake_is_logged_once_a_minute_and_counted_each_time(words: memoryview, monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = Log(), 100.0
    monkeypatch.setattr("isowsgi.shared.containment.time.monotonic", lambda: now)
    contained = Containment(log, words)

    for _ in range(5):
        contained.call("x", fail)
    now += 61
    contained.call("x", fail)

    assert len(log.lines) == 2
    assert "(4 more since the last time)" in log.lines[1]
    assert words[INTERNAL_ERRORS] == 6


def test_a_logger_that_fails_costs_the_line_in_the_log_only(words: memoryview, capfd: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def error(self, *args: Any) -> None:
            raise OSError("disk full")

    assert not Containment(Broken(), words).call("x", fail)

    assert "isowsgi: x: internal error, contained\nTraceback" in capfd.readouterr().err
    assert words[INTERNAL_ERRORS] == 1


def test_what_signal_handlers_raise_passes(words: memoryview) -> None:
    def leave() -> NoReturn:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        Containment(Log(), words).call("x", leave)


def test_a_mistake_is_told_with_its_traceback_also_where_no_file_can_be_opened() -> None:
    """CPython 3.13 and 3.15 import modules for the first traceback of a process, and cannot without a descriptor."""
    code = """
import os, resource
from isowsgi.shared.containment import traceback_of
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    raise OSError(24, "no descriptor")
except OSError as exc:
    os.write(1, traceback_of(exc).encode())
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert run.stdout.startswith("Traceback (most recent call last")
    assert 'File "<string>", line 6, in <module>\n' in run.stdout
    assert run.stdout.endswith("OSError: [Errno 24] no descriptor\n")
