"""What an instance tells the supervisor, and its log, of what happens in it."""

from __future__ import annotations

import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from isowsgi.inside import environment, extensions
from isowsgi.inside.files import as_written, module_files
from isowsgi.inside.loading import Loader
from isowsgi.inside.private import theirs
from isowsgi.inside.runner import is_from_outside
from isowsgi.inside.stacks import Stacks
from isowsgi.shared import messages
from isowsgi.shared.containment import Containment, one_line, traceback_of
from isowsgi.shared.messages import BootOrder, Report

sys_modules = theirs("sys").modules  # the app's, see `private`

# Longest traceback that is sent to the supervisor; a packet's limit is the socket's send buffer, 208 KiB by default.
MAX_TRACEBACK_CHARS = 32 * 1024

# Names and paths of extension modules in one packet: some 40 KiB, beside a traceback. Of names alone: some 20 KiB.
_EXTENSIONS_PER_PACKET = 200
_MODULES_PER_PACKET = 500

# Where packages are installed, on any system.
_INSTALLED = ("/site-packages/", "/dist-packages/")


class Teller:
    """Makes reports; any thread of the instance may call it.

    Args:
        report: sends one.
        stacks: of the interpreter's threads.
    """

    def __init__(
        self,
        order: BootOrder,
        log: Any,
        containment: Containment,
        stacks: Stacks,
        report: Callable[[Report], None],
    ) -> None:
        self._links = order.environment.links
        self._tells_modules = order.environment.learns and order.isolation == "process"
        self._reports_files = order.loading.report_files
        self._log = log
        self._containment = containment
        self._stacks = stacks
        self._report = report

    def ready(self, started: float) -> None:
        """Say that the app is loaded.

        Args:
            started: monotonic seconds when its boot began.
        """
        self.files(set(module_files()))
        if self._tells_modules:
            names = [name for name, module in list(sys_modules.items()) if _is_installed(module)]
            for start in range(0, len(names), _MODULES_PER_PACKET):
                self._report(messages.Imported(modules=names[start : start + _MODULES_PER_PACKET]))
        refused, loaded = extensions.current.refused, self._extensions()
        boot_s = round(time.monotonic() - started, 3)
        self._report(messages.Ready(boot_s=boot_s, objects=len(gc.get_objects()), extensions=loaded, refused=refused))

    def failure(self, exc: BaseException, loader: Loader) -> None:
        """Say why the app was not loaded; in the handler of that exception."""
        self.files(set(module_files()) | _files_of(exc))
        self._report(
            messages.Failed(
                error=one_line(exc) + loader.whose + environment.green_threads(),
                traceback=_traceback(),
                is_in_hook=loader.is_in_hook,
                unknown_extension=extensions.current.unknown,
                extensions=self._extensions(),
                refused=extensions.current.refused,
            )
        )

    def files(self, files: set[str]) -> None:
        """Report the files on which the app depends, if they are watched."""
        names = sorted(as_written(files, self._links)) if self._reports_files else []
        for start in range(0, len(names), 200):
            self._report(messages.Files(files=names[start : start + 200]))

    def _extensions(self) -> list[tuple[str, str]]:
        """Say which extension modules were loaded, but for the last of them, which are returned: they are too many for one packet."""
        loaded = list(extensions.current.loaded)
        rest = max(len(loaded) - 1, 0) // _EXTENSIONS_PER_PACKET * _EXTENSIONS_PER_PACKET
        for start in range(0, rest, _EXTENSIONS_PER_PACKET):
            self._report(messages.Extensions(extensions=loaded[start : start + _EXTENSIONS_PER_PACKET]))
        return loaded[rest:]

    def disturbance(self, exc: BaseException) -> None:
        """Say that an exception came in a serving thread between two requests."""
        if is_from_outside(exc):
            text = (
                "a serving thread got an exception after its request had ended, probably raised by another thread; the thread continues: %s"
            )
            self._log.warning(text, one_line(exc))
            return
        try:
            raise exc
        except Exception:
            self._containment.failed("serving thread between two requests")

    def broken(self, exc: BaseException) -> None:
        """Say that the calling thread, which is one of ours, ends by a fault: the instance cannot do all of its work any more."""
        name = threading.current_thread().name
        self._report(messages.Broken(thread=name, error=one_line(exc)[:1000], traceback=_traceback()))

    def stuck(self, mount: int, stack: str) -> None:
        """Pass on the stack of a thread that does not come out of a mount's request."""
        self._report(messages.Stuck(stack=stack[-MAX_TRACEBACK_CHARS:], mount=mount))

    def stacks(self, ask: int, lines: Mapping[int, str]) -> None:
        """Say where all threads are.

        Args:
            ask: the order's number.
            lines: of the requests that are served, by their threads.
        """
        self._in_parts(messages.Stacks, ask, self._stacks.of_all(lines))

    def profile(self, ask: int, text: str) -> None:
        """Say what was sampled.

        Args:
            ask: the order's number.
        """
        self._in_parts(messages.Profiled, ask, text)

    def counted(self, ask: int, text: str | None) -> None:
        """Say what was counted; None: not all is, another look is needed."""
        if text is None:
            self._report(messages.Counted(ask=ask, text="", is_last=False))
        else:
            self._in_parts(messages.Counted, ask, text)

    def shell(self, ask: int, number: int, text: str, is_more: bool, outcome: str) -> None:
        """Say what an input of the operator's shell has printed; see `console.Console`."""
        self._in_parts(messages.ShellOutput, ask, text, number=number, is_more=is_more, outcome=outcome)

    def _in_parts(self, kind: type[messages.Part], ask: int, text: str, **facts: Any) -> None:
        for start in range(0, max(len(text), 1), MAX_TRACEBACK_CHARS):
            end = start + MAX_TRACEBACK_CHARS
            self._report(kind(ask=ask, text=text[start:end], is_last=end >= len(text), **facts))


def _is_installed(module: object) -> bool:
    """Whether a module belongs to a package that is installed, and not to the app's own code."""
    file = environment.file_of(module)
    return file is not None and any(folder in file for folder in _INSTALLED)


def _traceback() -> str:
    """Return the current exception's traceback from the app's first frame on."""
    text = traceback_of(sys.exc_info()[1])
    return text if len(text) <= MAX_TRACEBACK_CHARS else "...\n" + text[-MAX_TRACEBACK_CHARS:]


def _files_of(exc: BaseException | None) -> set[str]:
    """Return the files an exception came through; a module that fails to load is no longer in `sys.modules`."""
    files = set()
    while exc is not None:
        files |= {frame.f_code.co_filename for frame, _ in traceback.walk_tb(exc.__traceback__)}
        if isinstance(exc, SyntaxError) and exc.filename:
            files.add(exc.filename)
        exc = exc.__cause__ or exc.__context__
    return files
