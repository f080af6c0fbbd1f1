"""Where a deployment's instances live, why, and the trials that find it out.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from isowsgi.instances.lifecycle import State
from isowsgi.isolation import sharing
from isowsgi.isolation.decision import Verdict
from isowsgi.shared import loadfailures
from isowsgi.shared.interpreters import MAIN, OWN_GIL, PROCESS, best_isolation, version_text
from isowsgi.shared.messages import Known, Refused
from isowsgi.worker.slots import Instance

if TYPE_CHECKING:
    from isowsgi.worker.deployment import Deployment

# Trials of a mount that loads other extension modules each time, before it goes to a process.
_MOST_TRIALS = 3

# Extension modules' files in one packet: some 40 KiB.
_FILES_PER_PACKET = 200

# Extension modules that are remembered because requests have imported them.
_MOST_LATE_IMPORTS = 100


class Permits:
    """Tells boots that wait which files they may load, in parts.

    A channel holds some 1,000 files that nobody has read yet, and a busy machine lets an instance read late. What does not fit now is told
    later: without the last part the boot would wait until its time is over.
    """

    def __init__(self) -> None:
        self._owed: dict[Instance, deque[Known]] = {}

    def give(self, instance: Instance, extensions: Mapping[str, Sequence[int]]) -> None:
        """Answer a boot; after what it is still owed."""
        files = [(path, list(stamp)) for path, stamp in extensions.items()]
        parts = self._owed.setdefault(instance, deque())
        for start in range(0, max(len(files), 1), _FILES_PER_PACKET):
            end = start + _FILES_PER_PACKET
            parts.append(Known(extensions=dict(files[start:end]), is_last=end >= len(files)))
        self.go_on()

    def go_on(self) -> None:
        """Tell what is owed, as far as it is read; about once a second."""
        for instance, parts in list(self._owed.items()):
            while parts and (instance.has_ended() or instance.tell(parts[0])):
                parts.popleft()
            if not parts:
                del self._owed[instance]


class Siting:
    """One deployment's.

    Args:
        deployment: is told to start, replace or retry.
        isolation: that it has; for "auto" the first that is tried.
        is_suspect: whether a worker died while it was loaded; it is loaded here only after a trial.
    """

    def __init__(self, deployment: Deployment, isolation: str, is_suspect: bool) -> None:
        self._deployment = deployment
        self._is_suspect = is_suspect and isolation != PROCESS
        self.isolation = isolation
        self.reason = ""  # why, if it was found out
        self.is_auto = deployment.mount.isolation == "auto" and isolation not in (PROCESS, MAIN)  # whether a better one may be found
        self.extensions: Mapping[str, Sequence[int]] | None = {} if self.is_auto else None  # that its boots may load; None: all
        self.late_imports: list[str] = []  # extension modules that were refused when a request imported them
        self.trials = 0  # since it was last loaded
        self.is_on_trial = False
        self._began = 0.0  # the trial
        self._granted: Mapping[str, Sequence[int]] | None = None  # what those that ask may load, once it is their turn to go on
        self._dismissed: list[Instance] = []  # that asked in vain; their boots will fail
        self.permits = Permits()
        self._why = ("", "")  # tag and reason of the trial, for the log; none if they were told

    @property
    def is_known(self) -> bool:
        """Whether there is nothing to find out, or it was found."""
        return not self.is_auto or bool(self.reason)

    def why(self) -> str:
        """Say in a line why it lives where it does."""
        mount = self._deployment.mount
        if self.reason:
            return self.reason
        if mount.sandbox is not None:
            from isowsgi.shared import landlock  # late: most have none

            gaps = landlock.gaps()
            return "in a sandbox" + (f", which on this kernel does not restrict {'; '.join(gaps)}" if gaps else "")
        if mount.isolation != "auto":
            return "configured"
        if mount.python is not None:
            return "it has its own Python"
        if mount.needs_process:
            return "only a process has what it asks for"
        if self.isolation == PROCESS:
            return "it kept crashing the worker"
        if best_isolation() == OWN_GIL:
            return "auto"
        return f"auto: an own GIL is not sound on Python {version_text()}"

    def settle(self, isolation: str, reason: str, extensions: Mapping[str, Sequence[int]]) -> None:
        """Take note of where it can live; for its instances from now on."""
        self.isolation, self.reason = isolation, reason
        self.extensions = extensions if self.is_auto and isolation != PROCESS else None

    def waits_for_trial(self, now: float) -> bool:
        """Whether nothing may be loaded before a trial has ended; begins the one of a suspect."""
        if self._is_suspect and not self.is_on_trial:
            self._begin(None, now)
        return self._is_suspect or self.is_on_trial

    def is_overdue(self, now: float) -> bool:
        """Whether a trial takes longer than the app may take to load; then requests no longer wait."""
        limit_s = self._deployment.mount.boot_timeout
        return self.is_on_trial and bool(limit_s) and now - self._began > limit_s

    def tries_elsewhere(self, instance: Instance, now: float) -> bool:
        """Find another isolation for a boot that failed, if that may be due to the isolation and not to the app."""
        slots = self._deployment.slots
        was_asking = instance in slots.asking
        if was_asking:
            slots.asking.remove(instance)
        if instance in self._dismissed or (was_asking and instance not in slots.current()):
            self._dismissed = [each for each in self._dismissed if each is not instance]
            return True  # that was due to the verdict, or its mount was stopped meanwhile; what follows was done
        if not self.is_auto or instance.isolation != self.isolation or not self._is_for_trial(instance):
            return False
        if instance in slots.retired:
            return False  # its boot timed out, and what follows from that was done
        slots.vacate(instance)
        if self.is_on_trial:
            return True
        if self.trials > _MOST_TRIALS:
            self._move(PROCESS, "it loads different extension modules each time", {}, now)
            return True
        what = f"it loads {instance.unknown_extension}" if instance.unknown_extension else instance.error
        if not self._begin(instance.unknown_extension, now, (instance.tag, what)) and self._deployment.is_serving():
            self._deployment.wanted = self._deployment.wanted or "its trial could not be started"
        return True

    def on_unknown(self, instance: Instance, path: str, now: float) -> None:
        """Find out whether an extension module may be loaded for which a boot waits."""
        slots = self._deployment.slots
        is_wanted = instance.state is State.BOOTING and instance in slots.current() and instance not in slots.asking
        if not (is_wanted and self.is_auto and instance.isolation == self.isolation and self.trials <= _MOST_TRIALS):
            self.permits.give(instance, {})  # its boot fails, and what follows is decided then
            return
        slots.asking.append(instance)
        if not self.is_on_trial and not self._begin(path, now, (instance.tag, f"it loads {path}")):
            self._dismiss(now)

    def tell_of_trial(self) -> None:
        """Log that a trial is made for this deployment, and none of another one is waited for."""
        if self._why[0]:
            text = "%s: testing which isolation it supports, by loading it in throw-away processes (ISOWSGI_TRIAL is set there): %s"
            self._deployment.log.info(text, *self._why)

    def resume(self, now: float) -> bool:
        """Let the boots go on for which a trial has found that they may; return whether they have to wait for their turn."""
        if self._granted is None:
            return False
        deployment = self._deployment
        slots = deployment.slots
        asking = [instance for instance in slots.asking if instance in slots.current()]
        deployment.is_in_line = bool(asking) and not deployment.surroundings.may_boot(deployment, now)
        if not deployment.is_in_line:
            granted, self._granted = self._granted, None
            for instance in asking:
                slots.asking.remove(instance)
                slots.began[instance] = now
                self.permits.give(instance, granted)
        return deployment.is_in_line

    def _dismiss(self, now: float) -> None:
        """Let the boots fail that wait for a verdict, and have others in their place."""
        slots = self._deployment.slots
        self._granted = None
        for instance in [each for each in slots.asking if each in slots.current()]:
            slots.asking.remove(instance)
            if instance.state is not State.BOOTING:  # a thread of its app's own waits, and its boot is over
                self.permits.give(instance, {})
                continue
            slots.vacate(instance)
            self._dismissed.append(instance)
            self.permits.give(instance, {})
            self._deployment.retire(instance, now)  # also if the app catches the error, and is up in the end

    def on_refused(self, instance: Instance, report: Refused, now: float) -> None:
        """Find another isolation for a mount whose request has just failed because it imported what cannot be loaded there."""
        if not report.name or report.name in self.late_imports or instance.state is not State.SERVING:
            return
        if len(self.late_imports) >= _MOST_LATE_IMPORTS:
            return
        if self.is_auto and sharing.has_fallback(report.name):
            self._deployment.log.info("%s: runs without %s, which cannot be loaded here: %s", instance.tag, report.name, report.error)
            return
        self.late_imports.append(report.name)
        text = f"a request imported {report.name}, which cannot be loaded here: {report.error}"
        if not self.is_auto:
            self._deployment.log.error("%s: %s%s", instance.tag, text, loadfailures.hint(report.error, instance.isolation))
        elif not self.is_on_trial:
            self._deployment.log.error("%s: %s; looking for another isolation", instance.tag, text)
            if not self._begin(None, now):
                self.late_imports.remove(report.name)  # so that the next request that imports it is reported again

    def look_for_losses(self, instance: Instance, now: float) -> None:
        """Log or look into modules that were refused while the app caught the error, so that nothing is missing silently."""
        for module, path, error in instance.refused:
            if self.is_auto and not self.reason and sharing.is_missed(module, ()):
                self.on_refused(instance, Refused(name=module, path=path, error=error), now)
            else:
                self._deployment.log.info("%s: runs without %s, which cannot be loaded here: %s", instance.tag, module, error)

    def on_verdict(self, verdict: Verdict, now: float) -> None:
        """Take note of how a trial went."""
        self.is_on_trial = False
        deployment = self._deployment
        if verdict.isolation == self.isolation and any(instance in deployment.slots.current() for instance in deployment.slots.asking):
            if verdict.is_shared:
                self.trials -= 1
            else:
                deployment.log.info("%s: isolation %s (%s)", deployment.name, verdict.isolation, verdict.reason)
            self._is_suspect = False
            self.settle(verdict.isolation, verdict.reason, verdict.extensions)
            self._granted = verdict.extensions
            deployment.start(now)
            return
        self._dismiss(now)
        if verdict.isolation is not None:
            deployment.log.info("%s: isolation %s (%s)", deployment.name, verdict.isolation, verdict.reason)
            self._move(verdict.isolation, verdict.reason, verdict.extensions, now)
            return
        tag = f"{deployment.name} #{deployment.generation}"
        deployment.reports.boot_failed(tag, deployment.generation, verdict.error, verdict.traceback)
        deployment.recovery.stay_as_it_is(now)

    def _move(self, isolation: str, reason: str, extensions: Mapping[str, Sequence[int]], now: float) -> None:
        self._is_suspect = False
        self.settle(isolation, reason, extensions)
        deployment = self._deployment
        if deployment.is_ending or deployment.is_stopped:
            return
        if deployment.is_serving():
            deployment.replace(deployment.wanted or f"moving to isolation {isolation}: {reason}", now)
        else:
            deployment.start(now)

    def _begin(self, unknown_extension: str | None, now: float, why: tuple[str, str] = ("", "")) -> bool:
        """Have a trial made; False if none can be now, and the mount is tried again later.

        Args:
            why: tag and reason for the log; none if that was told.
        """
        self.is_on_trial = True
        self._began = now
        self.trials += 1
        self._why = why
        try:
            if self._deployment.surroundings.try_out(self._deployment, unknown_extension):
                self.tell_of_trial()
        except Exception as exc:  # no descriptor is left, or its memory of verdicts cannot be written
            self.is_on_trial = False
            self.trials -= 1
            self._deployment.recovery.cannot_start(exc, now)
        return self.is_on_trial

    def _is_for_trial(self, instance: Instance) -> bool:
        """Whether a boot's failure may be due to the isolation, and not to the app."""
        if instance.isolation == PROCESS or loadfailures.is_lack(f"{instance.error}\n{instance.traceback}"):
            return False
        if instance.unknown_extension is not None or instance.refused:
            return True
        # After a trial there is nothing new to learn, but from an extension module that it did not meet.
        if self.trials or instance.failed_in_hook:
            return False
        return loadfailures.classify(instance.error, instance.traceback).kind != loadfailures.BROKEN
