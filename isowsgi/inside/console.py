"""A Python console in the app's interpreter, for `isowsgi shell`: one at a time, in a thread of its own.

The control thread only passes on what the operator types. The code runs in a thread of the app's, with the app's modules, and what that
thread prints goes to the operator instead of the log. Its standard input is at its end.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable, Iterable, Mapping
from io import StringIO
from queue import SimpleQueue  # C code
from typing import Any

from isowsgi.inside.ending import set_async_exception
from isowsgi.inside.private import theirs
from isowsgi.inside.threads import AppThread
from isowsgi.shared.containment import traceback_of
from isowsgi.shared.messages import EndShell, OpenShell, ShellInput

# Most that one input may print; more is cut.
MOST_CHARS = 512 * 1024

# How an input ended; LOST: there is no console for it.
DONE, FAILED, EXIT, LOST = "done", "failed", "exit", "lost"

Report = Callable[[int, int, str, bool, str], None]
"""Takes the number of the session, that of the input, what it printed, whether more lines are to follow, and how it ended."""

_app_sys: Any = theirs("sys")


class Console:
    """A session.

    Args:
        names: what its code finds.
        report: see `Report`.
        say: writes a line to the instance's log.
    """

    def __init__(self, order: OpenShell, names: dict[str, Any], report: Report, say: Callable[[str], None]) -> None:
        self.ask = order.ask
        self._names = names
        self._report = report
        self._say = say
        self._inputs: SimpleQueue[ShellInput | None] = SimpleQueue()
        self._ident = 0
        self._is_executing = False
        self.is_over = False
        self._thread = AppThread(self._run, "isowsgi-shell")

    def put(self, order: ShellInput) -> None:
        self._inputs.put(order)

    def end(self) -> None:
        """End the session; what is being executed is interrupted, as by Ctrl-C, and what waits is dropped."""
        self.is_over = True  # first: now either the console's thread sees that, or we see that it executes something
        self._inputs.put(None)
        if self._is_executing:
            set_async_exception(self._ident, KeyboardInterrupt)

    def _run(self) -> None:
        self._ident = _thread.get_ident()
        try:
            while not self.is_over:
                order = self._inputs.get()
                if order is not None:
                    self._answer(order)
        except BaseException:  # the interrupt came between two inputs
            self.is_over = True
        self._say("the operator's shell has ended")

    def _answer(self, order: ShellInput) -> None:
        self._is_executing = True
        try:
            if self.is_over:
                return
            text, is_more, outcome = self._execute(order.source)
        except BaseException as exc:  # by what the app has made of its streams, for example
            text, is_more, outcome = traceback_of(exc), False, FAILED
        finally:
            self._is_executing = False
        if not self.is_over:
            self._report(self.ask, order.number, text, is_more, outcome)

    def _execute(self, source: str) -> tuple[str, bool, str]:
        """Return what some lines print, whether they are only the beginning of a statement, and how they ended."""
        try:
            code = theirs("codeop").compile_command(source, "<shell>", "single")
        except BaseException as exc:
            return traceback_of(exc.with_traceback(None)), False, FAILED
        if code is None:
            return "", True, DONE
        if source:
            self._say(f"the operator's shell executes: {source}")
        out = _Kept()
        outcome = DONE
        before = self._put_streams(out)
        try:
            exec(code, self._names)
        except SystemExit as exc:
            outcome = EXIT if exc.code is None or exc.code == 0 else FAILED
            if outcome == FAILED:
                out.write(f"SystemExit: {exc.code}\n")
        except BaseException as exc:
            outcome = FAILED
            trace = exc.__traceback__
            out.write(traceback_of(exc.with_traceback(trace.tb_next if trace is not None else None)))
        finally:
            for name, (ours, app_s) in before.items():
                if getattr(_app_sys, name, None) is ours:  # else the code, or the app, has put another one there
                    setattr(_app_sys, name, app_s)
        return out.text(), False, outcome

    def _put_streams(self, out: _Kept) -> dict[str, tuple[Any, Any]]:
        """Put our streams and our `displayhook` before the app's; return both by their names in `sys`."""
        before = {}
        for name in _STANDS:
            found: Any = getattr(_app_sys, name, None)
            while issubclass(type(found), _Stand):  # of a session that has ended, and whose code still runs
                found = found.stands_for
            ours = _STANDS[name](found, self._ident, out, self._names)
            before[name] = ours, found
            setattr(_app_sys, name, ours)
        return before


class _Kept:
    """What an input has printed."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._left = MOST_CHARS

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._left > 0:
            self._parts.append(str.__getitem__(text, slice(self._left)))
            self._left -= str.__len__(text)
        return str.__len__(text)

    def text(self) -> str:
        return "".join(self._parts) + ("\n(the rest is cut)\n" if self._left < 0 else "")


class _Stand:
    """Stands in for something in the app's `sys`: for one thread it does something else, for all others what that does."""

    def __init__(self, stands_for: Any, ident: int, kept: _Kept, names: dict[str, Any]) -> None:
        self.stands_for = stands_for
        self._ident = ident
        self._kept = kept
        self._names = names

    def _is_ours(self) -> bool:
        return _thread.get_ident() == self._ident

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stands_for, name)


class _Divided(_Stand):
    """An output: what the one thread writes is kept."""

    def write(self, text: str) -> Any:
        if self._is_ours():
            return self._kept.write(text)
        return self.stands_for.write(text) if self.stands_for is not None else len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


class _NoInput(_Stand):
    """The input: for the one thread it is at its end, and nobody can close the app's."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._empty = StringIO()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._empty if self._is_ours() else self.stands_for, name)

    def __iter__(self) -> Any:
        return iter(self._empty if self._is_ours() else self.stands_for)


class _Display(_Stand):
    """The display hook: a console's value is `_` among its own names, not in the app's builtins, where gettext has its function."""

    def __call__(self, value: object) -> None:
        if not self._is_ours():
            self.stands_for(value)
        elif value is not None:
            self._kept.write(f"{value!r}\n")
            self._names["_"] = value


_STANDS: dict[str, type[_Stand]] = {"stdout": _Divided, "stderr": _Divided, "stdin": _NoInput, "displayhook": _Display}


class Consoles:
    """An instance's; on its control thread.

    Args:
        apps: returns the apps by their mounts' numbers.
        report: see `Console`.
        say: as well.
    """

    def __init__(self, apps: Callable[[], Mapping[int, Any]], report: Report, say: Callable[[str], None]) -> None:
        self._apps = apps
        self._report = report
        self._say = say
        self._console: Console | None = None

    def open(self, order: OpenShell) -> None:
        self.end_all()
        self._say("the operator has opened a shell")
        # Its builtins, too: with ours it would import our private modules.
        names = {"__name__": "__console__", "__doc__": None, "__builtins__": theirs("builtins"), "app": self._apps().get(order.mount)}
        self._console = Console(order, names, self._report, self._say)

    def put(self, order: ShellInput) -> None:
        if self._console is not None and self._console.ask == order.ask and not self._console.is_over:
            self._console.put(order)
        else:  # no thread could be started for it, or the app has ended it by an exception
            self._report(order.ask, order.number, "there is no console in the instance; its log may say why", False, LOST)

    def end(self, order: EndShell) -> None:
        if self._console is not None and self._console.ask == order.ask:
            self.end_all()

    def end_all(self) -> None:
        console, self._console = self._console, None
        if console is not None:
            console.end()
