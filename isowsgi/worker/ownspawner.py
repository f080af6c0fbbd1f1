"""The worker's spawner, forked while gunicorn is root still."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gunicorn import glogging

from isowsgi.instances.bootorder import BootOrders
from isowsgi.instances.spawnedprocess import SpawnerClient
from isowsgi.shared import logfiles

if TYPE_CHECKING:
    from isowsgi.master.workerplan import Share
    from isowsgi.spawner.vouched import Vouched


def take_spawner(share: Share, cfg: Any, listeners: list[Any], mount_logs: Mapping[str, int]) -> SpawnerClient | None:
    """Fork the spawner; None if no mount has a user, or gunicorn is not root. To be called as root, by the worker's only thread.

    Args:
        listeners: gunicorn's.
        mount_logs: descriptors of mounts' log files, by path.

    Raises:
        OSError: there is no room for one more process.
    """
    config = share.vouched
    if config is None or os.geteuid() != 0 or not any(mount.user and not mount.fault for mount in config.mounts):
        return None
    from isowsgi.spawner import process  # late: most workers have none
    from isowsgi.spawner.vouched import Vouched

    def vouched() -> Vouched:
        orders = BootOrders(
            dict(share.settings),
            cfg,
            [listener.getsockname() for listener in listeners],
            report_files=bool(cfg.reload),
            region=share.region.region,
            log_files=logfiles.handed(glogging.loggers()),
            mount_logs=mount_logs,
            log=config.log,
        )
        return Vouched(config, orders)

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        return SpawnerClient(ours, process.fork(theirs, vouched))
