"""What must be so before mounts may have users of their own: gunicorn is root, and only root says who runs what."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import Any

from isowsgi.configuration import Config, Mount
from isowsgi.configuration.faults import place_text
from isowsgi.configuration.tenants import PLACE, folder_of
from isowsgi.configuration.walls import with_user
from isowsgi.shared import privileges, rootsown

# What it takes to become another user. A process of root's may lack it.
_TAKES = {"CAP_SETGID": privileges.CAP_SETGID, "CAP_SETUID": privileges.CAP_SETUID}


def faults(config: Config, cfg: Any, shown: str) -> list[str]:
    """Return what is wrong with mounts that have a user, as `ConfigError` has it.

    Args:
        shown: the config file, as it was named.
    """
    wanting = with_user(config.mounts)
    if not wanting or cfg.check_config:
        return []
    place = f"{shown}: {place_text(('mounts', wanting[0].pattern, 'user'))}"
    if (uid := os.geteuid()) != 0:
        text = "only root can start a process as another user; start gunicorn as root, with its own settings user and group"
        return [f"{place}: {text} (it was started by user {uid})"]
    held = privileges.capabilities()
    lacking = [name for name, bit in _TAKES.items() if not held >> bit & 1]
    if lacking:
        text = f"gunicorn is root, but may not become another user: it lacks {' and '.join(lacking)}"
        hint = "in a systemd unit add it to CapabilityBoundingSet, and leave User= and Group= empty, as deploy/systemd/users.conf does"
        why = "systemd 255 and newer take CAP_SETUID from a service with User=root"
        return [f"{place}: {text}; {hint}: {why}"]
    files = dict.fromkeys([config.path, *(mount.file for mount in wanting if mount.file)])
    text = "it says which user runs what, so nobody but root may be able to change it, or a folder on the way to it; use chown and chmod"
    found = [f"{file}: {text}" for file in files if not rootsown.is_roots(file)]
    text = "what is there says which user runs the app, so nobody but root may be able to change this folder; use chown and chmod"
    for mount in wanting:
        if mount.exists and PLACE in mount.user and not rootsown.is_roots(folder := folder_of(mount.exists)):
            found.append(f"{shown}: {place_text(('mounts', mount.pattern, 'exists'))}: {folder}: {text}")
    return found


def warnings(config: Config, cfg: Any) -> Iterator[str]:
    """Yield what makes users of mounts a weaker wall, and what such mounts do without."""
    owned = with_user(config.mounts)
    if owned and cfg.uid == 0:
        patterns = ", ".join(mount.pattern for mount in owned)
        yield f"{patterns}: the workers run as root, and read what strangers send; set gunicorn's `user` and `group`"
    yield from _in_vain(owned, "`user`", "each instance loads the app itself", "no fork server's process may become another user")
    behind = [mount for mount in config.mounts if mount.python and not (mount.user or mount.fault) and _is_walled(mount)]
    reason = "its Python starts behind them, so no fork server has it"
    yield from _in_vain(behind, "`python` and a sandbox or limits", reason, reason)


def _in_vain(mounts: Collection[Mount], cause: str, of_copies: str, of_preload: str) -> Iterator[str]:
    """Yield which of some mounts ask for what only fork servers do, and have none.

    Args:
        of_copies: why their copies are not forked.
        of_preload: why nothing is loaded before.
    """
    copied = ", ".join(mount.pattern for mount in mounts if mount.copies == "fork" and mount.instances > 1)
    if copied:
        yield f"{copied}: copies = 'fork' has no effect with {cause}: {of_copies}"
    preloaded = ", ".join(mount.pattern for mount in mounts if mount.preload)
    if preloaded:
        yield f"{preloaded}: preload has no effect with {cause}: {of_preload}"


def _is_walled(mount: Mount) -> bool:
    return mount.sandbox is not None or any(mount.limits.values())
