"""Absolute paths, made from the working directory as the shell wrote it: /srv/current is releases/42 today, another release tomorrow."""

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
        pass  # the link is dead
    return os.getcwd()


def absolute(path: str) -> str:
    """Return an absolute path, a relative one from `current`."""
    return os.path.normpath(path if os.path.isabs(path) else os.path.join(current(), path))


def for_child() -> str | None:
    """Return the `cwd` of a new child process for `Popen`: None, which is ours, or the root folder if ours was deleted.

    In a deleted folder Python 3.13.0 cannot even import socket ("SystemError: error return without exception set").
    """
    try:
        os.getcwd()
    except OSError:
        return os.sep
    return None
