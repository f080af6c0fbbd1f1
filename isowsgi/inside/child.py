"""An instance in a child process of the worker: what comes before and after `boot.run` there.

The process is this instance's alone, so much of what an interpreter must be given is the process' own here: environment, fork, exit. What
an app finds otherwise, signals among it, is the same as in an interpreter, so that it can move between the two.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import select
import signal
import socket
import sys
from typing import Any, NoReturn

from isowsgi.inside import boot, forks, walls
from isowsgi.inside.walls import CannotConfine
from isowsgi.shared import messages, releases
from isowsgi.shared.messages import BootOrder

_STDIN = 0  # where a process finds the first code that it runs, and so what it boots by

# gunicorn's signals come to all processes of a terminal or a systemd unit. The worker decides when its instances end.
_WORKERS_SIGNALS = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGTTIN", "SIGTTOU")


# What the app stands on, in a process that was forked from one that has loaded it, see `original`.
ground: boot.Ground | None = None


def run(order: BootOrder) -> None:
    """Be an instance until it is stopped, then end the process; never returns."""
    belong_to(order.worker_pid)
    order = _confined(order)
    if ground is None:
        watch()
    else:
        forks.is_copy = False  # the fork was ours
        ground.take_over(order)
    connections = select.epoll()
    assert order.fds is not None, "the worker passes some on"
    for fd in (*order.fds.known(), *order.log_files.values()):
        os.set_inheritable(fd, False)  # they came through exec, but are not for the app's child processes
    fds = order.fds.replace(
        connections=connections.fileno(),
        poke=os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
        rouse=os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
    )
    boot.run(order.replace(fds=fds), ground=ground)
    logging.shutdown()
    # Threads of the app's may be left, and exit functions have run. The worker takes the end of the process for the instance's.
    boot.end_process(0)


def watch() -> None:
    """Take note of forks by the app, and of crashes."""
    forks.watch()
    faulthandler.enable(2, all_threads=True, **releases.PYTHON_STACKS_ONLY)  # after a crash they are in the log


def _confined(order: BootOrder) -> BootOrder:
    """Return the order once the walls of this process are up; it ends if they cannot be had. A copy has all but its group already."""
    try:
        if ground is not None:
            return walls.enter_group(order)
        if order.walls is None or order.walls.are_up:
            return order
        if order.host.python is None or not order.walls.confine:
            return confine(order)
        _become_its_own_python(order, order.host.python)
    except CannotConfine as exc:
        assert order.fds is not None, "the worker passes some on"
        with socket.socket(fileno=order.fds.channel) as channel:
            channel.send(messages.encode(messages.Failed(error=str(exc), traceback="")))
        os._exit(0)


def confine(order: BootOrder) -> BootOrder:
    """Put up the walls of this process; return the order without what was needed for that.

    Raises:
        CannotConfine: they cannot be had, so the app must not be loaded.
    """
    order = walls.enter_group(order)
    if order.walls is None:
        return order
    walls.put_up(order.walls)
    if order.walls.sandbox is not None:
        from isowsgi.inside import sandbox  # late: most mounts have none

        if order.walls.user:
            _make_folder(order.walls.sandbox.tmp)
        sandbox.put_up(order, order.walls.sandbox)
    return order


def _become_its_own_python(order: BootOrder, python: str) -> NoReturn:
    """Go on in the mount's own Python, behind its walls: it runs .pth files of its folders first, and these may be the app's.

    Raises:
        CannotConfine: it cannot be executed, or the walls cannot be had.
    """
    try:
        os.dup2(_program_of(order), _STDIN)  # before the limits are there: one of files' size counts for what is in memory too
        confine(order)
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}  # where the host's has its standard library
        os.execve(python, [python, *sys.orig_argv[1:]], environ)
    except (OSError, MemoryError, ValueError) as exc:
        is_refused = isinstance(exc, PermissionError) and order.walls is not None and order.walls.sandbox is not None
        hint = f"; add the folders of {os.path.realpath(python)!r} to sandbox.read" if is_refused else ""
        raise CannotConfine(f"cannot start {python!r}, so it is not loaded: {str(exc) or type(exc).__name__}{hint}") from exc


def _program_of(order: BootOrder) -> int:
    """Return a descriptor of what the mount's own Python runs, with the order as it is once the walls are up.

    Raises:
        OSError: no descriptor, or no memory, is left.
    """
    assert order.walls is not None, "they are what this is for"
    told = os.pread(_STDIN, os.fstat(_STDIN).st_size, 0).decode()  # a line with the order, and then `bootstrap`
    order = order.replace(walls=order.walls.replace(are_up=True))
    if order.fds is not None:
        order = order.replace(fds=order.fds.replace(door=-1))
    source = f"BOOT = {messages.encode(order).decode('utf-8', 'surrogatepass')!a}\n{told.partition(chr(10))[2]}"
    program = os.memfd_create("isowsgi-boot")
    with open(program, "wb", closefd=False) as file:
        file.write(source.encode())
    os.lseek(program, 0, os.SEEK_SET)
    return program


def _make_folder(path: str) -> None:
    """Make the folder for temporary files that the spawner has thought of, and will remove; it must not be there."""
    try:
        os.mkdir(path, 0o700)
    except OSError as exc:
        raise CannotConfine(f"its folder for temporary files cannot be made, so it is not loaded: {exc}") from exc


def belong_to(worker: int) -> None:
    """Leave the worker's signals to it, and end when it does."""
    for name in _WORKERS_SIGNALS:
        # A handler and not SIG_IGN, which the app's own child processes would inherit.
        signal.signal(getattr(signal, name), _leave_to_worker)
    _die_with(worker)


def _leave_to_worker(number: int, frame: Any) -> None:
    return


def _die_with(worker: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, which is when the worker does, whatever killed it."""
    try:
        from isowsgi.shared import privileges  # needs ctypes, which a Python may lack

        privileges.prctl(privileges.PR_SET_PDEATHSIG, signal.SIGKILL)
    except (ImportError, OSError, AttributeError):  # then it ends when it reads its channel, unless C code holds the GIL
        pass
    if os.getppid() != worker:
        os._exit(1)
