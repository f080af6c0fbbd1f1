"""The gunicorn worker: gunicorn's contract, and what is due about once a second.

What it serves is decided in the master, see `master.workerplan`; what it is made of, in `parts`.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

from gunicorn.errors import AppImportError
from gunicorn.workers import base

from isowsgi.instances.controlgroups import ControlGroups
from isowsgi.master.appmodule import config as config
from isowsgi.master.appmodule import not_called
from isowsgi.master.crashes import WatchedTmp
from isowsgi.master.workerplan import Plan
from isowsgi.shared.board import Board
from isowsgi.shared.containment import Containment
from isowsgi.shared.errorpage import PageSocket
from isowsgi.shared.rows import FAILED_STARTS
from isowsgi.shared.safelog import SafeLog
from isowsgi.worker import startup
from isowsgi.worker.ending import Ending
from isowsgi.worker.ownlogs import take_logs
from isowsgi.worker.ownspawner import take_spawner
from isowsgi.worker.parts import Given, Parts, assemble, open_control

# How often at least the worker tells gunicorn that it lives, and looks at what changes slowly.
_BEAT_S = 1.0

# How long all apps' boots together may keep a worker from accepting that joins others, as those serve meanwhile.
_BOOT_WAIT_S = 60.0

# How long a worker that cannot begin stays before it exits: the arbiter forks the next one at once.
_FORK_AGAIN_S = 1.0

# How long --reload waits for the names of the apps' files; an app that takes longer to import has time enough to be noticed.
_RELOADER_WAIT_S = 5.0


class Worker(base.Worker):  # type: ignore[misc] # gunicorn is not annotated
    """`gunicorn -k isowsgi.Worker isowsgi.toml`"""

    plan: ClassVar[Plan] = Plan()  # the master's

    reloader: Any  # gunicorn's
    log: Any

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse what cannot be served; gunicorn calls it once, at its first start.

        Raises:
            RuntimeError: gunicorn prints its text and exits with 1.
        """
        cls.plan.check(cfg, log)

    def __init__(self, age: int, ppid: int, sockets: list[Any], app: Any, timeout: float, cfg: Any, log: Any) -> None:
        super().__init__(age, ppid, sockets, app, timeout, cfg, log)
        self._has_share = self.plan.contained(log).call("the next worker", self._take_share, app, cfg, log)
        self._late_reloader: Any = None
        self._exit_code = 0
        self._parts: Parts | None = None
        self._is_accepting = self._is_settled = self._has_nothing_to_serve = self._is_quitting = self._is_told_to_stop = False
        self._boot_deadline = self._watch_from = 0.0

    def _take_share(self, app: Any, cfg: Any, log: Any) -> None:
        share = self._share = self.plan.share(app, cfg, log)
        self._board = share.region
        tmp = WatchedTmp(cfg, lambda: self.plan.on_reaped(share, self.pid, log))
        self.tmp.close()
        self.tmp: Any = tmp

    # gunicorn's life cycle, in the worker process.

    def init_process(self) -> None:
        if not self._has_share:  # no memory or descriptor in the master: this worker ends, the others serve, and the arbiter forks another
            time.sleep(_FORK_AGAIN_S)
            sys.exit(255)
        self._logs = take_logs(self.cfg, self._share)
        # Not before the fork: it would keep the region's memory mapped in the master.
        self._containment = Containment(self.log, self._board.row(0).words)
        self._groups = ControlGroups(self.log)
        self._containment.call("control groups", self._groups.prepare_early, self._share.config, self.cfg)
        try:
            self._spawner = take_spawner(self._share, self.cfg, self.sockets, self._logs.of_mounts, self.log)
            super().init_process()
        except Exception:
            if not self.booted:
                self._fail_to_boot()
            raise

    def _fail_to_boot(self) -> None:
        """Choose what the arbiter does about a worker that cannot even begin: no memory, no descriptor, no thread, a hook that raises.

        WORKER_BOOT_ERROR stops all of gunicorn. That is right only where nothing has been served; else another worker may fare better.
        """
        if self._is_last_to_fail():
            self._exit_code = 3  # as the arbiter will exit for it: "Worker failed to boot."
            return
        self.booted: Any = True  # all that the arbiter looks at
        self._exit_code = 255
        time.sleep(_FORK_AGAIN_S)

    def _is_last_to_fail(self) -> bool:
        """Whether none of the workers that gunicorn has started with has anything to serve; called once, by one that has not."""
        if not self._share.is_from_the_start:
            return False
        try:
            self._board.acceptor_row().count_failed_start()
            reading = Board.look(self._board.fd)
            # One that had failed may serve by now, as mounts are tried again.
            reports = [region.report for region in reading.regions if region.report is not None]
            if any(mount.get("state") in ("serving", "reloading", "asleep") for report in reports for mount in report.get("mounts", ())):
                return False
            # Each counts itself before it reads, so the last one sees them all.
            return reading.totals[("", "")].get(FAILED_STARTS) >= int(self.cfg.workers)
        except Exception:  # nothing can be known of the others, as nothing can be mapped: they are no better off
            return True

    def load_wsgi(self) -> None:
        """Boot the mounts, as many at a time as there are cores; the loop follows them."""
        share = self._share
        if share.config is None:
            raise AppImportError("no config file was read")
        self.log = SafeLog(self.log, self._containment)
        # gunicorn would start it next. The polling one takes a file for changed when it looks a second time, so it is kept from its first
        # look until it knows the apps' files: an edit within a second of a restart would not be seen otherwise.
        self._late_reloader = self.reloader
        self.reloader: Any = None
        self.wsgi = not_called
        given = Given(
            cfg=self.cfg,
            log=self.log,
            config=share.config,
            settings=share.settings,
            tls=share.tls,
            board=self._board,
            verdicts=share.verdicts,
            containment=self._containment,
            listeners=self.sockets,
            age=self.age,
            mount_logs=self._logs.of_mounts,
            spawner=self._spawner,
            last_applied=share.last_applied,
            base=share.base,
            serial=share.serial,
            conf_file=share.conf_file,
            groups=self._groups,
            on_files=self._watch_files if self._late_reloader else None,
            refuse_by_gunicorn=self._refuse,
        )
        parts = self._parts = assemble(given)
        self._ending = Ending(parts, self._board, self._containment, self.notify, self.cfg.graceful_timeout, self.log)
        parts.loop.watch(self.PIPE[0], self._empty_pipe, "signals")
        # From here on interpreters exist, and CPython's own finalization would wait for their threads, or abort. gunicorn has said "Worker
        # exiting" and called its hooks when this is called. Not by atexit: what an app in the main interpreter registers there comes later,
        # is called before, and would be called once more.
        self._earlier_exits = list(threading._threading_atexits)  # type: ignore[attr-defined] # the others are called before ours
        threading._register_atexit(self._exit_hard)  # type: ignore[attr-defined] # as concurrent.futures does, on every release
        self._containment.call("control socket", open_control, parts, share.config)
        parts.supervisor.start(parts.acceptor)
        if parts.relay is not None:
            parts.relay.start()

    def _refuse(self, sock: Any, peer: Any, exc: Exception) -> None:
        """Answer a request that gunicorn's parser refuses, as gunicorn's workers do."""
        row = self._board.acceptor_row()
        self.handle_error(None, PageSocket(sock, on_status=row.count_response, waits=False), peer, exc)

    def _watch_files(self, files: list[str]) -> None:
        assert self._share.config is not None, "checked by load_wsgi"
        for file in {*files, self._share.config.path, *(mount.file for mount in self._share.config.mounts if mount.file)}:
            self._late_reloader.add_extra_file(file)

    def run(self) -> None:
        try:
            self._run()
        except SystemExit as exc:  # a quick stop, from a signal handler
            self._exit_code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
            self._ending.quickly()
            raise
        except BaseException as exc:
            self._exit_code = 4 if isinstance(exc, AppImportError) else 255  # 4: as the arbiter will exit then, "App failed to load."
            raise

    def _run(self) -> None:
        parts = self._made()
        # The base class asks for a sign of life every half of gunicorn's timeout (self.timeout; 0: no limit).
        beat_s = min(_BEAT_S, self.timeout / 2) if self.timeout else _BEAT_S
        # Requests may wait in this worker for their mount to boot, or in the listener's queue for a worker that has booted. The latter
        # needs others, and a queue in common.
        can_wait = self._share.joins_others and self.cfg.workers > 1 and not self.cfg.reuse_port
        now = time.monotonic()
        self._boot_deadline, self._watch_from = now + (_BOOT_WAIT_S if can_wait else 0), now + _RELOADER_WAIT_S
        for what, work in self._once_a_second():
            parts.loop.every(beat_s, work, what)
        while self.alive:
            self._containment.call("start", self._go_on_starting)
            if self._has_nothing_to_serve:
                raise AppImportError("no mount could be loaded; the log says why")
            parts.loop.turn(beat_s)
        self._ending.gracefully(self._is_told_to_stop)

    def _on_settled(self) -> None:
        """Say how the start went."""
        parts = self._made()
        if not parts.supervisor.nothing_serves():
            if self._share.is_first:  # the others serve the same
                startup.report(parts.supervisor, parts.orders, self.log)
        elif self._is_last_to_fail():
            self._has_nothing_to_serve = True  # and nothing served before: all of gunicorn stops
        else:
            self.log.error("no mount could be loaded; all requests are answered 503 until a retry succeeds")

    def _go_on_starting(self) -> None:
        if not self._is_settled and self._made().supervisor.is_settled():
            self._is_settled = True
            self._containment.call("start-up report", self._on_settled)
        now = time.monotonic()
        if self._late_reloader and not self._late_reloader.is_alive() and (self._is_settled or now >= self._watch_from):
            self._late_reloader.start()
        if not self._is_accepting and (self._is_settled or now >= self._boot_deadline):
            self._is_accepting = True
            self._made().acceptor.start_accepting()
            self._made().supervisor.publish()  # else the first to ask /ready would hear that no worker accepts

    def _once_a_second(self) -> list[tuple[str, Callable[[], object]]]:
        """Return what is due about once a second, as separate calls: one that fails does not stop the others."""
        return [
            ("heartbeat", self.notify),
            ("parent", self._look_at_parent),
            ("supervisor", self._made().supervisor.rounds.tick),
            ("applied table", lambda: self._made().applying.tick() if self.alive else None),
            ("restart", self._look_for_restart),
        ]

    def _look_at_parent(self) -> None:
        if self.ppid != os.getppid():
            self.alive = False
            self.log.info("Parent changed, shutting down: %s", self)

    def _look_for_restart(self) -> None:
        if not self.alive:
            return
        parts = self._made()
        self.nr = parts.supervisor.requests()
        if reason := parts.supervisor.restart_reason() or parts.applying.restart_reason:
            self.alive = False
            self.log.warning("replacing this worker: %s", reason)
        elif parts.relay is not None and not parts.relay.is_alive():
            self.alive = False
            self.log.error("replacing this worker: its TLS relay thread has ended")
        elif self.nr >= self.max_requests:
            self.alive = False
            self.log.info("Autorestarting worker after %d requests.", self.nr)

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
            self._board.acceptor_row().say_clean_exit()
            os._exit(self._exit_code)

    def _made(self) -> Parts:
        assert self._parts is not None, "made by load_wsgi"
        return self._parts

    # Signals.

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._is_told_to_stop = True
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        # It comes twice after Ctrl-C, from the terminal and from the master; the second must not cut short what the first one began.
        if not self._is_quitting:
            self._is_quitting = True
            super().handle_quit(sig, frame)

    def handle_usr1(self, sig: int, frame: Any) -> None:
        try:
            super().handle_usr1(sig, frame)
        except OSError as exc:  # with capture_output gunicorn opens one more
            self.alive = False
            self.log.warning("cannot reopen the logs as uid %d (%s); replacing this worker", os.geteuid(), exc)
        if old := self._logs.lost(None if self._parts is None else self._parts.supervisor.table.config):
            # The master could, and the next worker has them from it. gunicorn's own workers end with an error here.
            self.alive = False
            self.log.warning("cannot reopen the logs as uid %d (%s); replacing this worker", os.geteuid(), ", ".join(old))
        if self._parts is not None:
            self._containment.call("logs", self._parts.supervisor.reopen_logs)

    def _empty_pipe(self) -> None:
        """Take in what signal handlers and the reloader wrote to wake the loop."""
        while select.select([self.PIPE[0]], [], [], 0)[0]:
            os.read(self.PIPE[0], 4096)
