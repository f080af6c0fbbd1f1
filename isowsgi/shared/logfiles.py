"""Log files that may not be opened: after `--user` the files and folders of the logs are often root's, who opened them before.

So what was opened then is handed on by descriptor, to interpreters and to child processes, and is used where the path cannot be.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from isowsgi.shared import rootsown

# gunicorn's two settings of log files, and what is tried without when a logger cannot be made with it.
_FILES = ("errorlog", "accesslog")
_EXTRAS: Mapping[str, Any] = {"logconfig": None, "logconfig_dict": {}, "logconfig_json": None, "syslog": False}


class HeldFile:
    """Lets a log handler keep its file if it cannot reopen the file, as gunicorn asks it to on SIGUSR1.

    Args:
        fd: of the file, opened for appending; duplicated here.

    Attributes:
        is_old: whether what it writes to is the file of then, which may have been moved away since.
    """

    def __init__(self, handler: logging.FileHandler, fd: int) -> None:
        self.path = handler.baseFilename
        self.is_old = False
        self._kept = os.dup(fd)
        self._handler = handler
        self._open_by_path = handler._open
        handler._open = self._open  # type: ignore[method-assign]

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self._kept)  # it goes with its handler, and that with its interpreter

    def _open(self) -> Any:
        try:
            stream = self._open_by_path()
        except OSError:
            self.is_old = True
            handler = self._handler
            return open(os.dup(self._kept), "a", encoding=handler.encoding or "utf-8", errors=handler.errors or "backslashreplace")
        os.dup2(stream.fileno(), self._kept, inheritable=False)
        self.is_old = False
        return stream


def hold(loggers: Iterable[logging.Logger]) -> list[HeldFile]:
    """Have all handlers of some loggers that write to files keep them; before the process drops root."""
    return [HeldFile(handler, fd) for handler, fd in _open_files(loggers)]


def handed(loggers: Iterable[logging.Logger]) -> dict[str, int]:
    """Return new descriptors of the files that loggers write to, by path; they stay open as long as the process lives."""
    return {handler.baseFilename: os.dup(fd) for handler, fd in _open_files(loggers)}


def _open_files(loggers: Iterable[logging.Logger]) -> Iterator[tuple[logging.FileHandler, int]]:
    for handler in dict.fromkeys(handler for logger in loggers for handler in logger.handlers):
        if isinstance(handler, logging.FileHandler) and handler.stream is not None:
            try:
                yield handler, handler.stream.fileno()
            except (OSError, ValueError, AttributeError):  # closed, or a user's own kind of stream
                continue


def open_as_root(paths: Iterable[str]) -> dict[str, int]:
    """Return descriptors of log files, by path, that only root may open; before the process drops root, for itself and its children.

    Root opens only what nobody else can have put there: a user who may write to the folder would have root append to any file. There he can
    open the log himself, too.
    """
    return {path: fd for path in paths if (fd := _open_as_root(path)) is not None}


def _open_as_root(path: str) -> int | None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        folder = rootsown.open_path(os.path.dirname(path))
        try:
            fd = os.open(os.path.basename(path), flags, 0o666, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError:  # the instance says so
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


LoggerClass = Callable[[Any], Any]


def make_logger(logger_class: LoggerClass, plain_class: LoggerClass, cfg: Any, files: Mapping[str, int]) -> tuple[Any, list[str]]:
    """Make gunicorn's logger, without what cannot be opened: a log that cannot be opened costs only that log.

    Args:
        logger_class: as configured.
        plain_class: gunicorn's own, for when that one fails.
        files: descriptors of log files by path, for those that cannot be opened.

    Returns:
        the logger, and what it goes without, a line each.
    """
    problems: list[str] = []
    closed = {name: path for name in _FILES if (path := getattr(cfg, name)) not in (None, "-") and not can_append(path)}
    with _changed(cfg, dict.fromkeys(closed, "-")):
        try:
            logger = logger_class(cfg)
        except Exception as exc:  # a user's class, or a user's logging configuration, may fail in any way
            problems.append(f"logging cannot be set up as configured, so gunicorn's own logger is used: {type(exc).__name__}: {exc}")
            with _changed(cfg, _EXTRAS):
                logger = plain_class(cfg)
    for name, path in closed.items():
        log = logger.error_log if name == "errorlog" else logger.access_log
        if (fd := files.get(os.path.normpath(path))) is not None:
            _write_to(log, path, fd)
        else:
            problems.append(f"cannot open {path!r}, so its lines go to standard {'error' if name == 'errorlog' else 'output'}")
    return logger, problems


@contextmanager
def _changed(cfg: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Give settings other values for a while."""
    before = {name: getattr(cfg, name) for name in values}
    for name, value in values.items():
        setattr(cfg, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(cfg, name, value)


def _write_to(log: logging.Logger, path: str, fd: int) -> None:
    """Put a handler that writes to a descriptor in the place of gunicorn's, which writes to a standard stream."""
    for number, handler in enumerate(log.handlers):
        if getattr(handler, "_gunicorn", False) and isinstance(handler, logging.StreamHandler):
            own = handler_of(path, fd)
            own.setFormatter(handler.formatter)
            own._gunicorn = True  # type: ignore[attr-defined] # gunicorn looks for it
            log.handlers[number] = own


def handler_of(path: str, fd: int) -> logging.FileHandler:
    """Return a handler that writes to a descriptor as long as its path cannot be opened."""
    handler = logging.FileHandler(path, delay=True, encoding="utf-8", errors="backslashreplace")
    HeldFile(handler, fd)  # whose descriptor is there before the file is open
    return handler


def can_append(path: str) -> bool:
    """Whether this process may open a log file."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666))
    except OSError:
        return False
    return True
