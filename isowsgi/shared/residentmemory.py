"""How much memory a process has by the kernel's figures (RSS), read without counting pages."""

from __future__ import annotations

import os

# Most bytes of the kernel's texts about a process.
MOST_BYTES = 4096


def bytes_of(process: int | str) -> int | None:
    """Return the whole memory of a process; None if it may not be read, it has ended, or no descriptor is free.

    Args:
        process: its number, or "self".
    """
    try:
        return int(read(f"/proc/{process}/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
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
