"""Long slices of a processor's time for a thread that loads an app: whoever wakes up beside it runs at once.

Loading is long work for a processor, requests are short. A thread with a slice of the ordinary length keeps its processor until that is
over, which the kernel sees at a tick: up to 4 ms (250 Hz) for a request that comes meanwhile. Since Linux 6.12 a thread that wakes up
runs at once instead of one with a longer slice. Shares stay as they are, and no privilege is needed. Measured (6.18) with threads in a
loop beside one that wakes up each millisecond, on one processor: the slowest of a hundred wake-ups took 3.5 ms beside one such thread and
7.2 ms beside two; with long slices 0.1 ms both. Older kernels ignore it. A lower priority does the same, but nobody may raise it again.
"""

from __future__ import annotations

import os
import struct

from isowsgi.shared import cfunctions

# The system call sched_setattr by machine; glibc has a function for it since 2.41 only.
_NUMBERS = {"x86_64": 314, "aarch64": 274, "riscv64": 274}

# The longest that the kernel takes, in nanoseconds; and what gives a thread back the ordinary one.
_LONG_NS, _ORDINARY_NS = 100_000_000, 0

# struct sched_attr (sched_setattr(2)): size, policy, flags, nice, priority, and of times the first is the slice.
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")

# Threads and processes that the thread starts have the ordinary slice. What else the flag does is for a nice value below 0.
_RESET_ON_FORK = 0x01

# In /proc/self/status, of a process with no filter of system calls.
_NO_FILTER = b"Seccomp:\t0\n"


def lengthen() -> None:
    """Give the calling thread long slices, if it has an ordinary priority."""
    change(_LONG_NS)


def restore() -> None:
    """Give the calling thread slices of the ordinary length."""
    change(_ORDINARY_NS)


def is_filtered() -> bool:
    """Whether a filter (seccomp) may refuse system calls, or end the process for one."""
    try:
        with open("/proc/self/status", "rb") as file:
            return _NO_FILTER not in file.read()
    except OSError:
        return True


def change(slice_ns: int) -> None:
    """Give the calling thread slices of another length; in one place, for a policy to know it."""
    number, call = _NUMBERS.get(os.uname().machine), cfunctions.system_call()
    policy, nice = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK, os.getpriority(os.PRIO_PROCESS, 0)
    if number is None or call is None or policy not in (os.SCHED_OTHER, os.SCHED_BATCH) or nice < 0:
        return
    call(number, 0, _ATTRIBUTES.pack(_ATTRIBUTES.size, policy, _RESET_ON_FORK, nice, 0, slice_ns, 0, 0), 0)
