"""A mount's own hooks: functions that are called when its app was loaded, or a copy of it forked, when it drains, and around each request.

Imported only where a mount has some; without them no request passes here.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from isowsgi.inside.deadlines import RequestTimeout
from isowsgi.inside.http import ClientGone, ClientStalled, Response
from isowsgi.inside.threads import introduce
from isowsgi.inside.wsgi import Connection, Gateway

# How long a stopping instance waits for on_drain before the app's exit functions are called.
DRAIN_S = 5.0

Hook = Callable[..., object]


class Hooks:
    """The hooks of one instance.

    Args:
        names: import strings, "module:function", by the hook's name; those that are not set are not there.
        info: the argument of `on_boot` and `on_drain`, and most of that of `post_fork`.
        log: the instance's log.

    Raises:
        Exception: whatever the import of a hook raises; the app counts as not loaded then.
    """

    def __init__(self, names: Mapping[str, str], info: Mapping[str, Any], log: Any) -> None:
        self._hooks: dict[str, Hook] = {name: _load(name, text) for name, text in names.items()}
        self._info = info
        self._log = log
        self._drain_turn = [None]  # who pops it, calls on_drain: the order to drain and the end of the boot may come at the same time
        self._drain: threading.Thread | None = None

    @property
    def for_requests(self) -> bool:
        return "on_request_start" in self._hooks or "on_request_end" in self._hooks

    def boot(self, is_forked: bool) -> None:
        """Call `post_fork` and `on_boot`; what they raise is the caller's: an app without what they prepare must not serve.

        Args:
            is_forked: whether this process was forked from one that had loaded the app.
        """
        if "post_fork" in self._hooks:
            self._hooks["post_fork"]({**self._info, "forked": is_forked})
        if "on_boot" in self._hooks:
            self._hooks["on_boot"](dict(self._info))

    def drain(self) -> None:
        """Call `on_drain`, once, in a thread: the caller is the control thread, which runs no code of the app's."""
        if "on_drain" not in self._hooks:
            return
        try:
            self._drain_turn.pop()
        except IndexError:
            return
        self._drain = threading.Thread(target=self._call_on_drain, name="isowsgi-drain", daemon=True)
        self._drain.start()

    def _call_on_drain(self) -> None:
        introduce("isowsgi-drain")
        self.call("on_drain", dict(self._info))

    def join(self) -> None:
        """Wait until `on_drain` has ended, but not for ever."""
        if self._drain is not None:
            self._drain.join(DRAIN_S)

    def call(self, name: str, *args: object) -> None:
        """Call a hook, if it is set; what it raises is logged."""
        hook = self._hooks.get(name)
        if hook is None:
            return
        try:
            hook(*args)
        except RequestTimeout:
            raise
        except BaseException:  # SystemExit too: a hook ends neither a request nor a worker
            self._log.exception("%s failed", name)


class HookedGateway(Gateway):
    """A gateway that calls `on_request_start` and `on_request_end` around each request."""

    hooks: Hooks

    def _call(self, connection: Connection, response: Response, environ: dict[str, Any]) -> None:
        started = time.monotonic()
        failure = ""
        ending = connection.ending
        ending.enter_app()  # hooks are the app's code: request_timeout may interrupt them
        try:
            self.hooks.call("on_request_start", environ)
            super()._call(connection, response, environ)
        except RequestTimeout:
            failure = "504 Gateway Timeout"
            raise
        except (ClientGone, ClientStalled):
            raise
        except BaseException:
            failure = "500 Internal Server Error"
            raise
        finally:
            status = response.status if response.headers_sent or not failure else failure
            ending.enter_app()
            try:
                self.hooks.call("on_request_end", environ, status, time.monotonic() - started)
            finally:
                ending.leave_app()


def _load(name: str, text: str) -> Hook:
    module, _, function = text.partition(":")
    try:
        hook: Hook = getattr(importlib.import_module(module), function)
    except BaseException as exc:
        exc.add_note(f"this was imported for {name} = {text!r}")
        raise
    if not callable(hook):
        raise TypeError(f"{name} = {text!r}: expected a function, got {hook!r}")
    return hook
