"""One process that the spawner starts: from the fork to the first instruction of its Python, and what is removed after its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Collection
from typing import NoReturn

from isowsgi.configuration import accounts
from isowsgi.configuration.accounts import Account
from isowsgi.instances.forkserver import START, memory_file
from isowsgi.instances.subinterpreter import boot_source
from isowsgi.shared import spawning
from isowsgi.shared.messages import BootOrder
from isowsgi.spawner import rights

# Its standard input, output and error.
_STANDARD = (0, 1, 2)

# Longest error that is told.
_MOST_CHARS = 500


def start(order: BootOrder, account: Account, fds: Collection[int], birth: socket.socket) -> int:
    """Return the process id of a new process that boots by an order.

    Args:
        order: with the descriptors by their numbers here.
        fds: all of them, which stay the caller's.
        birth: where it says why it cannot be what it is to be.

    Raises:
        OSError: there is no room for one more.
    """
    parent = os.getpid()
    with memory_file(boot_source(order).encode()) as source:

        def run() -> NoReturn:
            try:
                _leave_behind(source.fileno(), fds, birth.fileno())
                rights.become(account)
                rights.die_with(parent)
                python = sys.executable  # becomes the mount's own, if it has one, behind its walls
                # Without the packages in the user's home: they would be loaded before the walls are up. The last two are for `ps`.
                command = [python, "-s", "-c", START, "isowsgi", order.tag]
                os.execve(python, command, accounts.environ_of(account, os.environ))
            except BaseException as exc:
                who = account.name or f"user {account.uid}"
                _say(birth, f"cannot be started as {who}: {type(exc).__name__}: {exc}"[:_MOST_CHARS])
                raise

        return fork(run)


def remove(folder: str, account: Account) -> int:
    """Remove a process' own folder with all in it, as its user; return the process id of who does so.

    Raises:
        OSError: there is no room for one more process.
    """

    def run() -> None:
        _leave_behind(None, (), -1)
        rights.become(account)
        with contextlib.suppress(OSError, RecursionError):  # what an app has put there may be deep; RecursionError: up to 3.12
            shutil.rmtree(folder)

    return fork(run)


def fork(run: Callable[[], object]) -> int:
    """Return the process id of a child that does one thing and ends; it never returns here."""
    pid = os.fork()
    if pid:
        return pid
    try:
        run()
        os._exit(0)
    finally:
        os._exit(1)


def _leave_behind(source: int | None, fds: Collection[int], birth: int) -> None:
    """Leave the spawner's signals and descriptors behind, but for those that are named: they are passed on, and the birth is not."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores the latter two, and a program would inherit that
        signal.signal(number, signal.SIG_DFL)
    os.chdir(os.sep)
    os.setsid()  # away from a terminal, to which another user's process could feed input (TIOCSTI)
    if source is not None:
        os.dup2(source, 0)
    close_all_but(*fds, birth)
    for fd in fds:
        os.set_inheritable(fd, True)


def close_all_but(*fds: int) -> None:
    """Close all descriptors of this process but some, and but the standard ones."""
    kept = sorted({*_STANDARD, *(fd for fd in fds if fd >= 0)})
    for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        if low + 1 < high:  # os.closerange(0, 0) closes all of them (CPython 3.14)
            os.closerange(low + 1, high)


def _say(birth: socket.socket, error: str) -> None:
    with contextlib.suppress(OSError):  # the worker has gone
        birth.send(spawning.encode(spawning.Refused(error=error)), socket.MSG_DONTWAIT)
