"""`fcntl.lockf` between the mounts of one process: a lock that belongs to the opened file, not to the process.

A POSIX record lock has the process for its owner (fcntl(2)): two mounts that want the same one both get it, and either loses it as soon
as the other closes any descriptor of that file. fasteners, and so oslo.concurrency, lock so; flock, as filelock takes it, was never the
process'. Linux has record locks whose owner is what open(2) returned ("open file description locks", since 3.15). They and POSIX locks
keep each other out, so mounts, processes of apps and other programs agree.
"""

from __future__ import annotations

import struct

from isowsgi.inside.private import theirs

TYPE_CHECKING = False  # as typing's, without the 2 ms of importing typing
if TYPE_CHECKING:
    from typing import Any

fcntl = theirs("fcntl")  # the app's

# struct flock of linux/fcntl.h where off_t has 64 bits: type, whence, start, length, and a process id, which must be 0.
_FLOCK = struct.Struct("hhqqi0q")

_TYPES = {fcntl.LOCK_SH: fcntl.F_RDLCK, fcntl.LOCK_EX: fcntl.F_WRLCK, fcntl.LOCK_UN: fcntl.F_UNLCK}


def install() -> None:
    """Put such locks in the place of `fcntl.lockf` in this interpreter."""
    if struct.calcsize("P") != 8:  # the structure is another one there
        return
    control, set_lock, wait_for_lock = fcntl.fcntl, fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW

    def lockf(fd: Any, cmd: int, len: int = 0, start: int = 0, whence: int = 0, /) -> None:
        kind = _TYPES.get(cmd & ~fcntl.LOCK_NB)
        if kind is None:
            raise ValueError("unrecognized lockf argument")
        control(fd, set_lock if cmd & fcntl.LOCK_NB else wait_for_lock, _FLOCK.pack(kind, whence, start, len, 0))

    lockf.__doc__ = fcntl.lockf.__doc__
    fcntl.lockf = lockf
