"""How much memory a process has, as the kernel says it: this one's, read often and without a free descriptor, and that of children."""

from __future__ import annotations

import functools
import os

from isowsgi.shared import residentmemory

_KIB = 1024


def rss_bytes() -> int:
    """Return the memory that this process has."""
    try:
        pages = _pages()
    except (OSError, ValueError, IndexError):  # an app has closed that number; if it has another file by now, that one is not ours to close
        _statm.cache_clear()
        pages = _pages()
    return pages * os.sysconf("SC_PAGE_SIZE")


def _pages() -> int:
    return int(os.pread(_statm(os.getpid()), 128, 0).split()[1])


@functools.cache
def _statm(pid: int) -> int:
    """Return the descriptor of a process's figures. It stays open: an app may have taken all others when it is read next."""
    return os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)


def rss_mib() -> int:
    return rss_bytes() // (1024 * 1024)


def pss_bytes(pid: int) -> int | None:
    """Return the memory of a child: its own, and its share of what it has in common with others (PSS).

    Where that may not be read (a process that has changed its user, `hidepid`), the whole (RSS); None if that may not be read either, or if
    the process has ended.
    """
    try:
        for line in residentmemory.read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * _KIB
    except (OSError, ValueError, IndexError):
        pass
    return residentmemory.bytes_of(pid)
