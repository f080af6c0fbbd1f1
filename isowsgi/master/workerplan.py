"""What the next worker will serve: decided in gunicorn's master, before each fork.

The config file is read at the first start by `check`, which may refuse, and again whenever gunicorn has read its own settings (SIGHUP). A
file that has become faulty then changes nothing: the last good one stays in force. An exception in the master would end all of gunicorn, so
after the first start each is contained here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import evolve

from isowsgi import configuration
from isowsgi.configuration import crossing, gunicorn_settings, pythons, remembered, stored
from isowsgi.configuration.included import keep_faulty
from isowsgi.configuration.values import numbered
from isowsgi.master import users
from isowsgi.master.appmodule import config_path
from isowsgi.master.crashes import SUSPECT, CrashReport, Ledger
from isowsgi.shared import certificates, conffile, interpreters, logformat
from isowsgi.shared.applied import LastApplied
from isowsgi.shared.board import Board
from isowsgi.shared.conffile import ConfFile
from isowsgi.shared.containment import Containment
from isowsgi.shared.rows import INTERNAL_ERRORS
from isowsgi.shared.scoreboard import Scoreboard

if TYPE_CHECKING:
    from isowsgi.master.tlscontext import Reading

# Patterns of earlier tables that are remembered, for the crash of a worker that still served one.
_MOST_PATTERNS = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one worker gets of it.

    Attributes:
        config: what it serves; None: no file was ever read.
        settings: of gunicorn's, what apps' interpreters obey.
        tls: see `tlscontext.Reading`; None without TLS.
        region: its part of the scoreboard.
        verdicts: patterns of mounts that crashed workers, by verdict.
        is_first: of those that serve this config.
        joins_others: whether as many workers as were asked for serve the same already: it replaces one that ended, or is one more
            (SIGTTIN).
        is_from_the_start: whether nothing has been served before it.
        last_applied: where a table that is applied is noted for all workers; None: nowhere, so none can be.
        base: the number of the config file's reading that the config comes from.
        serial: of the table that was applied since then; "" if none was.
        conf_file: of gunicorn's settings, as it was read; None: there is none.
        root_logs: log files of mounts that the config file names. Those that only an applied table names are the workers' word.
        vouched: the config as root has read it from the file, whatever was applied since; who runs as which user is in there.
    """

    config: configuration.Config | None
    settings: Mapping[str, Any]
    tls: Reading | None
    region: Scoreboard
    verdicts: Mapping[str, frozenset[str]]
    is_first: bool
    joins_others: bool
    is_from_the_start: bool
    last_applied: LastApplied | None
    base: int
    serial: str
    conf_file: ConfFile | None
    root_logs: frozenset[str]
    vouched: configuration.Config | None


class Plan:
    """The master's; there is one."""

    def __init__(self) -> None:
        self._config: configuration.Config | None = None
        self._vouched: configuration.Config | None = None  # see `Share`
        self._settings: dict[str, Any] = {}
        self._tls: Reading | None = None  # see `Share`
        self._readings = 0  # of gunicorn's settings, with success
        self._shown = ""  # the config file, as it was named
        self._published: tuple[certificates.Published, int] | None = None  # which files those are, and the memory that says so
        self._is_for: Any = None  # which of gunicorn's Config objects it was read for
        self._conf_file: ConfFile | None = None
        self._remembered: remembered.Patterns | None = None
        self._has_started = self._has_reloaded = False
        self._forks = 0  # that had this config so far
        self._ledger: Ledger | None = None
        self._verdicts: dict[str, set[str]] = {}
        self._board: Board | None = None
        self._last_applied: LastApplied | None = None
        self._base = 0  # how often the config file was read with success
        self._serial = ""  # of the table that was applied since then
        self._root_logs: frozenset[str] = frozenset()
        self._patterns: frozenset[str] = frozenset()  # of the config file, and of the table in force
        self._errors = memoryview(bytearray((INTERNAL_ERRORS + 1) * 8)).cast("q")  # of the master, until a worker's region takes them along

    def check(self, cfg: Any, log: Any) -> None:
        """Refuse what cannot be served, at gunicorn's first start.

        Raises:
            RuntimeError: gunicorn prints its text and exits with 1.
        """
        self._conf_file = conffile.read(cfg.config)
        refusals, warnings = gunicorn_settings.check(cfg)
        if (reason := interpreters.unusable_reason()) is not None:
            refusals.insert(0, reason)
        if refusals:
            raise RuntimeError("\n".join(refusals))
        for warning in warnings:
            log.warning(warning)
        # A positional APP_MODULE becomes the default process name and is nowhere else in the settings.
        name = cfg.default_proc_name
        try:
            self._read(config_path(name if name != "gunicorn" else cfg.wsgi_app or ""), cfg, log)
        except configuration.ConfigError as exc:
            raise RuntimeError(str(exc)) from exc
        if refusals := self._take_settings(cfg, log):
            raise RuntimeError("\n".join(refusals))
        self._has_started = True
        self._apply_log_form(log)
        if cfg.check_config and self._config is not None and self._config.faults:
            raise RuntimeError("\n".join(self._config.faults))

    def _apply_log_form(self, log: Any) -> None:
        """Have gunicorn's error log look as the config file says, here and in each worker that is forked from here; see `logformat`."""
        if self._config is not None and (error_log := getattr(log, "error_log", None)) is not None:
            logformat.apply([error_log], self._config.log.format, self._config.log.priorities)

    def share(self, app: Any, cfg: Any, log: Any) -> Share:
        """Return what the worker gets that is forked next."""
        containment = self.contained(log)
        containment.call("applied table", self._take_applied, log)  # before the file: what it cannot say stays as it is
        if cfg is not self._is_for or cfg.reload:
            self._is_for = cfg  # only once for each HUP, good or bad
            self._has_reloaded, self._forks = True, 0
            containment.call("reload of settings and config file", self._reread, app, cfg, log)
        containment.call("form of the log", self._apply_log_form, log)
        self._forks += 1
        joins_others = self._forks > cfg.workers
        return Share(
            config=self._config,
            settings=self._settings,
            tls=self._tls,
            region=self._new_region(containment),
            verdicts={verdict: frozenset(patterns) for verdict, patterns in self._verdicts.items()},
            is_first=self._forks == 1,
            joins_others=joins_others,
            is_from_the_start=not self._has_reloaded and not joins_others,
            last_applied=self._last_applied,
            base=self._base,
            serial=self._serial,
            conf_file=self._conf_file,
            root_logs=self._root_logs,
            vouched=self._vouched,
        )

    def contained(self, log: Any) -> Containment:
        """Return where the master's mistakes end, and are counted."""
        return Containment(log, self._errors)

    def on_reaped(self, share: Share, pid: object, log: Any) -> None:
        """Note a worker's end: say what it was doing, if it was not its own decision, and keep what it counted."""
        containment = self.contained(log)
        crashed: list[str | None] = [None]
        containment.call("applied table", self._take_applied, log)
        containment.call("scoreboard", share.region.learn_mounts, self._patterns)
        config = self._config if share.base == self._base else share.config
        if config is not None and self._ledger is not None:
            report = partial(CrashReport, share.region, config, self._ledger, self._verdicts, log)
            containment.call("crash report", lambda: crashed.append(report().write(pid)))
        containment.call("scoreboard", self._retire, share.region, crashed[-1])

    def _retire(self, region: Scoreboard, crashed: str | None) -> None:
        if self._board is None or region.fd != self._board.fd:
            region.close()
            os.close(region.fd)  # it had a board to itself
            return
        region.acceptor_row().count_internal_errors(self._errors[INTERNAL_ERRORS])
        self._errors[INTERNAL_ERRORS] = 0
        self._board.retire(region, crashed, time.monotonic())

    def _new_region(self, containment: Containment) -> Scoreboard:
        patterns = [mount.pattern for mount in self._config.mounts] if self._config is not None else []
        try:
            if self._board is None:
                self._board = Board()
            return self._board.new_region(patterns, time.monotonic())
        except Exception:  # memory, or descriptors: the worker counts for itself, and the others' pages do not show it
            containment.failed("scoreboard")
            region = Scoreboard()
            region.set_mounts(patterns)
            return region

    def _take_applied(self, log: Any) -> None:
        """Take over the table that an operator has applied since the config file was read: a new worker serves what the others do."""
        if self._last_applied is None:
            self._last_applied = LastApplied()  # before the first fork
            stored.warm_up()
        applied = self._last_applied.read()
        if applied is None or applied.base != self._base or applied.serial == self._serial:
            return
        self._serial = applied.serial  # also if it is none, so that this is said once
        try:
            config = stored.restore(applied.config)
            config = evolve(config, mounts=numbered(config.mounts))
        except stored.NotAConfig as exc:
            log.error("the table that was applied is unreadable; new workers serve the one before it: %s", exc)
            return
        if self._config is None or config.limits != self._config.limits:
            self._ledger = Ledger(config.limits.crashes, config.limits.crash_window)
        self._config = config
        self._remember(config)
        self._patterns |= {mount.pattern for mount in config.mounts}
        if len(self._patterns) > _MOST_PATTERNS:  # of tables that were in force before
            self._patterns = frozenset(mount.pattern for mount in config.mounts)

    def _remember(self, config: configuration.Config) -> None:
        """Remember the patterns of included files, for a start at which one of them is no TOML."""
        patterns = remembered.patterns_of(config)
        if patterns != self._remembered:
            self._remembered = patterns
            remembered.save(config.path, patterns)

    def _take_settings(self, cfg: Any, log: Any) -> list[str]:
        """Take over what gunicorn's settings say, with the certificates of `[[tls]]`, or nothing of it; return what is wrong with them."""
        tls: Reading | None = None
        faults: list[str] = []
        warnings: list[str] = []
        if cfg.is_ssl or (self._config is not None and self._config.tls):
            from isowsgi.master import tlscontext  # most servers have a proxy for that, and need not pay for it

            assert self._config is not None, "read before"
            try:
                tls, faults, warnings = tlscontext.read(cfg, self._config, self._shown, self._tls, self._readings + 1)
            except tlscontext.ContextError as exc:
                return [str(exc)]
        elif cfg.cert_reqs:  # gunicorn would serve everybody
            return ["gunicorn setting cert_reqs: client certificates need TLS; set certfile and keyfile, or [[tls]] in the config file"]
        if faults and not self._has_started:
            return faults
        for fault in faults:
            log.error(fault)
        for warning in warnings:
            log.warning(warning)
        self._readings += 1
        self._settings, self._tls = crossing.snapshot(cfg, tls is not None), tls
        self._publish()
        return []

    def _publish(self) -> None:
        """Say which certificates are served, for root's command; see `certificates`."""
        assert self._config is not None, "read before"
        said = None if self._tls is None else certificates.Published(self._tls.files, self._config.path)
        if said == (self._published and self._published[0]):
            return
        if self._published is not None:
            os.close(self._published[1])
        self._published = None if said is None else (said, certificates.publish(said))

    def _read(self, path: str, cfg: Any, log: Any) -> None:
        config = configuration.load(path, own_gil_error=interpreters.own_gil_error(), base=cfg.chdir)
        if faults := users.faults(config, cfg, path):
            raise configuration.ConfigError(tuple(faults))
        self._shown = path
        for fault in config.faults:
            log.error(fault)
        self._root_logs = frozenset(mount.log for mount in config.mounts if mount.log is not None)
        self._vouched = config if self._vouched is None else keep_faulty(config, self._vouched)
        config = remembered.with_remembered(config) if self._config is None else keep_faulty(config, self._config)
        if config != self._config:  # else the workers that are there serve it: with --reload each fork reads the file
            self._base, self._serial = self._base + 1, ""
        self._config, self._is_for = config, cfg
        self._patterns = frozenset(mount.pattern for mount in config.mounts)
        if not cfg.check_config:
            self._remember(config)
        self._ledger = Ledger(config.limits.crashes, config.limits.crash_window)
        self._verdicts = {"quarantine": set(), "process": set(), SUSPECT: set()}
        if config.limits.lame_duck and config.limits.lame_duck >= cfg.graceful_timeout:
            text = "worker.lame_duck: %g s, but gunicorn ends its workers after graceful_timeout = %d s; raise graceful_timeout above it"
            log.warning(text, config.limits.lame_duck, cfg.graceful_timeout)
        warning = interpreters.own_gil_warning()
        wanting = [mount.pattern for mount in config.mounts if mount.isolation == interpreters.OWN_GIL]
        if warning and wanting:
            log.warning("%s: %s", ", ".join(wanting), warning)
        _warn_of_lazy_imports(config, log)
        _warn_of_limits(config, cfg, log)
        for warning in users.warnings(config, cfg):
            log.warning(warning)
        if sandboxed := [mount.pattern for mount in config.mounts if mount.sandbox is not None]:
            _warn_of_sandboxes(", ".join(sandboxed), cfg, log)

    def _reread(self, app: Any, cfg: Any, log: Any) -> None:
        """Read the config file again, after SIGHUP or on a change that --reload saw."""
        self._conf_file = conffile.read(cfg.config)
        refusals, warnings = gunicorn_settings.check(cfg)
        for warning in warnings:
            log.warning(warning)
        try:
            self._read(config_path(getattr(app, "app_uri", None) or cfg.wsgi_app or ""), cfg, log)
        except configuration.ConfigError as exc:
            for fault in exc.faults:
                log.error(fault)
            log.error("invalid config file; keeping the previous mounts")
        if not refusals:
            refusals = self._take_settings(cfg, log)
        for refusal in refusals:
            log.error(refusal)
        if refusals:
            log.error("invalid settings; keeping the previous ones for TLS and for the apps' interpreters")


def _warn_of_lazy_imports(config: configuration.Config, log: Any) -> None:
    """Say which mounts ask for what their Python does not have; no fault, so that one config file serves on each release."""
    without: dict[str, list[str]] = {}
    for mount in config.mounts:
        if mount.lazy_imports == "all":
            version = interpreters.VERSION if mount.python is None else pythons.ask(mount.python).version
            if warning := interpreters.lazy_imports_warning(version):
                without.setdefault(warning, []).append(mount.pattern)
    for warning, patterns in without.items():
        log.warning("%s: %s", ", ".join(patterns), warning)


def _warn_of_limits(config: configuration.Config, cfg: Any, log: Any) -> None:
    """Say which limits are not as they are with control groups; no fault, so that one config file serves on each machine."""
    limited = {word: [mount.pattern for mount in config.mounts if word in mount.limits] for word in ("cpu", "processes")}
    if not any(limited.values()):
        return
    from isowsgi.shared import cgroups  # late: most have no limits

    reason = "its control group has no controller for it"
    try:
        there = cgroups.find().controllers
    except cgroups.Unavailable as exc:
        reason, there = str(exc), frozenset()
    if limited["cpu"] and "cpu" not in there:
        log.warning("%s: limits.cpu has no effect here: %s", ", ".join(limited["cpu"]), reason)
    limited["processes"] = [mount.pattern for mount in config.mounts if "processes" in mount.limits and not mount.user]
    if limited["processes"] and "pids" not in there:
        what = "has no effect on root's" if cfg.uid == 0 else "counts all processes and threads of gunicorn's user, not only this app's"
        log.warning("%s: limits.processes %s: %s", ", ".join(limited["processes"]), what, reason)


def _warn_of_sandboxes(mounts: str, cfg: Any, log: Any) -> None:
    """Say what a sandbox does not do here; without Landlock it is the boot that fails."""
    from isowsgi.shared import landlock  # late: most have none

    if landlock.abi() and (gaps := landlock.gaps()):
        log.warning("%s: this kernel's sandbox (Landlock ABI %d) does not restrict %s", mounts, landlock.abi(), "; ".join(gaps))
    if cfg.uid == 0:
        log.warning("%s: a sandbox keeps less from root, who owns most files; set gunicorn's `user`", mounts)
