"""Opens files below one folder, and nothing else, whatever names a client sends and whoever changes the folder meanwhile.

A path is walked name by name, each opened in the folder that the name before it has opened: nobody can put a link in the way between a
check and its use. A link is looked at after it was followed: by what its descriptor leads to, not by what its text says.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

# Names that begin with a dot are not served, but for this one at the top: RFC 8615, for certificates and security.txt.
WELL_KNOWN = b".well-known"

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# Without waiting for whoever writes to a FIFO; a terminal does not become the process' own.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# What nginx answers 404 as well: no such name, a file where a folder is wanted, a name that no file system takes; and a socket.
_MISSING = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV))
_FORBIDDEN = frozenset((errno.EACCES, errno.EPERM, errno.ELOOP))


class Missing(Exception):
    """There is no such file; 404."""


class Forbidden(Exception):
    """It is there, and not to be served; 403."""


class IsFolder(Exception):
    """It is a folder."""


class Opened(NamedTuple):
    """A regular file, open for reading; whoever has it closes it."""

    fd: int
    facts: os.stat_result


class Tree:
    """One folder, or one file, and what lies below.

    Args:
        root: absolute; it may lead through links, which are followed at each request, so that a release can be switched.
        follows: whether links may lead out of it.
    """

    def __init__(self, root: str, follows: bool) -> None:
        self.root = os.fsencode(root)
        self._follows = follows

    @contextmanager
    def folder(self, names: Sequence[bytes]) -> Iterator[int]:
        """Open a folder for the block.

        Args:
            names: the way to it, checked by `is_served`.

        Raises:
            Missing, Forbidden: there is none to be served.
        """
        with _answers():
            fd = os.open(self.root, _FOLDER)
        try:
            for name in names:
                with _answers():
                    inner = self._step(fd, name)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def file(self, folder: int, name: bytes) -> Opened:
        """Open a file in a folder.

        Raises:
            Missing, Forbidden, IsFolder: it is none to be served.
        """
        with _answers():
            try:
                fd = os.open(name, _FILE | os.O_NOFOLLOW, dir_fd=folder)
            except OSError as exc:
                if exc.errno != errno.ELOOP:
                    raise
                fd = self._follow(folder, name)
        return _regular(fd)

    def itself(self) -> Opened:
        """Open the root, if it is a file.

        Raises:
            Missing, Forbidden, IsFolder: it is none.
        """
        with _answers():
            return _regular(os.open(self.root, _FILE))

    def _step(self, folder: int, name: bytes) -> int:
        try:
            return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        except NotADirectoryError:  # so it is for a link, too
            fd = os.open(name, _FOLDER, dir_fd=folder)
        return self._checked(fd)

    def _follow(self, folder: int, name: bytes) -> int:
        """Open what a link leads to; a device or a FIFO only by its name, which does nothing to it."""
        fd = self._checked(os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=folder))
        try:
            _check_kind(os.fstat(fd))
            return os.open(f"/proc/self/fd/{fd}", _FILE)
        finally:
            os.close(fd)

    def _checked(self, fd: int) -> int:
        """Return the descriptor of what a link led to if that may be served; else close it."""
        try:
            if not self._follows and not self._is_inside(fd):
                raise Forbidden
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _is_inside(self, fd: int) -> bool:
        root = os.open(self.root, _FOLDER)
        try:
            base, path = (os.readlink(b"/proc/self/fd/%d" % each).rstrip(b"/") for each in (root, fd))
        except FileNotFoundError:  # there is no /proc here: nobody can say where it leads
            return False
        finally:
            os.close(root)
        return path == base or (path.startswith(base + b"/") and is_served(path[len(base) + 1 :].split(b"/")))


def is_served(names: Sequence[bytes]) -> bool:
    """Whether names of a path are of files that are served: none begins with a dot, so none is "." or ".." either."""
    return not any(name.startswith(b".") for name in (names[1:] if names and names[0] == WELL_KNOWN else names))


def _regular(fd: int) -> Opened:
    try:
        facts = os.fstat(fd)
        _check_kind(facts)
    except BaseException:
        os.close(fd)
        raise
    return Opened(fd, facts)


def _check_kind(facts: os.stat_result) -> None:
    if stat.S_ISDIR(facts.st_mode):
        raise IsFolder
    if not stat.S_ISREG(facts.st_mode):
        raise Missing


@contextmanager
def _answers() -> Iterator[None]:
    """Turn what the file system says into what the client is told; what is neither, such as a table of descriptors that is full, passes."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _MISSING:
            raise Missing from None
        if exc.errno in _FORBIDDEN:
            raise Forbidden from None
        raise
