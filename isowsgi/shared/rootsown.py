"""Paths on which root may rely: nobody else can change where they lead, or what is there."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack

# Links that a path may lead through: as many as the kernel follows (path_resolution(7)).
_MOST_LINKS = 40


class NotRootsError(PermissionError):
    """Others than root can change where a path leads, or what is there.

    Attributes:
        uid: the first on the way who can, and whom nobody but root can put out of it; None: it may be one of several.
    """

    def __init__(self, path: str, uid: int | None) -> None:
        super().__init__(errno.EPERM, os.strerror(errno.EPERM), path)
        self.uid = uid


def is_roots(path: str) -> bool:
    """Whether only root can change a folder or file, and where its path leads.

    Args:
        path: absolute.
    """
    try:
        os.close(open_path(path))
    except OSError:
        return False
    return True


def open_path(path: str) -> int:
    """Return a descriptor of a folder or file that only root can change, and on the way to which only root can change anything.

    Folders and links are opened one after the other, each in the one before, and what was opened is what is checked, so nobody can put
    something else there in between. Links in a link's target are checked too: root's may lead to one that is a user's.

    Args:
        path: absolute.

    Raises:
        NotRootsError: others than root could change where the path leads.
        OSError: it is not there, or leads through too many links.
    """
    names, links, folder = _names(path), 0, -1
    with ExitStack() as opened:
        while names:
            place = os.open(names.pop(0), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            opened.callback(os.close, place)
            status = os.fstat(place)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if status.st_uid != 0:
                    raise NotRootsError(path, _whose(status, folder))
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                names[:0] = _names(os.readlink("", dir_fd=place))  # of the link that was opened
            elif _is_roots_alone(status):
                folder = place
            else:
                raise NotRootsError(path, _whose(status, folder))
        if not _is_roots_alone(os.fstat(folder), may_be_sticky=False):
            raise NotRootsError(path, None)
        return os.dup(folder)


def _names(path: str) -> list[str]:
    """Return what is opened one after the other on the way to a path: "/" first if it is absolute, which is the same in every folder."""
    return [*([os.sep] if os.path.isabs(path) else ()), *(name for name in path.split(os.sep) if name)]


def _whose(status: os.stat_result, folder: int) -> int | None:
    """Return the user who can change what is not root's; None: others can as well, or can put their own in its place if it is removed.

    Args:
        folder: that it is in; only root can replace what root has there. -1: none.
    """
    is_kept = folder < 0 or _is_roots_alone(os.fstat(folder), may_be_sticky=False)
    return status.st_uid if status.st_uid and is_kept else None


def _is_roots_alone(status: os.stat_result, may_be_sticky: bool = True) -> bool:
    """Whether only root can change what is in a folder.

    Args:
        may_be_sticky: whether it suffices that nobody else can replace what root has there, as in /tmp.
    """
    is_writable = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    is_sticky = may_be_sticky and bool(status.st_mode & stat.S_ISVTX)
    return status.st_uid == 0 and (not is_writable or is_sticky)
