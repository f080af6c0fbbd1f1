"""How lines of gunicorn's error log look: text with its continuation lines marked, one JSON object a line, and systemd's priorities.

`[log]` of the config file says which. It is about gunicorn's own handlers and format; a handler of the user's, by `logconfig` or a logger
class, keeps its own.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any

from gunicorn.glogging import Logger

# What a line begins with that belongs to the entry above it: a line of a traceback, or of what an app wrote in one piece.
MARK = "  | "

_TRACEBACK = re.compile(r"^(?:.*: )?Traceback \(most recent call last\):$", re.MULTILINE)

# An instance's tag, as `bootorder` makes it: mount or group, generation, and a letter if the mount has several instances.
_TAG = re.compile(r"(\S.{0,500}) #(\d{1,9})([a-z]*)")

# journald takes what follows the first 48 KiB of a line for another entry, with a priority of its own (LineMax= in journald.conf(5)). So a
# line is cut into pieces before that: of this many characters, if one is one byte, or else at most six, as an escaped surrogate is.
_MAX_ASCII_CHARS = 40 * 1024
_MAX_OTHER_CHARS = 7 * 1024

# Most of an entry's parts in a JSON object, in bytes as they are written there: all of them together are shorter than such a line.
_MAX_MESSAGE_BYTES = 16 * 1024
_MAX_TRACEBACK_BYTES = 20 * 1024
_MAX_NAME_BYTES = 2 * 1024
_LEFT_OUT = "..."

# Control characters but tab, newline and ESC, which colours begin with. journald ends an entry at NUL too, and a terminal starts the line
# again at CR: what an app writes would be a line that it did not write.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n\x1b"}

_STREAMS = ("stdout", "stderr")


class TextFormatter(logging.Formatter):
    """gunicorn's own format.

    Args:
        has_priorities: whether each line begins with its priority, as sd-daemon(3) has it.
    """

    def __init__(self, has_priorities: bool = False) -> None:
        super().__init__(Logger.error_fmt, Logger.datefmt)
        self._has_priorities = has_priorities

    def format(self, record: logging.LogRecord) -> str:
        prefix = priority(record.levelno) if self._has_priorities else ""
        text = super().format(record)
        if not (text.isascii() and text.isprintable()):
            text = text.replace("\r\n", "\n").translate(_ESCAPES)
        if self._has_priorities and len(text) > _MAX_OTHER_CHARS:
            text = "\n".join(piece for line in text.split("\n") for piece in _pieces(line))
        return prefix + (text.replace("\n", "\n" + prefix + MARK) if "\n" in text else text)


class JsonFormatter(logging.Formatter):
    """One object a line.

    Args:
        has_priorities: as for `TextFormatter`.
        request: returns the first line of the request that the calling thread serves, or "".
        tag: the instance's whose entries all of them are; "" if they may be anybody's.
    """

    def __init__(self, has_priorities: bool, request: Callable[[], str], tag: str = "") -> None:
        super().__init__()
        self._has_priorities = has_priorities
        self._request = request
        self._own = _read_tag(tag)

    def format(self, record: logging.LogRecord) -> str:
        try:
            text = json.dumps(self._facts(record), ensure_ascii=True)
        except Exception as exc:  # an app's record may hold anything
            problem = f"an entry of the log could not be written as JSON: {type(exc).__name__}"
            text = json.dumps({"level": "error", "stream": "log", "message": problem})
        return (priority(record.levelno) if self._has_priorities else "") + text

    def _facts(self, record: logging.LogRecord) -> dict[str, Any]:
        mount, generation, message = _read(record)
        if mount is None and self._own is not None:  # an app that writes by a handler of gunicorn's leaves the tag out
            mount, generation = self._own
        if record.stack_info:
            message += f"\n{record.stack_info}"
        trace = self.formatException(record.exc_info) if record.exc_info and record.exc_info[1] is not None else ""
        if not trace and (found := _TRACEBACK.search(message)) is not None:
            start = message.index("Traceback (", found.start())
            message, trace = message[:start].rstrip(" \n:"), message[start:]
        stream, request = getattr(record, "stream", None), self._request()
        shown, shown_trace = _fit(message, _MAX_MESSAGE_BYTES), _fit(trace, _MAX_TRACEBACK_BYTES, keeps_end=True)
        facts: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}" + _offset(self.formatTime(record, "%z")),
            "level": str(record.levelname).lower()[:50],
            "pid": record.process if type(record.process) is int else None,
            "mount": mount and _fit(mount, _MAX_NAME_BYTES),
            "generation": generation,
            "stream": stream if type(stream) is str and stream in _STREAMS else "log",
            "request": _fit(request, _MAX_NAME_BYTES) or None,
            "message": shown,
            "traceback": shown_trace or None,
            "cut": (shown, shown_trace) != (message, trace) or None,
        }
        return {name: value for name, value in facts.items() if value is not None}


def _pieces(line: str) -> list[str]:
    size = _MAX_ASCII_CHARS if line.isascii() else _MAX_OTHER_CHARS
    return [line[start : start + size] for start in range(0, len(line), size)] or [""]


def _fit(text: str, most_bytes: int, keeps_end: bool = False) -> str:
    """Cut a text to what JSON has room for, and say so in it."""
    size = len(json.dumps(text))
    if size <= most_bytes:
        return text
    while size > most_bytes:
        most = len(text) * (most_bytes - 2 * len(_LEFT_OUT)) // size  # smaller each time, as that is less than one in `size`
        text = text[len(text) - most :] if keeps_end else text[:most]
        size = len(json.dumps(text)) + len(_LEFT_OUT)
    return _LEFT_OUT + text if keeps_end else text + _LEFT_OUT


def _offset(zone: str) -> str:
    """Return "+0100" as ISO 8601 has it after a time with colons."""
    return f"{zone[:3]}:{zone[3:]}"


def priority(level: int) -> str:
    """Return what sd-daemon(3) has before a line of a level."""
    number = 2 if level >= logging.CRITICAL else 3 if level >= logging.ERROR else 4 if level >= logging.WARNING else 6
    return f"<{number if level >= logging.INFO else 7}>"


def apply(
    loggers: Iterable[logging.Logger], form: str, has_priorities: bool, request: Callable[[], str] = lambda: "", tag: str = ""
) -> None:
    """Have the handlers of gunicorn's error log write so.

    Args:
        loggers: those whose handlers write lines; the access log's have a format of their own.
        request, tag: as for `JsonFormatter`.
    """
    formatter = JsonFormatter(has_priorities, request, tag) if form == "json" else TextFormatter(has_priorities)
    for logger in loggers:
        for handler in logger.handlers:
            if _is_gunicorns(handler.formatter):
                handler.setFormatter(formatter)


def _is_gunicorns(formatter: Any) -> bool:
    if isinstance(formatter, (TextFormatter, JsonFormatter)):
        return True
    return type(formatter) is logging.Formatter and formatter._fmt == Logger.error_fmt


def _read(record: logging.LogRecord) -> tuple[str | None, int | None, str]:
    """Return mount, generation and the rest of a message. Lines of an instance, and about one, begin with its tag."""
    args = record.args
    message = record.getMessage()
    tag = args[0] if isinstance(args, tuple) and args and isinstance(record.msg, str) and record.msg.startswith("%s: ") else None
    found = _read_tag(tag) if isinstance(tag, str) else None
    if found is None:
        return None, None, message
    assert isinstance(tag, str), "it was matched"
    return *found, message[len(tag) + 2 :]


def _read_tag(tag: str) -> tuple[str, int] | None:
    found = _TAG.fullmatch(tag)
    return None if found is None else (found[1], int(found[2]))
