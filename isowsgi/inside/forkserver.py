"""A fork server: a process that has loaded what serves, and forks processes for mounts.

It is a child of the worker, has one thread, never had an interpreter beside its own, and runs nothing of an app. What it forks may be a
server for one venv, which has loaded packages of that too, before anything else happens there. `run` returns in each other process that is
forked. There `child.run` follows, as in a process that was started on its own; `births` says who says what until then.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import socket
import sys
from collections.abc import Iterable
from typing import NoReturn

from isowsgi.inside import child, environment, warmth
from isowsgi.inside.cloning import CannotClone, Cloner
from isowsgi.inside.private import theirs
from isowsgi.shared import births, messages, wire
from isowsgi.shared.births import FIRST_PLACE, MOST_FDS, Dropped, Forked, NotForked, Settled, Stale, Unfit, Warm
from isowsgi.shared.handover import blocking
from isowsgi.shared.messages import BootOrder

app_sys = theirs("sys")  # see `private`
sys_modules = app_sys.modules

# What is said at most of an import that failed: a line of the log.
_MAX_REASON_CHARS = 500


def run(facts: object) -> BootOrder:
    """Fork as often as the worker asks for it; returns in each new process, with its boot order."""
    first = births.read_order(facts)
    child.belong_to(first.worker_pid)
    server = blocking(socket.socket(fileno=first.server))
    names = warmth.load()
    try:
        cloner = Cloner()
        _check_alone()
    except CannotClone as exc:
        _leave(server, Unfit(error=str(exc)))
    title, files = _Title(), _Files()
    while True:
        gc.collect()
        gc.freeze()  # what is there already is never looked at again, so its pages stay shared
        gc.disable()
        server.send(births.encode(Warm(names=names)))
        birth = _serve(server, cloner, files)
        gc.enable()
        server.close()
        order, fds = _be_born(birth)
        if isinstance(order, BootOrder):
            title.say(order.tag)
            return order
        title.say("fork server")
        child.belong_to(order.worker_pid)
        server = blocking(socket.socket(fileno=fds[order.server]))
        names = sorted({*names, *_preload(order, server)})
        files = _Files(sys_modules.values())


def _check_alone() -> None:
    """Raise CannotClone if there is more in this process than its one thread."""
    if left := _what_is_left(0):
        raise CannotClone(f"a module that is loaded at the start of Python leaves {left} behind")


def _what_is_left(sockets: int) -> str:
    """Say what an import has left behind that a fork would cut off or double; "" if nothing.

    Args:
        sockets: how many there were before; 0 does not look.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        return "a thread"
    if sockets and _count_sockets() > sockets:
        return "a socket"
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return ""
    return "a process"


def _count_sockets() -> int:
    """Return how many descriptors are not files: sockets, pipes, epoll sets and the like."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += not os.readlink(f"/proc/self/fd/{name}").startswith("/")
        except OSError:  # that of the folder
            continue
    return count


def _preload(order: births.PreloadOrder, server: socket.socket) -> set[str]:
    """Import what mounts of one venv have in common; return the top-level names of all that is loaded by it."""
    before, path = set(sys_modules), list(app_sys.path)
    sockets = _count_sockets()
    environment.set_path([], order.venv, order.site, order.start_folder)
    for name in order.modules:
        try:
            importlib.import_module(name)
        except BaseException as exc:  # SystemExit too
            _leave(server, Dropped(module=name, reason=f"it cannot be imported: {type(exc).__name__}: {exc}"[:_MAX_REASON_CHARS]))
        if left := _what_is_left(sockets):
            _leave(server, Dropped(module=name, reason=f"its import leaves {left} behind"))
    app_sys.path[:] = path  # each process makes its own, and has its variables by then
    return {name.partition(".")[0] for name in set(sys_modules) - before}


class _Files:
    """Whether the files of modules are those that were loaded."""

    def __init__(self, modules: Iterable[object] = ()) -> None:
        files = {str(file) for module in list(modules) if (file := getattr(module, "__file__", None))}
        folders = {os.path.dirname(os.path.dirname(file)) for file in files if file.endswith("__init__.py")}  # where packages come and go
        self._stamps = {path: _stamp_of(path) for path in files | folders}

    def have_changed(self) -> bool:
        return any(_stamp_of(path) != stamp for path, stamp in self._stamps.items())


def _stamp_of(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, 0 if os.path.isdir(path) else status.st_size


def _serve(server: socket.socket, cloner: Cloner, files: _Files) -> socket.socket:
    """Fork for each packet; returns in the child, with its own socket to the worker."""
    while True:
        try:
            packet, fds = births.receive(server, 1)
        except OSError:  # no descriptor is left
            continue
        if not packet:
            os._exit(0)  # the worker has no use for it any more
        for birth in [blocking(socket.socket(fileno=fd)) for fd in fds]:
            with birth:
                if files.have_changed():
                    _leave(birth, Stale())
                try:
                    if cloner.fork() == 0:
                        return blocking(socket.socket(fileno=birth.detach()))
                except OSError as exc:
                    _tell(birth, NotForked(error=str(exc)))


def _be_born(birth: socket.socket) -> tuple[BootOrder | births.PreloadOrder, list[int]]:
    """Take what the worker has for this process; return its order, and its descriptors."""
    try:
        with birth:
            birth.send(births.encode(Forked()))
            _, fds = births.receive(birth, MOST_FDS)
            if len(fds) < FIRST_PLACE:
                _end()  # the worker did not wait
            for place, fd in enumerate(fds[:FIRST_PLACE]):
                os.dup2(fd, place)
                os.close(fd)
            with open(0, "rb", closefd=False) as file:
                facts = wire.decode(file.read())
            if isinstance(facts, dict) and "server" in facts:
                return births.read_preload_order(facts), fds
            order = messages.read_boot_order(facts).renumbered(dict(enumerate(fds)))
            birth.send(births.encode(Settled()))
            return order, fds
    except (OSError, wire.MessageError):
        _end()  # and the worker starts another one


def _tell(birth: socket.socket, message: births.Birth) -> None:
    try:
        birth.send(births.encode(message))
    except OSError:  # the worker did not wait
        return


def _leave(sock: socket.socket, message: births.Birth) -> NoReturn:
    _tell(sock, message)
    os._exit(0)


def _end() -> NoReturn:
    os._exit(1)


class _Title:
    """What `ps` shows: the last argument of the command that has started the server, over which a process writes its tag."""

    def __init__(self) -> None:
        self._last = (0, 0)  # address, size in bytes
        try:
            with open("/proc/self/stat", "rb") as file:
                start, end = map(int, file.read().rpartition(b")")[2].split()[45:47])  # arg_start and arg_end (proc(5))
            size = len(os.fsencode(sys.orig_argv[-1]))
            if start and ctypes.string_at(start, end - start).endswith(b"\0" + os.fsencode(sys.orig_argv[-1]) + b"\0"):
                self._last = (end - 1 - size, size)
        except (OSError, ValueError, IndexError):
            return

    def say(self, tag: str) -> None:
        address, size = self._last
        text = tag.encode("utf-8", "surrogateescape")[:size]
        if size:
            ctypes.memmove(address, text.ljust(size, b"\0"), size)
        theirs("sys").orig_argv[-1] = tag
