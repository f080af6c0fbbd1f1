"""A fork server: a process that has loaded what serves, and forks processes for mounts.

It is a child of the worker, has one thread, never had an interpreter beside its own, and runs nothing of an app. What it forks may be a
server for one venv, which has loaded packages of that too (`preload`), before anything else happens there; or the original of one mount's
copies, which has loaded its app (`original`). `run` returns in each other process that is forked. There `child.run` follows, as in a
process that was started on its own; `births` says who says what until then.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import socket
import stat
import sys
import time
from collections.abc import Collection, Iterable
from typing import NoReturn

# All that is not used here is loaded by what serves when it needs it. By then an upgrade may have put another release in its place.
from isowsgi.inside import census, child, environment, hooks, httpsonly, laziness, original, pace, policy, sandbox, sender, survey, warmth  # noqa: F401
from isowsgi.inside.cloning import CannotClone, Cloner
from isowsgi.inside.private import theirs
from isowsgi.inside.remains import descriptors, harm, state, what_is_left
from isowsgi.shared import births, messages, wire
from isowsgi.shared.births import FIRST_PLACE, MOST_FDS, Dropped, Forked, LoadOrder, NotForked, Settled, Stale, Unfit, Warm
from isowsgi.shared.handover import blocking
from isowsgi.shared.messages import BootOrder

app_sys = theirs("sys")  # see `private`
sys_modules = app_sys.modules

# How far the time of a file may lie behind the clock: the kernel takes that of its last tick, at 100 Hz at least.
_CLOCK_NS = 20_000_000

# What is said at most of an import that failed, a line of the log; of how many; and of how many more the names: all that fits a packet.
_MAX_REASON_CHARS = 200
_MOST_REASONS = 20
_MOST_FAILED = 300


def run(facts: object) -> BootOrder:
    """Fork as often as the worker asks for it; returns in each new process, with its boot order."""
    first = births.read_order(facts)
    child.belong_to(first.worker_pid)
    server = blocking(socket.socket(fileno=first.server))
    try:
        _check_alone({0, 1, 2, first.server})
        names, files = warmth.load(), _Files(_at_start())
        cloner = Cloner()
    except CannotClone as exc:
        _leave(server, Unfit(error=str(exc)))
    title = _Title()
    collects = True
    while True:
        _flush()
        gc.collect()
        gc.freeze()  # what is there already is never looked at again, so its pages stay shared
        gc.disable()
        server.send(births.encode(Warm(names=names)))
        birth = _serve(server, cloner, files)
        if collects:
            gc.enable()
        server.close()
        order, fds = _be_born(birth)
        if isinstance(order, BootOrder):
            title.say(order.tag)
            return order
        child.belong_to(order.worker_pid)
        server = blocking(socket.socket(fileno=fds[order.server]))
        if isinstance(order, LoadOrder):
            title.say(f"original of {order.boot.name}")
            names, files = [], _Files(())  # its copies are as old as it is, whatever became of its files
            collects = _load(order, fds, server)
            continue
        title.say("fork server")
        began_ns = time.time_ns()
        names = sorted({*names, *_preload(order, server)})
        files.add(_files_of(sys_modules.values()), began_ns)


def _check_alone(known: Collection[int]) -> None:
    """Raise CannotClone if there is more in this process than its one thread and these descriptors."""
    if left := what_is_left(known):
        raise CannotClone(f"a module that is loaded at the start of Python leaves {left} behind")


def _flush() -> None:
    """Write what an import has printed: each process would write it again."""
    for stream in (app_sys.stdout, app_sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # nobody reads it; closed; None
            continue


def _make_own_secrets() -> None:
    """Give a new process its own of what a preloaded package has made once for all of them; `random` does so by itself."""
    if "multiprocessing.process" in sys_modules:
        sys_modules["multiprocessing.process"].current_process().authkey = os.urandom(32)
    if "numpy.random" in sys_modules:
        sys_modules["numpy.random"].seed()


def _preload(order: births.PreloadOrder, server: socket.socket) -> set[str]:
    """Import what mounts of one venv have in common; return the top-level names of all that is loaded by it."""
    environment.set_path([], order.venv, order.site, order.start_folder)
    before, path, known, as_it_was = set(sys_modules), list(app_sys.path), descriptors(), state()
    failed: list[tuple[str, str]] = []
    for name in order.modules:
        try:
            importlib.import_module(name)
        except BaseException as exc:  # SystemExit too
            reason = f"{type(exc).__name__}: {exc}"[:_MAX_REASON_CHARS] if len(failed) < _MOST_REASONS else ""
            failed.append((name, reason))
        if reason := harm(known, as_it_was):
            _leave(server, Dropped(failed=failed, module=name, reason=reason))
        if len(failed) == _MOST_FAILED:
            break
    if failed:  # what they have begun may be in the way of the app's own import
        _leave(server, Dropped(failed=failed))
    app_sys.path[:] = path  # each process makes its own, and has its variables by then
    return {name.partition(".")[0] for name in set(sys_modules) - before}


def _load(order: LoadOrder, fds: list[int], server: socket.socket) -> bool:
    """Become the original of a mount's copies; return whether they collect garbage by themselves, which the app may not want."""
    try:
        original.load(order.boot.renumbered(dict(enumerate(fds))))
    except original.CannotCopy as exc:
        _leave(server, Unfit(error=str(exc)))
    return gc.isenabled()


class _Files:
    """Whether files, and folders, are those that were loaded."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._stamps = {path: _stamp_of(path) for path in paths}

    def add(self, paths: Iterable[str], began_ns: int) -> None:
        """Watch more of them.

        Args:
            began_ns: before the first of them was loaded. A file that was written since may be another one than was loaded.
        """
        for path in paths:
            self._stamps[path] = None if _is_newer(path, began_ns) else _stamp_of(path)

    def have_changed(self) -> bool:
        return any(_stamp_of(path) != stamp for path, stamp in self._stamps.items())


def _files_of(modules: Iterable[object]) -> set[str]:
    """Return the files of modules, and the folders in which packages come and go."""
    files = {file for module in list(modules) if (file := environment.file_of(module))}
    return files | {os.path.dirname(os.path.dirname(file)) for file in files if file.endswith("__init__.py")}


def _at_start() -> set[str]:
    """Return the files that Python itself has looked at when it was started, those of its `.pth` files and `sitecustomize` too."""
    folders = [folder for folder in app_sys.path if os.path.basename(folder) in ("site-packages", "dist-packages")]
    found = _files_of(sys_modules.values()) | {app_sys.executable, os.path.join(app_sys.prefix, "pyvenv.cfg"), *folders}
    for folder in folders:
        try:
            found |= {os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".pth")}
        except OSError:
            continue
    return found


def _is_newer(path: str, began_ns: int) -> bool:
    """Whether a file was written since; a time that is still to come is that of another machine's clock."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and any(
        began_ns - _CLOCK_NS <= written <= time.time_ns() for written in (status.st_mtime_ns, status.st_ctime_ns)
    )


def _stamp_of(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, 0 if os.path.isdir(path) else status.st_size


def _serve(server: socket.socket, cloner: Cloner, files: _Files) -> socket.socket:
    """Fork for each packet; returns in the child, with its own socket to the worker.

    Once files have changed nothing is forked any more. Who asks is told so until the worker ends this process: several may ask at a time.
    """
    is_stale = False
    while True:
        try:
            packet, fds = births.receive(server, 1)
        except OSError:  # no descriptor is left
            continue
        if not packet:
            os._exit(0)  # the worker has no use for it any more
        for birth in [blocking(socket.socket(fileno=fd)) for fd in fds]:
            with birth:
                if is_stale := is_stale or files.have_changed():
                    _tell(birth, Stale())
                    continue
                try:
                    if cloner.fork() == 0:
                        return blocking(socket.socket(fileno=birth.detach()))
                except OSError as exc:
                    _tell(birth, NotForked(error=str(exc)))


def _be_born(birth: socket.socket) -> tuple[BootOrder | births.PreloadOrder | LoadOrder, list[int]]:
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
                return births.read_server_order(facts), fds
            order = messages.read_boot_order(facts).renumbered(dict(enumerate(fds)))
            _make_own_secrets()
            birth.send(births.encode(Settled()))
            return order, fds
    except Exception:  # no descriptor, an order that cannot be read, or what preloaded packages have in the place of their own
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
        app_sys.orig_argv[-1] = tag
