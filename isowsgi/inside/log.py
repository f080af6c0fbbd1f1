"""An instance's log: gunicorn's own logger, made in this interpreter, each line tagged with the mount and generation.

Files are opened in append mode, so whole lines of several interpreters and processes share one. A `Logger` cannot cross between
interpreters, and one that lived in the main one would make every app wait for its GIL.

The `logging` that writes is ours, see `private`: what the app does to its own, `logging.disable` or `dictConfig`, hides no traceback. What
the app's has of gunicorn's loggers is in `applogging`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import tokenize  # noqa: F401 # linecache imports it for the first traceback, and then it is too late
from typing import Any

from gunicorn import glogging
from gunicorn.instrument.statsd import Statsd

from isowsgi.inside import applogging, errornotes
from isowsgi.inside.patientlock import PatientLock
from isowsgi.inside.private import theirs
from isowsgi.inside.streams import LineStream, empty_stdin
from isowsgi.shared import logfiles, logformat

TYPE_CHECKING = False  # as typing's, without the 2 ms of importing typing
if TYPE_CHECKING:
    from collections.abc import Mapping

    from isowsgi.shared.messages import LogForm

_app_sys = theirs("sys")

# Loggers of gunicorn's own; any other is the user's code.
_GUNICORNS = {"gunicorn.glogging.Logger": glogging.Logger, "gunicorn.instrument.statsd.Statsd": Statsd}


class Log:
    """Writes to gunicorn's error and access log as configured; make it before `sys.stderr` is replaced. Its methods raise nothing.

    Args:
        tag: mount and generation; every line begins with it.
        path: a file for all that would go to the error log; None: it goes there.
        logger: gunicorn's, where this interpreter has one already; None makes one.
        files: descriptors of log files by path, for those that this user may not open.
        form: how lines look; None: as gunicorn's.
    """

    def __init__(
        self,
        cfg: Any,
        tag: str,
        path: str | None = None,
        logger: Any = None,
        files: Mapping[str, int] | None = None,
        form: LogForm | None = None,
    ) -> None:
        self._tag = tag
        self._busy = threading.local()
        self._terminal = sys.stderr
        self.logger: Any = logger or self._make_logger(cfg, files or {})
        self._hears_all = type(self.logger).access is not glogging.Logger.access
        for each in (self.logger.error_log, self.logger.access_log):
            applogging.keep(each)
        if path is not None:
            self._write_to(path, (files or {}).get(path))
        if form is not None and hasattr(self.logger, "error_log"):
            own = tag if logger is None else ""
            logformat.apply([self.logger.error_log], form.format, form.priorities, errornotes.line_of_request, own)
        self._be_patient()
        if logger is None and isinstance(self.logger, glogging.Logger):
            applogging.connect(self.logger, cfg)

    def take_over(self, tag: str, form: LogForm) -> None:
        """Be the log of a copy of the process that has made it; by its only thread."""
        self._tag = tag
        if hasattr(self.logger, "error_log"):
            logformat.apply([self.logger.error_log], form.format, form.priorities, errornotes.line_of_request, tag)
        try:
            self.logger.reopen_files()  # they may have been rotated since
        except Exception as exc:  # a logger_class of the user's
            self._write_plainly(f"the log cannot be reopened: {_brief(exc)}")

    def _make_logger(self, cfg: Any, files: Mapping[str, int]) -> Any:
        wanted = cfg.logger_class
        problem: Exception | None = None
        logger_class = _GUNICORNS.get(wanted)
        if logger_class is None:
            try:
                logger_class = applogging.load_logger_class(wanted)
            except Exception as exc:  # whatever a module of the user's raises when it is imported
                problem, logger_class = exc, glogging.Logger
        logger, wanting = logfiles.make_logger(logger_class, glogging.Logger, cfg, files)
        for text in wanting:
            logger.warning("%s: %s", self._tag, text)
        logfiles.hold(glogging.loggers())
        if problem is not None:
            text = "%s: cannot load logger_class %r in this interpreter; using gunicorn's own: %s"
            logger.warning(text, self._tag, wanted, problem)
        return logger

    def _write_to(self, path: str, fd: int | None) -> None:
        error_log = self.logger.error_log
        try:
            handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        except OSError as exc:
            if fd is None:  # an app must not fail to load because of its log
                self.error("cannot open its log %r, so its lines are written here: %s", path, exc.strerror)
                return
            handler = logfiles.handler_of(path, fd)
        formatters = [other.formatter for other in error_log.handlers if other.formatter is not None]
        handler.setFormatter(formatters[0] if formatters else logging.Formatter(glogging.Logger.error_fmt, glogging.Logger.datefmt))
        error_log.handlers[:] = [handler]
        logfiles.hold([error_log])
        error_log.propagate = False

    def _be_patient(self) -> None:
        """Let nobody wait without end for a lock that an interrupted thread has left taken: the control thread would, too."""
        for each in (self.logger.error_log, self.logger.access_log):
            for handler in each.handlers:
                handler.lock = PatientLock()
        if _app_sys.modules.get("logging") is not logging:  # else it is the worker's
            logging._lock = PatientLock()  # type: ignore[attr-defined]

    # gunicorn's code calls these names.
    def debug(self, message: str, *args: Any, **kwargs: Any) -> None:
        self._write("debug", message, args, kwargs)

    def info(self, message: str, *args: Any, **kwargs: Any) -> None:
        self._write("info", message, args, kwargs)

    def warning(self, message: str, *args: Any, **kwargs: Any) -> None:
        self._write("warning", message, args, kwargs)

    def error(self, message: str, *args: Any, **kwargs: Any) -> None:
        self._write("error", message, args, kwargs)

    def exception(self, message: str, *args: Any, **kwargs: Any) -> None:
        self._write("exception", message, args, kwargs)

    def _write(self, level: str, message: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # As logging itself does: without arguments a "%" in the message is only a character, and it may come from a client.
        tagged = ("%s: " + message, self._tag, *args) if args else ("%s: %s", self._tag, message)
        try:
            getattr(self.logger, level)(*tagged, **kwargs)
        except Exception as exc:  # a logger_class or a handler of the user's
            self._write_plainly(f"the log failed: {_brief(exc)}; lost: {message}")

    def access(self, *args: Any) -> None:
        try:
            self.logger.access(*args)
        except Exception as exc:
            self._write_plainly(f"the access log failed: {_brief(exc)}")

    def _write_plainly(self, text: str) -> None:
        """Write to the standard error of the process, where nothing can be in the way."""
        try:
            os.write(2, f"{self._tag}: {text}\n".encode("utf-8", "backslashreplace"))
        except OSError:
            return

    @property
    def access_enabled(self) -> bool:
        """Whether the logger must be told of each request: statsd's, or one of the user's, wants to be without an access log, too."""
        return self._hears_all or bool(self.logger.access_log_enabled)

    def capture_streams(self) -> tuple[LineStream, LineStream]:
        """Send what this interpreter prints to the error log; return its new standard output and error."""
        out = LineStream("<stdout>", 1, lambda text, level: self._emit(level or logging.INFO, text, "stdout"))
        err = LineStream("<stderr>", 2, lambda text, level: self._emit(level or logging.WARNING, text, "stderr"), errornotes.note_text)
        _app_sys.stdout = _app_sys.__stdout__ = out
        _app_sys.stderr = _app_sys.__stderr__ = err
        _app_sys.stdin = _app_sys.__stdin__ = empty_stdin()
        return out, err

    def reopen_files(self) -> None:
        """Reopen every log file of this interpreter, the app's own included (after logrotate; SIGUSR1)."""
        self.logger.reopen_files()
        applogging.reopen_files()

    def _emit(self, level: int, line: str, stream: str) -> None:
        """Log one entry of the app's whatever the log level: the app printed it, and nobody else will show it."""
        if getattr(self._busy, "emitting", False):
            # A handler that failed while it wrote this very line, and says so on sys.stderr.
            self._terminal.write(line + "\n")
            return
        self._busy.emitting = True
        try:
            error_log = self.logger.error_log
            record = error_log.makeRecord(error_log.name, level, "(app)", 0, "%s: %s", (self._tag, line), None, extra={"stream": stream})
            error_log.callHandlers(record)
        except Exception:
            self._write_plainly(line)
        finally:
            self._busy.emitting = False


def _brief(exc: Exception) -> str:
    try:
        return f"{type(exc).__name__}: {exc}"
    except Exception:  # raised by its __str__
        return type(exc).__name__
