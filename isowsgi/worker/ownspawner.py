"""The worker's spawner, forked while gunicorn is root still."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gunicorn import glogging

from isowsgi.configuration.walls import with_user
from isowsgi.instances.bootorder import BootOrders
from isowsgi.instances.spawnedprocess import SpawnerClient
from isowsgi.shared import logfiles

if TYPE_CHECKING:
    from isowsgi.master.workerplan import Share
    from isowsgi.spawner.vouched import Vouched


# How long the spawner may take to begin: milliseconds, and as long as a directory service needs to look its users up. The master
# waits no longer than gunicorn's `timeout` for a sign of life of the worker, so at most half of that.
_BEGIN_S = 10.0


def take_spawner(share: Share, cfg: Any, listeners: list[Any], mount_logs: Mapping[str, int], log: Any) -> SpawnerClient | None:
    """Fork the spawner, and wait until it is ready; in a worker that is root still, by its only thread.

    None if no mount has a user, or gunicorn is not root; also if it cannot begin: the log says so, and the mounts with a user fail.
    One that ends later has the worker replaced, but what cannot begin here would not begin in the next worker either.

    Args:
        listeners: gunicorn's.
        mount_logs: descriptors of mounts' log files, by path.
        log: gunicorn's.

    Raises:
        OSError: there is no room for one more process.
    """
    config = share.vouched
    if config is None or os.geteuid() != 0 or not with_user(config.mounts):
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
        spawner = SpawnerClient(ours, process.fork(theirs, vouched))
    if spawner.wait_ready(min(_BEGIN_S, cfg.timeout / 2) if cfg.timeout else _BEGIN_S):
        return spawner
    text = "the spawner, which starts the processes of mounts with a user, could not begin; its standard error may say why. These mounts"
    log.error("%s fail, the others are served; send gunicorn SIGHUP once it is mended", text)
    return None
