"""In the worker: every function that may be made to fail is wrapped. gunicorn reads this file as its config file (`-c`).

The points are found, not listed: every method and function of the modules whose code runs on the worker's threads, and the system calls and
classes of the standard library that they use. So what is new tomorrow is covered by itself. Which point fails just now stands in shared
memory that the harness writes: its number, and how often (`ONCE`, `ALWAYS`).
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
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

# Where the points' names are written to, and the memory with words: number, mode, how often it has failed.
FOLDER = os.environ.get("ISOWSGI_FAULTS", "")
POINTS, SWITCH = "points.json", "switch"
NUMBER, MODE, FAILED = range(3)
OFF, ONCE, ALWAYS = range(3)

# Rooms and modules whose code runs on the worker's threads while it serves.
PACKAGES = ("isowsgi.worker", "isowsgi.instances")
MODULES = (
    "isowsgi.shared.scoreboard",
    "isowsgi.shared.handover",
    "isowsgi.shared.peek",
    "isowsgi.shared.origins",
    "isowsgi.shared.answers",
)

# What may end the worker: the loop's step and what runs it, its beginning, and its end. And what is the master's.
_LIFE = ("__init__", "_end_instances", "_exit_hard", "_made", "_run", "_stop_gracefully", "handle_", "load_wsgi", "run")
NOT = (
    *(f"isowsgi.worker.gunicorn.Worker.{name}" for name in _LIFE),
    "isowsgi.worker.loop.Loop.turn",
    "isowsgi.worker.parts.",
    "isowsgi.shared.scoreboard.Board.",
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


def post_fork(arbiter: Any, worker: Any) -> None:
    """gunicorn's hook, in the new worker."""
    with open(os.path.join(FOLDER, SWITCH), "r+b") as file:
        words = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
    names: list[str] = []
    for owner, name, label, failure in find_points():
        number = len(names) + 1
        names.append(label)
        _wrap(owner, name, _failing(words, number, failure))
    temporary = os.path.join(FOLDER, f"{POINTS}.new")
    with open(temporary, "w", encoding="utf-8") as file_:
        json.dump(names, file_)
    os.rename(temporary, os.path.join(FOLDER, POINTS))


def find_points() -> Iterator[tuple[Any, str, str, Callable[[], Exception]]]:
    """Yield each: its owner, its name there, its label, and what makes the exception."""
    modules = [importlib.import_module(name) for name in MODULES]
    for package in map(importlib.import_module, PACKAGES):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            modules.append(importlib.import_module(found.name))
    for module in modules:
        for owner, name in _functions(module):
            label = f"{owner.__module__}.{owner.__qualname__}.{name}" if isinstance(owner, type) else f"{owner.__name__}.{name}"
            if not label.startswith(NOT):
                yield owner, name, label, lambda label=label: Fault(label)  # type: ignore[misc] # a default that callers leave
    for owner, name, number in CALLS:
        label = f"{getattr(owner, '__qualname__', owner.__name__)}.{name}"
        yield owner, name, label, lambda number=number: OSError(number, os.strerror(number))  # type: ignore[misc] # as above
    yield threading.Thread, "start", "Thread.start", lambda: RuntimeError("can't start new thread")


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


def _failing(words: memoryview, number: int, failure: Callable[[], Exception]) -> Callable[[], None]:
    def fail() -> None:
        if words[NUMBER] == number and words[MODE]:
            if words[MODE] == ONCE:
                words[MODE] = OFF
            words[FAILED] += 1
            raise failure()

    return fail
