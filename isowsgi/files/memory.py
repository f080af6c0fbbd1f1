"""Small files as they were sent a moment ago: a request for one of them takes a look at the file, and opens nothing.

What is remembered was opened by `tree`, so it may be served. It is sent again only while the path still leads to that same file, unchanged:
whoever puts a link in its place puts another file there. Encoded forms beside it are looked for again after a second.
"""

from __future__ import annotations

import os
import threading
import time
from typing import NamedTuple

# How long a file's forms are not looked for again, in seconds; and what is remembered of the file itself is never older.
_KEPT_S = 1.0

# A file that changed so recently may change again within the clock tick that its times have, and look the same. Linux has at most 10 ms;
# network file systems have a second.
_RECENT_NS = 2_000_000_000

# Bounds of the memory, for all folders together: bytes of files, their number, and characters of what a client names one by. If there is
# more, all is forgotten, and what is asked for often is there again at once.
_MOST_BYTES = 32 * 1024 * 1024
_MOST_FILES = 1024
_MOST_KEY_CHARS = 512

Key = tuple[int, str, str | None]
"""Which folder, and the request's path and Accept-Encoding."""


class Known(NamedTuple):
    path: bytes
    stamp: tuple[int, ...]
    until: float  # monotonic seconds
    headers: tuple[tuple[str, str], ...]
    body: tuple[bytes]


class Memory:
    """See the module's text. Any thread may use it."""

    def __init__(self) -> None:
        self._known: dict[Key, Known] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def find(self, key: Key) -> Known | None:
        """Return what is remembered, if it is still so."""
        known = self._known.get(key)
        if known is None or time.monotonic() > known.until:
            return None
        try:
            return known if _stamp(os.stat(known.path)) == known.stamp else None
        except OSError:
            return None

    def note(self, key: Key, path: bytes, facts: os.stat_result, headers: list[tuple[str, str]], body: bytes) -> None:
        """Remember a file that is sent.

        Args:
            path: by which it was found.
            facts: of it before it was read.
        """
        if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) < _RECENT_NS or len(key[1]) + len(key[2] or "") > _MOST_KEY_CHARS:
            return
        known = Known(path, _stamp(facts), time.monotonic() + _KEPT_S, tuple(headers), (body,))
        with self._lock:
            before = self._known.get(key)
            self._bytes += len(body) - (len(before.body[0]) if before is not None else 0)
            if self._bytes > _MOST_BYTES or len(self._known) >= _MOST_FILES:
                self._known, self._bytes = {}, len(body)
            self._known[key] = known


def _stamp(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_dev, facts.st_mode
