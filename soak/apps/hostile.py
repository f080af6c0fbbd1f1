"""Apps that do what breaks servers, each its own trick: the good mounts' neighbours in a soak.

A request for `/play` plays the trick, any other is answered. Each ends by itself after some seconds, or with its interpreter. Neighbours
must lose nothing by any of them, and the worker is replaced only where the docs say so. What isowsgi does not promise to keep from
neighbours is not here: a crash or `os._exit` in an interpreter, memory without end, limits of the whole process.
"""

from __future__ import annotations

import _thread
import atexit
import builtins
import ctypes
import json
import logging
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Play = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes] | None]

TRICKS: dict[str, Play] = {}

# For those that a process alone can survive.
ONLY_IN_A_PROCESS = ("crashes",)


def create(trick: str) -> Callable[..., Iterable[bytes]]:
    """Return the app of a trick; one that is about the start plays it here."""
    worker = os.getpid()  # a child's own where the app is in one: what it takes there, no worker lacks
    if trick == "boots":
        _boot()

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        played = TRICKS[trick](environ, start_response) if environ["PATH_INFO"] == "/play" else None
        if played is not None:
            return played
        start_response("200 OK", [("Content-Length", "8"), ("Soak-Worker", str(worker))])
        return [b"hostile\n"]

    return application


def _trick(play: Play) -> Play:
    TRICKS[play.__name__] = play
    return play


def _boot() -> None:
    """Fail, end, dawdle or be well, one after the other at random."""
    what = random.SystemRandom().choice(["well", "raises", "exits", "dawdles", "computes"])
    if what == "raises":
        raise _Unspeakable
    if what == "exits":
        sys.exit("hostile: I leave")
    if what == "dawdles":
        time.sleep(2)
    end = time.monotonic() + (1 if what == "computes" else 0)
    while time.monotonic() < end:
        pass


class _Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("hostile: no text")

    __repr__ = __str__


@_trick
def boots(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    return


@_trick
def daemons(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Leave threads that go on for a while."""
    for _ in range(3):
        threading.Thread(target=_run_on, args=(4.0,), daemon=True).start()


@_trick
def stays(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Leave a thread that does not end for an exception either."""
    threading.Thread(target=_run_on, args=(30.0,), daemon=True).start()


def _run_on(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            while time.monotonic() < end:
                time.sleep(0.02)
        except BaseException:
            continue


@_trick
def forks(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Fork, and let both go on with the request."""
    if os.fork() == 0:
        threading.Timer(1.0, os._exit, [0]).start()


@_trick
def patches(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Break what the standard library has, for good."""

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("hostile: patched")

    json.dumps = json.loads = socket.create_connection = time.strftime = broken
    socket.socket = broken
    socket.setdefaulttimeout(0.01)
    threading.Thread.start = broken
    logging.disable(logging.CRITICAL)
    logging.Logger.handle = broken
    sys.excepthook = threading.excepthook = broken
    os.environ.clear()
    sys.path.clear()
    for name in ("json", "socket", "select", "logging"):
        sys.modules.pop(name, None)
    sys.setrecursionlimit(200)
    builtins.print = broken


@_trick
def closes(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Close the connection, and have it written to."""
    environ["gunicorn.socket"].close()
    environ["wsgi.input"].close()


@_trick
def descriptors(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Take all of them, for a moment."""
    taken = []
    try:
        while True:
            taken.append(os.dup(2))
    except OSError:
        time.sleep(0.2)
    finally:
        for fd in taken:
            os.close(fd)


@_trick
def threads(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Start as many as there may be, up to some hundred."""
    end = threading.Event()
    try:
        for _ in range(200):
            threading.Thread(target=end.wait, args=(5.0,), daemon=True).start()
    finally:
        threading.Timer(0.5, end.set).start()


@_trick
def working_directory(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Go to a folder and delete it."""
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)


@_trick
def raises(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Raise what is seldom raised."""
    raise random.choice([_Unspeakable, SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, RecursionError, StopIteration])


@_trick
def holds_the_gil(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Compute in C, for half a second and more."""
    sum(range(20_000_000))


@_trick
def hangs(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Sleep past all limits: nothing gets a thread out of that."""
    time.sleep(7)


@_trick
def spins(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Compute past all limits, but for an exception."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        pass


@_trick
def refuses_to_end(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Go on whatever is raised."""
    _run_on(6.0)


@_trick
def floods(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Fill all logs."""
    for number in range(300):
        logging.error("hostile: line %d %s", number, "x" * 100)
        environ["wsgi.errors"].write(f"hostile: and {number}\n\x1b[31m" * 3)
        print("hostile: printed", number, file=sys.stderr)


@_trick
def interrupts(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Raise in every thread of the interpreter, and in the main one."""
    _thread.interrupt_main()
    for thread in threading.enumerate():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    for _ in range(1000):
        pass


@_trick
def lies(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Break WSGI's rules."""
    if random.random() < 0.3:
        start_response("200 OK", [("X-Bad", "a\r\nInjected: 1"), ("Content-Length", "3")])
    start_response("200 OK", [("Content-Length", random.choice(["10", "100000", "-1", "none"]))])
    return random.choice([[b"short"], ["text"], 7, _broken_body()])


def _broken_body() -> Iterator[bytes]:
    try:
        yield b"half"
        raise _Unspeakable
    finally:
        raise ValueError("hostile: closed badly")


@_trick
def never_ends(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    """Send for as long as somebody reads."""
    start_response("200 OK", [("X-Long", "x" * 100_000)])
    end = time.monotonic() + 3
    while time.monotonic() < end:
        yield b"hostile" * 10_000


@_trick
def children(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Leave a process that nobody waits for."""
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1.5)"], stdin=subprocess.DEVNULL)


@_trick
def exit_functions(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    """Have its end take long, and fail."""
    atexit.register(time.sleep, 1.5)
    atexit.register(lambda: 1 / 0)


@_trick
def crashes(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
    os._exit(7)
