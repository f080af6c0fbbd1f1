"""Users of the machine that apps' processes run as: what `user` of a mount names, looked up as `login` would."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping
from typing import Any

import attrs

from isowsgi.configuration.checks import typed
from isowsgi.configuration.faults import Fault, spelt
from isowsgi.configuration.tenants import PLACE

_MOST_ID = 2**32 - 2  # (uid_t) -1 is none (setresuid(2))

# Variables of gunicorn's own environment that a process of another user gets: where programs and libraries are, and how texts and times are
# written. All else may be a secret, of a neighbour or of the service.
_NAMES = ("LANG", "LANGUAGE", "PATH", "SSL_CERT_DIR", "SSL_CERT_FILE", "TZ")
_PREFIXES = ("LC_", "LD_", "MALLOC_", "PYTHON")


@attrs.frozen(kw_only=True)
class Account:
    """What a process is started as.

    Attributes:
        groups: supplementary ones, and the first one.
        name, home: "" if /etc/passwd has no such user.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str = ""
    home: str = ""


def user(value: Any) -> str:
    """Check `user` of a mount, "shop" or "shop:www-data"; "" takes a default back. It is looked up again before anything becomes it.

    With a place for a tenant's label, "site-{1}", it is looked up only then.
    """
    if PLACE in typed(str, value):
        names = value.split(":")
        if len(names) > 2 or any(name in ("", PLACE) for name in names):
            text = f"expected more than {PLACE!r}, which could be the name of any user, as in 'site-{PLACE}' or 'site-{PLACE}:www-data'"
            raise Fault(f"{text}, got {spelt(value)}")
        if PLACE not in names[-1]:
            _gid(names[-1])
    elif value:
        find(value)
    return str(value)


def find(text: str) -> Account:
    """Return the account that is meant, with the supplementary groups of its user.

    Raises:
        Fault: there is no such user or group, or it is root.
    """
    name, colon, group = text.partition(":")
    if not name or (colon and not group):
        raise Fault(f"expected a user, or user:group, such as 'shop' or 'shop:www-data', got {spelt(text)}")
    entry = _entry(name)
    if entry is None and not _is_id(name):
        raise Fault(f"no such user: {spelt(name)}; create it, or write another one")
    uid = entry.pw_uid if entry is not None else int(name)
    if uid == 0:
        raise Fault(f"root may do all that walls are to keep from an app; expected another user, got {spelt(text)}")
    if entry is None and not group:
        raise Fault(f"the machine does not know user {uid}, so write its group too, as in '{uid}:{uid}'")
    gid = _gid(group) if group else entry.pw_gid if entry is not None else -1
    if entry is None:
        return Account(uid=uid, gid=gid, groups=(gid,))
    groups = dict.fromkeys([gid, *os.getgrouplist(entry.pw_name, gid)])
    return Account(uid=uid, gid=gid, groups=tuple(groups), name=entry.pw_name, home=entry.pw_dir)


def environ_of(account: Account, ours: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a process of another user is started with.

    Args:
        ours: those of who starts it.
    """
    kept = {name: value for name, value in ours.items() if name in _NAMES or name.startswith(_PREFIXES)}
    whose = {"USER": account.name, "LOGNAME": account.name} if account.name else {}
    return kept | whose | {"HOME": account.home or os.sep}


def _entry(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except (KeyError, ValueError):  # ValueError: a NUL in it
        pass
    try:
        return pwd.getpwuid(int(name)) if _is_id(name) else None
    except KeyError:
        return None


def _gid(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        if _is_id(name):
            return int(name)
        raise Fault(f"no such group: {spelt(name)}; create it, or write another one") from None


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text[:11]) <= _MOST_ID
