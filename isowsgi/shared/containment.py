"""Where isowsgi's own mistakes end: each is logged with its traceback, counted, and costs what it happened to, never the worker.

Whoever runs one callback, connection, mount, report or order after another runs each inside `Containment.call`, or calls `failed` from
an `except Exception` of its own. The exceptions that gunicorn's signal handlers raise (SystemExit, KeyboardInterrupt) pass.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from isowsgi.shared.rows import INTERNAL_ERRORS

# How often the traceback of one mistake is logged: one that happens for each event of a loop would fill the disk.
_PAUSE_S = 60.0

# Kinds of mistakes that are remembered for that. They are places in isowsgi's code, so there are few.
_MOST_KINDS = 256

# Longest error text that is passed on: one line, that people read. A packet's limit is the socket's send buffer, 208 KiB by default.
MAX_ERROR_CHARS = 2000

_Failure = tuple[str, type[BaseException], int]  # what was done, and what was raised at which line


class Containment:
    """One thread's or one interpreter's; any thread may call it.

    Args:
        log: has `error`; if that raises too, the text goes to the standard error of the process.
        words: of the scoreboard's row in which the caller counts.
    """

    def __init__(self, log: Any, words: memoryview) -> None:
        self._log = log
        self._words = words
        self._said: dict[_Failure, tuple[float, int]] = {}  # when it was logged last; how often it happened since

    def call(self, what: str, function: Callable[..., object], *args: Any) -> bool:
        """Call a function and contain what it raises; return whether it returned.

        Args:
            what: whose work this is, for the log: "/shop #3: report 'ready'".
        """
        try:
            function(*args)
        except Exception:
            self.failed(what)
            return False
        return True

    def failed(self, what: str) -> None:
        """Note the exception that is being handled. Raises nothing, whatever state the process is in."""
        try:
            self._words[INTERNAL_ERRORS] += 1
            self._say(what)
        except Exception:
            try:
                os.write(2, f"isowsgi: {what}: an error could not be logged\n".encode("utf-8", "replace"))
            except OSError:
                return

    def _say(self, what: str) -> None:
        kind, exc, trace = sys.exc_info()
        assert kind is not None, "called from an except block"
        failure = (what, kind, _innermost_line(trace))
        now = time.monotonic()
        said_at, since = self._said.get(failure, (-_PAUSE_S, 0))
        if now - said_at < _PAUSE_S:
            self._said[failure] = said_at, since + 1
            return
        if len(self._said) >= _MOST_KINDS:
            self._said.clear()
        self._said[failure] = now, 0
        again = f" ({since} more since the last time)" if since else ""
        text = traceback_of(exc)
        try:
            self._log.error("%s: internal error, contained%s; please report it\n%s", what, again, text)
        except Exception:  # a logger class of the user's, or a full disk
            os.write(2, f"isowsgi: {what}: internal error, contained{again}\n{text}".encode("utf-8", "backslashreplace"))


def traceback_of(exc: BaseException | None) -> str:
    """Return an exception with its traceback, also where no file can be opened.

    CPython 3.13 and 3.15 import modules for it as late as that, and raise OSError if they have no descriptor left.
    """
    try:
        return "".join(traceback.format_exception(exc))
    except Exception:
        trace, lines = exc.__traceback__ if exc is not None else None, ["Traceback (most recent call last, without its lines):\n"]
        while trace is not None:
            code = trace.tb_frame.f_code
            lines.append(f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_name}\n')
            trace = trace.tb_next
        return "".join([*lines, type(exc).__name__, ": ", _text_of(exc), "\n"])


def one_line(exc: BaseException) -> str:
    """Return an exception in a line."""
    try:
        lines = traceback.format_exception_only(exc)
    except Exception:  # see `traceback_of`
        lines = traceback_of(exc).splitlines()
    try:
        notes = len("\n".join(map(str, getattr(exc, "__notes__", ()))).splitlines())  # they come behind it
    except Exception:  # the app's code made them
        notes = 0
    return lines[max(-1 - notes, -len(lines))].strip()[:MAX_ERROR_CHARS]


def _text_of(exc: BaseException | None) -> str:
    try:
        return str(exc)
    except Exception:
        return "(its text cannot be had)"


def _innermost_line(trace: Any) -> int:
    line = 0
    while trace is not None:
        line, trace = trace.tb_lineno, trace.tb_next
    return line
