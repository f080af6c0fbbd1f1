"""What a deployment's instances report: each report is handled before the next is read, and a faulty one costs that instance only.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

from isowsgi.instances.lifecycle import ENDS, LifecycleError, State
from isowsgi.shared import loadfailures, messages
from isowsgi.shared.containment import traceback_of
from isowsgi.shared.errorgroups import REFUSED, STUCK, TIMEOUT
from isowsgi.shared.interpreters import best_isolation
from isowsgi.shared.messages import Report
from isowsgi.shared.places import place_in
from isowsgi.shared.rows import BOOT_FAILURES, BOOT_NS, BOOTS, CRASHES
from isowsgi.shared.wire import MessageError
from isowsgi.worker import wallhints
from isowsgi.worker.incidents import Heard, Incidents, incident
from isowsgi.worker.slots import Instance

if TYPE_CHECKING:
    from isowsgi.worker.deployment import Deployment

# Reports of one instance that are handled in a row, before other instances and connections get their turn. The rest raises another event.
_MOST_AT_ONCE = 32

# Of the error of a report that is no mistake of ours; the text may have a part of the report in it.
_MOST_ERROR_CHARS = 200

# Of one instance the walls that it meets are told so often: an app may fail at each of its files.
_MOST_WALLS_TOLD = 20

# Most of a stack that is kept and read, its end: the log has it whole.
_MAX_STACK_CHARS = 8 * 1024


class Reports:
    """Handles the reports of one deployment's instances.

    Attributes:
        incidents: what went wrong recently.
        lacks: whether the last boot that failed did for lack of descriptors or threads.
        stacks: of threads that do not come out of their requests, by instance.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._log = deployment.log
        self._rows = [deployment.surroundings.board.mount_row(member.number).words for member in deployment.members]
        self._traceback = ""  # of the last boot that failed
        self.incidents = Incidents()
        self.lacks = False
        self._heard: dict[Instance, Heard] = {}
        self._walls_told: dict[Instance, set[str]] = {}
        self.stacks: dict[Instance, str] = {}
        self._handlers: dict[type, Callable[[Instance, Any, float], None]] = {
            messages.Ready: self._on_ready,
            messages.Failed: self._on_failed,
            messages.Unknown: lambda instance, report, now: deployment.siting.on_unknown(instance, report.path, now),
            messages.Refused: lambda instance, report, now: deployment.siting.on_refused(instance, report, now),
            messages.Files: lambda instance, report, now: deployment.surroundings.on_files(report.files),
            messages.Changed: lambda instance, report, now: deployment.replace(f"{report.file} has changed", now),
            messages.Erred: self._on_erred,
            messages.Stuck: self._on_stuck,
            messages.Broken: self._on_broken,
            messages.Measured: lambda instance, report, now: deployment.surroundings.on_measured(instance, report, now),
            messages.Closed: self._on_ended,
            messages.Exited: self._on_ended,
            **dict.fromkeys(get_args(messages.Part), lambda instance, report, now: deployment.surroundings.on_answer(instance, report)),
        }

    def read(self, instance: Instance, now: float) -> None:
        """Handle an instance's reports; a faulty one costs at most the instance."""
        for _ in range(_MOST_AT_ONCE):
            try:
                report = instance.read()
                if report is None:
                    return
                self.handle(instance, report, now)
                if _is_last(instance, report):
                    return
            except Exception as exc:
                is_its_own = instance.is_walled and isinstance(exc, (MessageError, LifecycleError))
                if is_its_own:  # no mistake of ours, so it is not counted as one
                    self._log.error("%s: %s", instance.tag, str(exc)[:_MOST_ERROR_CHARS])
                else:
                    self._deployment.surroundings.containment.failed(f"{instance.tag}: a report")
                self.distrust(instance, now)
                return

    def handle(self, instance: Instance, report: Report, now: float) -> None:
        """Do what follows from a report; the instance's state has changed accordingly."""
        handler = self._handlers.get(type(report))
        if handler is not None:
            handler(instance, report, now)

    def distrust(self, instance: Instance, now: float) -> None:
        """Replace an instance whose state is unknown, and have it end."""
        deployment = self._deployment
        if instance.state in ENDS:
            self._go_on_without(instance, now)
            return
        self._log.error("%s: unreliable after the error above; replacing it", instance.tag)
        comes = instance.state is State.BOOTING or instance in deployment.slots.coming
        self._count_stuck(instance)
        deployment.slots.held.append(instance)
        instance.distrust()
        if comes:
            deployment.upkeep.drop_boot(instance, now)
        elif not (instance.can_be_killed and deployment.backoff.crashes):  # else its end comes at once, and after that a pause, if need be
            deployment.replace_slot(instance, now)  # and then it is told to end

    def _go_on_without(self, instance: Instance, now: float) -> None:
        """Do what its end asked for, if that failed half-way: a mount that waits for it could never be loaded again."""
        deployment = self._deployment
        if instance in deployment.slots.coming or (instance in deployment.slots.live and not instance.is_loaded):
            deployment.recovery.lose_boot(instance, now)
        elif instance in deployment.slots.live and not deployment.is_over:
            deployment.recovery.make_up_for(instance, 0.0, now)

    def cannot_start(self, exc: Exception) -> None:
        """Note that no instance can be started."""
        error = f"cannot start an instance now: {type(exc).__name__}: {exc}"
        deployment = self._deployment
        text = traceback_of(exc)
        self.boot_failed(f"{deployment.name} #{deployment.generation}", deployment.generation, error, text)

    def faulty(self, fault: str) -> None:
        """Note that nothing will be loaded: the mount's config file has faults."""
        self._add_boot(self._deployment.name, 0, fault, fault)
        self._log.error("%s: its config file has a fault, so it answers 503: %s", self._deployment.name, fault)

    def boot_failed(self, tag: str, generation: int, error: str, details: str, hint: str = "") -> None:
        """Note why nothing could be loaded; the same traceback is not logged every minute."""
        self._add_boot(tag, generation, error, details)
        self.lacks = loadfailures.is_lack(f"{error}\n{details}")
        for words in self._rows:
            words[BOOT_FAILURES] += 1
        is_news, self._traceback = details != self._traceback, details
        text = f"\n{details}" if is_news else ", as before"
        self._log.error("%s: cannot load '%s': %s%s%s", tag, self._deployment.mount.app, error, hint, text)

    # Reports.

    def _on_ready(self, instance: Instance, report: messages.Ready, now: float) -> None:
        deployment = self._deployment
        is_news = deployment.mount.isolation != instance.isolation != best_isolation()
        where = f"{instance.isolation}: {deployment.siting.why()}" if is_news else instance.isolation
        self._log.info("%s: serving, loaded in %.2f s (%s)", instance.tag, instance.boot_s, where)
        self._traceback = ""
        for words in self._rows:
            words[BOOTS] += 1
            words[BOOT_NS] += int(instance.boot_s * 1e9)
        deployment.install(instance, now)
        deployment.siting.look_for_losses(instance, now)

    def _on_failed(self, instance: Instance, report: messages.Failed, now: float) -> None:
        if instance.is_loaded:  # its end follows
            self._log.error("%s: failed after it was loaded: %s\n%s", instance.tag, instance.error, instance.traceback)
        else:
            self._lose_boot(instance, now)

    def _lose_boot(self, instance: Instance, now: float) -> None:
        deployment = self._deployment
        if deployment.siting.tries_elsewhere(instance, now):
            return
        limit = wallhints.reached(instance.error, deployment.mount.limits, instance.grouped)
        advice = limit or wallhints.refused(instance.error, deployment.mount.sandbox is not None)
        hint = f"; {advice}" if advice else loadfailures.hint(instance.error + instance.traceback, instance.isolation)
        self.boot_failed(instance.tag, instance.generation, instance.error, instance.traceback, hint)
        deployment.recovery.lose_boot(instance, now)

    def _on_erred(self, instance: Instance, report: messages.Erred, now: float) -> None:
        pattern = self._pattern(report.mount)
        if pattern is None:
            return  # a child process may say anything
        if count := self._heard.setdefault(instance, Heard()).news(report):
            key = report.kind, report.type, report.place
            self.incidents.count(pattern, instance.generation, key, report.request, report.error, report.traceback, count)
            self._look_for_wall(instance, report)

    def _look_for_wall(self, instance: Instance, report: messages.Erred) -> None:
        """Say that an app has reached a limit, or may have met its sandbox: once for each limit and error of an instance."""
        mount, told = self._deployment.mount, self._walls_told.setdefault(instance, set())
        limit = wallhints.reached(report.error, mount.limits, instance.grouped)
        advice = wallhints.refused(report.error, mount.sandbox is not None)
        what = limit or (advice and report.error)
        if not what or what in told or len(told) >= _MOST_WALLS_TOLD:
            return
        told.add(what)
        if limit:
            self._log.warning("%s: %s is reached: %s in %s", instance.tag, limit, report.error, report.request)
        else:
            self._log.warning("%s: its sandbox may have refused this: %s in %s; %s", instance.tag, report.error, report.request, advice)

    def refused(self, mount: int, line: str, text: str) -> None:
        """Note a request that was answered 503 before an instance had it."""
        pattern = self._pattern(mount) or self._deployment.mount.pattern
        self.incidents.count(pattern, self._deployment.generation, (REFUSED, "503 Service Unavailable", ""), line, text)

    def timed_out(self, instance: Instance, mount: int, line: str) -> None:
        """Note a request that was cut off from outside, as nothing runs inside."""
        pattern = self._pattern(mount) or self._deployment.mount.pattern
        key = TIMEOUT, "504 Gateway Timeout", ""
        text = "no progress, and C code holds the interpreter's GIL"
        self.incidents.count(pattern, instance.generation, key, line.removesuffix(" HTTP/1.1"), text)

    def _on_stuck(self, instance: Instance, report: messages.Stuck, now: float) -> None:
        if instance.state in ENDS:
            return  # its last words came late
        self._log.error("%s: a thread is stuck in its request; replacing the instance\n%s", instance.tag, report.stack)
        line, _, stack = report.stack.partition("\n")
        stack = stack[-_MAX_STACK_CHARS:]
        key = STUCK, "stuck thread", place_in(stack)
        text = "a thread is stuck in its request"
        pattern = self._pattern(report.mount) or self._deployment.mount.pattern
        self.incidents.count(pattern, instance.generation, key, line.removesuffix(" HTTP/1.1"), text, stack)
        self.stacks[instance] = report.stack[-_MAX_STACK_CHARS:]
        self.call_stuck(instance, now)

    def call_stuck(self, instance: Instance, now: float) -> None:
        """Replace an instance with a thread that does not come out of its request."""
        self._count_stuck(instance)
        instance.call_stuck()
        self._deployment.replace_slot(instance, now)

    def _on_broken(self, instance: Instance, report: messages.Broken, now: float) -> None:
        text = "%s: its thread %s died, a bug in isowsgi; please report it: %s\n%s"
        self._log.error(text, instance.tag, report.thread, report.error, report.traceback)
        self.distrust(instance, now)

    def _on_ended(self, instance: Instance, report: Report, now: float) -> None:
        if not _is_last(instance, report):
            return
        try:
            self._settle(instance, now)
        finally:
            # With "stop-first" requests wait for the end of it.
            self._deployment.surroundings.dispose(instance, self._deployment.mount.replace == "stop-first")

    def _settle(self, instance: Instance, now: float) -> None:
        deployment = self._deployment
        was_stuck = bool(instance.stuck_since)  # and is counted
        try:
            if instance.state is State.FAILED and not instance.is_loaded and instance.how_it_ended:
                self._lose_boot(instance, now)
        finally:
            lived_s = deployment.slots.forget(instance, now)
        deployment.stuck += bool(instance.threads_left) and not was_stuck
        deployment.quotas.pop(instance, None)
        self.stacks.pop(instance, None)
        self._heard.pop(instance, None)
        self._walls_told.pop(instance, None)
        for words in self._rows:
            words[CRASHES] += bool(instance.how_it_ended)
        if instance in deployment.slots.live and instance.state is State.CLOSED and not deployment.is_over:
            limit = wallhints.may_be_memory(instance.how_it_ended, deployment.mount.limits, instance.grouped)
            hint = f"; C code that gets no memory may end so: {limit}" if limit else ""
            self._log.error("%s: ended unexpectedly: its %s%s", instance.tag, instance.how_it_ended or "threads ended", hint)
            deployment.recovery.make_up_for(instance, lived_s, now)

    def _pattern(self, number: int) -> str | None:
        """Return the pattern of the member with a number; None if there is none such."""
        return next((member.pattern for member in self._deployment.members if member.number == number), None)

    def _count_stuck(self, instance: Instance) -> None:
        if instance.state is not State.STUCK:
            self._deployment.stuck += 1

    def _add_boot(self, tag: str, generation: int, error: str, details: str) -> None:
        self.incidents.add(incident(time.time(), "boot", tag, generation, error, details))


def _is_last(instance: Instance, report: Report) -> bool:
    """Whether an instance has ended with a report; a process has when its keeper says so, who outlives it."""
    return isinstance(report, messages.Exited) or (isinstance(report, messages.Closed) and not instance.can_be_killed)
