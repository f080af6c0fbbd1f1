"""gunicorn's own settings file: which one the master has read, so that a command can tell whether it has changed since."""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

from isowsgi.shared import regularfiles

# Most bytes of it that are compared; such files have some KiB.
MOST_BYTES = 1 << 20


class ConfFile(NamedTuple):
    """A file as it was read."""

    path: str  # absolute
    digest: str  # of what was in it


def read(setting: str | None) -> ConfFile | None:
    """Return what a file has in it now; None if there is none, or gunicorn's settings come from elsewhere.

    Args:
        setting: gunicorn's `config`; relative to the working directory.
    """
    if not setting or setting.startswith("python:"):
        return None
    path = os.path.abspath(setting.removeprefix("file:"))
    digest = digest_of(path)
    return ConfFile(path, digest) if digest is not None else None


def digest_of(path: str) -> str | None:
    """Return what tells a file's contents from others; None if it cannot be read."""
    try:
        return hashlib.sha256(regularfiles.read(path, MOST_BYTES)).hexdigest()
    except (OSError, ValueError, regularfiles.NotRegular):
        return None
