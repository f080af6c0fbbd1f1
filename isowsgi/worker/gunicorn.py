"""The gunicorn worker: gunicorn's contract on one side, the acceptor and the supervisor on the other. Wiring only.

The config file is read in the master, before the fork: at the first start by `check_config`, which may refuse, and again whenever
gunicorn has read its own settings anew (SIGHUP). A file that has become faulty then changes nothing: the last good one stays in force.
"""

from __future__ import annotations

import ast
import atexit
import logging
import math
import os
import re
import select
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

from gunicorn import glogging
from gunicorn.errors import AppImportError
from gunicorn.workers import base

from isowsgi import configuration
from isowsgi.configuration import gunicorn_settings
from isowsgi.inside.settings import Settings
from isowsgi.instances.bootorder import BootOrders
from isowsgi.master.crashes import SUSPECT, CrashReport, Ledger, WatchedTmp
from isowsgi.shared import interpreters, logfiles, sockets
from isowsgi.shared.containment import Containment
from isowsgi.shared.errorpage import PageSocket
from isowsgi.shared.origins import Origins
from isowsgi.shared.peek import Peeker
from isowsgi.shared.routing import Route, Router
from isowsgi.shared.scoreboard import CLEAN_EXIT, RESPONSES, Board
from isowsgi.worker import proxyheader, startup
from isowsgi.worker.acceptor import Acceptor
from isowsgi.worker.control import commands
from isowsgi.worker.control.server import ControlServer
from isowsgi.worker.supervisor import Supervisor

if TYPE_CHECKING:
    from isowsgi.worker.tls import Relay

# How often at least the worker tells gunicorn that it lives, and looks at what changes slowly.
_BEAT_S = 1.0

# How long the exit functions of all apps together may take when gunicorn wants a quick stop, for its master may kill 2 s after the signal;
# and how much of graceful_timeout is theirs when requests would take all of it.
_EXIT_FUNCTIONS_S = 0.8

# How much earlier than gunicorn's master, which kills at graceful_timeout, a worker gives up waiting.
_GRACE_MARGIN_S = 0.5

# How long all apps' boots together may keep a worker from accepting that joins others, as those serve meanwhile.
_BOOT_WAIT_S = 60.0

# How long --reload waits for the names of the apps' files; an app that is longer in its import has time enough to be noticed.
_RELOADER_WAIT_S = 5.0

# Connections of a worker whose settings were refused: gunicorn's default for worker_connections.
_CONNECTIONS = 1000

_FACTORY = re.compile(r"isowsgi:config(?P<arguments>\(.*\))\s*", re.DOTALL)


class Worker(base.Worker):  # type: ignore[misc] # gunicorn is not annotated
    """`gunicorn -k isowsgi.Worker isowsgi.toml`"""

    # The master's: what the next fork will serve, for which of gunicorn's Config objects it was read, and how many forks had it so far.
    _config: ClassVar[configuration.Config | None] = None
    _settings: ClassVar[dict[str, Any]] = {}
    # An ssl.SSLContext, or None without TLS. The workers have it in common, and so each can take up sessions that another one began; and
    # they need not be able to read the key.
    _tls_context: ClassVar[Any] = None
    _config_is_for: ClassVar[Any] = None
    _has_reloaded: ClassVar[bool] = False
    _forks: ClassVar[int] = 0
    # The master's too: which mounts have crashed their workers.
    _ledger: ClassVar[Ledger | None] = None
    _crash_verdicts: ClassVar[dict[str, set[str]]] = {}
    # And the scoreboard, with a region for each worker.
    _whole_board: ClassVar[Board | None] = None

    reloader: Any  # gunicorn's

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse what cannot be served; gunicorn calls it once, at its first start.

        Raises:
            RuntimeError: gunicorn prints its text and exits with 1.
        """
        refusals, warnings = gunicorn_settings.check(cfg)
        if (reason := interpreters.unusable_reason()) is not None:
            refusals.insert(0, reason)
        if not refusals:
            refusals = cls._take_settings(cfg)
        if refusals:
            raise RuntimeError("\n".join(refusals))
        for warning in warnings:
            log.warning(warning)
        # A positional APP_MODULE becomes the default process name and is nowhere else in the settings.
        name = cfg.default_proc_name
        try:
            cls._read(_config_path(name if name != "gunicorn" else cfg.wsgi_app or ""), cfg, log)
        except configuration.ConfigError as exc:
            raise RuntimeError(str(exc)) from exc

    @classmethod
    def _take_settings(cls, cfg: Any) -> list[str]:
        """Take over what gunicorn's settings say, or nothing of it; return what is wrong with them."""
        context = None
        if cfg.is_ssl:
            from isowsgi.worker import tls  # most servers have a proxy for that, and need not pay for it

            try:
                context = tls.make_context(cfg)
            except tls.ContextError as exc:
                return [str(exc)]
        elif cfg.cert_reqs:  # gunicorn would serve everybody
            return ["gunicorn setting cert_reqs: asks for clients' certificates, and there is no TLS: set certfile and keyfile too"]
        cls._settings, cls._tls_context = gunicorn_settings.snapshot(cfg), context
        return []

    @classmethod
    def _read(cls, path: str, cfg: Any, log: Any) -> None:
        config = configuration.load(path, own_gil_error=interpreters.own_gil_error(), base=cfg.chdir)
        cls._config, cls._config_is_for = config, cfg
        cls._ledger = Ledger(config.limits.crashes, config.limits.crash_window)
        cls._crash_verdicts = {"quarantine": set(), "process": set(), SUSPECT: set()}
        warning = interpreters.own_gil_warning()
        wanting = [mount.pattern for mount in config.mounts if mount.isolation == interpreters.OWN_GIL]
        if warning and wanting:
            log.warning("%s: %s", ", ".join(wanting), warning)

    def __init__(self, age: int, ppid: int, sockets: list[Any], app: Any, timeout: float, cfg: Any, log: Any) -> None:
        super().__init__(age, ppid, sockets, app, timeout, cfg, log)
        self.tmp.close()
        self.tmp: Any = WatchedTmp(cfg, self._on_reaped)
        if cfg is not type(self)._config_is_for or cfg.reload:
            self._reread(app, cfg, log)
        type(self)._forks += 1
        self._served_config, self._inside_settings = type(self)._config, type(self)._settings
        self._relay: Relay | None = None
        # Whether as many workers as were asked for serve the same already: it replaces one that ended, or is one more (SIGTTIN).
        self._joins_others = type(self)._forks > cfg.workers
        self._is_from_the_start = not type(self)._has_reloaded and not self._joins_others
        self._crash_verdict = {verdict: frozenset(patterns) for verdict, patterns in type(self)._crash_verdicts.items()}
        if type(self)._whole_board is None:
            type(self)._whole_board = Board()
        mounts = self._served_config.mounts if self._served_config is not None else ()
        self._board = self._all_regions().new_region([mount.pattern for mount in mounts], time.monotonic())
        self._is_first = type(self)._forks == 1
        self._is_quitting = False
        self._late_reloader: Any = None
        self._exit_code = 0
        self._supervisor: Supervisor | None = None

    def _reread(self, app: Any, cfg: Any, log: Any) -> None:
        """Read the config file again, after SIGHUP or on a change that --reload saw; an exception here would end gunicorn's master."""
        type(self)._config_is_for = cfg  # only once for each HUP, good or bad
        type(self)._has_reloaded, type(self)._forks = True, 0
        refusals, warnings = gunicorn_settings.check(cfg)
        for warning in warnings:
            log.warning(warning)
        if not refusals:
            refusals = type(self)._take_settings(cfg)
        for refusal in refusals:
            log.error(refusal)
        if refusals:
            log.error("settings are refused; TLS and those that the apps' interpreters obey stay as they were")
        try:
            self._read(_config_path(getattr(app, "app_uri", None) or cfg.wsgi_app or ""), cfg, log)
        except configuration.ConfigError as exc:
            for fault in exc.faults:
                log.error(fault)
            log.error("the config file has faults; the mounts stay as they were")

    # gunicorn's life cycle, in the worker process.

    def init_process(self) -> None:
        # As root still, if gunicorn was started so: a file that this worker's user may not open is kept.
        self._held_logs = logfiles.hold(glogging.loggers())
        super().init_process()

    def load_wsgi(self) -> None:
        """Boot the mounts; they load side by side, and the loop follows them."""
        if self._served_config is None:
            raise AppImportError("no config file was read")
        # gunicorn would start it next. The polling one takes a file for changed when it looks a second time, so it is kept from its first
        # look until it knows the apps' files: an edit within a second of a restart would not be seen otherwise.
        self._late_reloader = self.reloader
        self.reloader: Any = None
        self.wsgi = _not_called
        mounts = self._served_config.mounts
        router = Router(Route(number, mount.host, mount.prefix) for number, mount in enumerate(mounts))
        listeners = [name for listener in self.sockets if isinstance(name := listener.getsockname(), tuple)]
        origins = Origins() if self._tls_context is not None or self.cfg.proxy_protocol != "off" else None
        self._orders = BootOrders(
            router,
            self._inside_settings,
            self.cfg,
            listeners,
            report_files=self._late_reloader is not None,
            region=self._board.region,
            status=self._served_config.status,
            log_files=logfiles.handed(glogging.loggers()),
        )
        supervisor = self._supervisor = Supervisor(
            config=self._served_config,
            orders=self._orders,
            board=self._board,
            log=self.log,
            containment=Containment(self.log, self._board.row(0).words),
            drain_s=self.cfg.graceful_timeout,
            quarantined=self._crash_verdict["quarantine"],
            moved=self._crash_verdict["process"],
            suspects=self._crash_verdict[SUSPECT],
            on_files=self._watch_files if self._late_reloader else None,
            origins_fd=None if origins is None else origins.fd,
        )
        self._relay = self._make_relay(origins)
        self._acceptor = Acceptor(
            listeners=[listener.sock for listener in self.sockets],
            peeker=Peeker(router, Settings(self._inside_settings), os.environ.get("SCRIPT_NAME", "")),
            choose=supervisor.choose,
            board=self._board,
            log=self.log,
            refuse_by_gunicorn=self._refuse,
            head_timeout_s=self._served_config.head_timeout,
            keepalive_s=self.cfg.keepalive,
            max_connections=self.cfg.worker_connections or _CONNECTIONS,  # 0 is refused, but at a SIGHUP others serve on
            shared=self.cfg.workers > 1 and not self.cfg.reuse_port,
            origins=origins,
            relay=self._relay,
            proxy_header=proxyheader.Reader(self.cfg) if self.cfg.proxy_protocol != "off" else None,
        )
        self._acceptor.watch(self.PIPE[0], self._empty_pipe)
        self._commands = commands.Commands(supervisor)
        self._control = ControlServer(self._commands.begin, commands.facts(self._served_config.path, self.age), self.log)
        self._acceptor.watch(self._control.fileno(), self._control.turn)
        # From here on interpreters exist, and CPython's own finalization would wait for their threads, or abort. gunicorn has said "Worker
        # exiting" and called its hooks when this is called. Not by atexit: what an app in the main interpreter registers there comes later,
        # is called before, and would be called once more.
        self._earlier_exits = list(threading._threading_atexits)  # type: ignore[attr-defined] # the others are called before ours
        threading._register_atexit(self._exit_hard)  # type: ignore[attr-defined] # as concurrent.futures does, on every release
        self._open_control()
        supervisor.start(self._acceptor)
        if self._relay is not None:
            self._relay.start()

    def _make_relay(self, origins: Origins | None) -> Relay | None:
        if self._tls_context is None:
            return None
        from isowsgi.worker.tls import Relay  # imported by `_take_settings` already

        assert origins is not None, "load_wsgi saw to it"
        assert self._served_config is not None, "load_wsgi saw to it"
        return Relay(
            context=self._tls_context,
            origins=origins,
            words=self._board.row(0).words,
            log=self.log,
            opening_s=self._served_config.head_timeout,
            # Each mount has its own limit, of which its instances know; 0 is none.
            stall_s=max((mount.send_timeout or math.inf for mount in self._served_config.mounts), default=math.inf),
            suppress_ragged_eofs=self.cfg.suppress_ragged_eofs,
        )

    def _open_control(self) -> None:
        assert self._served_config is not None, "load_wsgi saw to it"
        control, path = self._served_config.control, self._served_config.path
        name = sockets.socket_name(path, os.getppid(), os.getpid())
        if control.enabled and self._control.open(sockets.own_folders(control.folder), name):
            self._commands.remember_stops(sockets.StopMarks(self._control.folder_fd, path, os.getppid()))

    def _refuse(self, sock: Any, peer: Any, exc: Exception) -> None:
        """Answer a request that gunicorn's parser refuses, as gunicorn's workers do."""
        words = self._board.row(0).words

        def count(status: int) -> None:
            words[RESPONSES + status // 100] += 1

        self.handle_error(None, PageSocket(sock, on_status=count), peer, exc)

    def _watch_files(self, files: list[str]) -> None:
        assert self._served_config is not None, "load_wsgi saw to it"
        for file in [*files, self._served_config.path]:
            self._late_reloader.add_extra_file(file)

    def run(self) -> None:
        try:
            self._run()
        except SystemExit as exc:  # a quick stop, from a signal handler
            self._exit_code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
            self._end_instances(time.monotonic() + _EXIT_FUNCTIONS_S)
            raise
        except AppImportError:
            self._exit_code = 4  # as the arbiter will exit for it: "App failed to load."
            raise
        except BaseException:
            self._exit_code = 255
            raise

    def _run(self) -> None:
        supervisor, acceptor = self._parts()
        # The base class asks for a sign of life every half of gunicorn's timeout (self.timeout; 0: no limit).
        beat_s = min(_BEAT_S, self.timeout / 2) if self.timeout else _BEAT_S
        # Requests may wait in this worker for their mount to boot, or in the listener's queue for a worker that has booted. The latter
        # needs others, and a queue in common.
        can_wait = self._joins_others and self.cfg.workers > 1 and not self.cfg.reuse_port
        boot_deadline = time.monotonic() + (_BOOT_WAIT_S if can_wait else 0)
        watch_from = time.monotonic() + _RELOADER_WAIT_S
        is_accepting = settled = False
        next_beat = 0.0
        while self.alive:
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + beat_s
                self._beat()
            if not settled and (settled := supervisor.is_settled()):
                self._on_settled()
            if self._late_reloader and not self._late_reloader.is_alive() and (settled or now >= watch_from):
                self._late_reloader.start()
            if not is_accepting and (settled or now >= boot_deadline):
                is_accepting = True
                acceptor.start_accepting()
            acceptor.turn(max(min(next_beat - now, self._control.wait_s()), 0))
            self._control.tick()
        self._stop_gracefully()

    def _on_settled(self) -> None:
        supervisor, _ = self._parts()
        if supervisor.nothing_serves():
            self._give_up()
        elif self._is_first:  # the others serve the same
            startup.report(supervisor, self._orders, self.log)

    def _beat(self) -> None:
        self.notify()
        if self.ppid != os.getppid():
            self.log.info("Parent changed, shutting down: %s", self)
            self.alive = False
        supervisor, _ = self._parts()
        self.nr = supervisor.requests()
        supervisor.tick()
        if self.alive and (reason := supervisor.restart_reason()):
            self.log.warning("The worker is to be replaced: %s", reason)
            self.alive = False
        if self.alive and self._relay is not None and not self._relay.is_alive():
            self.log.error("The worker is to be replaced: its TLS relay has ended")
            self.alive = False
        if self.alive and self.nr >= self.max_requests:
            self.log.info("Autorestarting worker after %d requests.", self.nr)
            self.alive = False

    def _give_up(self) -> None:
        """Say that nothing can be served; stop all of gunicorn if that is so from its start."""
        if self._is_from_the_start:
            raise AppImportError("no mount could be loaded; the log says why")
        self.log.error("no mount could be loaded; all requests are answered 503 until the next reload")

    def _stop_gracefully(self) -> None:
        """Answer all that was accepted, then let the apps end, within graceful_timeout."""
        supervisor, acceptor = self._parts()
        self._board.row(0).words[CLEAN_EXIT] = 1  # whatever the master does to it from here on is no crash
        self._control.close()
        grace_s = max(self.cfg.graceful_timeout - _GRACE_MARGIN_S, 0)
        deadline = time.monotonic() + grace_s
        answers_due = deadline - min(_EXIT_FUNCTIONS_S, grace_s / 2)
        acceptor.stop()
        supervisor.finish()
        while acceptor.open_connections() > supervisor.lost_connections() and time.monotonic() < answers_due:
            self.notify()
            acceptor.turn(min(0.1, max(answers_due - time.monotonic(), 0)))
        self._end_instances(deadline)

    def _end_instances(self, deadline: float) -> None:
        supervisor, acceptor = self._parts()
        self._control.close()
        supervisor.stop()
        while not supervisor.has_ended() and time.monotonic() < deadline:
            self.notify()
            acceptor.turn(min(0.1, max(deadline - time.monotonic(), 0)))
        for tag in supervisor.abandon():
            self.log.warning("%s: did not end in time, the worker exits without it", tag)

    def _exit_hard(self) -> None:
        """Leave the process without CPython's finalization, which waits for threads inside interpreters (see load_wsgi)."""
        try:
            for function in reversed(self._earlier_exits):
                function()
            atexit._run_exitfuncs()  # those of the user's conf file and hooks, and of apps in the main interpreter
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        finally:
            self._board.row(0).words[CLEAN_EXIT] = 1
            os._exit(self._exit_code)

    def _on_reaped(self) -> None:
        """In the master, after this worker has died: say what it was doing, if it was not its own decision."""
        crashed: str | None = None
        if self._served_config is not None and self._ledger is not None:
            crashed = CrashReport(self._board, self._served_config, self._ledger, self._crash_verdicts, self.log).write(self.pid)
        try:
            self._all_regions().retire(self._board, crashed, time.monotonic())
        except (OSError, ValueError) as exc:  # an exception here would end gunicorn's master
            self.log.error("what worker %s counted is lost: %s", self.pid, exc)

    def _all_regions(self) -> Board:
        assert self._whole_board is not None, "made before the first worker"
        return self._whole_board

    def _parts(self) -> tuple[Supervisor, Acceptor]:
        assert self._supervisor is not None, "made by load_wsgi"
        return self._supervisor, self._acceptor

    # Signals.

    def handle_quit(self, sig: int, frame: Any) -> None:
        # It comes twice after Ctrl-C, from the terminal and from the master; the second must not cut short what the first one began.
        if not self._is_quitting:
            self._is_quitting = True
            super().handle_quit(sig, frame)

    def handle_usr1(self, sig: int, frame: Any) -> None:
        try:
            super().handle_usr1(sig, frame)
        except OSError as exc:  # with capture_output gunicorn opens one more
            self.log.warning("uid %d may not open its logs (%s): a new worker replaces this one", os.geteuid(), exc)
            self.alive = False
        if old := [held.path for held in self._held_logs if held.is_old]:
            # The master could, and the next worker has them from it. gunicorn's own workers end with an error here.
            self.log.warning("uid %d may not open %s: a new worker replaces this one", os.geteuid(), ", ".join(old))
            self.alive = False
        if self._supervisor is not None:
            self._supervisor.reopen_logs()

    def _empty_pipe(self) -> None:
        """Take in what signal handlers and the reloader wrote to wake the loop."""
        while select.select([self.PIPE[0]], [], [], 0)[0]:
            os.read(self.PIPE[0], 4096)


def config(path: str) -> Any:
    """Return what gunicorn takes for an app, so that `--check-config 'isowsgi:config("path/x.toml")'` checks the file.

    The worker never calls it: it reads the path out of the text.

    Raises:
        SystemExit: the file has faults; they are printed, a line each.
    """
    try:
        configuration.load(path, own_gil_error=interpreters.own_gil_error())
    except configuration.ConfigError as exc:
        print(exc, file=sys.stderr)
        raise SystemExit(1) from exc
    return _not_called


def _config_path(app: str) -> str:
    """Return the config file's path from gunicorn's APP_MODULE.

    Raises:
        configuration.ConfigError: it is neither of the two forms.
    """
    if (factory := _FACTORY.fullmatch(app)) is not None:
        try:
            call = ast.parse(f"f{factory['arguments']}", mode="eval").body
            assert isinstance(call, ast.Call)
            arguments = [ast.literal_eval(argument) for argument in [*call.args, *(keyword.value for keyword in call.keywords)]]
        except (SyntaxError, ValueError, AssertionError):
            arguments = []
        if len(arguments) == 1 and isinstance(arguments[0], str):
            return arguments[0]
    elif app.endswith(".toml"):
        return app
    expected = "'isowsgi.toml' or 'isowsgi:config(\"path/isowsgi.toml\")'"
    raise configuration.ConfigError((f"isowsgi.Worker serves the apps of a config file: expected {expected}, got {app!r}",))


def _not_called(environ: Any, start_response: Any) -> Any:
    raise RuntimeError("isowsgi serves a config file's apps in interpreters of their own; run gunicorn with -k isowsgi.Worker")
