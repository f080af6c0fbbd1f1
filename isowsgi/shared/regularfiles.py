"""Reads small regular files and refuses all else: a FIFO blocks whoever opens it, a device or a file that grows has no end."""

from __future__ import annotations

import os
import stat

# Largest config file that is read. A thousand mounts with all their settings need a quarter of it.
MAX_CONFIG_BYTES = 4 * 1024 * 1024

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegular(Exception):
    """What is there is no file, or too large; the text says what it is."""


def read(path: str, most_bytes: int) -> bytes:
    """Return what is in a regular file, and never wait for it.

    Raises:
        NotRegular: a folder, a FIFO, a device, or a file of more than `most_bytes`.
        OSError: it cannot be opened or read.
        ValueError: a NUL in the path.
    """
    if "\0" in path:
        raise ValueError("embedded null byte")
    # Looked at first: to open some devices does something. Opened without blocking, for it may be another one by then.
    _check(os.stat(path))
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
        _check(os.fstat(file.fileno()))
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise NotRegular(f"one of more than {most_bytes:,} bytes")
    return content


def _check(facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise NotRegular(_KINDS.get(stat.S_IFMT(facts.st_mode), "no regular file"))
