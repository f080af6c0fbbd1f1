"""As whom an app is tried: as its own user where root asks, for root runs nothing that is another user's; else as who asks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from isowsgi.configuration import accounts
from isowsgi.configuration.accounts import Account
from isowsgi.shared.messages import BootOrder


def account_of(order: BootOrder) -> Account | None:
    """Return who a process of an app's is started as; None: who asks.

    Raises:
        Fault: there is no such user any more.
    """
    if os.geteuid() != 0 or order.walls is None or not order.walls.user:
        return None
    return accounts.find(order.walls.user)


def process_of(account: Account | None, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what `subprocess` is told of it.

    Args:
        environ: of who asks.
    """
    if account is None:
        return {"env": {**environ}}
    ids: dict[str, Any] = {"user": account.uid, "group": account.gid, "extra_groups": account.groups}
    return {"env": accounts.environ_of(account, environ), **ids}
