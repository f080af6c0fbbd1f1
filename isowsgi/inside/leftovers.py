"""What a generation leaves in the process ends with it: helper processes of the standard library, and threads of the app's.

An interpreter that ends takes neither with it. The helpers of `multiprocessing` live as long as a pipe is open, whose end is an int of an
interpreter that is gone; a thread keeps the whole interpreter. Without this, each reload of an app with a process pool left two processes
and five descriptors in the worker, and each one of an app with a daemon thread all of its memory.
"""

from __future__ import annotations

import _thread
import os
import signal
import time
from collections.abc import Callable

from isowsgi.inside import ending
from isowsgi.inside.private import theirs

_modules = theirs("sys").modules  # the app's
_threads = theirs("threading")._active  # same on every release

# How long a helper may take to end after its pipe was closed; the next signal follows then.
_HELPER_S = 1.0

# How long threads that were asked to end may take: most sleep for a second at most, or wait for something with such a limit.
_THREADS_S = 2.0

_PAUSE_S = 0.01


def end_helpers() -> None:
    """End what `multiprocessing` has started here, and reap children whose `Popen` is gone."""
    server = getattr(_modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if server is not None:
        _end_helper(server, "_forkserver_alive_fd", "_forkserver_pid")
    tracker = getattr(_modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    if tracker is not None:
        _end_helper(tracker, "_fd", "_pid")
    cleanup = getattr(_modules.get("subprocess"), "_cleanup", None)
    if cleanup is not None:
        cleanup()


def _end_helper(owner: object, fd_name: str, pid_name: str) -> None:
    """Close the pipe that keeps a helper alive, and wait for its end.

    Not its own `_stop`: that waits without a limit, and a child of the app's may hold the pipe too.
    """
    fd, pid = getattr(owner, fd_name, None), getattr(owner, pid_name, None)
    if fd is None or pid is None:
        return
    setattr(owner, fd_name, None)
    setattr(owner, pid_name, None)
    os.close(fd)
    for number in (signal.SIGTERM, signal.SIGKILL, None):
        if _has_gone(pid) or number is None:
            return
        os.kill(pid, number)  # not reaped, so the number is still the helper's


def _has_gone(pid: int) -> bool:
    deadline = time.monotonic() + _HELPER_S
    while time.monotonic() < deadline:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:  # the app has reaped it
            return True
        time.sleep(_PAUSE_S)
    return False


def end_threads(ours: set[int | None], count: Callable[[], int]) -> int:
    """Ask the app's threads to end, by SystemExit; return how many are left after a while.

    Python raises it between two bytecodes: a thread that waits in C code gets it when that returns, and one that waits for ever does not.

    Args:
        ours: threads that are not the app's.
        count: returns how many of the app's there are.
    """
    # Not `threading.enumerate`, which waits for a lock that the app's threads may hold.
    known = {thread.ident for thread in list(_threads.values())}
    for ident in known - ours - {_thread.get_ident(), None}:
        ending.set_async_exception(ident, SystemExit)
    deadline = time.monotonic() + _THREADS_S
    while (left := count()) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    return left
