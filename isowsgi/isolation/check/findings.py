"""`isowsgi check`: what becomes of each mount of a config file, found by loading its app with each isolation.

All of it happens in throw-away processes. The answers are values; `page` shows them to people.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gunicorn.config import Config as GunicornConfig

import isowsgi
from isowsgi.configuration import Config, Mount, crossing, pythons, tenants
from isowsgi.instances.bootorder import BootOrders
from isowsgi.isolation import decision, trial, whose
from isowsgi.isolation.check import alternatives, declares, lazily
from isowsgi.isolation.decision import COPIES, NAMES, Verdict
from isowsgi.isolation.trial import Outcome
from isowsgi.isolation.verdicts import Verdicts, key_of
from isowsgi.shared import interpreters, loadfailures
from isowsgi.shared.interpreters import MAIN, PROCESS
from isowsgi.shared.messages import BootOrder

# A line of the log, as inside/policy.py writes it.
_POLICY_LINE = re.compile(r'^\[.*\[WARNING\] .+?: (.* is (?:called|refused): policy \w+ = "\w+")$', re.MULTILINE)

Progress = Callable[[str, str], None]  # pattern, what is tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """One extension module that an app loads or tries to."""

    name: str
    path: str
    interpreters: str  # what it declares, see `declares`
    gil: str
    refused: str = ""  # what it said with better isolations than the mount's


@dataclass(frozen=True, slots=True, kw_only=True)
class MountReport:
    """What was found out about one mount."""

    pattern: str
    app: str
    configured: str  # its `isolation`
    isolation: str | None  # None: it cannot be loaded
    reason: str
    error: str
    traceback: str
    outcomes: Mapping[str, Outcome]  # by isolation
    extensions: tuple[Extension, ...]
    fallbacks: tuple[str, ...]  # extension modules that it runs without
    warnings: tuple[str, ...]
    advice: tuple[alternatives.Alternative, ...]
    lazy: lazily.Comparison | None = None  # None: not asked for, no isolation, or a Python without lazy imports
    needs_lazy: bool = False  # whether the config file asks for them


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found out about a config file."""

    config: str
    mounts: tuple[MountReport, ...]
    clashes: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def is_fine(self) -> bool:
        """Whether each mount has an isolation, and none takes what another needs."""
        fails = any(mount.needs_lazy and mount.lazy and mount.lazy.problem for mount in self.mounts)
        return not self.clashes and not fails and all(mount.isolation for mount in self.mounts)


def check(
    config: Config,
    *,
    patterns: Sequence[str] = (),
    timeout_s: float | None = None,
    progress: Progress = lambda pattern, what: None,
    memory: Verdicts | None = None,
    lazy_paths: Sequence[str] | None = None,
) -> Report:
    """Try each mount with each isolation; blocks for some seconds a mount.

    Args:
        config: the file, as `configuration.load` gives it.
        patterns: mounts to look at; none: all.
        timeout_s: how long an app may take to load; None: the mount's own boot_timeout.
        progress: told before each trial.
        memory: where the verdicts are remembered, for the next start of a worker.
        lazy_paths: below each mount, asked for with and without lazy imports; None: that is not compared.
    """
    cfg = GunicornConfig()
    orders = BootOrders(crossing.snapshot(cfg), cfg, [], report_files=False)
    reports = []
    for each in config.mounts:
        mount = tenants.example(each) if each.max_live else each
        if not mount.redirect and mount.files is None and (not patterns or mount.pattern in patterns):
            group = [member for member in config.mounts if member.group and member.group == mount.group]
            order = orders.write(group or [mount], mount.isolation, 0, 0, 0)
            limit_s = timeout_s or mount.boot_timeout
            reports.append(_MountCheck(mount, order, limit_s, progress, memory or Verdicts(), lazy_paths).make())
    chosen = [mount for mount in config.mounts if not patterns or mount.pattern in patterns]
    return Report(config=config.path, mounts=tuple(reports), clashes=tuple(_clashes(reports)), notes=tuple(_notes(chosen, config.mounts)))


class _MountCheck:
    def __init__(
        self, mount: Mount, order: BootOrder, timeout_s: float, progress: Progress, memory: Verdicts, lazy_paths: Sequence[str] | None
    ) -> None:
        self._mount = mount
        self._lazy_paths = lazy_paths
        known = memory.recall(key_of(order))  # a worker has met more, where requests import
        self._order = order.replace(loading=order.loading.replace(imports=list(known.imports) if known else []))
        self._timeout_s = timeout_s
        self._progress = progress
        self._memory = memory
        self._outcomes: dict[str, Outcome] = {}

    def make(self) -> MountReport:
        for isolation in self._isolations():
            if not self._hangs_everywhere():
                self._try(self._order, isolation, copies=COPIES[isolation], timeout_s=self._timeout_s)
        warnings: list[str] = []
        verdict = self._decide() if self._mount.isolation == "auto" else self._as_configured(warnings)
        refused = self._refused_before(verdict.isolation)
        lived_in = self._outcomes.get(PROCESS if verdict.isolation == MAIN else verdict.isolation or "")
        if lived_in is not None:
            warnings += [f"when it is loaded, {line}" for line in dict.fromkeys(_POLICY_LINE.findall(lived_in.output))]
            warnings += [f"its sandbox refuses this: it {line}" for line in lived_in.touched]
        return MountReport(
            pattern=self._mount.pattern,
            app=str(self._mount.app),
            configured=self._mount.isolation,
            isolation=verdict.isolation,
            reason=verdict.reason,
            error=verdict.error,
            traceback=verdict.traceback,
            outcomes=self._outcomes,
            extensions=self._extensions(refused),
            fallbacks=tuple(name for name, _, _ in lived_in.refused) if lived_in and lived_in.loaded else (),
            warnings=tuple(warnings),
            advice=tuple(alternatives.advice_for(refused)),
            lazy=self._compare(verdict.isolation),
            needs_lazy=self._mount.lazy_imports == "all",
        )

    def _compare(self, isolation: str | None) -> lazily.Comparison | None:
        if self._lazy_paths is None or isolation in (None, MAIN):
            return None
        version = interpreters.VERSION if self._mount.python is None else pythons.ask(self._mount.python).version
        if interpreters.lazy_imports_warning(version):
            return None

        def run(order: BootOrder, what: str) -> Outcome:
            self._progress(self._mount.pattern, what)
            return trial.run(order, str(isolation), copies=1, timeout_s=self._timeout_s)

        return lazily.compare(self._order, self._lazy_paths, run)

    def _hangs_everywhere(self) -> bool:
        """Whether there is nothing to learn from a third wait for the whole of the time limit."""
        if not any(outcome.timed_out for outcome in self._outcomes.values()):
            return False
        return self._try(self._order, PROCESS, copies=1, timeout_s=self._timeout_s).timed_out

    def _isolations(self) -> tuple[str, ...]:
        if self._order.host.python or self._order.walls:
            return (PROCESS,)
        own = () if interpreters.own_gil_error() else (interpreters.OWN_GIL,)
        return (*own, interpreters.SHARED_GIL, PROCESS)

    def _try(self, order: BootOrder, isolation: str, *, copies: int, timeout_s: float) -> Outcome:
        if isolation not in self._outcomes:
            self._progress(self._mount.pattern, NAMES[isolation])
            self._outcomes[isolation] = trial.run(order, isolation, copies=copies, timeout_s=timeout_s)
        return self._outcomes[isolation]

    def _decide(self) -> Verdict:
        verdict = decision.decide(self._order, timeout_s=self._timeout_s, run=self._try)
        self._memory.remember(key_of(self._order), verdict)
        return verdict

    def _as_configured(self, warnings: list[str]) -> Verdict:
        isolation = self._mount.isolation
        outcome = self._try(
            self._order, PROCESS if isolation == MAIN else isolation, copies=COPIES.get(isolation, 1), timeout_s=self._timeout_s
        )
        if isolation == interpreters.OWN_GIL and (warning := interpreters.own_gil_warning()):
            warnings.append(warning)
        if outcome.loaded:
            if isolation != PROCESS and (worse := decision.why_worse(outcome)):
                warnings.append(f"{worse}; use 'auto' or 'process'")
            return Verdict(isolation=isolation, reason="as configured")
        if isolation == interpreters.SHARED_GIL and outcome.failed_copy > 1:
            module = outcome.failure.module or "it"
            warnings.append(f"{module} loads once per process, so this mount can have one instance only, and it cannot be replaced")
            return Verdict(isolation=isolation, reason="as configured")
        hint = loadfailures.hint(f"{outcome.error}\n{outcome.traceback}", isolation)
        return Verdict(
            isolation=None,
            reason=f"does not load with isolation = {isolation!r}",
            error=outcome.failure.line + hint,
            traceback=outcome.traceback or outcome.output,
        )

    def _refused_before(self, best: str | None) -> dict[str, str]:
        """Return what was said by modules that refused a better isolation than the mount's, by name."""
        refused: dict[str, str] = {}
        for isolation in COPIES:  # the best first
            if isolation == best:
                break
            for name, _, error in self._outcomes[isolation].refused if isolation in self._outcomes else ():
                refused.setdefault(name, error)
        return refused

    def _extensions(self, refused: Mapping[str, str]) -> tuple[Extension, ...]:
        paths: dict[str, str] = {}
        for outcome in self._outcomes.values():
            for name, path, *_ in (*outcome.extensions, *outcome.refused):
                paths.setdefault(path, name)
        answers: dict[str, dict[str, str]] = {}
        if paths:  # and whatever code is in there, as it runs
            self._progress(self._mount.pattern, f"{len(paths)} extension modules")
            as_whom = whose.process_of(whose.account_of(self._order), os.environ, self._order.host.python is not None)
            answers = declares.declared_by(paths, self._order.host.python or sys.executable, as_whom)
        return tuple(
            Extension(name=paths[path], path=path, refused=refused.get(paths[path], ""), **answers[path]) for path in sorted(paths)
        )


def _clashes(reports: Sequence[MountReport]) -> Iterator[str]:
    """Yield what mounts take from each other: one file of a module that loads once per process, asked for by two with a shared GIL."""
    users: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for report in reports:
        outcome = report.outcomes.get(interpreters.SHARED_GIL)
        if report.isolation != interpreters.SHARED_GIL or outcome is None or outcome.loaded:
            continue
        for name, path, _ in outcome.refused:
            try:
                status = os.stat(path)  # a hard link or a symlink is the same file to the dynamic linker
            except OSError:
                continue
            users.setdefault((status.st_dev, status.st_ino), []).append((report.pattern, name))
    for pairs in users.values():
        if len(pairs) > 1:
            patterns = ", ".join(pattern for pattern, _ in pairs)
            yield f"{patterns}: {pairs[0][1]} loads once per process, and these mounts share one file of it: only one of them will load"


def _notes(chosen: Sequence[Mount], mounts: Sequence[Mount]) -> Iterator[str]:
    """Yield what one may not expect of the patterns: which mounts get only a part of what they name."""
    for mount in chosen:
        takers = [other.pattern for other in mounts if other.host and not mount.host and other.prefix and _covers(other, mount)]
        takers += [other.pattern for other in mounts if other.host and not mount.host and not other.prefix and mount.prefix]
        if takers:
            yield f"{mount.pattern}: not reached at the hosts of {', '.join(takers)}: a pattern with a host wins over one without"
        inner = [
            other.pattern
            for other in mounts
            if mount.prefix and _hosts(mount) & _hosts(other) and other.prefix.startswith(mount.prefix + "/")
        ]
        if inner:
            yield f"{mount.pattern}: requests that begin with {', '.join(inner)} go there: the longest pattern wins"


def _hosts(mount: Mount) -> set[str]:
    return {mount.host, *mount.hosts}


def _covers(outer: Mount, inner: Mount) -> bool:
    return inner.prefix == outer.prefix or inner.prefix.startswith(outer.prefix + "/")


def as_json(report: Report) -> dict[str, Any]:
    """Return a report as values that JSON has; docs/howto/isolation.md describes them."""
    return {
        "isowsgi": isowsgi.__version__,
        "python": interpreters.version_text(),
        "config": report.config,
        "is_fine": report.is_fine,
        "mounts": [_mount_as_json(mount) for mount in report.mounts],
        "clashes": list(report.clashes),
        "notes": list(report.notes),
    }


def _mount_as_json(mount: MountReport) -> dict[str, Any]:
    trials = {}
    for isolation, outcome in mount.outcomes.items():
        facts = asdict(outcome)
        for name in ("isolation", "extensions", "load_s", "answers"):
            del facts[name]
        facts["kind"] = None if outcome.loaded else kind_of(outcome)
        facts["worse"] = decision.why_worse(outcome) if outcome.loaded and isolation != PROCESS else None
        facts["shared"] = [sharing._asdict() for sharing in outcome.shared]
        facts["refused"] = [{"name": name, "path": path, "error": error} for name, path, error in outcome.refused]
        trials[isolation] = facts
    return {
        "pattern": mount.pattern,
        "app": mount.app,
        "configured": mount.configured,
        "isolation": mount.isolation,
        "reason": mount.reason,
        "error": mount.error,
        "traceback": mount.traceback,
        "trials": trials,
        "extensions": [asdict(extension) for extension in mount.extensions],
        "fallbacks": list(mount.fallbacks),
        "warnings": list(mount.warnings),
        "advice": [alternative._asdict() for alternative in mount.advice],
        "lazy": None if mount.lazy is None else lazily.as_json(mount.lazy),
    }


def kind_of(outcome: Outcome) -> str:
    """Return in a word or two how a trial failed."""
    if outcome.signal is not None:
        return f"crashes ({outcome.signal})"
    if outcome.exit_code is not None:
        return f"exits ({outcome.exit_code})"
    if outcome.timed_out:
        return "hangs"
    failure = outcome.failure
    if failure.is_refusal:
        return failure.kind
    return "cannot be replaced" if outcome.failed_copy > 1 else "fails"
