"""The supervisor: keeps each mount served. It starts instances, follows their states, and ends them.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import os
import site
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gunicorn

import isowsgi
from isowsgi import interpreters
from isowsgi.acceptor import Acceptor, NotServing
from isowsgi.configfile import Config, Mount
from isowsgi.handover import ARM_EDGE
from isowsgi.instances.interpreter import InterpreterInstance
from isowsgi.lifecycle import SETTLED, State
from isowsgi.routing import Router
from isowsgi.scoreboard import REQUESTS, Scoreboard

# Threads of a mount that asks for none, where gunicorn's --threads does not say either: enough for a few slow requests.
DEFAULT_THREADS = 4


class MountHome:
    """A mount with its instances."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.instances: list[InterpreterInstance] = []
        self._turn = 0

    def choose(self) -> InterpreterInstance | NotServing:
        """Return the instance for the next connection, each in turn."""
        serving = [instance for instance in self.instances if instance.state in (State.SERVING, State.DRAINING)]
        if serving:
            self._turn += 1
            return serving[self._turn % len(serving)]
        if any(instance.state is State.BOOTING for instance in self.instances):
            return NotServing.BOOTING
        return NotServing.FAILED


class Supervisor:
    """Owns all instances of this worker.

    Args:
        config: the mounts.
        router: over the same mounts, numbered by their place.
        settings: gunicorn's settings as `settings.snapshot` made them, for the inside.
        cfg: gunicorn's own settings, for the outside.
        log: gunicorn's logger.
        listeners: addresses of the listening sockets, as `getsockname` gives them.
        on_files: takes files that, once changed, should make the worker reload; None if nobody asked.
    """

    def __init__(
        self,
        *,
        config: Config,
        router: Router,
        settings: Mapping[str, Any],
        cfg: Any,
        log: Any,
        listeners: list[Any],
        on_files: Callable[[list[str]], None] | None,
    ) -> None:
        self._config = config
        self._router = router
        self._settings = settings
        self._cfg = cfg
        self._log = log
        self._listeners = listeners
        self._on_files = on_files
        self._acceptor: Acceptor | None = None
        self.homes = [MountHome(mount) for mount in config.mounts]
        # Row 0 is the acceptor's, then one for each serving thread of each instance.
        rows = 1 + sum(self._threads(mount) * mount.instances for mount in config.mounts)
        self.board = Scoreboard(rows)
        self._capacity = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def choose(self, mount: int) -> InterpreterInstance | NotServing:
        return self.homes[mount].choose()

    def start(self, acceptor: Acceptor) -> None:
        """Boot every mount, all side by side."""
        self._acceptor = acceptor
        acceptor.watch(self._capacity, self._on_capacity)
        interpreters.preload()
        row = 1
        for number, home in enumerate(self.homes):
            for _ in range(home.mount.instances):
                instance = self._make(number, home, row)
                row += self._threads(home.mount)
                home.instances.append(instance)
                acceptor.watch(instance.fileno(), partial(self._on_report, number, home, instance))
                instance.start()

    def instances(self) -> list[InterpreterInstance]:
        return [instance for home in self.homes for instance in home.instances]

    def is_settled(self) -> bool:
        """Whether every instance serves or has failed."""
        return all(instance.state in SETTLED for instance in self.instances())

    def nothing_serves(self) -> bool:
        return not any(instance.state is State.SERVING for instance in self.instances())

    def requests(self) -> int:
        """Return how many requests the instances have begun to serve."""
        return self.board.total(REQUESTS)

    def reopen_logs(self) -> None:
        for instance in self.instances():
            instance.reopen_logs()

    def finish(self) -> None:
        """Tell every instance that its next response on each connection is the last."""
        for instance in self._alive():
            instance.finish()

    def stop(self) -> None:
        """Let every instance end its threads and run its app's exit functions."""
        for instance in self._alive():
            instance.stop()

    def has_ended(self) -> bool:
        return not self._alive()

    def abandon(self) -> list[str]:
        """Give up on instances that did not end; return their tags."""
        left = [instance for instance in self._alive() if instance.state is State.DRAINING]
        for instance in left:
            instance.abandon()
        return [instance.tag for instance in left]

    def _alive(self) -> list[InterpreterInstance]:
        return [instance for instance in self.instances() if instance.state not in (State.CLOSED, State.FAILED)]

    def _on_capacity(self) -> None:
        assert self._acceptor is not None, "watched since start()"
        os.eventfd_read(self._capacity)
        self._acceptor.on_capacity()

    def _on_report(self, number: int, home: MountHome, instance: InterpreterInstance) -> None:
        assert self._acceptor is not None, "watched since start()"
        for report in instance.read_reports():
            event = report["event"]
            if event == "ready":
                self._log.info("%s: serving, loaded in %.2f s (%s)", instance.tag, instance.boot_s, self._isolation(home.mount))
                self._acceptor.release(number)
            elif event == "failed":
                error = instance.error + _hint(instance.error, self._isolation(home.mount))
                self._log.error("%s: cannot load %r: %s\n%s", instance.tag, _app_text(home.mount), error, instance.traceback)
                self._acceptor.release(number)
            elif event == "files" and self._on_files is not None:
                self._on_files(report["files"])
            elif event == "closed":
                self._on_closed(instance)

    def _on_closed(self, instance: InterpreterInstance) -> None:
        assert self._acceptor is not None, "watched since start()"
        self._acceptor.unwatch(instance.fileno())
        if instance.threads_left:
            self._log.warning("%s: ended with %d threads of the app's still running", instance.tag, instance.threads_left)
        # At a worker's exit the process goes with all it holds; ending interpreters one by one would only add risks.
        instance.dispose(destroy=instance.state is State.FAILED)

    def _make(self, number: int, home: MountHome, first_row: int) -> InterpreterInstance:
        assert self._acceptor is not None, "called by start()"
        mount = home.mount
        generation = 1
        name = f"{mount.pattern} #{generation}"
        if mount.instances > 1:
            name += chr(ord("a") + len(home.instances) % 26)
        order = {
            "tag": name,
            "mount": number,
            "pattern": mount.pattern,
            "generation": generation,
            "isolation": self._isolation(mount),
            "app": {"kind": mount.app.kind, "target": mount.app.target, "call": mount.app.call},
            "threads": self._threads(mount),
            "multiprocess": self._cfg.workers > 1 or mount.instances > 1,
            "env": dict(mount.env),
            "pythonpath": [*mount.pythonpath, *_gunicorns_path(self._cfg)],
            "venv": mount.venv,
            "host_site": _host_site(),
            "packages": _packages(),
            "blocked_modules": list(interpreters.BLOCKED_MODULES),
            "needs_ticker": interpreters.NEEDS_TICKER,
            "routes": self._router.rivals(number),
            "settings": self._settings,
            "keepalive_s": self._cfg.keepalive,
            "listeners": self._listeners,
            "arm_returns": ARM_EDGE,
            "first_row": first_row,
            "board_rows": self.board.rows,
            "report_files": self._on_files is not None,
        }
        shared_fds = {
            "returns": self._acceptor.returns_fd,
            "lingering": self._acceptor.lingering_fd,
            "capacity": self._capacity,
            "board": self.board.fd,
        }
        return InterpreterInstance(order, shared_fds)

    def _isolation(self, mount: Mount) -> str:
        return interpreters.best_isolation() if mount.isolation == "auto" else mount.isolation

    def _threads(self, mount: Mount) -> int:
        if mount.threads is not None:
            return mount.threads
        return int(self._cfg.threads) if self._cfg.threads > 1 else DEFAULT_THREADS


def _app_text(mount: Mount) -> str:
    return f"{mount.app.target}:{mount.app.call}"


def _hint(error: str, isolation: str) -> str:
    """Return what to do about a refused extension module, to go behind the error."""
    if "does not support loading in subinterpreters" in error and isolation == interpreters.OWN_GIL:
        return '; set isolation = "shared-gil" for this mount'
    return ""


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
    return [os.path.abspath(folder) for folder in [*setting, cfg.chdir]]
