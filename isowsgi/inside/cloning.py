"""A fork whose child is a child of the caller's parent: clone(2) with CLONE_PARENT.

So a process from a fork server is the worker's own child, as one that the worker has started by itself: the worker waits for it and learns
its exit status, `os.getppid()` there is the worker, and the kernel's signal for a parent's death comes with the worker's, not the server's.

Neither Python nor the C library has such a fork, so this does what both do around theirs, as far as a process with one thread needs it:

* CPython's own steps before and after are public (PyOS_BeforeFork and the like); functions of `os.register_at_fork` run in them.
* The C library keeps the thread's number, which is another one in the child. The kernel can write it (CLONE_CHILD_SETTID); where it lies is
  found by looking, and proven by a function that reads it from there. The kernel also has a list of robust mutexes, which a child must tell
  it of again (set_robust_list(2)).
* Locks of malloc and stdio are free, as the one thread is here. That is why a second thread makes a process unfit.
* Functions of pthread_atfork(3) do not run. OpenSSL goes by getpid() or has none; what else a preloaded package may have is its own risk.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

from isowsgi.inside.private import theirs

_CLONE_PARENT = 0x00008000  # linux/sched.h, as the next one
_CLONE_CHILD_SETTID = 0x01000000

# Bytes of what pthread_self() points to in which the number is looked for; glibc 2.34 to 2.42 have it at 720 on x86_64.
_THREAD_BYTES = 1536

# Numbers of clone, get_robust_list and set_robust_list, and the place of clone's `child_tid` among its arguments, by machine
# (arch/*/entry/syscalls; clone(2) has the order).
_CALLS = {"x86_64": (56, 274, 273, 3), "aarch64": (220, 100, 99, 4)}


class CannotClone(Exception):
    """This machine, kernel or C library has not what it takes; the text says what."""


class Cloner:
    """Forks this process, which has one thread and was never anything but that.

    Raises:
        CannotClone: it cannot.
    """

    def __init__(self) -> None:
        machine = os.uname().machine
        if machine not in _CALLS or sys.maxsize < 2**32:
            raise CannotClone(f"no clone(2) is known for {machine}")
        self._clone, get_robust_list, self._set_robust_list, self._tid_place = _CALLS[machine]
        self._c = ctypes.PyDLL(None, use_errno=True)  # PyDLL keeps the GIL: nobody else could take it in the child
        self._c.syscall.restype = ctypes.c_long
        for step in ("PyOS_BeforeFork", "PyOS_AfterFork_Parent", "PyOS_AfterFork_Child"):
            try:
                getattr(self._c, step).restype = None
            except AttributeError:
                raise CannotClone(f"this Python has no {step}") from None
        self._threadings = (threading, theirs("threading"))  # before an app is loaded, see `private`
        self._tid_address = self._find_tid()
        self._robust, self._robust_size = ctypes.c_void_p(), ctypes.c_size_t()
        if self._call(get_robust_list, 0, ctypes.byref(self._robust), ctypes.byref(self._robust_size)):
            raise CannotClone("the kernel has no robust mutexes")

    def _find_tid(self) -> int:
        """Return where the C library keeps this thread's number."""
        tid = threading.get_native_id()
        words = (ctypes.c_int * (_THREAD_BYTES // ctypes.sizeof(ctypes.c_int))).from_address(threading.get_ident())
        for place, word in enumerate(words):
            if word != tid:
                continue
            words[place] = tid + 1  # nobody else looks: there is one thread
            is_it = _tid_of_library() == tid + 1
            words[place] = tid
            if is_it:
                return threading.get_ident() + place * ctypes.sizeof(ctypes.c_int)
        raise CannotClone("it is not known where the C library keeps a thread's number")

    def fork(self) -> int:
        """Fork, and return 0 in the child, its process id in the caller.

        Raises:
            OSError: there is no room for one more process.
        """
        arguments: list[object] = [_CLONE_PARENT | _CLONE_CHILD_SETTID | signal.SIGCHLD, None, None, None, None]
        arguments[self._tid_place] = ctypes.c_void_p(self._tid_address)
        self._c.PyOS_BeforeFork()
        pid = self._call(self._clone, *arguments)
        if pid == 0:
            self._call(self._set_robust_list, self._robust, self._robust_size)
            self._c.PyOS_AfterFork_Child()
            for module in self._threadings:
                module.main_thread()._set_native_id()  # CPython does so itself from 3.13 on
            return 0
        error = ctypes.get_errno()
        self._c.PyOS_AfterFork_Parent()
        if pid < 0:
            raise OSError(error, os.strerror(error))
        return pid

    def _call(self, number: int, *arguments: object) -> int:
        return int(self._c.syscall(ctypes.c_long(number), *(_word(each) for each in arguments)))


def _tid_of_library() -> int:
    """Return the number that the C library has for this thread: its CPU clock is made from it (linux/posix-timers.h)."""
    return ~(time.pthread_getcpuclockid(threading.get_ident()) >> 3)


def _word(value: object) -> object:
    """Return an argument as wide as a register: ctypes would pass an int as 32 bits."""
    return ctypes.c_long(value or 0) if value is None or isinstance(value, int) else value
