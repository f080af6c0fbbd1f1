"""In gunicorn's processes: everything that may be made to fail is wrapped. gunicorn reads this file as its config file (`-c`).

The points are found, not listed: every method and function of the modules whose code runs on the worker's threads, every kind of report
and order, the operations of each epoll set, and the system calls and classes of the standard library that they use; and in the master, what
runs there. So what is new tomorrow is covered by itself. Which point fails just now stands in shared memory that the harness writes: its
number, and how often (`ONCE`, `ALWAYS`). There each point also notes that it was come to.
"""

from __future__ import annotations

import errno
import functools
import importlib
import inspect
import json
import mmap
import os
import pkgutil
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, get_args, get_origin

from isowsgi.instances import forkservers
from isowsgi.shared import handover, messages
from isowsgi.shared.wire import MessageError
from isowsgi.worker.instancereports import Reports

# Where the points' names are written to, and the memory with words: number, mode, how often it has failed, and which points were met.
FOLDER = os.environ.get("ISOWSGI_FAULTS", "")
POINTS, SWITCH = "points.json", "switch"
NUMBER, MODE, FAILED = range(3)
MET = 3  # from here on a word for each point, by its number: whether it was come to
WORDS = 1 << 13  # there are about a thousand points
OFF, ONCE, ALWAYS = range(3)

# Rooms and modules whose code runs on the worker's threads while it serves.
PACKAGES = ("isowsgi.worker", "isowsgi.instances")
MODULES = (
    "isowsgi.shared.scoreboard",
    "isowsgi.shared.rows",
    "isowsgi.shared.handover",
    "isowsgi.shared.peek",
    "isowsgi.shared.origins",
    "isowsgi.shared.answers",
)

# What runs in the master once it serves, and how its points are called.
MASTER = "master: "
MASTER_MODULES = (
    "isowsgi.shared.board",
    "isowsgi.shared.scoreboard",
    "isowsgi.shared.rows",
    "isowsgi.configuration.gunicorn_settings",
    "isowsgi.configuration.crossing",
    "isowsgi.configuration.read",
    "isowsgi.configuration.included",
    "isowsgi.configuration.parsing",
    "isowsgi.configuration.converter",
    "isowsgi.configuration.merging",
)

# The check at gunicorn's first start refuses what is wrong, and the master's own objects are there before anything is served. The others
# are what contains the rest.
_ITS_WALLS = (
    *(f"workerplan.Plan.{name}" for name in ("__init__", "check", "contained", "on_reaped")),
    "crashes.WatchedTmp.close",
)
NOT_IN_MASTER = tuple(f"{MASTER}isowsgi.master.{name}" for name in _ITS_WALLS)

# Modules of ours with epoll sets, and what their operations fail with.
MAKERS_OF_SETS = tuple(
    f"isowsgi.{name}" for name in ("worker.loop", "worker.clients", "worker.control.server", "worker.tlsset", "shared.handover")
)
OF_SETS = {"register": errno.ENOSPC, "modify": errno.ENOMEM, "unregister": errno.ENOENT, "poll": errno.ENOMEM}

# What may end the worker: the loop's step and what runs it, its beginning, and its end. And what is the master's.
_LIFE = ("__init__", "_exit_hard", "_made", "_run", "handle_", "load_wsgi", "run")
NOT = (
    *(f"isowsgi.worker.gunicorn.Worker.{name}" for name in _LIFE),
    "isowsgi.worker.loop.Loop.turn",
    "isowsgi.worker.ending.",
    "isowsgi.worker.parts.",
)

# The standard library's: owner, name and what it fails with.
CALLS: tuple[tuple[Any, str, int], ...] = (
    (os, "dup", errno.EMFILE),
    (os, "eventfd", errno.EMFILE),
    (os, "eventfd_read", errno.EIO),
    (os, "eventfd_write", errno.EIO),
    (os, "memfd_create", errno.EMFILE),
    (os, "stat", errno.EIO),
    (socket, "socketpair", errno.EMFILE),
    (socket.socket, "accept", errno.EMFILE),
    (socket.socket, "recv", errno.ENOMEM),
    (socket.socket, "send", errno.ENOBUFS),
    (socket.socket, "sendmsg", errno.ETOOMANYREFS),
    (socket.socket, "shutdown", errno.EIO),
    (socket.socket, "getpeername", errno.ENOTCONN),
    (subprocess.Popen, "__init__", errno.EAGAIN),
)


class Fault(RuntimeError):
    """What is raised where isowsgi's own code is made to fail."""


def on_starting(server: Any) -> None:
    """gunicorn's hook, in the master; workers inherit what is done here, but it fails only in the master."""
    _wrap_all(find_master_points(), only_in=os.getpid())


def post_fork(arbiter: Any, worker: Any) -> None:
    """gunicorn's hook, in the new worker."""
    _wrap_all(find_points())
    _wrap_messages()
    Epoll.find_points()
    select.epoll = handover._epoll = Epoll  # type: ignore[assignment, misc] # all that ours do with a set
    forkservers._PAUSE_S = forkservers._LONGEST_PAUSE_S = 0.1  # or what fails next would find no fork server
    temporary = os.path.join(FOLDER, f"{POINTS}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(_names, file)
    os.rename(temporary, os.path.join(FOLDER, POINTS))


# Of all points so far, in the order of their numbers; a worker continues where the master ended. gunicorn reads this file at each HUP.
_names: list[str] = vars(sys).setdefault("isowsgi_points", [])


def _switch() -> memoryview:
    with open(os.path.join(FOLDER, SWITCH), "r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("q")


def _wrap_all(points: Iterable[tuple[Any, str, str, Callable[[], Exception]]], only_in: int = 0) -> None:
    words = _switch()
    for owner, name, label, failure in points:
        _wrap(owner, name, _point(words, label, failure, only_in))


def _point(words: memoryview, label: str, failure: Callable[[], Exception], only_in: int = 0) -> Callable[[], None]:
    """Return a new point: a function that raises if this is the one that is to fail."""
    strikes = _strikes(words, label)

    def fail() -> None:
        if (not only_in or os.getpid() == only_in) and strikes():
            raise failure()

    return fail


def _strikes(words: memoryview, label: str) -> Callable[[], bool]:
    _names.append(label)
    number = len(_names)

    def strikes() -> bool:
        words[MET + number] = 1
        if words[NUMBER] != number or not words[MODE]:
            return False
        if words[MODE] == ONCE:
            words[MODE] = OFF
        words[FAILED] += 1
        return True

    return strikes


def find_master_points() -> Iterator[tuple[Any, str, str, Callable[[], Exception]]]:
    """Yield what fails in the master, as `find_points` does."""
    for module in map(importlib.import_module, names_in_master()):
        for owner, name in _functions(module):
            label = MASTER + _label(owner, name)
            if not label.startswith(NOT_IN_MASTER):
                yield owner, name, label, lambda label=label: Fault(label)  # type: ignore[misc] # a default that callers leave


def find_points() -> Iterator[tuple[Any, str, str, Callable[[], Exception]]]:
    """Yield each: its owner, its name there, its label, and what makes the exception."""
    for module in map(importlib.import_module, names_in_worker()):
        for owner, name in _functions(module):
            label = _label(owner, name)
            if not label.startswith(NOT):
                yield owner, name, label, lambda label=label: Fault(label)  # type: ignore[misc] # a default that callers leave
    for owner, name, number in CALLS:
        label = f"{getattr(owner, '__qualname__', owner.__name__)}.{name}"
        yield owner, name, label, lambda number=number: OSError(number, os.strerror(number))  # type: ignore[misc] # as above
    yield threading.Thread, "start", "Thread.start", lambda: RuntimeError("can't start new thread")


def names_in_master() -> list[str]:
    """Return the names of the modules whose functions may fail in the master."""
    return [*MASTER_MODULES, *(found.name for found in _modules_of("isowsgi.master"))]


def names_in_worker() -> list[str]:
    """Return the names of the modules whose functions may fail in a worker."""
    return [*MODULES, *(found.name for package in PACKAGES for found in _modules_of(package))]


def labels(names: Iterable[str]) -> list[str]:
    """Return the labels of all functions of modules, of those too that never fail."""
    return [_label(owner, name) for module in map(importlib.import_module, names) for owner, name in _functions(module)]


def _modules_of(package: str) -> Iterator[pkgutil.ModuleInfo]:
    return pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")


def _label(owner: Any, name: str) -> str:
    return f"{owner.__module__}.{owner.__qualname__}.{name}" if isinstance(owner, type) else f"{owner.__name__}.{name}"


def _functions(module: Any) -> Iterator[tuple[Any, str]]:
    """Yield the functions and methods that a module defines, with whom they belong to."""
    for name, value in list(vars(module).items()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield module, name
        elif isinstance(value, type) and not issubclass(value, (tuple, BaseException)) and not getattr(value, "_is_protocol", False):
            for member, function in list(vars(value).items()):
                if inspect.isfunction(function) and not getattr(function, "__isabstractmethod__", False):
                    yield value, member


def _wrap(owner: Any, name: str, fail: Callable[[], None]) -> None:
    function = getattr(owner, name)

    @functools.wraps(function)
    def failing(*args: Any, **kwargs: Any) -> Any:
        fail()
        return function(*args, **kwargs)

    setattr(owner, name, failing)
    if not isinstance(owner, type):  # who has imported it by name calls that one
        for module in [module for label, module in sys.modules.items() if label.startswith("isowsgi.")]:
            if getattr(module, name, None) is function:
                setattr(module, name, failing)


def _wrap_messages() -> None:
    """Have each kind of report and order fail, by itself, where it is taken in, handled, written, or understood by the other side."""
    words = _switch()

    def points(what: str, kinds: Iterable[type], *how: str) -> dict[type, list[Callable[[], bool]]]:
        return {kind: [_strikes(words, f"{what} {kind.__name__} {each}") for each in how] for kind in kinds}

    reports = points("report", get_args(messages.Report), "misread", "unhandled", "out of place")
    orders = points("order", (*get_args(messages.Order), messages.BootOrder), "unwritten", "garbled")
    decode, handle, encode = messages.decode_report, Reports.handle, messages.encode

    def decode_report(packet: bytes) -> Any:
        report = decode(packet)
        if reports[type(report)][0]():
            raise MessageError("as asked")
        return next((_made_up(kind) for kind, strikes in reports.items() if strikes[2]()), report)

    def handle_report(self: Any, instance: Any, report: Any, now: float) -> None:
        if reports[type(report)][1]():
            raise Fault(type(report).__name__)
        handle(self, instance, report, now)

    def encode_order(message: Any) -> bytes:
        unwritten, garbled = orders.get(type(message), (bool, bool))
        if unwritten():
            raise Fault(type(message).__name__)
        return b'{"is": "Nothing"}' if garbled() else encode(message)

    messages.decode_report, Reports.handle, messages.encode = decode_report, handle_report, encode_order  # type: ignore[method-assign]


def _made_up(kind: Any) -> Any:
    """Return a report as a broken child could send it at any time."""
    empty = {str: "", int: 1, float: 1.0, bool: True}
    return kind(**{name: empty.get(each, [] if get_origin(each) is list else None) for name, each in kind.fields.items()})


class Epoll:
    """An epoll set whose operations can fail, one after the other for each module that makes sets. Its own type cannot be patched."""

    _points: ClassVar[dict[tuple[str, str], Callable[[], None]]] = {}
    _real: ClassVar[Any] = select.epoll

    def __init__(self, real: Any = None) -> None:
        self._set = real or self._real()
        self._maker = sys._getframe(1 if real is None else 2).f_globals["__name__"]

    @classmethod
    def fromfd(cls, fd: int) -> Epoll:
        return cls(cls._real.fromfd(fd))

    @classmethod
    def find_points(cls) -> None:
        words = _switch()
        for module in MAKERS_OF_SETS:
            for operation, number in OF_SETS.items():
                if (module, operation) != ("isowsgi.worker.loop", "poll"):  # which cannot go on without it, see there
                    error = functools.partial(OSError, number, os.strerror(number))
                    cls._points[module, operation] = _point(words, f"epoll {operation} of {module}", error)

    def __enter__(self) -> Epoll:
        return self

    def __exit__(self, *args: Any) -> None:
        self._set.close()

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._set, name)
        fail = self._points.get((self._maker, name))

        def failing(*args: Any, **kwargs: Any) -> Any:
            if fail is not None:
                fail()
            return function(*args, **kwargs)

        return failing
