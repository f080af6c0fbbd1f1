"""The log files that a worker writes to, of which its user may not be allowed to open some."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from gunicorn import glogging

from isowsgi.configuration import Config
from isowsgi.master.workerplan import Share
from isowsgi.shared import logfiles
from isowsgi.shared.logfiles import HeldFile


class OwnLogs:
    """What was opened before the worker dropped root.

    Args:
        held: files of gunicorn's loggers.
        of_mounts: descriptors of the mounts' own logs, by path.
    """

    def __init__(self, held: Sequence[HeldFile], of_mounts: dict[str, int]) -> None:
        self._held = held
        self.of_mounts = of_mounts

    def lost(self, config: Config | None) -> list[str]:
        """Return the files that this process could not reopen after they were moved away; after it has tried (SIGUSR1).

        Args:
            config: what is served now; None: all that was served first. A log that no mount has any more is none.
        """
        named = self.of_mounts if config is None else {mount.log for mount in config.mounts}
        of_mounts = [path for path in self.of_mounts if path in named and not logfiles.can_append(path)]
        return [held.path for held in self._held if held.is_old] + of_mounts


def take_logs(cfg: Any, share: Share) -> OwnLogs:
    """Hold the log files of a worker that begins; as root still, if gunicorn was started so."""
    held = logfiles.hold(glogging.loggers())
    if os.geteuid() != 0 or cfg.uid == 0 or share.config is None:
        return OwnLogs(held, {})
    named = {mount.log for mount in share.config.mounts if mount.log is not None}
    return OwnLogs(held, logfiles.open_as_root(named & share.root_logs))
