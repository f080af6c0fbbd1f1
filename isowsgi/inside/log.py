"""An instance's log: gunicorn's own logger, made anew in this interpreter, each line tagged with the mount and generation.

Files are opened in append mode, so whole lines of several interpreters and processes share one. A `Logger` cannot cross between
interpreters, and one that lived in the main one would make every app wait for its GIL.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

from gunicorn import glogging, util

from isowsgi.inside.streams import LineStream, empty_stdin
from isowsgi.shared import logfiles

TYPE_CHECKING = False  # as typing's, without the 2 ms of importing typing
if TYPE_CHECKING:
    from collections.abc import Mapping


class _KeptLogger(logging.Logger):
    """A logger that cannot be disabled.

    `logging.config` disables every logger it was not told of, unless asked not to. Django's default settings do so when the app is
    loaded, others when the first request comes; tracebacks and the access log would be missing from then on.
    """

    disabled = property(lambda self: False, lambda self, value: None)


class Log:
    """Writes to gunicorn's error and access log as configured; make it before `sys.stderr` is replaced.

    Args:
        tag: mount and generation; every line begins with it.
        path: a file for all that would go to the error log; None: it goes there.
        logger: gunicorn's, where this interpreter has one already; None makes one.
        files: descriptors of gunicorn's log files by path, for those that this user may not open.
    """

    def __init__(self, cfg: Any, tag: str, path: str | None = None, logger: Any = None, files: Mapping[str, int] | None = None) -> None:
        self._tag = tag
        self._busy = threading.local()
        self._terminal = sys.stderr
        self.logger: Any = logger or self._make_logger(cfg, files or {})
        self._hears_all = type(self.logger).access is not glogging.Logger.access
        for each in (self.logger.error_log, self.logger.access_log):
            if type(each) is logging.Logger:  # a logger_class of the user's may have others
                each.__class__ = _KeptLogger
        if path is not None:
            self._write_to(path)

    def _make_logger(self, cfg: Any, files: Mapping[str, int]) -> Any:
        try:
            logger_class = util.load_class(cfg.logger_class, default="gunicorn.glogging.Logger", section="gunicorn.loggers")
        except Exception as exc:  # whatever a module of the user's raises when it is imported
            logger_class = glogging.Logger
            problem: Exception | None = exc
        else:
            problem = None
        logger, wanting = logfiles.make_logger(logger_class, glogging.Logger, cfg, files)
        for text in wanting:
            logger.warning("%s: %s", self._tag, text)
        logfiles.hold(glogging.loggers())
        if problem is not None:
            text = "%s: logger_class %r does not load in this interpreter, gunicorn's own is used: %s"
            logger.warning(text, self._tag, cfg.logger_class, problem)
        return logger

    def _write_to(self, path: str) -> None:
        error_log = self.logger.error_log
        try:
            handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        except OSError as exc:  # an app must not stay away for want of a log
            self.error("cannot write to its log %r, so its lines are here: %s", path, exc.strerror)
            return
        formatters = [other.formatter for other in error_log.handlers if other.formatter is not None]
        handler.setFormatter(formatters[0] if formatters else logging.Formatter(glogging.Logger.error_fmt, glogging.Logger.datefmt))
        error_log.handlers[:] = [handler]
        logfiles.hold([error_log])
        error_log.propagate = False

    # gunicorn's code calls these names.
    def debug(self, message: str, *args: Any, **kwargs: Any) -> None:
        self.logger.debug(*self._tagged(message, args), **kwargs)

    def info(self, message: str, *args: Any, **kwargs: Any) -> None:
        self.logger.info(*self._tagged(message, args), **kwargs)

    def warning(self, message: str, *args: Any, **kwargs: Any) -> None:
        self.logger.warning(*self._tagged(message, args), **kwargs)

    def error(self, message: str, *args: Any, **kwargs: Any) -> None:
        self.logger.error(*self._tagged(message, args), **kwargs)

    def exception(self, message: str, *args: Any, **kwargs: Any) -> None:
        self.logger.exception(*self._tagged(message, args), **kwargs)

    def _tagged(self, message: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # As logging itself does: without arguments a "%" in the message is only a character, and it may come from a client.
        return ("%s: " + message, self._tag, *args) if args else ("%s: %s", self._tag, message)

    def access(self, *args: Any) -> None:
        self.logger.access(*args)

    @property
    def access_enabled(self) -> bool:
        """Whether the logger is to be told of each request: statsd's, or one of the user's, wants to be without an access log, too."""
        return self._hears_all or bool(self.logger.access_log_enabled)

    def capture_streams(self) -> tuple[LineStream, LineStream]:
        """Send what this interpreter prints to the error log; return its new standard output and error."""
        out = LineStream("<stdout>", 1, lambda line: self._emit(logging.INFO, line))
        err = LineStream("<stderr>", 2, lambda line: self._emit(logging.WARNING, line))
        sys.stdout = sys.__stdout__ = out  # type: ignore[misc,assignment]
        sys.stderr = sys.__stderr__ = err  # type: ignore[misc,assignment]
        sys.stdin = sys.__stdin__ = empty_stdin()  # type: ignore[misc]
        return out, err

    def reopen_files(self) -> None:
        """Open every log file of this interpreter anew, the app's own included (after logrotate; SIGUSR1)."""
        self.logger.reopen_files()

    def _emit(self, level: int, line: str) -> None:
        """Log one line of the app's whatever the log level: the app printed it, and nobody else will show it."""
        if getattr(self._busy, "emitting", False):
            # A handler that failed while it wrote this very line, and says so on sys.stderr.
            self._terminal.write(line + "\n")
            return
        self._busy.emitting = True
        try:
            error_log = self.logger.error_log
            record = error_log.makeRecord(error_log.name, level, "(app)", 0, "%s: %s", (self._tag, line), None)
            error_log.callHandlers(record)
        finally:
            self._busy.emitting = False
