"""As whom an app is tried: as its own user where root asks, for root runs nothing that is another user's; else as who asks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from isowsgi.configuration import accounts
from isowsgi.configuration.accounts import Account
from isowsgi.shared.messages import BootOrder

# How long it may take to remove what an app has put into its folder while it was tried; what is left then stays.
_REMOVAL_S = 30.0


def account_of(order: BootOrder) -> Account | None:
    """Return who a process of an app's is started as; None: who asks.

    Raises:
        Fault: there is no such user any more.
    """
    if os.geteuid() != 0 or order.walls is None or not order.walls.user:
        return None
    return accounts.find(order.walls.user)


def process_of(account: Account | None, environ: Mapping[str, str], has_own_python: bool = False) -> dict[str, Any]:
    """Return what `subprocess` is told of it.

    Args:
        environ: of who asks.
        has_own_python: whether it is another Python than that of who asks, whose standard library lies elsewhere.
    """
    environ = {name: value for name, value in environ.items() if name != "PYTHONHOME" or not has_own_python}
    if account is None:
        return {"env": environ}
    ids: dict[str, Any] = {"user": account.uid, "group": account.gid, "extra_groups": account.groups}
    return {"env": accounts.environ_of(account, environ), **ids}


def remove(folder: str, account: Account, environ: Mapping[str, str]) -> None:
    """Remove a folder with all in it as the user who has filled it, and may still do so: root touches nothing in there.

    Raises:
        OSError: no process can be started.
    """
    command = [sys.executable, "-I", "-S", "-c", "import shutil, sys; shutil.rmtree(sys.argv[1], ignore_errors=True)", folder]
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, **streams, cwd=os.sep, start_new_session=True, timeout=_REMOVAL_S, **process_of(account, environ))
