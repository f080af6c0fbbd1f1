"""gunicorn's logger, as isowsgi's own code calls it: what it raises, a logger class of the user's or a full disk, is contained."""

from __future__ import annotations

from typing import Any

from isowsgi.shared.containment import Containment


class SafeLog:
    """A logger that raises nothing.

    Args:
        log: gunicorn's.
        containment: notes its failures, by another way than this.
    """

    def __init__(self, log: Any, containment: Containment) -> None:
        self._log = log
        self._contain = containment.call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    @property
    def access_log_enabled(self) -> bool:
        return getattr(self._log, "access_log_enabled", True) is not False

    def access(self, *args: Any) -> None:
        self._contain("access log", self._pass_on, "access", args)

    def critical(self, message: str, *args: object) -> None:
        self._contain("log", self._pass_on, "critical", (message, *args))

    def error(self, message: str, *args: object) -> None:
        self._contain("log", self._pass_on, "error", (message, *args))

    def warning(self, message: str, *args: object) -> None:
        self._contain("log", self._pass_on, "warning", (message, *args))

    def info(self, message: str, *args: object) -> None:
        self._contain("log", self._pass_on, "info", (message, *args))

    def debug(self, message: str, *args: object) -> None:
        self._contain("log", self._pass_on, "debug", (message, *args))

    def exception(self, message: str, *args: object) -> None:
        self._contain("log", self._pass_on, "exception", (message, *args))

    def _pass_on(self, method: str, args: tuple[object, ...]) -> None:
        getattr(self._log, method)(*args)
