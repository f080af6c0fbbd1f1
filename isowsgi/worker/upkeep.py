"""What time makes due in a deployment, looked at about once a second: boots and drains that take too long, quotas, ages, files, idleness.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

from isowsgi.configuration import Mount, sizes
from isowsgi.instances.lifecycle import State
from isowsgi.shared.interpreters import MAIN
from isowsgi.worker.slots import Instance

if TYPE_CHECKING:
    from isowsgi.worker.deployment import Deployment

# Boots of one mount that may hang at a time, or have left threads behind. Each keeps an interpreter and a thread, and a worker's restart
# would not help.
_MOST_HUNG_BOOTS = 2

# How old an instance is at least when it is replaced for its memory; doubled each time, up to the second figure, for one that had more than
# a part of its limit when it was first measured: an app that needs as much to begin with would be loaded again and again.
_MEMORY_PAUSE_S, _LONGEST_MEMORY_PAUSE_S = 10.0, 3600.0
_MOST_OF_LIMIT = 0.9


class Upkeep:
    """Looks after one deployment.

    Attributes:
        quiet_since: since when no request came, or when it was last looked at.
        owes_release: whether requests that wait must be looked at again.
        is_over: whether nothing is left to be looked after.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._log = deployment.log
        self._touched = _changed_at(deployment.mount.touch)
        self._requests = 0
        self.quiet_since = 0.0
        self.owes_release = self.is_over = False
        self._was_overdue = False
        self._over = 0  # the latest generation when one was to be replaced for its memory
        self._memory_retry_s = _MEMORY_PAUSE_S  # how long what was to be replaced then is kept: its replacement may fail to load
        self._memory_retry_at = 0.0
        self._memory_pause_s = _MEMORY_PAUSE_S
        self._held_back: float | None = None  # the try of which the log says that it is not made

    @property
    def _mount(self) -> Mount:
        return self._deployment.mount

    def note_touched(self) -> None:
        """Take the file whose change replaces the mount's instances for unchanged from now on: it is another file."""
        self._touched = _changed_at(self._mount.touch)

    def note_memory_limit(self) -> None:
        """Look at all instances by another limit from now on."""
        self._over, self._memory_pause_s = 0, _MEMORY_PAUSE_S

    def set_quota(self, instance: Instance) -> None:
        """Decide after how many requests an instance is replaced."""
        self._deployment.quotas.pop(instance, None)
        if self._mount.max_requests:
            self._deployment.quotas[instance] = self._mount.max_requests + random.randint(0, self._mount.max_requests_jitter)

    def tick(self, now: float) -> None:
        """Do what is due."""
        deployment, mount = self._deployment, self._deployment.mount
        retry_at = deployment.backoff.retry_at
        # A worker that stops begins nothing, but what was accepted may still wait for what could not be loaded for lack of descriptors.
        may_retry = not deployment.is_ending or deployment.backoff.lacks_since is not None
        if retry_at is not None and now >= retry_at and may_retry:
            self._retry(retry_at, now)
        deployment.succession.look(now)
        deployment.siting.permits.go_on()
        for instance in deployment.slots.all():
            deployment.surroundings.containment.call(f"{instance.tag}: periodic check", self._look_at, instance, now)
        is_overdue = deployment.siting.is_overdue(now)
        if self.owes_release or is_overdue != self._was_overdue:
            self.owes_release, self._was_overdue = False, is_overdue
            deployment.surroundings.release(deployment)
        if mount.touch is not None or self._touched is not None:
            self._look_at_files(now)
        if mount.idle_timeout or deployment.is_prepared:
            self._look_for_quiet(now)

    def drop_boot(self, instance: Instance, now: float) -> None:
        """Stop waiting for an instance to come up."""
        deployment = self._deployment
        deployment.reports.lacks = False
        deployment.recovery.lose_boot(instance, now)
        deployment.slots.vacate(instance)
        deployment.retire(instance, now)

    def _retry(self, retry_at: float, now: float) -> None:
        name, hung = self._deployment.name, self._hung_boots()
        if hung < _MOST_HUNG_BOOTS:
            self._log.info("%s: retrying", name)
            self._deployment.retry(now)
        elif self._held_back != retry_at:
            self._held_back = retry_at
            command = "reload" if self._deployment.is_serving() else "start"
            text = "%s: no more retries: threads of %d failed boots are still running; run `isowsgi %s %s`, or reload gunicorn (SIGHUP)"
            self._log.error(text, name, hung, command, self._mount.pattern)

    def _look_at(self, instance: Instance, now: float) -> None:
        deployment, mount = self._deployment, self._mount
        age = now - deployment.slots.began.get(instance, now)
        if mount.boot_timeout and age > mount.boot_timeout and self._is_booting(instance):
            deployment.stuck += 1
            if instance.state is State.BOOTING:
                instance.time_out_boot()
            else:
                instance.abandon()
            self._log.error("%s: was not loaded within %g s; %s", instance.tag, mount.boot_timeout, _fate_of(instance))
            self.drop_boot(instance, now)
        elif instance in deployment.slots.retired:
            self._look_at_retired(instance, age)
        elif instance.state is State.SERVING and instance in deployment.slots.live:
            self._look_for_age(instance, age, now)
        is_overdue = mount.request_timeout and instance.cut_off(mount.request_timeout, now)
        for number, line in instance.take_cuts():
            deployment.reports.timed_out(instance, number, line)
        if is_overdue and instance.state is not State.STUCK:
            deployment.slots.held.append(instance)
            self._log.error("%s: C code holds the interpreter's GIL and does not release it; replacing the instance", instance.tag)
            deployment.reports.call_stuck(instance, now)

    def _is_booting(self, instance: Instance) -> bool:
        """Whether its app is being loaded for requests that wait; while the worker stops, such an instance drains already."""
        if instance in self._deployment.slots.asking:
            return False  # a trial has its own limits
        if instance.state is State.DRAINING:
            return not instance.is_loaded and instance not in self._deployment.slots.retired
        return instance.state is State.BOOTING

    def _look_at_retired(self, instance: Instance, age: float) -> None:
        drain_s = self._deployment.surroundings.drain_s
        if age <= drain_s:
            return
        if instance.state is State.DRAINING:
            self._deployment.stuck += 1
            self._log.warning("%s: did not end within %d s; %s", instance.tag, drain_s, _fate_of(instance))
            instance.abandon()
        elif instance.state is State.STUCK and instance.can_be_killed:
            instance.kill()

    def _look_for_age(self, instance: Instance, age: float, now: float) -> None:
        deployment, mount = self._deployment, self._mount
        quota = deployment.quotas.get(instance, 0)
        if quota and instance.requests() >= quota:
            deployment.quotas[instance] = 0
            deployment.replace(f"served {instance.requests()} requests", now)
        elif (
            mount.max_memory
            and instance.memory_at_boot >= 0
            and instance.memory > mount.max_memory
            and self._look_at_memory(instance, age, now)
        ):
            return
        elif mount.max_age and age > mount.max_age:
            deployment.slots.began[instance] = now
            deployment.replace(f"older than {mount.max_age:g} s", now)

    def _look_at_memory(self, instance: Instance, age: float, now: float) -> bool:
        """Replace an instance that has more memory than it may; less and less often if it had as much when it was first measured.

        Returns:
            whether it is being replaced.
        """
        needs_as_much = instance.memory_at_boot > self._mount.max_memory * _MOST_OF_LIMIT
        if not needs_as_much:
            self._memory_pause_s = _MEMORY_PAUSE_S
        was_tried = instance.generation <= self._over
        if age < self._memory_pause_s or (was_tried and now < self._memory_retry_at) or self._deployment.is_replacing():
            return False
        limit = f"max_memory is {sizes.text(self._mount.max_memory)}"
        is_main = self._deployment.siting.isolation == MAIN
        if needs_as_much and not (is_main and was_tried):
            self._memory_pause_s = min(2 * self._memory_pause_s, _LONGEST_MEMORY_PAUSE_S)
            # A new worker would know nothing of the pauses, and begin again.
            way_on = "starting a new worker" if is_main else "replacing it"
            again = "" if is_main else f" again within {self._memory_pause_s:.0f} s"
            text = "%s: used %d MiB soon after it was loaded, and %s; raise max_memory; not %s for that%s"
            self._log.warning(text, instance.tag, instance.memory_at_boot >> 20, limit, way_on, again)
        self._memory_retry_s = min(2 * self._memory_retry_s, _LONGEST_MEMORY_PAUSE_S) if was_tried else _MEMORY_PAUSE_S
        self._over, self._memory_retry_at = self._deployment.generation, now + self._memory_retry_s
        if needs_as_much and is_main:
            return False
        self._deployment.replace(f"uses {instance.memory >> 20} MiB, {limit}", now)
        return True

    def _hung_boots(self) -> int:
        slots = self._deployment.slots
        hung = [instance for instance in slots.retired if instance.state is State.STUCK and not instance.is_loaded]
        return len(hung) + sum(not instance.is_loaded for instance in slots.left)

    def _look_at_files(self, now: float) -> None:
        changed_at = _changed_at(self._mount.touch)
        if changed_at != self._touched:
            self._touched = changed_at
            self._deployment.replace(f"{self._mount.touch} was touched", now)

    def _look_for_quiet(self, now: float) -> None:
        deployment, limit_s = self._deployment, self._mount.idle_timeout
        if deployment.is_prepared:
            self.quiet_since = now  # nobody can ask for it yet
            return
        if not deployment.is_serving() or deployment.is_replacing():
            return
        live = [instance for instance in deployment.slots.live if instance is not None]
        requests = sum(instance.requests() for instance in live)
        if requests != self._requests or any(instance.is_busy() for instance in live):
            self._requests, self.quiet_since = requests, now
        elif now - self.quiet_since > limit_s:
            self._log.info("%s: no request for %g s; it sleeps until the next one", deployment.name, limit_s)
            deployment.sleep(now)


def _fate_of(instance: Instance) -> str:
    return "killing it" if instance.can_be_killed else "leaving it behind"


def _changed_at(path: str | None) -> int | None:
    if path is None:
        return None
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None
