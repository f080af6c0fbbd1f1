"""Extension modules of an app: which files get loaded in this interpreter, which refuse it, and, while the app boots, which may.

From CPython 3.13 on the init function of a single-phase module runs in the process' main interpreter first, and a module that loads once
per process is used up by the attempt. So a file that was never tried in a throw-away process must not be opened in a worker: the guard
stops the boot before that. It ends with the boot, since from then on a request would pay for it; what loads later is only recorded.

Extension modules of the standard library are not guarded: `interpreters.preload` has them. Of these only refusals are recorded, and not
those that the standard library itself meets: it has a fallback in Python for each (`traceback` without `_suggestions`, `pdb` without
`readline`, `warnings` without `tracemalloc`).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.machinery import BuiltinImporter, ExtensionFileLoader
from typing import Any

from isowsgi.inside import private
from isowsgi.inside.private import theirs
from isowsgi.shared import loadfailures

# What is kept of refusals: they go into one packet, with a traceback and the names of what was loaded.
_MAX_REFUSED = 50
_MAX_ERROR_CHARS = 500

_modules = theirs("sys").modules  # the app's

# What is added to an error that only says that a module is missing which is there: from 3.13 on the init function of a single-phase module
# runs in the main interpreter first, whose path is another. `loadfailures` knows these words.
RAN_IN_MAIN = "its init function ran in the main interpreter"

# Modules in Python that are nothing but the front of an extension module; who imports them wants that.
_FRONTS = ("curses", "tracemalloc")


class UnknownExtension(BaseException):
    """An extension file that is not on the list of those tried was to be loaded; it was not opened.

    Not an Exception: packages with a fallback in Python catch ImportError, and some catch Exception.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def _ask_nobody(path: str) -> None:
    return


class Extensions:
    """What this interpreter's imports met; any thread of it may import.

    Attributes:
        loaded: name and path of each extension module that was loaded, in order.
        refused: name, path and error of each that refused this interpreter.
        unknown: the file that stopped the boot; kept, for code may catch everything and continue without it.
        ask: asks for a file that may not be loaded so far; returns once it is decided, and what may be loaded was told by `allow`.
    """

    def __init__(self, allowed: Mapping[str, Sequence[int]] | None) -> None:
        self._allowed = allowed
        self._on_refusal: Callable[[str, str, str], None] | None = None
        self.ask: Callable[[str], None] = _ask_nobody
        self.loaded: list[tuple[str, str]] = []
        self.refused: list[tuple[str, str, str]] = []
        self.unknown: str | None = None

    def check(self) -> None:
        """Raise UnknownExtension if the guard stopped an import, even if the app caught the error."""
        if self.unknown is not None:
            raise UnknownExtension(self.unknown)

    def end_guard(self, on_refusal: Callable[[str, str, str], None]) -> None:
        """Let everything load from now on, and call `on_refusal` with name, path and error of what refuses; on the importing thread."""
        self._allowed = None
        self.ask = _ask_nobody
        self._on_refusal = on_refusal

    def let_go(self) -> None:
        """Call nobody any more, once the app has ended.

        CPython ends what the import system holds after its last garbage collection. So whatever hangs on the importers' methods, in a
        cycle, is never freed: all that serves the app hung on `on_refusal`, 4.4 MiB (3.14.10).
        """
        self._on_refusal = None
        self.ask = _ask_nobody

    def before(self, path: str) -> None:
        """Note that a file is about to be loaded.

        Raises:
            UnknownExtension: it may not be.
        """
        if self._may_load(path):
            return
        if self.unknown is None:  # else the boot has failed already
            self.ask(path)
        if not self._may_load(path):
            self.unknown = self.unknown or path
            raise UnknownExtension(path)

    def allow(self, files: Mapping[str, Sequence[int]]) -> None:
        """Let more files be loaded, by their stamps; on any thread."""
        if self._allowed is not None:
            self._allowed = {**self._allowed, **files}

    def _may_load(self, path: str) -> bool:
        allowed = self._allowed
        if allowed is None:
            return True
        stamp = allowed.get(path)
        return stamp is not None and list(stamp) == stamp_of(path)

    def after(self, name: str, path: str, error: ImportError | TypeError | None) -> None:
        """Take note of how it went."""
        if error is None:
            self.loaded.append((name, path))
            return
        text = f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]
        if isinstance(error, ModuleNotFoundError) and _is_here(error.name):
            text += f"; {RAN_IN_MAIN}"
        is_news = len(self.refused) < _MAX_REFUSED and name not in [known for known, _, _ in self.refused]
        if is_news and loadfailures.is_refusal(text):
            self.refused.append((name, path, text))
            if self._on_refusal is not None:
                self._on_refusal(name, path, text)

    def lost(self) -> list[str]:
        """Return those that refused and whose package is not there either: the app goes without all of it."""
        return [name for name, _, _ in self.refused if _modules.get(name.partition(".")[0]) is None]


def _is_here(name: str | None) -> bool:
    """Whether this interpreter finds a module."""
    try:
        return name is not None and importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # no parent, or a module without a spec
        return False


def _is_librarys_own_wish(folder: str) -> bool:
    """Whether the import that is under way was asked for by a module of the standard library, which can do without."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name not in (__name__, private.__name__) and name.partition(".")[0] not in ("importlib", "_frozen_importlib", *_FRONTS):
            path = frame.f_code.co_filename
            if not path.startswith("<frozen importlib"):
                return path.startswith((folder, "<frozen ")) and "site-packages" not in path
        frame = frame.f_back
    return False


def stamp_of(path: str) -> list[int] | None:
    """Return what tells one content of a file from another, as JSON has it; None if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def install(allowed: Mapping[str, Sequence[int]] | None) -> Extensions:
    """Watch the extension modules of this interpreter from now on; call it once, before code that is not ours runs.

    Args:
        allowed: files that were tried, with their stamps; all others stop the boot. None: no guard.
    """
    global current
    record = current = Extensions(allowed)
    _watch(record)
    return record


def _watch(record: Extensions) -> None:
    """Put ourselves in the way of the importers, for as long as the interpreter lives."""
    # As sys.path has it at the start of an interpreter, whatever the layout of the installation.
    own = tuple(folder + os.sep for folder in sys.path if os.path.basename(folder) == "lib-dynload")
    library = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
    create, execute = ExtensionFileLoader.create_module, ExtensionFileLoader.exec_module
    create_builtin = BuiltinImporter.create_module

    def create_own(spec: Any, path: str, make: Callable[[Any], Any]) -> Any:
        try:
            return make(spec)
        except ImportError as exc:
            if not _is_librarys_own_wish(library):
                record.after(spec.name, path, exc)
            raise

    def create_builtin_module(spec: Any) -> Any:
        return create_own(spec, "built-in", create_builtin)

    def create_module(self: Any, spec: Any) -> Any:
        path = os.path.abspath(str(spec.origin))
        if path.startswith(own):
            return create_own(spec, path, partial(create, self))
        record.before(path)
        try:
            return create(self, spec)
        except (ImportError, TypeError) as exc:  # TypeError: what is left of another interpreter's classes (rpds)
            record.after(spec.name, path, exc)
            raise

    def exec_module(self: Any, module: Any) -> None:
        path = os.path.abspath(str(self.path))
        if path.startswith(own):
            execute(self, module)
            return
        try:
            execute(self, module)
        except (ImportError, TypeError) as exc:  # PyO3 and numpy refuse here
            record.after(self.name, path, exc)
            raise
        record.after(self.name, path, None)

    ExtensionFileLoader.create_module = create_module  # type: ignore[method-assign]
    ExtensionFileLoader.exec_module = exec_module  # type: ignore[method-assign]
    BuiltinImporter.create_module = staticmethod(create_builtin_module)  # type: ignore[method-assign]


# This interpreter's; guards nothing until `install`.
current = Extensions(None)
