"""Verdicts that are remembered on disk, so that a restart needs no trials.

A file for each, in a folder of the user's own. Nothing here is ever an error: without a folder, or with one that others may write to, there
is no memory, and the trials are run again. Several processes may read and write: a file is put in place whole, the last one stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys

from isowsgi.inside.extensions import stamp_of
from isowsgi.isolation.decision import RULES, Verdict
from isowsgi.shared import cachefolder, wire
from isowsgi.shared.messages import BootOrder

# Of files and their sizes. A verdict on an app with 500 extension modules has some 100 KiB; most have less than 2.
_MAX_FILES = 4000
_MAX_BYTES = 1024 * 1024

_SUFFIX = ".verdict"

# Of all files in the folder.
_SUFFIXES = (_SUFFIX, ".new", cachefolder.PATTERNS_SUFFIX, cachefolder.PRELOADS_SUFFIX)


def key_of(order: BootOrder) -> str:
    """Return the name under which a verdict on an app is remembered: a hash of all that is known beforehand to decide it."""
    # The environment is part of it (DJANGO_SETTINGS_MODULE, feature switches); only a hash is kept.
    members = [[wire.plain(member.app), member.warmup] for member in order.members]
    host = [sys.version, os.path.realpath(sys.executable), order.host.python, order.host.site]
    around = order.environment
    walls = order.walls and wire.plain(order.walls)
    imports = [order.loading.lazy_imports, order.loading.eager]
    facts = [order.release, RULES, host, around.env, around.pythonpath, around.venv, around.policy, walls, members, imports]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


class Verdicts:
    """The memory; safe to use from several threads and processes.

    Args:
        folder: where; None: see `cachefolder`.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder or cachefolder.default_folder()

    def recall(self, key: str) -> Verdict | None:
        """Return a verdict, if there is one and each extension file that it rests on is as it was."""
        try:
            if not cachefolder.is_ours_alone(self._folder):
                return None
            with open(self._path(key), "rb") as file:
                content = file.read(_MAX_BYTES + 1)
            facts = json.loads(content)
            extensions = {str(path): (int(size), int(mtime)) for path, (size, mtime) in facts["extensions"].items()}
            imports = tuple(map(str, facts["imports"]))
            verdict = Verdict(isolation=str(facts["isolation"]), reason=str(facts["reason"]), extensions=extensions, imports=imports)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if any(stamp_of(path) != list(stamp) for path, stamp in extensions.items()):
            return None
        return verdict

    def remember(self, key: str, verdict: Verdict) -> bool:
        """Write a verdict down, but none without an isolation, for apps get repaired.

        Returns:
            whether it was.
        """
        if verdict.isolation is None:
            return False
        facts = {"isolation": verdict.isolation, "reason": verdict.reason, "extensions": verdict.extensions, "imports": verdict.imports}
        content = json.dumps(facts).encode()
        if len(content) > _MAX_BYTES:
            return False
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            if not cachefolder.is_ours_alone(self._folder):
                return False
            self._make_room()
            cachefolder.put(self._folder, key + _SUFFIX, content)
        except (OSError, ValueError):
            return False
        return True

    def forget(self, key: str) -> None:
        """Drop a verdict that turned out wrong."""
        try:
            os.unlink(self._path(key))
        except (OSError, ValueError):
            return

    def _path(self, key: str) -> str:
        return os.path.join(self._folder, key + _SUFFIX)

    def _make_room(self) -> None:
        """Drop the oldest half once there are too many, and what writers that were killed left behind."""
        with os.scandir(self._folder) as entries:
            files = [entry for entry in entries if entry.name.endswith(_SUFFIXES)]
        if len(files) < _MAX_FILES:
            return
        files.sort(key=lambda entry: entry.stat(follow_symlinks=False).st_mtime_ns)
        for entry in files[: _MAX_FILES // 2]:
            try:
                os.unlink(entry.path)
            except OSError:  # another process did
                continue
