"""Tables that operators apply: prepared on request, taken up in all workers, or in none.

The command has each worker prepare the table, and once all have, switch. The first that is told to switch decides, by a text that all
workers share (`shared.applied`). From then on there is no way back: the others switch when they are told, or when they see the text about a
second later, be the command killed meanwhile or the worker new. What was prepared and never decided on is dropped.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from isowsgi.configuration import Config, partial, stored
from isowsgi.configuration.included import keep_faulty
from isowsgi.configuration.values import Certificate
from isowsgi.shared.applied import Applied, Deciding, LastApplied, Outvoted
from isowsgi.shared.certificates import Files, name_of
from isowsgi.shared.controlmessages import CertificateFiles, Drop, NotLoaded, Prepare, Refusal, Switch, TableOutcome
from isowsgi.worker.change import Change, Problem, Unchangeable
from isowsgi.worker.control.server import AT_ONCE, Errand
from isowsgi.worker.livetable import LiveTable

if TYPE_CHECKING:
    from isowsgi.worker.certificates import Certificates

# How long a prepared table waits for the word to switch at most; the command says how long its workers may differ.
_MOST_HELD_S = 3600.0

# How long a worker that follows others' decision waits for what is new, before it serves the table as far as it goes.
_FOLLOW_S = 60.0


@dataclass(slots=True)
class _Pending:
    """A table that is being prepared, or waits for the switch."""

    table: Applied
    change: Change
    deadline: float = float("inf")
    is_decided: bool = False  # by another worker
    failed: list[NotLoaded] = field(default_factory=list)  # what is not in it for that
    stays: set[str] = field(default_factory=set)


class Applying:
    """One worker's part in it.

    Args:
        live: the table that changes.
        last_applied: what all workers share; None if they share nothing.
        base, serial: see `master.workerplan.Share`.
        log: gunicorn's logger.
    """

    def __init__(self, live: LiveTable, last_applied: LastApplied | None, base: int, serial: str, log: Any) -> None:
        self._live = live
        self._last_applied = last_applied
        self._base = base
        self._serial = serial
        self._log = log
        self._pending: _Pending | None = None
        self.restart_reason = ""  # why another worker should take over from this one
        self.on_removed: Callable[[list[str]], None] = lambda patterns: None  # takes the patterns that are no more
        self.certificates: Certificates | None = None  # with TLS
        self._known: stored.Known | None = None  # of the config that serves
        self._turn = -1  # of the shared text, when it was looked at last

    # Requests.

    def prepare(self, request: Prepare) -> Errand:
        """Load what is new in a table; answered once all of it serves, or something does not."""
        if self._last_applied is None:
            raise Refusal("unchangeable", "the workers share no memory, see the error log; use SIGHUP")
        if self._pending is not None:
            raise Refusal("busy", "another table is being applied; try again")
        yield AT_ONCE  # neighbours' requests are routed meanwhile, as between all steps
        if self._known is None:
            serves, mounts = self._live.table.config, []
            for mount in serves.mounts:
                mounts.append(stored.plain_mount(mount))
                yield AT_ONCE
            self._known = self._known or stored.known(serves, mounts)
        config = _restored(request.config, self._known)
        yield AT_ONCE
        if self._pending is not None:
            raise Refusal("busy", "another table is being applied; try again")
        certificates, refused, unusable = self._renewed(request, config)
        table = Applied(self._base, request.serial, request.config, certificates)
        without = [*request.without, *(unusable & {partial.TLS})]
        pending = self._begin(table, config, time.monotonic(), request.keep_going, without)
        pending.failed += refused
        pending.stays |= unusable
        is_ready = False
        try:
            yield AT_ONCE
            if self._pending is pending:
                self._live.begin(time.monotonic())
            while not pending.change.is_ready():
                problems = pending.change.problems()
                if problems and not (request.keep_going and self._do_without(pending, problems)):
                    raise _failed(problems)
                yield None  # also after each that is left out: neighbours' requests are routed meanwhile
                if self._pending is not pending:
                    raise Refusal("outvoted", "another table was applied meanwhile; try again")
            is_ready = True
        finally:  # also if who asked hangs up
            if not is_ready and self._pending is pending and not pending.is_decided:
                self._drop("it could not be prepared")
        pending.deadline = time.monotonic() + min(max(request.hold_s, 0.0), _MOST_HELD_S)
        text = "what can be loaded of what is new is loaded" if pending.failed else "all that is new is loaded"
        return TableOutcome(outcome="prepared", text=text, failed=pending.failed, stays=sorted(pending.stays))

    def tls_facts(self) -> dict[str, Any]:
        """Return what is told of TLS, as fields of `ServedTable`."""
        found = self.certificates
        if found is None:
            return {}
        own, *named = [
            None if files is None else CertificateFiles(certificate=files.certificate, key=files.key, digest=found.digest(files))
            for files in (found.own, *(Files(each.certificate, each.key) for each in self._tls()))
        ]
        return {"tls": "gunicorn" if found.has_own else "config", "certificate": own, "certificates": named}

    def _tls(self) -> tuple[Certificate, ...]:
        return self._live.table.config.tls

    def _renewed(self, request: Prepare, config: Config) -> tuple[Any, list[NotLoaded], set[str]]:
        """Return the certificates that the table is applied with, as other workers are told; why some stay as they are, and their names."""
        found = self.certificates
        if found is None:
            return None, [], set()
        renewed = [*([] if request.certificate is None else [request.certificate]), *request.certificates]
        facts, faults, stay = found.look_at(renewed, config.tls, request.without)
        names = {name_of(files.certificate) for files in stay}
        if partial.TLS not in request.without and (missing := found.missing(facts, config.tls)):
            names.add(partial.TLS)
            text = f"[[tls]]: no certificate for {', '.join(files.certificate for files in missing)}"
            faults += [] if stay else [text]  # else that is why
        return facts, [NotLoaded(text=fault, traceback="") for fault in faults], names

    def switch(self, request: Switch) -> Errand:
        while self._serial != request.serial:  # else another worker was told first
            pending = self._pending
            if pending is None or pending.table.serial != request.serial:
                raise Refusal("not-prepared", "this worker has not prepared the table, or has dropped it meanwhile")
            if not pending.is_decided:
                self._narrow(pending, request.without)
            if not pending.change.is_ready():
                raise Refusal("not-prepared", "not all that is new in the table is loaded in this worker")
            assert self._last_applied is not None, "else nothing is prepared"
            try:
                has_decided = self._last_applied.decide(pending.table, self._serial)
            except Deciding:
                yield None
                continue
            except Outvoted as exc:
                raise Refusal("outvoted", str(exc)) from exc
            except ValueError as exc:
                raise Refusal("unchangeable", f"the table is too long: {exc}") from exc
            decided = None if has_decided else self._last_applied.read()
            if decided is not None and not self._agree(pending, decided):
                self._follow(decided, time.monotonic())
                continue
            pending.is_decided, pending.deadline = True, time.monotonic() + _FOLLOW_S  # `tick` switches too, if who asked has gone
            yield AT_ONCE
            if self._pending is pending:
                self._switch(pending, time.monotonic())
        return TableOutcome(outcome="applied", text="serves the new table")

    def drop(self, request: Drop) -> Errand:
        if self._pending is not None and self._pending.table.serial == request.serial and not self._pending.is_decided:
            self._drop("the command was cancelled")
        return TableOutcome(outcome="dropped", text="serves the table that it served before")
        yield None  # never reached, as above

    # Time.

    def tick(self) -> None:
        """Follow the decisions of other workers; about once a second."""
        now = time.monotonic()
        last = self._last_applied
        if last is not None and (turn := last.turn()) != self._turn:
            table = last.read()
            if table is not None and table.base == self._base and table.serial != self._serial:
                self._follow(table, now)
            self._turn = turn
        pending = self._pending
        if pending is None:
            return
        if pending.is_decided:
            problems = pending.change.problems()
            if pending.change.is_ready() or problems or now >= pending.deadline:
                for problem in problems:
                    text = "%s: cannot be loaded in this worker, although another worker has applied the table: %s"
                    self._log.error(text, ", ".join(problem.patterns), problem.error)
                self._switch(pending, now)
        elif now >= pending.deadline:
            self._drop("the command to switch did not come in time")

    def _follow(self, table: Applied, now: float) -> None:
        """Take up a table that another worker has decided on."""
        pending = self._pending
        if pending is None or not self._agree(pending, table):
            if pending is not None:
                self._drop("another table was applied")
            try:
                pending = self._begin(table, _restored(table.config, self._known), now)
            except Refusal as refusal:
                self.restart_reason = f"it cannot take up the table that the other workers have applied: {refusal}"
                return
        self._live.begin(now)
        pending.is_decided, pending.deadline = True, now + _FOLLOW_S

    # Inner workings.

    def _agree(self, pending: _Pending, table: Applied) -> bool:
        """Make what is prepared the table that was decided on, whose worker may have been told to do without more; or return False."""
        if table.serial != pending.table.serial:
            return False
        differing = stored.differing(pending.table.config, table.config)
        if differing and self._narrow(pending, differing):
            differing = stored.differing(pending.table.config, table.config)
        pending.table = pending.table._replace(certificates=table.certificates)
        return differing == set()

    def _begin(self, table: Applied, config: Config, now: float, keep_going: bool = False, without: Iterable[str] = ()) -> _Pending:
        """Plan the change to a table.

        Args:
            config: the table's.
            keep_going: whether what only a new worker can take up stays as it is.
            without: names of what stays as it is.

        Raises:
            Refusal: it is not for a running worker.
        """
        config = keep_faulty(config, self._live.table.config)
        if config.path != self._live.table.config.path:
            raise Refusal("unchangeable", f"this worker serves {self._live.table.config.path}, not {config.path}")
        before = self._live.table.config
        failed: list[NotLoaded] = []
        stay = partial.staying(config, before, without)
        while True:
            try:
                wanted = partial.leave_out(config, before, stay)
                self._refuse_tls_on_or_off(wanted)
                change = self._live.plan(wanted)
                break
            except Unchangeable as exc:
                more = partial.staying(config, before, {*stay, *exc.names})
                if not keep_going or more == stay:
                    raise Refusal("unchangeable", str(exc)) from exc
                failed.append(NotLoaded(text=str(exc), traceback=""))
                stay = more
            except MemoryError as exc:
                raise Refusal("unchangeable", f"{exc}; use SIGHUP") from exc
        try:
            # As it was resolved here: later workers know nothing of what stayed as it was.
            table = table._replace(config=stored.plain(change.new.config, self._known or {}))
            pending = self._pending = _Pending(table, change, failed=failed, stays=set(stay))
        except BaseException:
            self._live.drop(now)
            raise
        return pending

    def _refuse_tls_on_or_off(self, wanted: Config) -> None:
        """Refuse what only a new worker can do: all connections are TLS, or none is, and apps are told so when they are loaded.

        Raises:
            Unchangeable: that is wanted.
        """
        found = self.certificates
        if (found is None and wanted.tls) or (found is not None and not found.has_own and not wanted.tls):
            text = f"[[tls]] switches TLS {'off' if found else 'on'} for all listeners; send SIGHUP to gunicorn to apply this file"
            raise Unchangeable([partial.TLS], text)

    def _do_without(self, pending: _Pending, problems: Sequence[Problem]) -> bool:
        """Let what cannot be loaded stay as it is; return whether that is possible."""
        pending.failed += [NotLoaded(text=problem.error, traceback=problem.traceback) for problem in problems]
        return self._narrow(pending, [pattern for problem in problems for pattern in problem.patterns])

    def _narrow(self, pending: _Pending, names: Collection[str]) -> bool:
        """Let some of what is prepared stay as it is; return whether anything does that did not before."""
        if self.certificates is not None:
            pending.table = pending.table._replace(certificates=self.certificates.without(pending.table.certificates, names))
        stay = partial.staying(pending.change.new.config, self._live.table.config, names)
        if stay <= pending.stays:
            return False
        self._live.narrow(stay, time.monotonic())
        pending.stays |= stay
        pending.table = pending.table._replace(config=stored.plain(pending.change.new.config, self._known or {}))
        return True

    def _switch(self, pending: _Pending, now: float) -> None:
        self._pending, self._serial = None, pending.table.serial
        self._live.switch(now)
        self._known = stored.known(pending.change.new.config, pending.table.config["mounts"])
        self.on_removed(pending.change.removed)
        names = {"new": pending.change.added, "changed": pending.change.changed, "gone": pending.change.removed}
        names["in place"] = [member.pattern for members, _ in pending.change.adjusted for member in members]
        told = "; ".join(f"{word}: {', '.join(each)}" for word, each in names.items() if each)
        self._log.info("table applied, %d mounts: %s", len(pending.change.new.mounts), told or "no mount differs")
        if self.certificates is not None and not self.certificates.take(pending.table, self._tls()):
            self.restart_reason = "it cannot serve with the certificates that the other workers serve with"

    def _drop(self, why: str) -> None:
        self._pending = None
        self._live.drop(time.monotonic())
        self._log.info("dropped the table that was prepared: %s; keeping the current mounts", why)


def _restored(facts: Any, known: stored.Known | None) -> Config:
    try:
        return stored.restore(facts, known or {})
    except stored.NotAConfig as exc:
        raise Refusal("malformed", str(exc)) from exc


def _failed(problems: Sequence[Problem]) -> Refusal:
    text = "; ".join(problem.error for problem in problems)
    return Refusal("failed", text, traceback="\n".join(problem.traceback for problem in problems if problem.traceback) or None)
