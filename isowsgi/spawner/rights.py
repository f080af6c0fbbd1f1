"""What a process may do: root's rights that the spawner keeps, and how a child of it gives up all of them for good."""

from __future__ import annotations

import ctypes
import os
import signal

from isowsgi.configuration.accounts import Account
from isowsgi.shared.privileges import (
    CAP_SETGID,
    CAP_SETUID,
    PR_CAPBSET_DROP,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_NAME,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    capabilities,
    keep_capabilities,
    libc,
    prctl,
)

# linux/capability.h: follow the links of a path in a folder that is closed to others, such as a home; end processes of other users.
_CAP_DAC_READ_SEARCH, _CAP_KILL = 2, 5
_KEPT = (_CAP_DAC_READ_SEARCH, _CAP_KILL, CAP_SETGID, CAP_SETUID)
_CAPABILITIES = 64  # as many as a set has room for


def keep_what_it_takes(name: str) -> None:
    """Keep the rights that it takes to start processes as other users and to end them; for a process with one thread.

    Nothing that is started from here gains any again (no_new_privs). What its processes leave behind becomes this process' child.

    Raises:
        OSError: the kernel refuses it.
    """
    prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    for capability in range(_CAPABILITIES):
        if capability not in _KEPT and libc().prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            break  # the kernel knows no more; or it lets nobody, and as root nothing is executed from here
    keep_capabilities(sum(1 << capability for capability in _KEPT) & capabilities())


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
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
