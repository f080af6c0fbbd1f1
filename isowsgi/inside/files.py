"""The files that an interpreter's modules came from, and whether one has changed: `watch = true`, for development."""

from __future__ import annotations

import os
import sys

# How often the files are looked at; some hundred stat() calls take a millisecond.
_INTERVAL_S = 1.0


def module_files() -> list[str]:
    """Return the files of all modules that are loaded in this interpreter."""
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return sorted(file for file in files if file)


class FileWatch:
    """Looks for changes of module files, also of modules that were imported since."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._next = 0.0

    def changed(self, now: float) -> str | None:
        """Return a file that changed since it was first seen, or None.

        Args:
            now: monotonic seconds.
        """
        if now < self._next:
            return None
        self._next = now + _INTERVAL_S
        for file in module_files():
            try:
                changed_at = os.stat(file).st_mtime_ns
            except OSError:  # an editor may replace a file in two steps; it is back at the next look
                continue
            if self._seen.setdefault(file, changed_at) != changed_at:
                return file
        return None
