"""`sys.stdout`, `sys.stderr` and `wsgi.errors` of an app: whole lines, tagged with the mount, in gunicorn's error log."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

# A line without an end is cut here, so that a thread that never writes one does not fill the memory.
_MAX_LINE_CHARS = 32 * 1024


class LineStream(io.TextIOBase):
    """A text stream that hands each finished line on, whole also when several threads write at once.

    A thread's unfinished line waits until its end comes, the request ends (`end_lines`) or the stream is closed; `flush` does not cut
    it, so a progress bar is one line and not hundreds.

    Args:
        name: "<stdout>" or "<stderr>".
        fileno: the descriptor that code below Python would write to; such output carries no tag.
        emit: takes one line, without its end.
        hear: takes each text as it was written.
    """

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True
    mode = "w"

    def __init__(self, name: str, fileno: int, emit: Callable[[str], None], hear: Callable[[str], None] = lambda text: None) -> None:
        self.name = name
        self._fileno = fileno
        self._emit = emit
        self._hear = hear
        self._unfinished: dict[int, str] = {}
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
            for line in lines:
                self._emit(line)
        while len(pending) > _MAX_LINE_CHARS:
            self._emit(pending[:_MAX_LINE_CHARS])
            pending = pending[_MAX_LINE_CHARS:]
        if pending:
            self._unfinished[thread] = pending
        return len(text)

    def end_lines(self) -> None:
        """Hand on what the calling thread wrote since its last line end."""
        if self._unfinished:
            pending = self._unfinished.pop(threading.get_ident(), "")
            if pending:
                self._emit(pending)

    def close(self) -> None:
        if not self.closed:
            for thread in list(self._unfinished):
                self._emit(self._unfinished.pop(thread, ""))
        super().close()

    def fileno(self) -> int:
        return self._fileno

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def reconfigure(self, **options: Any) -> None:
        """Accept what `io.TextIOWrapper.reconfigure` does; the encoding of the log is gunicorn's."""


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
