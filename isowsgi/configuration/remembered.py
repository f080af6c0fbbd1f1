"""Which patterns each included file had, remembered on disk: of a file that is no TOML at the next start, nothing else tells them.

Nothing here is ever an error: without a folder that is the user's alone there is no memory. What was remembered makes mounts that are
answered 503, and only where no other file has them; no more follows from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os

import attrs

from isowsgi.configuration.included import faulty_mount
from isowsgi.configuration.values import Config, Mount
from isowsgi.shared import cachefolder, regularfiles, scoreboard

# Most bytes that are read: the patterns of ten thousand mounts.
_MOST_BYTES = 1024 * 1024

# Patterns with their host, their prefix and more hosts, by file.
Patterns = dict[str, list[list[str]]]


def patterns_of(config: Config) -> Patterns:
    """Return what is to be remembered of a config."""
    found: Patterns = {}
    for mount in config.mounts:
        if mount.file is not None:
            found.setdefault(mount.file, []).append([mount.pattern, mount.host, mount.prefix, *mount.hosts])
    return found


def save(path: str, patterns: Patterns) -> bool:
    """Remember the patterns of the files that a config file includes; return whether that was done."""
    folder = cachefolder.default_folder()
    content = json.dumps(patterns).encode()
    if len(content) > _MOST_BYTES:
        return False
    with contextlib.suppress(OSError, ValueError):
        if not patterns and not os.path.exists(os.path.join(folder, _name(path))):
            return False
        # root makes no folder in another user's home, who could not use it then.
        if not os.path.isdir(folder) and (os.geteuid() != 0 or os.stat(_nearest(folder)).st_uid == 0):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        if cachefolder.is_ours_alone(folder):
            cachefolder.put(folder, _name(path), content)
            return True
    return False


def with_remembered(config: Config) -> Config:
    """Return a config in which files that cannot be read have the mounts that they had, to be answered 503."""
    unknown = {file for file in config.faulty if all(mount.file != file for mount in config.mounts)}
    if not unknown:
        return config
    there = {mount.pattern for mount in config.mounts}
    more: list[Mount] = []
    for file, patterns in _load(config.path).items():
        for pattern, host, prefix, *hosts in patterns if file in unknown else []:
            if pattern not in there:
                there.add(pattern)
                more.append(faulty_mount(pattern, host, prefix, hosts, file, _fault_of(config, file)))
    mounts = (*config.mounts, *more)
    if scoreboard.faults([mount.pattern for mount in mounts]):
        return config
    return attrs.evolve(config, mounts=tuple(attrs.evolve(mount, number=number) for number, mount in enumerate(mounts)))


def _load(path: str) -> Patterns:
    folder = cachefolder.default_folder()
    try:
        if not cachefolder.is_ours_alone(folder):
            return {}
        found = json.loads(regularfiles.read(os.path.join(folder, _name(path)), _MOST_BYTES))
        return {
            str(file): [[str(part) for part in (pattern, host, prefix, *hosts)] for pattern, host, prefix, *hosts in each]
            for file, each in found.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, regularfiles.NotRegular):
        return {}


def _fault_of(config: Config, file: str) -> str:
    """Return the fault of a file, which begins with its name as it was given."""
    name = os.path.basename(file)
    return next((fault for fault in config.faults if name in fault.partition(": ")[0]), f"{file}: cannot be read, or is empty")


def _name(path: str) -> str:
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest() + cachefolder.PATTERNS_SUFFIX


def _nearest(folder: str) -> str:
    """Return the folder above that exists."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder
