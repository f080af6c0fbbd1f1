"""gunicorn's log, followed: what it says is counted by kind, and what nobody expects is kept."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from soak.trouble import Kill

# The log is emptied when it is larger: a fault that logs without end must not fill the disk.
_MOST_BYTES = 64 * 1024 * 1024

_MOST_KEPT = 5000

_LINE = re.compile(r"\[\d{4}-[^]]*\] \[(?P<pid>\d+)\] \[(?P<level>[A-Z]+)\] (?P<text>.*)")

# Warnings and errors that belong to what is done to the server. {worker} and {tag}: of a process that was killed.
_EXPECTED = (
    r"Worker \(pid:{worker}\) was sent SIGKILL!",
    r"worker {worker} died (while serving|with no request in flight|while loading)",
    r"worker {worker} died with requests of \d+ mounts in flight",
    r"{tag}: ended unexpectedly: its process was killed by SIGKILL( while serving .*)?$",
    r"replacing this worker: main runs in the main interpreter, which only a new worker can reload",
    r"\S+: crashed \d+ workers",
    r"\S+: crashed its worker too often",
)

# Those that the docs name for a worker to be replaced because of its apps.
_REPLACED = r"replacing this worker: \d+ instances are stuck or left behind, max_stuck is \d+"

# While an app has all descriptors of its process; nobody loses anything by that.
_SCARCE = (
    r"([^;]*); new connections wait",
    r"\S+ #\d+: cannot load (?s:.)*(Too many open files|interpreter creation failed)",
    r"\S+: its worker lacks descriptors or threads; requests wait; retrying within a second",
    r"fork server of .*Too many open files; processes start without it",
    r"the table of mounts cannot be drawn: OSError: .*Too many open files",
    r"\S+: generation \d+ keeps serving",
    r"\S+: some instances are missing",
)

# In a line of a hostile app or about one, that is a fault all the same.
_OURS = re.compile(r"internal error, contained|please report it|unreliable after")

# Only where CPython keeps the memory of an interpreter that ended; `max_leaked` is there for that.
_LEAKS = r"replacing this worker: this Python has not freed the memory of \d+ ended interpreters"


class LogWatch:
    """Follows a log.

    Attributes:
        levels: how many lines of each level there were.
        left_behind: instances that could not be ended, of the good mounts.
        replaced: workers that were replaced for what hostile apps had left behind in them.

    Args:
        has_hostile: whether there are hostile apps, whose lines are not noticed.
    """

    def __init__(self, path: Path, has_hostile: bool = False) -> None:
        self._path = path
        self._has_hostile = has_hostile
        self.replaced = 0
        self._position = 0
        self._rest = ""
        self.levels: Counter[str] = Counter()
        self.noticed: list[str] = []  # warnings and worse, with the lines that belong to them
        self.left_behind = 0

    def read(self) -> None:
        """Take in what has come since the last call."""
        with open(self._path, errors="replace") as log:
            log.seek(self._position)
            text = self._rest + log.read()
            self._position = log.tell()
        *lines, self._rest = text.split("\n")
        for line in lines:
            self._take(line)
        if self._position > _MOST_BYTES:
            os.truncate(self._path, 0)  # gunicorn appends
            self._position = 0

    def unexpected(self, kills: Sequence[Kill], keeps_memory: bool) -> list[str]:
        """Return warnings and errors that nothing explains."""
        workers = "|".join(str(kill.pid) for kill in kills if kill.what == "worker") or "none"
        tags = "|".join(re.escape(kill.tag) for kill in kills if kill.what == "child") or "none"
        patterns = [text.replace("{worker}", f"({workers})").replace("{tag}", f"({tags})") for text in _EXPECTED]
        expected = re.compile(
            "|".join([*patterns, *([_LEAKS] if keeps_memory else []), *([_REPLACED, *_SCARCE] if self._has_hostile else [])])
        )
        return [text for text in self.noticed if not expected.match(text)]

    def _take(self, line: str) -> None:
        found = _LINE.match(line)
        if found is None:
            if self._is_noticed and self.noticed and len(self.noticed[-1]) < 4000:
                self.noticed[-1] += f"\n{line}"  # of a traceback
            return
        self.levels[found["level"]] += 1
        self._is_noticed = found["level"] in ("WARNING", "ERROR", "CRITICAL") and len(self.noticed) < _MOST_KEPT
        is_hostile = self._has_hostile and "hostile" in found["text"] and not _OURS.search(found["text"])
        self._is_noticed = self._is_noticed and not is_hostile
        self.left_behind += "left behind" in found["text"] and not is_hostile and not re.match(_REPLACED, found["text"])
        self.replaced += bool(re.match(_REPLACED, found["text"]))
        if self._is_noticed:
            self.noticed.append(found["text"])

    _is_noticed = False
