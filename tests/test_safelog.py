"""gunicorn's logger as isowsgi calls it: a logger class of the user's that raises costs its line, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from isowsgi.shared.containment import Containment
from isowsgi.shared.rows import INTERNAL_ERRORS
from isowsgi.shared.safelog import SafeLog


class Raises:
    name = "mine"

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class Notes:
    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda message, *args: self.said.append((name, message % args))


LEVELS = ["critical", "error", "warning", "info", "debug", "exception"]


@pytest.mark.parametrize("level", [*LEVELS, "access"])
def test_what_a_logger_raises_ends_there(level: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = memoryview(bytearray(8 * (INTERNAL_ERRORS + 1))).cast("q")
    log = SafeLog(Raises(), Containment(Raises(), words))

    getattr(log, level)("x")

    assert words[INTERNAL_ERRORS] == 1
    assert "RuntimeError" in capfd.readouterr().err


@pytest.mark.parametrize("level", LEVELS)
def test_else_it_is_the_same_logger(level: str) -> None:
    notes = Notes()
    log = SafeLog(notes, Containment(notes, memoryview(b"")))

    getattr(log, level)("x %d", 1)

    assert notes.said == [(level, "x 1")]
