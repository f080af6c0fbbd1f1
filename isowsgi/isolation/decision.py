"""Which isolation an app gets under `isolation = "auto"`, and why. Decided by loading the app, never by a list of packages.

The order of preference: an own GIL, where this CPython is sound for it; a shared GIL, if two copies load in one process, since otherwise
the mount could never be replaced there; a process. A refusal moves on to the next. A broken app is reported once, with its own traceback,
and not tried elsewhere. Where neither is certain (a crash, an unknown error, no end), a trial in a plain process tells: an app that fails
there in the same way is broken, one that loads there was refused.

No isolation may be worse than a process. So an interpreter is chosen only if the app has in it all that it has in a process (a module
that was refused is missing, even if the app catches the error), and if its extension modules share nothing with the neighbours (see
`sharing`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from isowsgi.inside.extensions import stamp_of
from isowsgi.isolation import sharing, trial
from isowsgi.isolation.trial import Outcome
from isowsgi.shared import interpreters, loadfailures
from isowsgi.shared.interpreters import PROCESS
from isowsgi.shared.messages import BootOrder

# How many copies one process must hold for the isolation to be chosen: an instance and its replacement.
COPIES = {interpreters.OWN_GIL: 1, interpreters.SHARED_GIL: 2, PROCESS: 1}

# Where a module was refused, for people.
_PLACES = {interpreters.OWN_GIL: "with an own GIL", interpreters.SHARED_GIL: "with a shared GIL", PROCESS: "in a process"}

# Names of the isolations, for people.
NAMES = {interpreters.OWN_GIL: "own GIL", interpreters.SHARED_GIL: "shared GIL", PROCESS: "process", interpreters.MAIN: "main interpreter"}

# Of the rules here and in `sharing`; verdicts that were found by others are not used. Count it up with each change of them.
RULES = 4

# Refusals that an extension module makes, not the app.
_EXTENSION_KINDS = frozenset({loadfailures.REFUSES_OWN_GIL, loadfailures.ONCE, loadfailures.MAIN_ONLY})

Stamp = tuple[int, int]


class Run(Protocol):
    """Runs one trial; `trial.run` is the real one."""

    def __call__(self, order: BootOrder, isolation: str, *, copies: int, timeout_s: float) -> Outcome: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A mount's isolation, or why it has none.

    Attributes:
        isolation: None if the app loads nowhere.
        reason: one line for people.
        extensions: path and stamp of each extension file that was loaded or refused, in any of the trials: what the verdict rests
            on, and what may be loaded in a worker.
        imports: modules that the app imports only when it serves, which were tried too.
        error: one line, if there is none.
        traceback: of the app's own failure; if there was none, what its process printed last.
        own_gil: path and stamp of each extension file that an app had with a GIL of its own, to its end; that may be better off elsewhere.
        unfit: extension file that is alone the reason why it is a process, with its stamp: no app that loads it can be in an interpreter.
        is_shared: whether it rests on what other apps have loaded, and not on a trial of this one.
    """

    isolation: str | None
    reason: str
    extensions: Mapping[str, Stamp] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    error: str = ""
    traceback: str = ""
    own_gil: Mapping[str, Stamp] = field(default_factory=dict)
    unfit: Mapping[str, Stamp] = field(default_factory=dict)
    is_shared: bool = False


def isolations_of(order: BootOrder) -> tuple[str, ...]:
    """Return the isolations that an app may have on this Python, the best first."""
    if order.host.python or order.walls:
        return (PROCESS,)
    if interpreters.best_isolation() == interpreters.OWN_GIL:
        return (interpreters.OWN_GIL, interpreters.SHARED_GIL, PROCESS)
    return (interpreters.SHARED_GIL, PROCESS)


def decide(order: BootOrder, *, timeout_s: float, run: Run = trial.run) -> Verdict:
    """Find the best isolation for an app; blocks for as long as the trials take, one to three of them.

    Args:
        order: a boot order as `BootOrders` writes it; its warm-up request is part of each trial. Its isolation does not count.
        timeout_s: how long the app may take to load.
        run: runs a trial.
    """
    decision = _Decision(order, timeout_s, run)
    return replace(decision.make(), own_gil=decision.loaded_with_own_gil())


def confirm(order: BootOrder, *, isolation: str, timeout_s: float, run: Run = trial.run) -> Verdict:
    """Find out whether an app loads with its configured isolation, where trying it in a worker would be a risk; blocks."""
    tried_in = PROCESS if isolation == interpreters.MAIN else isolation
    outcome = run(order, tried_in, copies=1, timeout_s=timeout_s)
    if outcome.loaded:
        return Verdict(isolation=isolation, reason="configured")
    reason = f"cannot be loaded: {outcome.failure.line}"
    return Verdict(isolation=None, reason=reason, error=outcome.error, traceback=outcome.traceback or outcome.output)


class _Decision:
    def __init__(self, order: BootOrder, timeout_s: float, run: Run) -> None:
        self._order = order
        self._timeout_s = timeout_s
        self._run = run
        self._outcomes: dict[str, Outcome] = {}
        self._culprits: list[str] = []  # for each kind of interpreter the file that rules it out; "": none does, or it is not sure

    def make(self) -> Verdict:
        reason = "it has its own Python" if self._order.host.python else "only a process has what it asks for" if self._order.walls else ""
        second_best: Verdict | None = None
        for isolation in isolations_of(self._order):
            outcome = self._try(isolation)
            if outcome.loaded:
                worse = why_worse(outcome)
                verdict = self._verdict(isolation, (reason or "it loads") + _without(outcome))
                if worse is None:
                    return verdict
                second_best = second_best or replace(verdict, reason=f"it does not load in a process; {worse}")
                reason = worse
                self._culprits.append(_path_of(_module_of(outcome), outcome))
                continue
            if isolation == PROCESS and second_best is not None:
                return replace(second_best, extensions=self._stamps())
            if isolation == PROCESS or self._is_broken(outcome):
                return self._none(outcome)
            reason = _why_not(outcome)
            # With several it may have been another one than that of the message.
            is_sure = outcome.failure.is_refusal and len(outcome.refused) == 1
            self._culprits.append(_path_of(outcome.failure.module, outcome) if is_sure else "")
        raise AssertionError("a process is always the last resort")

    def _verdict(self, isolation: str, reason: str) -> Verdict:
        imports = tuple(self._order.loading.imports)
        unfit = _stamped(set(self._culprits) - {""}) if isolation == PROCESS and len(set(self._culprits)) == 1 else {}
        return Verdict(isolation=isolation, reason=reason, extensions=self._stamps(), imports=imports, unfit=unfit)

    def _try(self, isolation: str) -> Outcome:
        if isolation not in self._outcomes:
            self._outcomes[isolation] = self._run(self._order, isolation, copies=COPIES[isolation], timeout_s=self._timeout_s)
        return self._outcomes[isolation]

    def _is_broken(self, outcome: Outcome) -> bool:
        failure = outcome.failure
        if failure.is_refusal or outcome.failed_copy > 1:  # the first copy loaded, so the app is whole
            return False
        if failure.kind == loadfailures.BROKEN:
            return True
        elsewhere = self._try(PROCESS)
        return not elsewhere.loaded and _sameness(elsewhere) == _sameness(outcome)

    def loaded_with_own_gil(self) -> dict[str, Stamp]:
        """Return the extension files that can do with a GIL of their own; if the app was not loaded, it is not known how they end."""
        outcome = self._outcomes.get(interpreters.OWN_GIL)
        if outcome is None or not outcome.loaded:
            return {}
        refused = {path for _, path, _ in outcome.refused}
        return _stamped({path for _, path in outcome.extensions} - refused)

    def _stamps(self) -> dict[str, Stamp]:
        paths = {path for outcome in self._outcomes.values() for _, path in outcome.extensions}
        return _stamped(paths | {path for outcome in self._outcomes.values() for _, path, _ in outcome.refused})

    def _none(self, outcome: Outcome) -> Verdict:
        told = self._outcomes.get(PROCESS, outcome) if not outcome.traceback else outcome
        return Verdict(
            isolation=None,
            reason=f"cannot be loaded: {outcome.failure.line}",
            extensions=self._stamps(),
            error=outcome.error,
            traceback=told.traceback or told.output,
        )


def _module_of(outcome: Outcome) -> str:
    """Return the extension module because of which an app that loads would be better off in a process."""
    missing, harm = missing_in(outcome), sharing.harmful(outcome.shared)
    return missing[0] if missing else harm[0].module if harm else ""


def _path_of(module: str, outcome: Outcome) -> str:
    """Return the file of an extension module that was loaded or refused; "" if it is not known for sure."""
    known = [*outcome.extensions, *((name, path) for name, path, _ in outcome.refused)]
    paths = {path for name, path in known if module and name == module}
    return paths.pop() if len(paths) == 1 else ""


def _stamped(paths: Iterable[str]) -> dict[str, Stamp]:
    stamps = {path: stamp_of(path) for path in sorted(paths)}
    return {path: (stamp[0], stamp[1]) for path, stamp in stamps.items() if stamp is not None}


def why_worse(outcome: Outcome) -> str | None:
    """Say in one line why an app that loads in an interpreter would be better off in a process, or None."""
    missing = missing_in(outcome)
    if missing:
        return f"{missing[0]} cannot be loaded {_PLACES[outcome.isolation]}, and the app would run without it"
    harmful = sharing.harmful(outcome.shared)
    return f"{harmful[0].module} {harmful[0].what}" if harmful else None


def missing_in(outcome: Outcome) -> list[str]:
    """Return the refused extension modules that an app goes without although its packages have nothing as good in their place."""
    return [name for name, _, _ in outcome.refused if sharing.is_missed(name, outcome.lost)]


def _without(outcome: Outcome) -> str:
    names = ", ".join(name for name, _, _ in outcome.refused)
    return f"; without {names} (optional)" if names else ""


def _sameness(outcome: Outcome) -> tuple[object, ...]:
    """Return what two failures of the same cause have in common."""
    return outcome.exit_code, outcome.signal, outcome.timed_out, re.sub(r"0x[0-9a-f]+|\d+", "0", outcome.error)


def _why_not(outcome: Outcome) -> str:
    """Say in one line why an app that loads in a process, as far as is known, does not in an interpreter of this kind."""
    where = NAMES[outcome.isolation]
    failure = outcome.failure
    if failure.is_refusal and (failure.module or failure.kind in _EXTENSION_KINDS):
        return f"{failure.module or 'an extension module'} {failure.kind}"
    if failure.is_refusal:
        return f"it {failure.kind}: {failure.line}"
    if outcome.has_died or outcome.timed_out:
        return f"{where}: {outcome.error}"
    if outcome.failed_copy > 1:
        return f"{where}: a second copy cannot be loaded, so the app could not be replaced: {failure.line}"
    return f"{where}: {failure.line}"
