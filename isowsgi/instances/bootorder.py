"""Writes boot orders: all that an instance has to know about its app and its place."""

from __future__ import annotations

import os
import site
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gunicorn

import isowsgi
from isowsgi.configuration import HOOKS, App, Mount, Status
from isowsgi.configuration.values import AUTO
from isowsgi.configuration.values import Log as LogSettings
from isowsgi.configuration.walls import UNIX
from isowsgi.instances import sliceprobe
from isowsgi.shared import interpreters, messages
from isowsgi.shared.handover import ARM_RETURN
from isowsgi.shared.interpreters import MAIN, OWN_GIL, PROCESS
from isowsgi.shared.messages import (
    BootOrder,
    Environment,
    Host,
    Limits,
    Loading,
    LogForm,
    Member,
    Place,
    Reroute,
    Sandbox,
    Serving,
    StatusPage,
    Walls,
)
from isowsgi.shared.routing import Route

# Threads of a mount that asks for none, where gunicorn's --threads does not say either: enough for a few slow requests.
DEFAULT_THREADS = 4

# Characters of routes in one order, some of which take two bytes each, and of a route beside its texts: an order has 64 KiB at most.
_MOST_ROUTE_CHARS = 16 * 1024
_ROUTE_CHARS = 30

# How long all pauses of a replacement's boot may be: an operator may have asked for it, and be waiting.
_MOST_PAUSE_S = 5.0


class BootOrders:
    """Writes the boot orders of one worker.

    Args:
        settings: gunicorn's settings as `crossing.snapshot` made them, for the inside.
        cfg: gunicorn's own settings.
        listeners: addresses of the listening sockets, as `getsockname` gives them.
        report_files: whether instances shall say which files their modules came from.
        region: the worker's on the scoreboard.
        log_files: descriptors of gunicorn's log files by path, see `logfiles`.
        mount_logs: the same of the mounts' own.
        log: how lines of the log look.

    Attributes:
        packages: the folders that hold the two packages each interpreter takes from here, by package.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        cfg: Any,
        listeners: Sequence[Any],
        report_files: bool,
        region: int = 0,
        log_files: Mapping[str, int] | None = None,
        mount_logs: Mapping[str, int] | None = None,
        log: LogSettings = LogSettings(),  # noqa: B008 # a frozen value
    ) -> None:
        self._settings = dict(settings)
        self._cfg = cfg
        self._listeners = [list(address) for address in listeners if isinstance(address, tuple)]
        self._family = _family_of(listeners)
        self._report_files = report_files
        self._region = region
        self._host_site = _host_site()
        self.packages = _packages()
        self._gunicorns_path = _gunicorns_path(cfg)
        self._log_files = dict(log_files or {})
        self._mount_logs = dict(mount_logs or {})
        self._log_form = LogForm(format=log.format, priorities=log.priorities)
        self._start_folder = _start_folder()

    def write(
        self,
        members: Sequence[Mount],
        isolation: str,
        slot: int,
        generation: int,
        first_row: int,
        extensions: Mapping[str, Sequence[int]] | None = None,
        has_time: bool = False,
        routes: Sequence[Route] | None = None,
        status: Status | None = None,
        asks: bool = False,
    ) -> BootOrder:
        """Return the order for one instance, without descriptors.

        Args:
            members: the mounts that it serves; all but one's own app and warm-up is the same for all.
            isolation: one of `interpreters`.
            slot: which of the mount's `instances` it is.
            first_row: of its rows on the scoreboard.
            extensions: the extension modules' files that its boot may load, see `inside.extensions`; None: all.
            routes: those that decide which requests are its, see `Router.rivals`; None: it is asked for nothing but its own mounts.
            status: who may see the status page, if this is it; None: nobody but who asks from this machine.
            asks: whether the worker is there to be asked for other extension modules' files.
            has_time: whether no request waits for it, so that it may take its time, see `inside.pace`.
        """
        mount = members[0]
        paths = _resolved([*mount.pythonpath, *self._path_in_env(mount), *self._gunicorns_path], mount, members)
        return BootOrder(
            release=isowsgi.__version__,
            name=name_of(mount),
            tag=_tag(mount, generation, slot),
            generation=generation,
            isolation=isolation,
            members=[_member(member, target) for member, target in zip(members, paths.targets, strict=True)],
            host=self._host(paths.python, isolation),
            environment=self._environment(mount, paths),
            loading=self._loading(mount, extensions, has_time, asks),
            serving=self._serving(members, isolation, list(routes) if routes is not None else own_routes(members)),
            settings=self._settings,
            log=mount.log,
            log_form=self._log_form,
            log_files={**self._log_files, **{path: fd for path, fd in self._mount_logs.items() if path == mount.log}},
            hooks={name: text for name in HOOKS if (text := getattr(mount, name)) is not None},
            # Nobody else needs the board's descriptor. An app that looks for it finds it: it is its process', as all memory is.
            status=_status_page(mount, status or Status()) if mount.app.is_status else None,
            place=Place(region=0 if has_own_rows(members) else self._region, first_row=first_row),
            walls=_walls(members, paths),
            slot=slot,
        )

    @property
    def workers(self) -> int:
        """Return how many workers there are."""
        return int(self._cfg.workers)

    def _path_in_env(self, mount: Mount) -> list[str]:
        """Return the folders of a PYTHONPATH in a mount's `env`, as CPython takes them at its start: it is too late for that here."""
        folders = mount.env.get("PYTHONPATH", "").split(os.pathsep)
        return [os.path.abspath(os.path.join(self._cfg.chdir, folder)) for folder in folders if folder]

    def threads_of(self, mount: Mount) -> int:
        if mount.threads is not None:
            return mount.threads
        return int(self._cfg.threads) if self._cfg.threads > 1 else DEFAULT_THREADS

    def _host(self, python: str | None, isolation: str) -> Host:
        is_process = isolation == PROCESS
        return Host(
            python=python,
            packages=self.packages,
            site=self._host_site,
            # What an interpreter of some releases needs, and a process does not.
            blocked_modules=[] if isolation in (PROCESS, MAIN) else list(interpreters.BLOCKED_MODULES),
            needs_ticker=not is_process and interpreters.NEEDS_TICKER,
            can_see_stacks=is_process or interpreters.can_see_stacks(isolation),
            frames_are_own=is_process or interpreters.frames_are_own(),
            max_int_digits=sys.get_int_max_str_digits(),
            # Who holds a GIL that others wait for shall run.
            has_long_slices=isolation in (OWN_GIL, PROCESS) and sliceprobe.may_change(),
        )

    def _environment(self, mount: Mount, paths: _Paths) -> Environment:
        return Environment(
            env=dict(mount.env),
            pythonpath=paths.pythonpath,
            venv=None if mount.app.is_status else paths.venv,  # it needs the packages that came with isowsgi
            links=paths.links,
            chdir=mount.working_directory or self._cfg.chdir,
            start_folder=self._start_folder,
            policy=dict(mount.policy),
            preload=[name for name in mount.preload if name != AUTO],
            # Not what may have been taken over: what is learnt is imported for its neighbours, outside of a sandbox.
            learns=AUTO in mount.preload and mount.sandbox is None and not mount.user,
        )

    def _loading(self, mount: Mount, extensions: Mapping[str, Sequence[int]] | None, has_time: bool, asks: bool) -> Loading:
        return Loading(
            extensions=None if extensions is None else {path: list(stamp) for path, stamp in extensions.items()},
            imports=[],
            pause_s=_pause_s(mount) if has_time else 0.0,
            watch=mount.watch,
            report_files=self._report_files,
            asks=asks and extensions is not None,
            lazy_imports=mount.lazy_imports,
            eager=list(mount.eager),
        )

    def _serving(self, members: Sequence[Mount], isolation: str, routes: list[Route]) -> Serving:
        mount = members[0]
        return Serving(
            threads=self.threads_of(mount),
            multiprocess=isolation == PROCESS or self._cfg.workers > 1 or mount.instances > 1,
            routes=routes,
            listeners=self._listeners,
            family=self._family,
            arm_returns=ARM_RETURN,
            keepalive_s=self._cfg.keepalive,
            drain_s=float(self._cfg.graceful_timeout),
            limits=limits_of(mount),
            server_timing=mount.server_timing,
        )


def limits_of(mount: Mount) -> Limits:
    """Return the limits of a mount's instances."""
    return Limits(
        request_timeout_s=mount.request_timeout,
        body_timeout_s=mount.body_timeout,
        send_timeout_s=mount.send_timeout,
        min_rate=mount.min_rate,
        slow_request_s=mount.slow_request,
        queue=mount.queue,
        queue_timeout_s=mount.queue_timeout,
    )


def first_python(order: BootOrder) -> str | None:
    """Return the Python that a process begins with; None: gunicorn's.

    Behind walls it is gunicorn's, which becomes the mount's own when they are up (`inside.child`): the folders of that may be the app's.
    """
    return order.host.python if order.walls is None or not order.walls.confine else None


def has_own_rows(members: Sequence[Mount]) -> bool:
    """Whether the process of mounts is behind walls that keep it from writing on the worker's scoreboard, which the status page reads."""
    mount = members[0]
    return bool(mount.user or mount.sandbox is not None) and not any(member.app.is_status for member in members)


def _walls(members: Sequence[Mount], paths: _Paths) -> Walls | None:
    mount = members[0]
    limits = mount.limits
    if not (mount.user or mount.umask or mount.nice or limits or mount.sandbox is not None):
        return None
    return Walls(
        umask=int(mount.umask, 8) if mount.umask else -1,
        nice=mount.nice,
        memory=int(limits.get("memory", 0)),
        files=int(limits.get("files", 0)),
        file_size=int(limits.get("file_size", 0)),
        cpu=limits.get("cpu", 0.0),
        processes=int(limits.get("processes", 0)),
        sandbox=None if mount.sandbox is None else _sandbox(mount, paths),
        grouped=[],
        user=mount.user,
        has_own_rows=has_own_rows(members),
    )


def _sandbox(mount: Mount, paths: _Paths) -> Sandbox:
    allowed = mount.sandbox or {}
    connect = [peer for peer in allowed.get("connect", ()) if not peer.startswith(UNIX)]
    return Sandbox(
        # Not what gunicorn itself puts on the path, `chdir`: its folder may hold all sites.
        code=[
            *paths.pythonpath[: len(mount.pythonpath)],
            *(os.path.dirname(target) for target in paths.targets if os.path.isabs(target)),
            *([mount.working_directory] if mount.working_directory else []),
        ],
        read=list(allowed.get("read", ())),
        write=list(allowed.get("write", ())),
        connect=[*map(_port, connect)] if "connect" in allowed else None,
        sockets=[peer.removeprefix(UNIX) for peer in allowed.get("connect", ()) if peer.startswith(UNIX)],
        listen=[*map(_port, allowed.get("listen", ()))],
        tmp="",
    )


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _status_page(mount: Mount, status: Status) -> StatusPage:
    return StatusPage(host=mount.host, allow=list(status.allow), hosts=[*status.hosts, *mount.hosts])


def _member(mount: Mount, target: str) -> Member:
    app = _app(mount.app, target)
    return Member(mount=mount.number, pattern=mount.pattern, app=app, warmup=mount.warmup, https_only=mount.https_only)


def _app(app: App, target: str) -> messages.App:
    return messages.App(kind=app.kind, target=target, call=app.call)


def _pause_s(mount: Mount) -> float:
    """Return how long all pauses of a boot may be: never so long that it is taken for one that hangs."""
    return min(_MOST_PAUSE_S, mount.boot_timeout / 4) if mount.boot_timeout else _MOST_PAUSE_S


def name_of(mount: Mount) -> str:
    """Return what the log calls a mount, or all of a group: a pattern has a slash in it, a group's name has none."""
    return mount.group or mount.pattern


def reroutes(routes: Iterable[Route]) -> Iterator[Reroute]:
    """Return the orders that tell an instance by which routes it knows from now on whose a request is, see `Router.rivals`."""
    part: list[Route] = []
    chars, is_first = 0, True
    for route in routes:
        part.append(route)
        chars += _ROUTE_CHARS + len(route.host) + len(route.prefix)
        if chars > _MOST_ROUTE_CHARS:
            yield Reroute(routes=part, is_first=is_first, is_last=False)
            part, chars, is_first = [], 0, False
    yield Reroute(routes=part, is_first=is_first, is_last=True)


def own_routes(mounts: Iterable[Mount]) -> list[Route]:
    """Return the routes of mounts: one for each of their hosts."""
    return [Route(mount.number, host, mount.prefix) for mount in mounts for host in (mount.host, *mount.hosts)]


class _Paths(NamedTuple):
    """Where an instance's code lies, without links: what they lead to when it is loaded is its release until it ends."""

    pythonpath: list[str]
    venv: str | None
    python: str | None
    targets: list[str]  # of the members' apps
    links: dict[str, str]  # what was resolved, by the path as it is written


# How often paths are resolved again when they lead elsewhere than a moment ago, as a release is switched; once would do.
_MOST_LOOKS = 5


def _resolved(pythonpath: list[str], mount: Mount, members: Sequence[Mount]) -> _Paths:
    """Follow all links in the paths of a mount, all at one time: a release that is switched meanwhile must not be mixed with the next."""
    scripts = [member.app.target for member in members if member.app.kind == "script"]
    bin_folder = [] if mount.python is None else [os.path.dirname(mount.python)]  # not the Python itself, which a venv has as a link
    written = [*pythonpath, *([] if mount.venv is None else [mount.venv]), *bin_folder, *scripts]
    found: dict[str, str] = {}
    for _ in range(_MOST_LOOKS):
        before, found = found, {path: os.path.realpath(path) for path in written}
        if before == found:
            break
    return _Paths(
        pythonpath=[found[path] for path in pythonpath],
        venv=None if mount.venv is None else found[mount.venv],
        python=None if mount.python is None else os.path.join(found[bin_folder[0]], os.path.basename(mount.python)),
        targets=[member.app.target if member.app.kind == "module" else found[member.app.target] for member in members],
        links={path: real for path, real in found.items() if path != real},
    )


def _start_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return os.sep


def _packages() -> dict[str, str]:
    """Return the folders that hold the two packages each interpreter takes from here, by package."""
    return {package.__name__: os.path.dirname(os.path.dirname(str(package.__file__))) for package in (isowsgi, gunicorn)}


def _host_site() -> list[str]:
    folders = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return folders


def _gunicorns_path(cfg: Any) -> list[str]:
    """Return what gunicorn itself puts on `sys.path`: its `pythonpath` setting, then `chdir`."""
    setting = cfg.pythonpath.split(",") if cfg.pythonpath else []
    return [os.path.abspath(os.path.join(cfg.chdir, folder)) for folder in [*setting, cfg.chdir]]


def _tag(mount: Mount, generation: int, slot: int) -> str:
    """Return what an instance's log lines begin with."""
    letter = chr(ord("a") + slot % 26) if mount.instances > 1 else ""
    return f"{name_of(mount)} #{generation}{letter}"


def _family_of(addresses: Sequence[Any]) -> int:
    """Return the address family that all these have; 0 if they have several."""
    families = {_BY_LENGTH[len(address)] if isinstance(address, tuple) else socket.AF_UNIX for address in addresses}
    return families.pop() if len(families) == 1 else 0


# How many parts an address has, as `getsockname` gives it.
_BY_LENGTH = {2: socket.AF_INET, 4: socket.AF_INET6}
