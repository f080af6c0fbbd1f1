"""What a process may do beyond its user, and how it gives that up for good: prctl(2), capget(2) and capset(2), which Python has not."""

from __future__ import annotations

import ctypes
import functools
import os

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

# linux/capability.h: become another group, and another user.
CAP_SETGID, CAP_SETUID = 6, 7

_CAPABILITIES_VERSION_3 = 0x20080522


@functools.cache
def libc() -> ctypes.CDLL:
    """Return the C library; `ctypes.get_errno` tells why a call failed."""
    return ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: object) -> None:
    """Set something of this process, or of this thread.

    Raises:
        OSError: the kernel refuses it.
    """
    if libc().prctl(option, value, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def capabilities() -> int:
    """Return what root may do beyond others, as far as this process may: a bit for each capability.

    Raises:
        OSError: the kernel refuses it.
    """
    header, data = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if libc().capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    return data[1] | data[4] << 32  # permitted, of each half


def keep_capabilities(kept: int) -> None:
    """Give up what root may do beyond others, but for some of it that this thread has.

    Args:
        kept: a bit for each capability.

    Raises:
        OSError: the kernel refuses it.
    """
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION_3, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    if libc().capset(header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)):  # effective, permitted, inheritable, of each half
        raise OSError(ctypes.get_errno(), "capset")
