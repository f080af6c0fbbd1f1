"""The files that an interpreter's modules came from, and whether one has changed: `watch = true`, for development."""

from __future__ import annotations

import os

from isowsgi.inside.private import theirs

_modules = theirs("sys").modules  # the app's

TYPE_CHECKING = False  # as typing's, without the 2 ms of importing typing
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# How often the files are looked at; some hundred stat() calls take a millisecond.
_INTERVAL_S = 1.0


def module_files() -> list[str]:
    """Return the files of all modules that are loaded in this interpreter."""
    files = set()
    for module in list(_modules.values()):
        try:
            file = getattr(module, "__file__", None)
        except Exception:  # apps put objects there that are no modules, or modules that are imported when they are asked for anything
            continue
        if type(file) is str and file:
            files.add(file)
    return sorted(files)


def as_written(files: Iterable[str], links: Mapping[str, str]) -> set[str]:
    """Return the absolute ones of some files, and by which other paths the config file leads to them.

    Args:
        links: what was resolved when the app was loaded, by the path as it is written.
    """
    names = {file for file in files if os.path.isabs(file)}
    for written, real in links.items():
        names |= {written + file[len(real) :] for file in names if file == real or file.startswith(real + os.sep)}
    return names


class FileWatch:
    """Looks for changes of module files, also of modules that were imported since, and for links that lead elsewhere.

    Args:
        links: as above.
    """

    def __init__(self, links: Mapping[str, str]) -> None:
        self._links = dict(links)
        self._seen: dict[str, int] = {}
        self._next = 0.0

    def changed(self, now: float) -> str | None:
        """Return a file or link that changed since it was last seen, or None; each change is reported once, and all that one look finds
        together.

        Args:
            now: monotonic seconds.
        """
        if now < self._next:
            return None
        self._next = now + _INTERVAL_S
        found = None
        for written, before in list(self._links.items()):
            if (real := os.path.realpath(written)) != before and os.path.exists(written):  # not while it is replaced in two steps
                self._links[written], found = real, found or written
        for file in module_files():
            try:
                changed_at = os.stat(file).st_mtime_ns
            except OSError:  # an editor may replace a file in two steps; it is back at the next look
                continue
            if self._seen.setdefault(file, changed_at) != changed_at:
                self._seen[file], found = changed_at, found or file
        return found
