"""What the app's own `logging` has of gunicorn's: the loggers "gunicorn.error" and "gunicorn.access".

Apps log by them, take over their handlers, and put filters on the access log. So they are there once the app loads `logging`, and what it
adds to them counts: filters, handlers, and a level for the access log. What it takes away from them, or disables, changes nothing of what
isowsgi itself logs, which uses its own `logging`.
"""

from __future__ import annotations

import _thread
import logging
from typing import Any

from gunicorn.util import load_class  # by importlib, so it finds the app's modules

from isowsgi.inside.private import theirs, when_app_loads

_app_sys = theirs("sys")

_LOGGERS = ("gunicorn.error", "gunicorn.access")


def keep(logger: Any) -> None:
    """Make a logger one that can neither be disabled nor silenced by `logging.disable`.

    `logging.config` disables every logger it was not told of, unless asked not to. Django's default settings do so when the app is
    loaded, others when the first request comes; tracebacks and the access log would be missing from then on.
    """
    if type(logger).__name__ != "Logger" or type(logger).__module__ != "logging":  # a logger_class of the user's may have others
        return

    class KeptLogger(type(logger)):  # type: ignore[misc] # ours or the app's, see `private`
        disabled = property(lambda self: False, lambda self, value: None)

        def isEnabledFor(self, level: int) -> bool:  # noqa: N802 # the name is logging's
            return level >= self.getEffectiveLevel()  # type: ignore[no-any-return]

    logger.__class__ = KeptLogger


def load_logger_class(name: str) -> Any:
    """Return a logger class of the user's. It is built on the app's `gunicorn.glogging`, and so on the app's `logging`.

    Raises:
        Exception: whatever its module raises.
    """
    return load_class(name, default="gunicorn.glogging.Logger", section="gunicorn.loggers")


def connect(logger: Any, cfg: Any) -> None:
    """Let the app's `logging` have gunicorn's loggers, and hear from them what it adds to them.

    Args:
        logger: gunicorn's, on our `logging`.
    """
    if _app_sys.modules.get("logging") is logging:  # there is only one: the main interpreter
        return
    if cfg.logconfig or cfg.logconfig_json or cfg.logconfig_dict:
        try:
            theirs("gunicorn.glogging").Logger(cfg)  # such settings are for the app's loggers too, and write by its own handlers
        except Exception as exc:  # a user's configuration may fail in any way; the app has to do without
            logger.warning("the app's logging cannot be set up as configured: %s: %s", type(exc).__name__, exc)
        return
    ours = [logger.error_log, logger.access_log]
    wishes = [_Wishes(each) for each in ours]

    def join(app_logging: Any) -> None:
        for each in wishes:
            each.join(app_logging)

    when_app_loads("logging", join)


class _Wishes(logging.Filter):
    """Joins one of our loggers with the app's of the same name; as our logger's filter, it does what the app added there."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger
        self._theirs: Any = None
        logger.addFilter(self)

    def join(self, app_logging: Any) -> None:
        ours = self._logger
        bridge = _make_bridge(app_logging, ours)
        theirs = app_logging.getLogger(ours.name)
        theirs.propagate = False
        theirs.setLevel(ours.level)
        theirs.addHandler(bridge)
        self._theirs, self._bridge = theirs, bridge

    def filter(self, record: logging.LogRecord) -> bool:
        theirs = self._theirs
        if theirs is None or getattr(record, "by_app", False):
            return True
        try:
            if self._logger.name == "gunicorn.access" and record.levelno < theirs.level:
                return False
            if theirs.filters and not theirs.filter(record):
                return False
            for handler in theirs.handlers:
                if handler is not self._bridge and record.levelno >= handler.level:
                    handler.handle(record)
        except Exception:  # the app's code
            return True
        return True


def _make_bridge(app_logging: Any, ours: logging.Logger) -> Any:
    """Return a handler for the app's `logging` that hands what the app logs on to our logger's handlers."""

    class GunicornHandler(app_logging.Handler):  # type: ignore[misc] # the app's `logging` is known at run time only
        def handle(self, record: Any) -> Any:
            passed = self.filter(record)
            if not passed:
                return passed
            # The text is made here, outside of our handlers' locks: it is the app's code that makes it.
            copy = logging.makeLogRecord({**vars(record), "msg": record.getMessage(), "args": None, "by_app": True})
            ours.callHandlers(copy)
            return passed

    handler = GunicornHandler()
    for other in ours.handlers:
        if other.formatter is not None:
            formatter: Any = other.formatter
            handler.setFormatter(app_logging.Formatter(formatter._fmt, formatter.datefmt))
    return handler


def reopen_files() -> None:
    """Reopen the log files of the app's own handlers; in a thread, for one of them may be locked for ever."""
    app_logging = _app_sys.modules.get("logging")
    if app_logging is not None and app_logging is not logging:
        _thread.start_new_thread(_reopen, (app_logging,))


def _reopen(app_logging: Any) -> None:
    loggers = [app_logging.getLogger(), *app_logging.Logger.manager.loggerDict.values()]
    files = {handler for each in loggers for handler in getattr(each, "handlers", ()) if isinstance(handler, app_logging.FileHandler)}
    for handler in files:
        handler.acquire()
        try:
            if handler.stream:
                handler.close()
                handler.stream = handler._open()
        except OSError:
            continue  # its folder is gone
        finally:
            handler.release()
