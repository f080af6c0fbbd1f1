"""A fork server: a process that has loaded what serves, and forks processes for mounts.

It is a child of the worker, has one thread, never had an interpreter beside its own, and runs nothing of an app. `run` returns in each
process that it forks. There `child.run` follows, as in a process that was started on its own; `births` says who says what until then.
"""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import sys
from typing import NoReturn

from isowsgi.inside import child, warmth
from isowsgi.inside.cloning import CannotClone, Cloner
from isowsgi.inside.private import theirs
from isowsgi.shared import births, messages, wire
from isowsgi.shared.births import FIRST_PLACE, MOST_FDS, Forked, NotForked, Settled, Unfit, Warm
from isowsgi.shared.handover import blocking
from isowsgi.shared.messages import BootOrder


def run(facts: object) -> BootOrder:
    """Fork as often as the worker asks for it; returns in each new process, with its boot order."""
    order = births.read_order(facts)
    child.belong_to(order.worker_pid)
    server = blocking(socket.socket(fileno=order.server))
    names = warmth.load()
    try:
        cloner = Cloner()
        _check_alone()
    except CannotClone as exc:
        server.send(births.encode(Unfit(error=str(exc))))
        os._exit(0)
    title = _Title()
    gc.collect()
    gc.freeze()  # what is there already is never looked at again, so its pages stay shared
    gc.disable()
    server.send(births.encode(Warm(names=names)))
    birth = _serve(server, cloner)
    gc.enable()
    own_order = _be_born(birth, server)
    title.say(own_order.tag)
    return own_order


def _check_alone() -> None:
    """Raise CannotClone if there is more in this process than its one thread."""
    if len(os.listdir("/proc/self/task")) > 1:
        raise CannotClone("a module that is loaded at the start of Python has started a thread")
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return
    raise CannotClone("a module that is loaded at the start of Python has started a process")


def _serve(server: socket.socket, cloner: Cloner) -> socket.socket:
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
                try:
                    if cloner.fork() == 0:
                        return blocking(socket.socket(fileno=birth.detach()))
                except OSError as exc:
                    _tell(birth, NotForked(error=str(exc)))


def _be_born(birth: socket.socket, server: socket.socket) -> BootOrder:
    """Take what the worker has for this process, and close what is the server's; return the boot order."""
    server.close()
    try:
        with birth:
            birth.send(births.encode(Forked(pid=os.getpid())))
            _, fds = births.receive(birth, MOST_FDS)
            if len(fds) < FIRST_PLACE:
                _end()  # the worker did not wait
            for place, fd in enumerate(fds[:FIRST_PLACE]):
                os.dup2(fd, place)
                os.close(fd)
            with open(0, "rb", closefd=False) as file:
                order = messages.read_boot_order(wire.decode(file.read()))
            birth.send(births.encode(Settled()))
        return order.renumbered(dict(enumerate(fds)))
    except (OSError, wire.MessageError):
        _end()  # and the worker starts another one


def _tell(birth: socket.socket, message: births.Birth) -> None:
    try:
        birth.send(births.encode(message))
    except OSError:  # the worker did not wait
        return


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
