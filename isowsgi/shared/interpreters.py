"""Subinterpreters: the only module that knows CPython's private modules for them, and which release is sound for what.

`concurrent.interpreters` (3.14+) is public but cannot choose a configuration, so the low-level module below it is used on every
version. Facts come from CPython's changelogs and from runs on 3.11.7, 3.12.1, 3.13.0, 3.13.18, 3.14.10 and 3.15.2.

Three rules the callers keep:

* create, run and destroy one interpreter from one and the same thread, its keeper (3.12 deadlocks in destroy otherwise);
* run exactly once: 3.11 refuses a second run as soon as the first one left a thread, 3.13+ gives it a new thread state;
* destroy only when no thread is left inside (up to 3.13 the process aborts; later a busy daemon thread crashes it most times).
"""

from __future__ import annotations

import contextlib
import importlib
import math
import operator
import sys
import sysconfig
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

VERSION = sys.version_info[:3]

OWN_GIL = "own-gil"
SHARED_GIL = "shared-gil"
PROCESS = "process"  # a child process; no interpreter of this one
MAIN = "main"

# `_xxsubinterpreters` became `_interpreters` in 3.13; some distributions leave the older one out of their 3.11 and 3.12.
_MODULE_NAME = "_interpreters" if VERSION >= (3, 13) else "_xxsubinterpreters"

# No preemption between interpreters that share a GIL before 3.13 (gh-112175 gave each its own eval breaker): a busy app stops all
# others, the main interpreter and gunicorn's heartbeat, unless a thread inside it gives the GIL away again and again.
NEEDS_TICKER = VERSION < (3, 13)

# C accelerators that keep objects of one interpreter for all, on 3.11. asyncio's has one "running loop", so `asyncio.run` fails when two
# apps use it. zoneinfo's has one cache and one set of helpers, which end with any interpreter. Both have the same in Python.
BLOCKED_MODULES = ("_asyncio", "_zoneinfo") if VERSION < (3, 12) else ()

# Imported in the main interpreter before the first subinterpreter. On 3.13 two own-GIL interpreters that both import datetime
# crash without it (gh-136421, gh-136423: never fixed there); on 3.12 keyword functions of C modules first used in a subinterpreter
# end in a double free (gh-119213, fixed in 3.12.4). Newer releases only gain the time: the shared objects are loaded once.
_PRELOADED = (
    "asyncio", "binascii", "bz2", "contextvars", "csv", "ctypes", "datetime", "decimal", "hashlib", "json", "lzma", "mmap",
    "multiprocessing", "pickle", "queue", "random", "select", "socket", "sqlite3", "ssl", "struct", "subprocess", "unicodedata",
    "uuid", "xml.etree.ElementTree", "xml.parsers.expat", "zlib", "zoneinfo",
)  # fmt: skip

# How long the end of an interpreter keeps all others from beginning and ending while its thread does not run. It takes milliseconds, but
# for what objects of the app's do when they are freed: a `__del__` may wait for ever.
_END_LIMIT_S = 3.0

# The same for one that runs: it may be freeing a large heap, on a busy machine; or a `__del__` computes for ever.
_BUSY_END_LIMIT_S = 30.0

# Processor time in that time from which on it runs. One that frees objects gets a hundred times this on a machine that ten others want.
_RUNS_S = 0.003

# How often those who wait for their turn look whether that time is over.
_LOOK_S = 0.2


# Before 3.13 CPython ends an interpreter when its last handle is dropped, threads inside or not; so each is held until `destroy`.
_handles: list[Any] = []


def unusable_reason() -> str | None:
    """Say why this Python cannot host subinterpreters at all, or None."""
    if sys.implementation.name != "cpython":
        return f"isowsgi needs CPython, this is {sys.implementation.name}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "isowsgi does not run on the free-threaded build of CPython; use the ordinary build of the same version"
    try:
        importlib.import_module(_MODULE_NAME)
    except ImportError:
        return (
            f"this Python {version_text()} was built without the module {_MODULE_NAME}; "
            "use Python 3.13 or newer, or a build that has it (python.org, pyenv, Debian)"
        )
    return None


def own_gil_error() -> str | None:
    """Say why no app can have its own GIL here, or None.

    3.12 has the option, but no pyexpat, ctypes or C datetime in such an interpreter, so Django and others fail at import.
    """
    if VERSION >= (3, 13):
        return None
    return f"needs Python 3.13 or newer, gunicorn runs on Python {version_text()}; use 'shared-gil' or 'auto'"


def own_gil_warning() -> str | None:
    """Say what is known to be unsound about an own GIL on this release, or None.

    3.13.16 and 3.14.1 carry the fixes for a use after free in the GIL's drop request (gh-154175) and for leaks and races when
    interpreters are made and ended (gh-140067, gh-140260).
    """
    if (3, 13) <= VERSION < (3, 13, 16):
        return f"an own GIL may crash on Python {version_text()}; use 3.13.16 or newer, better 3.14"
    if VERSION == (3, 14, 0):
        return "an own GIL leaks and may crash on Python 3.14.0; use 3.14.1 or newer"
    return None


def lazy_imports_warning(version: Sequence[int] = VERSION) -> str | None:
    """Say why `lazy_imports` has no effect with a Python of this version, or None."""
    if (version[0], version[1]) >= (3, 15):
        return None
    return f"lazy_imports has no effect on Python {'.'.join(map(str, version))}: it needs 3.15 or newer; imports are carried out at once"


def best_isolation() -> str:
    """Return what `isolation = "auto"` means on this release: an own GIL where it is sound, else the shared one."""
    return OWN_GIL if own_gil_error() is None and own_gil_warning() is None else SHARED_GIL


def frames_are_own() -> bool:
    """Whether `sys._current_frames` has only the frames of the interpreter that asks, not those of all (gh-158364)."""
    return VERSION >= (3, 15) or (3, 14, 8) <= VERSION < (3, 15) or (3, 13, 16) <= VERSION < (3, 14)


def can_see_stacks(isolation: str) -> bool:
    """Whether `sys._current_frames` is safe: it may crash where it reads the frames of an interpreter that runs under another GIL.

    Where frames are not own and the GIL is shared, it is safe for as long as no interpreter of the process has another GIL; that is
    `rows.OWN_GILS`. With one, profiling its neighbour crashed a worker of 3.13.0 within a second.
    """
    return frames_are_own() or isolation == SHARED_GIL


def can_profile(isolation: str, has_own_gils: bool) -> bool:
    """Whether threads can be sampled: a process has no interpreter but its own.

    Args:
        has_own_gils: whether the worker has, or had, an interpreter with an own GIL.
    """
    return isolation == PROCESS or (can_see_stacks(isolation) and (frames_are_own() or not has_own_gils))


def why_not_profiled(isolation: str) -> str:
    """Say why threads cannot be sampled, and what to do."""
    newer = {(3, 13): "3.13.16"}.get(VERSION[:2], "3.14.8")
    where = "an app of the same worker has an own GIL" if can_see_stacks(isolation) else f"an app's isolation is {isolation!r}"
    return (
        f"reading stacks may crash Python {version_text()} where {where}; "
        f"use Python {newer} or newer, or isolation = 'process' for this mount"
    )


def keeps_memory(isolation: str) -> bool:
    """Whether ending an interpreter leaves its memory behind: about 23 MiB for each Flask or Django with its own GIL, on all of 3.13."""
    return isolation == OWN_GIL and VERSION < (3, 14)


def version_text() -> str:
    return ".".join(map(str, VERSION))


def preload() -> None:
    """Import the standard library's C modules into this, the main, interpreter; call it before the first `create`."""
    for name in _PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:  # a Python built without bz2, lzma or sqlite3 is still a good host
            continue
    if VERSION < (3, 13):
        _keep_for_all()


def _keep_for_all() -> None:
    """Have C code that looks something up once for the whole process find what serves all interpreters, and outlives them.

    `datetime.strptime` keeps the module `_strptime` of whoever calls it first (Modules/_datetimemodule.c): after that interpreter's end
    each call in another one was a TypeError, 'NoneType' object is not callable. The main interpreter's module would not do either: on 3.12
    code of one interpreter goes wrong in another, whose types have the same version numbers. So it gets one that asks for the caller's.
    Found by `make neighbours`.
    """
    import datetime  # preloaded

    # Names of characters are looked up by a table of C functions that the first caller's unicodedata module takes with it (3.11; a crash).
    rb"\N{BULLET}".decode("unicode_escape")
    front = types.ModuleType("_strptime")
    front._strptime_datetime = lambda *args: datetime.datetime(2000, 1, 1)  # type: ignore[attr-defined]
    own = sys.modules.pop("_strptime", None)
    sys.modules["_strptime"] = front
    datetime.datetime.strptime("2000", "%Y")
    front._strptime_datetime = _parse_with_callers_own  # type: ignore[attr-defined]
    del sys.modules["_strptime"]
    if own is not None:
        sys.modules["_strptime"] = own


_call: Any = getattr(
    operator, "call", None
)  # by a name of this module's: an attribute of another one would be looked up by what was fitted


def _parse_with_callers_own(cls: Any, text: Any, form: Any) -> Any:
    # Of C functions only: nothing in here may be fitted to the types of one interpreter. `__import__` looks at the running one's modules.
    return _call(getattr(__import__("_strptime"), "_strptime_datetime"), cls, text, form)  # noqa: B009


class _Lifetimes:
    """Has interpreters begin and end one at a time: two at once crash some releases (3.12: interned strings; gh-127041, open).

    An end that takes too long is passed by. Its thread waits then, so it is in the app's code, and no longer where two at once do harm.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._turn = threading.Lock()
        self._ender = 0  # the thread that ends one
        self._began = self._ran = math.inf  # monotonic seconds when it began, and when it was last seen to run; none does: never
        self._used_s = 0.0  # of processor time, until then

    @contextlib.contextmanager
    def begin(self) -> Iterator[None]:
        turn = self._take()
        try:
            yield
        finally:
            turn.release()

    @contextlib.contextmanager
    def end(self) -> Iterator[None]:
        turn = self._take()
        with self._guard:
            self._ender, self._used_s = threading.get_ident(), time.thread_time()
            self._began = self._ran = time.monotonic()
        try:
            yield
        finally:
            with self._guard:
                if turn is self._turn:
                    self._began = self._ran = math.inf
            turn.release()

    def _take(self) -> threading.Lock:
        """Wait for the turn; return the lock that is it."""
        while True:
            turn = self._turn
            if turn.acquire(timeout=_LOOK_S):
                if turn is self._turn:
                    return turn
                turn.release()  # of an end that was passed by meanwhile
            with self._guard:
                if turn is self._turn and self._takes_too_long(time.monotonic()):
                    self._turn = threading.Lock()
                    self._began = self._ran = math.inf

    def _takes_too_long(self, now: float) -> bool:
        if self._began == math.inf:
            return False
        # Its thread lives: it needs the guard to go on.
        used_s = time.clock_gettime(time.pthread_getcpuclockid(self._ender))
        if used_s - self._used_s > _RUNS_S:
            self._ran, self._used_s = now, used_s
        return now - self._ran > _END_LIMIT_S or now - self._began > _BUSY_END_LIMIT_S


_lifetimes = _Lifetimes()


def create(isolation: str) -> Any:
    """Make an interpreter and return its handle (an int, or CPython's own type before 3.13).

    Fork and exec are off in both kinds: the child of a fork dies on every release while interpreters exist, so a clear
    RuntimeError is kinder. Daemon threads are on in both: error reporters and schedulers start them.
    """
    with _lifetimes.begin():
        handle = _create(isolation)
        _handles.append(handle)
        return handle


def _create(isolation: str) -> Any:
    module = importlib.import_module(_MODULE_NAME)
    if VERSION < (3, 13):
        # isolated=True, the default, forbids threads on 3.11 and is an own GIL without half of the library on 3.12.
        return module.create(isolated=False)
    if isolation == OWN_GIL:
        # Never "legacy" with gil="own": CPython accepts that mix, although both would then share one object allocator.
        return module.create(module.new_config("isolated", allow_daemon_threads=True))
    return module.create(module.new_config("legacy", allow_fork=False, allow_exec=False))


def run(handle: Any, source: str) -> str | None:
    """Run source in the interpreter's `__main__` and block until it ends; return the failure's text, or None.

    The calling OS thread is inside the interpreter all that time: never call it from the process' main thread, whose Python
    signal handlers would wait for the end of it.
    """
    module = importlib.import_module(_MODULE_NAME)
    if VERSION < (3, 13):
        try:
            module.run_string(handle, source)
        except module.RunFailedError as exc:
            return str(exc)
        return None
    failure = module.run_string(handle, source)
    if failure is None:
        return None
    return str(getattr(failure, "errdisplay", None) or failure.formatted)


def destroy(handle: Any, begins: Callable[[], None] = lambda: None) -> None:
    """End an interpreter in which no thread is left; its `atexit` functions run here, and so does what frees its objects.

    Args:
        begins: called when those before it have ended, and it is its turn.
    """
    module = importlib.import_module(_MODULE_NAME)
    with _lifetimes.end():
        begins()
        module.destroy(handle)
        _handles.remove(handle)
    _give_back_memory()


def _give_back_memory() -> None:
    """Have libc give freed pages back to the kernel, those in the middle of its arenas too.

    Each thread allocates in one of glibc's arenas (8 for each core), and an ended app's blocks lie there among those of others. 30
    reloads of a Flask app, with requests between them, took a worker from 89 to 105 MiB without this, and to 91 with it (3.14.10, glibc
    2.36). It takes 1 to 5 ms, in which a thread may wait for the lock of its arena, but not for the GIL. `M_ARENA_MAX` = 1 is as flat,
    but then all threads share one lock.
    """
    try:
        import ctypes  # preloaded

        trim = ctypes.CDLL(None).malloc_trim
    except (ImportError, OSError, AttributeError):  # left out of this build; no glibc
        return
    trim(ctypes.c_size_t(0))
