"""`sys.stdout`, `sys.stderr` and `wsgi.errors` of an app: whole lines, tagged with the mount, in gunicorn's error log."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

# A line without an end is cut here, so that a thread that never writes one does not fill the memory.
_MAX_LINE_CHARS = 32 * 1024


# Lines of a traceback that comes line by line; the interpreter cuts the frames of a deep recursion itself.
_MOST_HELD = 500

_TRACEBACK = "Traceback (most recent call last):"


# Threads that have written a line without its end, or a part of a traceback, to any stream of this interpreter: a request whose thread has
# not has nothing to end.
unended: set[int] = set()


class LineStream(io.TextIOBase):
    """A text stream that hands each finished line on, whole also when several threads write at once.

    What `logging` writes as one record is one entry, of as many lines as it has, with the record's level. A traceback is one entry too,
    also if it is written line by line.

    A thread's unfinished line waits until its end comes, the request ends (`end_lines`) or the stream is closed; `flush` does not cut
    it, so a progress bar is one line and not hundreds.

    Args:
        name: "<stdout>" or "<stderr>".
        fileno: the descriptor that code below Python would write to; such output carries no tag.
        emit: takes one entry, without its end, and the level that `logging` gave it; None: it was printed.
        hear: takes each text as it was written.
    """

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True
    mode = "w"

    def __init__(
        self, name: str, fileno: int, emit: Callable[[str, int | None], None], hear: Callable[[str], None] = lambda text: None
    ) -> None:
        self.name = name
        self._fileno = fileno
        self._emit = emit
        self._hear = hear
        self._unfinished: dict[int, str] = {}
        self._held: dict[int, list[str]] = {}  # lines of tracebacks whose end is to come
        self.buffer = _BinarySide(self)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self.closed:
            raise ValueError("I/O operation on closed file")
        self._hear(text)
        thread = threading.get_ident()
        pending = self._unfinished.pop(thread, "") + text
        if "\n" in pending:
            *lines, pending = pending.split("\n")
            level = _level_of_record()
            if len(lines) > 1 and (level is not None or _is_traceback(lines)):
                self._end_held(thread)
                self._cut("\n".join(lines), level)
            else:
                for line in lines:
                    self._take(thread, line, level)
        while len(pending) > _MAX_LINE_CHARS:
            self._emit(pending[:_MAX_LINE_CHARS], None)
            pending = pending[_MAX_LINE_CHARS:]
        if pending:
            self._unfinished[thread] = pending
        if thread in self._unfinished or thread in self._held:
            unended.add(thread)
        return len(text)

    def _take(self, thread: int, line: str, level: int | None) -> None:
        """Hand on a finished line, or hold it as a part of a traceback."""
        held = self._held.get(thread)
        if held is None:
            if line == _TRACEBACK:
                self._held[thread] = [line]
            else:
                self._emit(line, level)
            return
        held.append(line)
        if not line.startswith(" ") or len(held) >= _MOST_HELD:  # the exception itself
            self._end_held(thread)

    def _end_held(self, thread: int) -> None:
        held = self._held.pop(thread, None)
        if held is not None:
            self._cut("\n".join(held), None)

    def _cut(self, entry: str, level: int | None) -> None:
        for start in range(0, len(entry), _MAX_LINE_CHARS):
            self._emit(entry[start : start + _MAX_LINE_CHARS], level)

    def end_lines(self) -> None:
        """Hand on what the calling thread wrote since its last line end."""
        if self._unfinished or self._held:
            self._end(threading.get_ident())

    def _end(self, thread: int) -> None:
        self._end_held(thread)
        pending = self._unfinished.pop(thread, "")
        if pending:
            self._emit(pending, None)

    def close(self) -> None:
        if not self.closed:
            for thread in [*self._unfinished, *self._held]:
                self._end(thread)
        super().close()

    def fileno(self) -> int:
        return self._fileno

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def reconfigure(self, **options: Any) -> None:
        """Accept what `io.TextIOWrapper.reconfigure` does; the encoding of the log is gunicorn's."""


def _is_traceback(lines: list[str]) -> bool:
    return any(line.endswith(_TRACEBACK) for line in lines[:3])


def _level_of_record() -> int | None:
    """Return the level of the record that a handler of the app's `logging` writes just now, if it is one that writes."""
    try:
        frame = sys._getframe(2)
        if frame.f_code.co_name == "emit" and frame.f_code.co_filename.endswith(_LOGGING):
            level = frame.f_locals["record"].levelno
            return level if type(level) is int else None
    except Exception:  # a record of the app's own kind
        return None
    return None


# Where `logging.StreamHandler.emit` is.
_LOGGING = os.path.join("logging", "__init__.py")


class _BinarySide(io.BufferedIOBase):
    """`sys.stdout.buffer`: bytes that are text in the end, since they go to a log."""

    def __init__(self, stream: LineStream) -> None:
        self._stream = stream
        self.name = stream.name
        self.raw = self

    def write(self, data: Any) -> int:
        octets = bytes(data)
        self._stream.write(octets.decode("utf-8", "backslashreplace"))
        return len(octets)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()


def empty_stdin() -> io.TextIOWrapper:
    """Return a standard input that is at its end: an app that reads it must not wait for the terminal that started gunicorn."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
