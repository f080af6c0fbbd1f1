"""What confines an app's process, put up before anything of the app is imported. None of it can be taken down from inside.

Memory is limited by RLIMIT_DATA: what a process has allocated, and its threads' stacks. RLIMIT_AS would also count what is only reserved or
mapped from files. An idle app with 4 threads has 24 MiB of memory, 58 MiB of data, of which 8 MiB for the stack of each thread, and 518 MiB
of addresses (CPython 3.14, glibc 2.36). What RLIMIT_DATA does not see is memory that is shared with other processes.
"""

from __future__ import annotations

import os
import resource

from isowsgi.shared.messages import BootOrder, Walls


class CannotConfine(Exception):
    """The walls cannot be had, so the app is not loaded."""


def enter_group(order: BootOrder) -> BootOrder:
    """Go to this process' control group, if it has one; return the order without the door, which is closed: it would let others be moved.

    Raises:
        CannotConfine: the kernel refuses it.
    """
    if order.fds is None or order.fds.door < 0:
        return order
    try:
        os.write(order.fds.door, b"0")
    except OSError as exc:
        raise CannotConfine(f"cannot enter its control group, so it is not loaded: {exc.strerror}") from exc
    finally:
        os.close(order.fds.door)
    return order.replace(fds=order.fds.replace(door=-1))


def put_up(walls: Walls) -> None:
    """Confine this process; by its only thread, for a priority is a thread's and the threads that it starts have it too."""
    if walls.umask >= 0:
        os.umask(walls.umask)
    if walls.nice > os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, walls.nice)
    limits = {
        resource.RLIMIT_DATA: 0 if "memory" in walls.grouped else walls.memory,
        resource.RLIMIT_NPROC: 0 if "processes" in walls.grouped else walls.processes,
        resource.RLIMIT_NOFILE: walls.files,
        resource.RLIMIT_FSIZE: walls.file_size,
    }
    for kind, most in limits.items():
        if most:
            _limit(kind, most)


def _limit(kind: int, most: int) -> None:
    """Set a limit and its ceiling; never above those that are there."""
    for value in resource.getrlimit(kind):
        if value != resource.RLIM_INFINITY:
            most = min(most, value)
    resource.setrlimit(kind, (most, most))
