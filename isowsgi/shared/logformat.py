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

# Longest part of an entry that a JSON object has; journald cuts a line at 48 KiB.
_MAX_CHARS = 16 * 1024


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
        return prefix + (text.replace("\n", "\n" + prefix + MARK) if "\n" in text else text)


class JsonFormatter(logging.Formatter):
    """One object a line.

    Args:
        has_priorities: as for `TextFormatter`.
        request: returns the first line of the request that the calling thread serves, or "".
    """

    def __init__(self, has_priorities: bool, request: Callable[[], str]) -> None:
        super().__init__()
        self._has_priorities = has_priorities
        self._request = request

    def format(self, record: logging.LogRecord) -> str:
        mount, generation, message = _read(record)
        trace = self.formatException(record.exc_info) if record.exc_info and record.exc_info[1] is not None else ""
        if not trace and (found := _TRACEBACK.search(message)) is not None:
            start = message.index("Traceback (", found.start())
            message, trace = message[:start].rstrip(" \n:"), message[start:]
        facts: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}" + self.formatTime(record, "%z"),
            "level": record.levelname.lower(),
            "pid": record.process,
            "mount": mount,
            "generation": generation,
            "stream": getattr(record, "stream", None) or "log",
            "request": self._request() or None,
            "message": message[:_MAX_CHARS],
            "traceback": trace[-_MAX_CHARS:] or None,
        }
        text = json.dumps({name: value for name, value in facts.items() if value is not None}, ensure_ascii=True)
        return (priority(record.levelno) if self._has_priorities else "") + text


def priority(level: int) -> str:
    """Return what sd-daemon(3) has before a line of a level."""
    number = 2 if level >= logging.CRITICAL else 3 if level >= logging.ERROR else 4 if level >= logging.WARNING else 6
    return f"<{number if level >= logging.INFO else 7}>"


def apply(loggers: Iterable[logging.Logger], form: str, has_priorities: bool, request: Callable[[], str] = lambda: "") -> None:
    """Have the handlers of gunicorn's error log write so.

    Args:
        loggers: those whose handlers write lines; the access log's have a format of their own.
    """
    formatter = JsonFormatter(has_priorities, request) if form == "json" else TextFormatter(has_priorities)
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
    found = _TAG.fullmatch(tag) if isinstance(tag, str) else None
    if found is None:
        return None, None, message
    assert isinstance(tag, str), "it was matched"
    return found[1], int(found[2]), message[len(tag) + 2 :]
