"""Landlock: what this kernel can take away from a process that asks for it itself, without any right (landlock(7), linux/landlock.h).

A rule says what is allowed beneath a path, or for a TCP port. The rest of what a ruleset handles is refused from then on, to the thread
that asks for it and to all that it starts. Newer kernels handle more, and refuse rulesets that handle what they do not know. So the number
of what they know, the ABI, is asked for first.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
from collections.abc import Iterable

from isowsgi.shared.privileges import PR_SET_NO_NEW_PRIVS, libc, prctl

# System calls, with the same numbers on all machines that CPython supports on Linux (asm-generic/unistd.h).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH, _NET_PORT = 1, 2
_CREATE_RULESET_VERSION = 1

# Access to files by bit.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, _MAKE_BLOCK, MAKE_SYM, REFER, TRUNCATE, IOCTL_DEV, RESOLVE_UNIX = (
    1 << bit for bit in range(6, 17)
)
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV | RESOLVE_UNIX

READ = EXECUTE | READ_FILE | READ_DIR
# Nothing that was written is executed, and no device is made.
WRITE = (
    READ_FILE | READ_DIR | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM | REFER | TRUNCATE
)  # fmt: skip

_BIND_TCP, _CONNECT_TCP = 1, 2
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2

# By ABI: what it handles first, for those who have an older one.
_GAPS = (
    (3, "cutting files off (truncate)"),
    (4, "TCP ports"),
    (5, "ioctl on devices"),
    (6, "signals and abstract Unix sockets"),
    (9, "connections to Unix sockets"),
)


class Unavailable(Exception):
    """This kernel, or its configuration, has no Landlock."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"  # as `_pack_` implies; 3.14 wants it said
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _NetPort(ctypes.Structure):
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


@functools.cache
def abi() -> int:
    """Return the kernel's ABI; 0: it has no Landlock."""
    found: int = libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    return max(found, 0)


def gaps() -> list[str]:
    """Return what this kernel cannot restrict and newer ones can."""
    return [what for since, what in _GAPS if abi() < since]


def restrict(files: Iterable[tuple[str, int]], connect: Iterable[int] | None, listen: Iterable[int] | None) -> None:
    """Take all access from the calling thread, and from what it starts, but for what is named.

    Args:
        files: paths and the access that is allowed beneath each; those that do not exist are passed over.
        connect, listen: TCP ports that are allowed; None: all.

    Raises:
        Unavailable: there is no Landlock.
        OSError: the kernel refuses it.
    """
    version = abi()
    if not version:
        raise Unavailable("this kernel has no Landlock: it needs Linux 5.13, CONFIG_SECURITY_LANDLOCK, and landlock among lsm= at boot")
    handled = _handled(version)
    net = (_CONNECT_TCP if connect is not None else 0) | (_BIND_TCP if listen is not None else 0) if version >= 4 else 0
    attributes = _Ruleset(files=handled, net=net, scoped=_ABSTRACT_SOCKETS | _SIGNALS if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    try:
        for path, access in files:
            _allow_beneath(ruleset, path, access & handled)
        for ports, right in ((connect, _CONNECT_TCP), (listen, _BIND_TCP)):
            for port in ports if ports is not None and net else ():
                _call(_ADD_RULE, ruleset, _NET_PORT, ctypes.byref(_NetPort(allowed=right, port=port)), 0)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _handled(version: int) -> int:
    since = {2: REFER, 3: TRUNCATE, 5: IOCTL_DEV, 9: RESOLVE_UNIX}
    return (REFER - 1) | sum(right for first, right in since.items() if version >= first)


def _allow_beneath(ruleset: int, path: str, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not on this machine
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _OF_FILES
        if access:
            _call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(_PathBeneath(allowed=access, parent=fd)), 0)
    finally:
        os.close(fd)


def _call(number: int, *arguments: object) -> int:
    result: int = libc().syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"landlock: {os.strerror(code)} ({errno.errorcode.get(code, code)})")
    return result
