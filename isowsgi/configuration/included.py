"""Config files that the main one includes: one for each site, say. A fault in one costs its own mounts only."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable

import attrs

from isowsgi.configuration.values import App, Config, Mount

# What stands for the app of a mount that cannot be read; people see "-". It is never loaded.
_NO_APP = App(kind="module", target="", call="")


def files(patterns: Iterable[str], folder: str) -> list[str]:
    """Return the absolute paths of the files that some globs find, each once: glob by glob, sorted; nothing if there is none.

    Args:
        folder: that relative globs begin at.
    """
    found = (path for pattern in patterns for path in sorted(glob.glob(os.path.join(folder, pattern))))
    return list(dict.fromkeys(os.path.normpath(path) for path in found))


def faulty_mount(pattern: str, host: str, prefix: str, file: str, fault: str) -> Mount:
    """Return what stands for a mount that cannot be read: it is answered 503, so that no other mount gets its requests."""
    return Mount(pattern=pattern, host=host, prefix=prefix, app=_NO_APP, file=file, fault=fault)


def keep_faulty(new: Config, old: Config) -> Config:
    """Return a config in which mounts whose file has faults stay as they were, if they were.

    Args:
        new: as it was read.
        old: what is served.
    """
    before = {mount.pattern: mount for mount in old.mounts}
    mounts = [before.get(mount.pattern, mount) if mount.fault else mount for mount in new.mounts]
    there = {mount.pattern for mount in mounts}
    mounts += [mount for mount in old.mounts if mount.file in new.faulty and mount.pattern not in there]
    return attrs.evolve(new, mounts=tuple(attrs.evolve(mount, number=number) for number, mount in enumerate(mounts)))
