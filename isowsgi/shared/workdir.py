"""The working directory as it was written: a shell in /srv/current is in releases/42 today, and the link leads elsewhere tomorrow."""

from __future__ import annotations

import os


def current() -> str:
    """Return the path by which the shell went here, if it still leads here, else the path without links, as gunicorn does for `chdir`.

    Raises:
        FileNotFoundError: the folder was deleted.
    """
    written = os.environ.get("PWD", "")
    try:
        if os.path.isabs(written) and os.path.samefile(written, "."):
            return os.path.normpath(written)
    except (OSError, ValueError):
        pass  # it leads nowhere any more
    return os.getcwd()


def absolute(path: str) -> str:
    """Return an absolute path, a relative one from `current`."""
    return os.path.normpath(path if os.path.isabs(path) else os.path.join(current(), path))
