"""What must be so before mounts may have users of their own: gunicorn is root, and only root says who runs what."""

from __future__ import annotations

import os
from typing import Any

from isowsgi.configuration import Config
from isowsgi.configuration.faults import place_text
from isowsgi.configuration.walls import with_user
from isowsgi.shared import rootsown


def faults(config: Config, cfg: Any, shown: str) -> list[str]:
    """Return what is wrong with mounts that have a user, as `ConfigError` has it.

    Args:
        shown: the config file, as it was named.
    """
    wanting = with_user(config.mounts)
    if not wanting or cfg.check_config:
        return []
    if (uid := os.geteuid()) != 0:
        place = f"{shown}: {place_text(('mounts', wanting[0].pattern, 'user'))}"
        text = "only root can start a process as another user; start gunicorn as root, with its own settings user and group"
        return [f"{place}: {text} (it was started by user {uid})"]
    files = dict.fromkeys([config.path, *(mount.file for mount in wanting if mount.file)])
    text = "it says which user runs what, so nobody but root may be able to change it, or a folder on the way to it; use chown and chmod"
    return [f"{file}: {text}" for file in files if not rootsown.is_roots(file)]


def warning(config: Config, cfg: Any) -> str | None:
    """Say what makes users of mounts a weaker wall, or return None."""
    patterns = [mount.pattern for mount in config.mounts if mount.user]
    if patterns and cfg.uid == 0:
        return f"{', '.join(patterns)}: the workers run as root, and read what strangers send; set gunicorn's `user` and `group`"
    return None
