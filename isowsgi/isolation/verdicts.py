"""Verdicts that are remembered on disk, so that a restart needs no trials.

A file for each, in a folder of the user's own. Nothing here is ever an error: without a folder, or with one that others may write to, there
is no memory, and the trials are run again. Several processes may read and write: a file is put in place whole, the last one stays.

A container starts with an empty folder, as any user. So what was found while its image was built is read from a second folder, which may be
root's. What the first folder has on an app counts alone, also that there is no verdict any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys

from isowsgi.inside.extensions import stamp_of
from isowsgi.isolation.decision import RULES, Stamp, Verdict
from isowsgi.shared import cachefolder, wire
from isowsgi.shared.messages import BootOrder

# Of files and their sizes. A verdict on an app with 500 extension modules has some 100 KiB; most have less than 2.
_MAX_FILES = 4000
_MAX_BYTES = 1024 * 1024

_SUFFIX = ".verdict"

_NS_PER_S = 1_000_000_000

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
        baked: a folder that is only read; None: the one that the environment names, if it does.
    """

    def __init__(self, folder: str | None = None, baked: str | None = None) -> None:
        self._folder = folder or cachefolder.default_folder()
        self._baked = baked or os.environ.get(cachefolder.BAKED_VARIABLE, "")

    def recall(self, key: str) -> Verdict | None:
        """Return a verdict, if there is one and each extension file that it rests on is as it was."""
        try:
            content = self._read(key)
            if content is None:
                return None
            facts = json.loads(content)
            extensions, own_gil, unfit = (_still_all(facts[name]) for name in ("extensions", "own_gil", "unfit"))
            return Verdict(
                isolation=str(facts["isolation"]),
                reason=str(facts["reason"]),
                extensions=extensions,
                imports=tuple(map(str, facts["imports"])),
                own_gil=own_gil,
                unfit=unfit,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _read(self, key: str) -> bytes | None:
        """Return the file on an app that counts."""
        try:
            if cachefolder.is_ours_alone(self._folder):
                return _content(self._path(key))
        except FileNotFoundError:
            pass
        return _content(self._path(key, self._baked)) if self._baked and cachefolder.is_trusted(self._baked) else None

    def remember(self, key: str, verdict: Verdict) -> bool:
        """Write a verdict down, but none without an isolation, for apps get repaired.

        Returns:
            whether it was.
        """
        if verdict.isolation is None:
            return False
        names = ("isolation", "reason", "extensions", "imports", "own_gil", "unfit")
        facts = {name: getattr(verdict, name) for name in names}
        content = json.dumps(facts).encode()
        if len(content) > _MAX_BYTES:
            return False
        try:
            return self._write(key, content)
        except (OSError, ValueError):
            return False

    def forget(self, key: str) -> None:
        """Drop a verdict that turned out wrong. One that was baked in stays where it is, and an empty file says that it does not count."""
        try:
            if self._baked and os.path.exists(self._path(key, self._baked)):
                self._write(key, b"")
            else:
                os.unlink(self._path(key))
        except (OSError, ValueError):
            return

    def _write(self, key: str, content: bytes) -> bool:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        if not cachefolder.is_ours_alone(self._folder):
            return False
        self._make_room()
        cachefolder.put(self._folder, key + _SUFFIX, content)
        return True

    def _path(self, key: str, folder: str | None = None) -> str:
        return os.path.join(folder or self._folder, key + _SUFFIX)

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


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_MAX_BYTES + 1)


def _still(path: str, stamp: Stamp) -> Stamp:
    """Return the stamp that a file has now, if it is the file that a verdict was on.

    The layers of an image keep whole seconds. Docker cuts off the fraction of a file's time (moby's pkg/archive). Go's archive/tar, which
    buildah uses, rounds it.

    Raises:
        ValueError: it is another file now, or gone.
    """
    size, mtime = stamp_of(path) or (-1, -1)
    is_from_layer = mtime % _NS_PER_S == 0 and abs(mtime - stamp[1]) < _NS_PER_S
    if size != stamp[0] or (mtime != stamp[1] and not is_from_layer):
        raise ValueError(f"{path!r} has changed")
    return size, mtime


def _still_all(facts: dict[str, list[int]]) -> dict[str, Stamp]:
    """Return the stamps of files as they are now; raises ValueError as `_still`."""
    return {str(path): _still(str(path), (int(size), int(mtime))) for path, (size, mtime) in facts.items()}
