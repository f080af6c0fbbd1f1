"""A Python console in the app's interpreter, for `isowsgi shell`: one at a time, in a thread of its own.

The control thread only passes on what the operator types. The code runs in a thread of the app's, with the app's modules, and what that
thread prints goes to the operator instead of the log.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable, Mapping
from queue import SimpleQueue  # C code
from typing import Any

from isowsgi.inside.ending import load_ctypes, set_async_exception
from isowsgi.inside.private import theirs
from isowsgi.inside.threads import AppThread
from isowsgi.shared.containment import traceback_of
from isowsgi.shared.messages import EndShell, OpenShell, ShellInput

# Most that one input may print; more is cut.
MOST_CHARS = 512 * 1024

# Most of an input that the log shows.
_MOST_LOGGED = 500

_app_sys: Any = theirs("sys")


class Console:
    """A session.

    Args:
        names: what its code finds.
        report: takes the number of the session, that of the input, what it printed, and whether more lines are to follow.
        say: writes a line to the instance's log.
    """

    def __init__(
        self, order: OpenShell, names: dict[str, Any], report: Callable[[int, int, str, bool], None], say: Callable[[str], None]
    ) -> None:
        self.ask = order.ask
        self._names = names
        self._report = report
        self._say = say
        self._inputs: SimpleQueue[ShellInput | None] = SimpleQueue()
        self._ident = 0
        self._is_executing = False
        self._thread = AppThread(self._run, "isowsgi-shell")

    def put(self, order: ShellInput) -> None:
        self._inputs.put(order)

    def end(self) -> None:
        """End the session; what is being executed is interrupted, as by Ctrl-C."""
        self._inputs.put(None)
        if self._is_executing:
            set_async_exception(self._ident, KeyboardInterrupt)

    def _run(self) -> None:
        self._ident = _thread.get_ident()
        while True:
            try:
                order = self._inputs.get()
                if order is None:
                    break
                text, is_more = self._execute(order.source)
                self._report(self.ask, order.number, text, is_more)
            except BaseException:  # the interrupt came late
                continue
        self._say("the operator's shell has ended")

    def _execute(self, source: str) -> tuple[str, bool]:
        """Return what some lines print, and whether they are only the beginning of a statement."""
        try:
            code = theirs("codeop").compile_command(source, "<shell>", "single")
        except BaseException as exc:
            return traceback_of(exc.with_traceback(None)), False
        if code is None:
            return "", True
        if source:
            self._say(f"the operator's shell executes: {source[:_MOST_LOGGED]}")
        out = _Divided(_app_sys.stdout, self._ident)
        errors = _Divided(_app_sys.stderr, self._ident, out)
        before = _app_sys.stdout, _app_sys.stderr
        _app_sys.stdout, _app_sys.stderr = out, errors
        self._is_executing = True
        try:
            exec(code, self._names)
        except BaseException as exc:  # SystemExit too: the session ends with the command
            trace = exc.__traceback__
            out.write_own(traceback_of(exc.with_traceback(trace.tb_next if trace is not None else None)))
        finally:
            self._is_executing = False
            if _app_sys.stdout is out:  # else the code, or the app, has put another one there
                _app_sys.stdout = before[0]
            if _app_sys.stderr is errors:
                _app_sys.stderr = before[1]
        return out.text(), False


class _Divided:
    """Stands in for a stream: what one thread writes is kept, what all others write passes."""

    def __init__(self, stream: Any, ident: int, kept: _Divided | None = None) -> None:
        self._stream = stream
        self._ident = ident
        self._kept: _Divided = kept or self
        self._parts: list[str] = []
        self._left = MOST_CHARS

    def write(self, text: str) -> Any:
        if _thread.get_ident() != self._ident:
            return self._stream.write(text)
        return self._kept.write_own(text)

    def write_own(self, text: str) -> int:
        if self._left > 0:
            self._parts.append(text[: self._left])
            self._left -= len(text)
        return len(text)

    def text(self) -> str:
        return "".join(self._parts) + ("\n(the rest is cut)\n" if self._left < 0 else "")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Consoles:
    """An instance's; on its control thread.

    Args:
        apps: returns the apps by their mounts' numbers.
        report: see `Console`.
        say: as well.
    """

    def __init__(
        self, apps: Callable[[], Mapping[int, Any]], report: Callable[[int, int, str, bool], None], say: Callable[[str], None]
    ) -> None:
        self._apps = apps
        self._report = report
        self._say = say
        self._console: Console | None = None

    def open(self, order: OpenShell) -> None:
        self.end_all()
        load_ctypes()  # an interrupt takes it
        self._say("the operator has opened a shell")
        # Its builtins, too: with ours it would import our private modules.
        names = {"__name__": "__console__", "__doc__": None, "__builtins__": theirs("builtins"), "app": self._apps().get(order.mount)}
        self._console = Console(order, names, self._report, self._say)

    def put(self, order: ShellInput) -> None:
        if self._console is not None and self._console.ask == order.ask:
            self._console.put(order)

    def end(self, order: EndShell) -> None:
        if self._console is not None and self._console.ask == order.ask:
            self.end_all()

    def end_all(self) -> None:
        console, self._console = self._console, None
        if console is not None:
            console.end()
