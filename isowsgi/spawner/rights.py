"""What a process may do: root's rights that the spawner keeps, and how a child of it gives up all of them for good."""

from __future__ import annotations

import ctypes
import os
import signal

from isowsgi.configuration.accounts import Account

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

# linux/capability.h: become another user and group; end processes of other users; follow the links of a path in a folder that is closed to
# others, such as a home.
_CAP_DAC_READ_SEARCH, _CAP_KILL, _CAP_SETGID, _CAP_SETUID = 2, 5, 6, 7
_KEPT = (_CAP_DAC_READ_SEARCH, _CAP_KILL, _CAP_SETGID, _CAP_SETUID)
_CAPABILITIES = 64  # as many as a set has room for
_VERSION_3 = 0x20080522

_c = ctypes.CDLL(None, use_errno=True)


def keep_what_it_takes(name: str) -> None:
    """Keep the rights that it takes to start processes as other users and to end them; for a process with one thread.

    Nothing that is started from here gains any again (no_new_privs). What its processes leave behind becomes this process' child.

    Raises:
        OSError: the kernel refuses it.
    """
    _prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for capability in range(_CAPABILITIES):
        if capability not in _KEPT and _c.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            break  # the kernel knows no more; or it lets nobody, and as root nothing is executed from here
    held = _held()
    kept = sum(1 << capability for capability in _KEPT) & held
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    if _c.capset(header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)):  # effective, permitted, inheritable, of each half
        raise OSError(ctypes.get_errno(), "capset")


def _held() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapPrm:"))


def become(account: Account) -> None:
    """Become another user for good; for a process with one thread.

    Raises:
        OSError: this process may not.
    """
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    has_become = os.getresuid() == (account.uid,) * 3 and os.getresgid() == (account.gid,) * 3
    if not has_become or {*os.getgroups()} != {*account.groups}:
        raise PermissionError("the kernel has not made it another user")


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. Not before it has become another user: the kernel forgets it then."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: object) -> None:
    if _c.prctl(option, value, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
