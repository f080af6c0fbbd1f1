"""How much memory a process has by the kernel's figures (RSS), and which thread has touched how much, read without counting pages."""

from __future__ import annotations

import os
from typing import NamedTuple

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

# Most bytes of the kernel's texts about a process.
MOST_BYTES = 4096


class Faults(NamedTuple):
    """Of one thread."""

    pages: int  # that it was the first to touch, since it began (minor faults)
    start: int  # when it began: the kernel gives a thread's number to another one after its end


def bytes_of(process: int | str) -> int | None:
    """Return the whole memory of a process; None if it may not be read, it has ended, or no descriptor is free.

    Args:
        process: its number, or "self".
    """
    try:
        return int(read(f"/proc/{process}/statm").split()[1]) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


def faults_of(thread: int | None = None) -> Faults | None:
    """Return what the kernel counts for a thread of this process (proc_pid_stat(5)); None if that may not be read, or it has ended.

    Args:
        thread: the kernel's number of it; None: the calling one.
    """
    try:
        fields = read("/proc/thread-self/stat" if thread is None else f"/proc/self/task/{thread}/stat").rpartition(b")")[2].split()
        return Faults(int(fields[7]), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None


def read(path: str) -> bytes:
    """Return one of the kernel's texts.

    Raises:
        OSError: it may not be read, the process has ended, or no descriptor is free.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, MOST_BYTES)
    finally:
        os.close(fd)
