"""Makes a worker's parts (acceptor, supervisor, relay, control socket) and connects them."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gunicorn import glogging

from isowsgi.configuration import Config
from isowsgi.inside.settings import Settings
from isowsgi.instances.bootorder import BootOrders
from isowsgi.instances.controlgroups import ControlGroups
from isowsgi.instances.spawnedprocess import SpawnerClient
from isowsgi.master.crashes import SUSPECT
from isowsgi.shared import logfiles, sockets
from isowsgi.shared.applied import Applied, LastApplied
from isowsgi.shared.conffile import ConfFile
from isowsgi.shared.containment import Containment
from isowsgi.shared.interpreters import MAIN, SHARED_GIL
from isowsgi.shared.origins import Origins
from isowsgi.shared.peek import Peeker
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker import proxyheader
from isowsgi.worker.acceptor import Acceptor
from isowsgi.worker.control import commands
from isowsgi.worker.control.applying import Applying
from isowsgi.worker.control.server import ControlServer, drive
from isowsgi.worker.control.watching import LOOK_S, FileWatcher
from isowsgi.worker.gilprobe import GilProbe
from isowsgi.worker.listeners import most_connections
from isowsgi.worker.loop import Loop
from isowsgi.worker.reloadqueue import Places, places_at_a_time
from isowsgi.worker.supervisor import Supervisor
from isowsgi.worker.table import Table

if TYPE_CHECKING:
    from isowsgi.master.tlscontext import Reading
    from isowsgi.worker.certificates import Certificates
    from isowsgi.worker.tls import Relay

# How often it is looked whether a mount shares the main interpreter's GIL.
_SHARERS_S = 1.0

# Connections of a worker whose settings were refused, at a SIGHUP: gunicorn's default for worker_connections.
_CONNECTIONS = 1000

# Descriptors that one client's connection takes in the worker: behind TLS also both ends of the pair.
_DESCRIPTORS_PLAIN = 1
_DESCRIPTORS_TLS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All of them."""

    loop: Loop
    orders: BootOrders
    supervisor: Supervisor
    acceptor: Acceptor
    commands: commands.Commands
    applying: Applying
    watcher: FileWatcher
    control: ControlServer
    relay: Relay | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a worker's parts are made from.

    Attributes:
        cfg: gunicorn's settings.
        log: gunicorn's logger.
        settings: those of gunicorn's settings that apps' interpreters obey.
        tls: see `master.workerplan.Share`.
        verdicts: patterns of mounts that crashed workers, by verdict.
        listeners: gunicorn's.
        age: the worker's number.
        groups: for processes with limits.
        mount_logs: descriptors of mounts' log files, by path, that only root may open.
        spawner: of processes of other users; None if no mount has a user.
        last_applied, base, serial, conf_file: see `master.workerplan.Share`.
        on_files, refuse_by_gunicorn: see `Supervisor` and `Acceptor`.
    """

    cfg: Any
    log: Any
    config: Config
    settings: Mapping[str, Any]
    tls: Reading | None
    board: Scoreboard
    verdicts: Mapping[str, frozenset[str]]
    containment: Containment
    listeners: list[Any]
    age: int
    mount_logs: Mapping[str, int]
    spawner: SpawnerClient | None
    last_applied: LastApplied | None
    base: int
    serial: str
    conf_file: ConfFile | None
    groups: ControlGroups
    on_files: Callable[[list[str]], None] | None
    refuse_by_gunicorn: Callable[[Any, Any, Exception], None]


def assemble(given: Given) -> Parts:
    """Make the parts of a worker; nothing runs yet."""
    config = given.config
    origins = Origins() if given.tls is not None or given.cfg.proxy_protocol != "off" else None
    orders = _make_orders(given)
    supervisor = _make_supervisor(given, orders, origins)
    relay = certificates = None
    if given.tls is not None:
        relay, certificates = _make_relay(given, given.tls, supervisor.table, origins)
    loop = Loop(given.containment)
    acceptor = _make_acceptor(given, loop, supervisor, origins, relay)
    applying = Applying(supervisor.live, given.last_applied, given.base, given.serial, given.log)
    applying.certificates = certificates
    if certificates is not None:
        supervisor.certificates = certificates.told
    carrier = commands.Commands(supervisor, applying, given.conf_file, given.board, given.log.warning)
    applying.on_removed = carrier.running.forget_stops
    control = ControlServer(carrier.begin, commands.this_worker(config.path, given.age), given.log, given.containment)
    carrier.asker = lambda: control.asker
    carrier.shells.on_answer = control.tick  # else each line of a paste waits for its answer until the next look
    supervisor.on_report = control.look_soon  # what a command waits for may have come
    drive(loop, control)
    own_files = given.tls.files or () if given.tls is not None else ()
    watcher = FileWatcher(lambda: supervisor.table.config, given.last_applied, given.log, own_files)
    loop.every(LOOK_S, watcher.tick, "look at the config files")
    _probe_gil(given, loop, supervisor)
    return Parts(
        loop=loop,
        orders=orders,
        supervisor=supervisor,
        acceptor=acceptor,
        commands=carrier,
        applying=applying,
        watcher=watcher,
        control=control,
        relay=relay,
    )


def _probe_gil(given: Given, loop: Loop, supervisor: Supervisor) -> None:
    probe = GilProbe(given.board.acceptor_row(), given.containment)
    loop.later(0, probe.start, "GIL probe")
    sharers = (SHARED_GIL, MAIN)
    loop.every(_SHARERS_S, lambda: probe.want(any(each.siting.isolation in sharers for each in supervisor.live.all())), "GIL probe")


def _make_orders(given: Given) -> BootOrders:
    return BootOrders(
        dict(given.settings),
        given.cfg,
        [listener.getsockname() for listener in given.listeners],
        report_files=given.on_files is not None,
        region=given.board.region,
        log_files=logfiles.handed(glogging.loggers()),
        mount_logs=given.mount_logs,
        log=given.config.log,
    )


def _make_supervisor(given: Given, orders: BootOrders, origins: Origins | None) -> Supervisor:
    return Supervisor(
        config=given.config,
        orders=orders,
        board=given.board,
        log=given.log,
        containment=given.containment,
        drain_s=given.cfg.graceful_timeout,
        quarantined=given.verdicts["quarantine"],
        moved=given.verdicts["process"],
        suspects=given.verdicts[SUSPECT],
        on_files=given.on_files,
        origins_fd=None if origins is None else origins.fd,
        groups=given.groups,
        spawner=given.spawner,
        places=Places(given.last_applied if given.cfg.workers > 1 else None, places_at_a_time()),
    )


def _make_acceptor(given: Given, loop: Loop, supervisor: Supervisor, origins: Origins | None, relay: Relay | None) -> Acceptor:
    cfg = given.cfg
    return Acceptor(
        loop=loop,
        listeners=[listener.sock for listener in given.listeners],
        peeker=Peeker(supervisor.table.router, Settings(dict(given.settings)), os.environ.get("SCRIPT_NAME", "")),
        choose=supervisor.choose,
        on_refused=supervisor.count_refused,
        board=given.board,
        log=given.log,
        refuse_by_gunicorn=given.refuse_by_gunicorn,
        head_timeout_s=given.config.head_timeout,
        keepalive_s=cfg.keepalive,
        max_connections=_most_connections(cfg.worker_connections or _CONNECTIONS, relay is not None, given.log),
        shared=cfg.workers > 1 and not cfg.reuse_port,
        origins=origins,
        relay=relay,
        proxy_header=proxyheader.Reader(cfg) if cfg.proxy_protocol != "off" else None,
    )


def open_control(parts: Parts, config: Config) -> None:
    """Listen for commands, if the config says so."""
    name = sockets.socket_name(config.path, os.getppid(), os.getpid())
    if config.control.enabled and parts.control.open(sockets.own_folders(config.control.folder), name):
        parts.commands.running.remember_stops(sockets.StopMarks(parts.control.folder_fd, config.path, os.getppid()))


def _make_relay(given: Given, tls: Reading, table: Table, origins: Origins | None) -> tuple[Relay, Certificates]:
    """Return what speaks TLS, and what takes up renewed certificates; those that were applied before this worker began it takes at once."""
    from isowsgi.worker.certificates import Certificates  # most servers have a proxy for that, and need not pay for it
    from isowsgi.worker.tls import Relay
    from isowsgi.worker.tlshosts import Hosts

    assert origins is not None, "made with TLS"
    containment = Containment(given.log, given.board.row(0).words)
    certificates = Certificates(given.cfg, tls, Hosts(containment), given.log)
    applied = given.last_applied.read() if given.last_applied is not None else None
    certificates.take(applied or Applied(given.base, given.serial, None), given.config.tls)
    assert certificates.context is not None, "taken"
    relay = Relay(
        context=certificates.context,
        origins=origins,
        row=given.board.acceptor_row(),
        log=given.log,
        containment=containment,
        opening_s=given.config.head_timeout,
        stall_s=table.stall_s,
        suppress_ragged_eofs=given.cfg.suppress_ragged_eofs,
    )
    certificates.on_renewed = relay.renew
    return relay, certificates


def _most_connections(wanted: int, has_tls: bool, log: Any) -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return wanted
    possible = most_connections(limit, _DESCRIPTORS_TLS if has_tls else _DESCRIPTORS_PLAIN)
    if possible < wanted:
        log.warning(
            "worker_connections is %d, but %d file descriptors are enough for %d connections only; raise the limit "
            "(ulimit -n, LimitNOFILE=) or lower worker_connections",
            wanted,
            limit,
            possible,
        )
    return min(possible, wanted)
