"""The folder for what isowsgi remembers on disk, and whether it can be believed."""

from __future__ import annotations

import os
import stat
import tempfile

FOLDER_VARIABLE = "ISOWSGI_CACHE_DIR"

# A second folder, which is only read: verdicts that came with an image.
BAKED_VARIABLE = "ISOWSGI_BAKED_VERDICTS"

# Of the files that `configuration.remembered` puts there; `isolation.verdicts` makes room among all.
PATTERNS_SUFFIX = ".patterns"

# Of those that `instances.preloads` puts there.
PRELOADS_SUFFIX = ".preload"


def default_folder() -> str:
    """Return $ISOWSGI_CACHE_DIR, else isowsgi in $XDG_CACHE_HOME, else ~/.cache/isowsgi, else one in the temporary folder."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return named
    for cache in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(cache):  # its specification has others ignored; and "~" stays where a user has no home, as in containers
            return os.path.join(cache, "isowsgi")
    return os.path.join(tempfile.gettempdir(), f"isowsgi-cache-{os.geteuid()}")


def is_ours_alone(folder: str) -> bool:
    """Whether nobody else may write there: what is forged there would be believed.

    Raises:
        OSError: there is no such folder.
    """
    status = os.stat(folder)
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def is_trusted(folder: str) -> bool:
    """Whether what lies there can be believed: only its user may write there, and that is us or root, who could do anything anyway.

    Raises:
        OSError: there is no such folder.
    """
    status = os.stat(folder)
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def put(folder: str, name: str, content: bytes) -> None:
    """Put a file in place whole; the last of several writers stays.

    Raises:
        OSError: it cannot be.
    """
    fd, path = tempfile.mkstemp(dir=folder, suffix=".new")
    try:
        with open(fd, "wb") as file:
            file.write(content)
        os.replace(path, os.path.join(folder, name))
    except OSError:
        os.unlink(path)
        raise
