"""A deployment: one mount, or the mounts of a group, with all its instances. It alone decides what is loaded, replaced, retried or ended.

Replacing never leaves a gap: the new generation boots while the old one serves; only when it is up the route switches, and the old one
drains. If the new one fails, the old one keeps serving.

Its parts: `slots` (which instance is where), `isolation` (which isolation, and why), `backoff` (when it is tried again), `recovery` (what
follows a failure), `instancereports` (what instances say), `succession` (with `replace = "stop-first"`), `upkeep` (what time makes
due). On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from isowsgi.configuration import Mount, Status
from isowsgi.instances.bootorder import name_of
from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.shared.containment import Containment
from isowsgi.shared.interpreters import MAIN
from isowsgi.shared.messages import Measured, Part
from isowsgi.shared.routing import Route
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker.backoff import LONG_LIFE_S, Backoff
from isowsgi.worker.dispatcher import NotServing
from isowsgi.worker.instancereports import Reports
from isowsgi.worker.recovery import Recovery
from isowsgi.worker.siting import Siting
from isowsgi.worker.slots import Instance, Slots
from isowsgi.worker.succession import Succession
from isowsgi.worker.trend import Trend
from isowsgi.worker.upkeep import Upkeep


class Surroundings(Protocol):
    """What a deployment needs of its worker.

    Attributes:
        log: gunicorn's logger.
        containment: ends our own mistakes.
        board: the worker's scoreboard.
        drain_s: how long a replaced instance's requests may take to end.
    """

    log: Any
    containment: Containment
    board: Scoreboard
    drain_s: float

    def make(self, deployment: Deployment, slot: int) -> Instance:
        """Return an instance of its current generation, and start it.

        Raises:
            Exception: there is no thread, descriptor, memory or row of the scoreboard left.
        """

    def dispose(self, instance: Instance, is_awaited: bool) -> None:
        """Free what an instance had that has ended; at once if its end is awaited."""

    def release(self, deployment: Deployment) -> None:
        """Look again at requests that wait for the deployment."""

    def try_out(self, deployment: Deployment, unknown_extension: str | None) -> bool:
        """Have a trial made, or wait for one that tells as much, and then return False; it calls `Siting.on_verdict`."""

    def take_turn(self, deployment: Deployment, now: float) -> bool:
        """Return whether it may load a new generation now; if not, `go_on` is called later."""

    def may_boot(self, deployment: Deployment, now: float) -> bool:
        """Return whether it may load its app now; if not, `start` is called later."""

    def hurry(self, deployment: Deployment) -> None:
        """Let it be among the first that may load their apps."""

    def leave_line(self, deployment: Deployment) -> None:
        """Give up its place in the line: it no longer needs to be loaded."""

    def on_files(self, files: list[str]) -> None:
        """Take note of files on which an app depends."""

    def on_answer(self, instance: Instance, report: Part) -> None:
        """Take a part of an answer to a question of the operator's."""

    def on_measured(self, instance: Instance, report: Measured, now: float) -> None:
        """Take what an instance has found out about its memory."""


class Deployment:
    """One mount with its instances, or a group of mounts that share theirs.

    Args:
        members: what is served: one mount, or those of a group, for which all that matters here is the same.
        surroundings: of its worker.
        isolation: where its instances live; for "auto" the first that is tried.
        is_quarantined: whether it crashed the worker too often; it is answered 503 then.
        is_suspect: whether a worker died while it was loaded; it is loaded here only after a trial.
    """

    def __init__(
        self,
        members: Sequence[Mount],
        surroundings: Surroundings,
        *,
        isolation: str,
        is_quarantined: bool = False,
        is_suspect: bool = False,
    ) -> None:
        self.members = tuple(members)
        self.mount = members[0]
        self.name = name_of(self.mount)
        self.surroundings = surroundings
        self.log = surroundings.log
        self.generation = 0
        self.is_quarantined = is_quarantined
        self.is_faulty = bool(self.mount.fault)  # its settings are not known; it is answered 503
        self.is_stopped = False  # by the operator
        self.is_leaving = False  # served still, but it will be stopped soon
        self.is_in_line = False  # it waits for its turn to be loaded, or for that of more of its instances
        self._is_partly_started = False  # some of its instances have had their turn, and the others wait for theirs
        self.is_prepared = False  # for a table that does not serve yet, see `change`
        self.is_ending = False  # with the worker, which answers what it has accepted
        self.is_over = False  # all that was accepted is answered
        self.reloads = 0
        self.stuck = 0  # instances left behind so far, in this worker
        self.restart_reason = ""  # why the worker should be replaced for it
        self.slots = Slots(self.mount.instances)
        self.siting = Siting(self, isolation, is_suspect)
        self.backoff = Backoff()
        self.recovery = Recovery(self)
        self.reports = Reports(self)
        self.upkeep = Upkeep(self)
        self.succession = Succession(self)
        self.trend = Trend()
        self.quotas: dict[Instance, int] = {}  # requests after which it is replaced
        self.routes: list[Route] = []  # that its instances know, and the next ones are told; the table sets these two
        self.status = Status()  # who may see the status page, if it is that
        self.owes_routes = False  # whether some instance could not be told the routes
        self.owes_limits = False  # or its limits, see `adjusting`
        self.told = (0, 0)  # reloads and stuck ones that the scoreboard has
        self.wanted = ""  # why it must be replaced, while a replacement is under way already, or it waits for its turn
        if self.is_faulty:
            self.reports.faulty(self.mount.fault)

    # What others ask.

    def choose(self, now: float) -> Instance | NotServing:
        """Return the instance for the next connection, each in turn; start the mount if it sleeps."""
        if self.is_quarantined or self.is_stopped or self.is_faulty or self.is_over or self.mount.redirect:
            return NotServing.FAILED
        instance = self.slots.choose()
        if instance is not None:
            return instance
        self.hurry()
        is_coming = self.is_loading() or self.is_in_line or self.succession.is_open
        if is_coming or any(instance.state is State.DRAINING for instance in self.slots.current()):
            return NotServing.FAILED if self.siting.is_overdue(now) else NotServing.BOOTING
        if self.is_asleep():
            self.start(now)
            self.hurry()
            if self.is_under_way():
                return NotServing.BOOTING
        return NotServing.BOOTING if self.backoff.is_worth_waiting(now) else NotServing.FAILED

    def state(self) -> str:
        """Return in a word how it is; the only answer to that, for the status page, the commands, the metrics and the log."""
        if self.mount.redirect:
            return "serving"
        if self.is_quarantined or self.is_stopped:
            return "quarantined" if self.is_quarantined else "stopped"
        if self.is_asleep():
            return "asleep"
        if self.is_serving():
            if self.is_leaving:
                return "leaving"
            return "reloading" if self.is_replacing() or self.wanted else "serving"
        if State.STUCK in self.slots.states():
            return "stuck"
        return "booting" if self.is_under_way() else "failed"

    def is_serving(self) -> bool:
        return bool(self.slots.serving())

    def is_replacing(self) -> bool:
        """Whether a new generation is on its way beside what serves, or for a table that does not serve yet."""
        return self.slots.is_replacing() or self.succession.is_open or (self.is_prepared and self.slots.is_booting())

    def is_asleep(self) -> bool:
        """Whether it has no instance because no request has needed one."""
        is_held_back = self.is_quarantined or self.is_stopped or self.is_faulty or self.is_in_line or self.backoff.retry_at is not None
        return not is_held_back and not self.siting.is_on_trial and not self.succession.is_open and self.slots.is_empty()

    def is_loading(self) -> bool:
        """Whether an instance of it is being loaded, or a trial is made."""
        return self.siting.is_on_trial or self.slots.is_booting()

    def is_under_way(self) -> bool:
        """Whether some instance is being loaded, or will be as soon as it has its turn."""
        return self.is_loading() or self.is_in_line or self.succession.is_open or bool(self.wanted)

    def has_arrived(self, generation: int) -> bool:
        """Whether every slot is served by a generation, or a later one, and nothing newer is on its way."""
        serving = self.slots.serving()
        is_whole = len(serving) == len(self.slots.live) and all(instance.generation >= generation for instance in serving)
        return is_whole and not self.wanted and not self.is_replacing()

    # Actions.

    def start(self, now: float) -> None:
        """Boot an instance for every slot that has none, and none on its way."""
        if self.is_quarantined or self.is_stopped or self.is_faulty or self.succession.is_open or self.mount.redirect:
            return
        if self.siting.resume(now):
            return
        self.backoff.retry_at = None
        vacant = self.slots.fill()
        self.is_in_line = bool(vacant) and not self.surroundings.may_boot(self, now)
        if not vacant or self.is_in_line or self.siting.waits_for_trial(now):
            self._is_partly_started &= self.is_in_line
            return
        if not self._is_partly_started:
            self.generation += 1
        for slot in vacant:
            self.is_in_line = slot != vacant[0] and not self.surroundings.may_boot(self, now)
            if self.is_in_line or not self._boot(self.slots.live, slot, now):
                break
        self._is_partly_started = self.is_in_line
        self.upkeep.quiet_since = now

    def hurry(self) -> None:
        """Be among the first of those that wait for their turn: a request waits for it."""
        if self.is_in_line:
            self.surroundings.hurry(self)

    def leave_line(self) -> None:
        """Have no use for its turn any more."""
        self._is_partly_started = False
        if self.is_in_line:
            self.is_in_line = False
            self.surroundings.leave_line(self)

    def retry(self, now: float) -> None:
        """Do what could not be done before."""
        self.start(now)
        for instance in self.slots.live:
            if instance is not None and instance.state is State.STUCK:
                self.replace_slot(instance, now)
        self.go_on(now)

    def replace(self, reason: str, now: float) -> None:
        """Boot a new generation beside the one that serves; without effect on a mount that sleeps, and while the worker stops."""
        is_barred = self.is_quarantined or self.is_stopped or self.is_faulty or self.is_ending
        if is_barred or self.is_asleep() or self.succession.is_open:
            return
        if self.siting.isolation == MAIN and self.is_serving():
            # What is loaded in the main interpreter stays so until the process ends.
            self.restart_reason = f"{self.name} runs in the main interpreter, which only a new worker can reload ({reason})"
            return
        if self.siting.is_on_trial or self.is_replacing():
            self.wanted = reason  # what it was loaded from may be out of date already
            return
        if not any(instance is not None and instance.is_loaded and instance.state not in ENDS for instance in self.slots.live):
            self.log.info("%s: starting again (%s)", self.name, reason)
            self.sleep(now)
            self.start(now)
            return
        if not self.surroundings.take_turn(self, now):
            self.wanted = reason
            return
        self.wanted = ""
        self._is_partly_started = False  # who still waits for a turn is of the next generation, too
        self.reloads += 1
        if self.mount.replace == "stop-first":
            self.succession.begin(reason, now)
            return
        self.generation += 1
        self.slots.renew()
        meanwhile = f"generation {self.slots.oldest()} keeps serving" if self.is_serving() else "requests wait for it"
        self.log.info("%s: loading generation %d (%s); %s", self.name, self.generation, reason, meanwhile)
        for slot in range(len(self.slots.coming)):
            if not self._boot(self.slots.coming, slot, now):
                self.wanted = reason  # again when it is retried

    def replace_slot(self, instance: Instance, now: float) -> None:
        """Boot one instance beside one that can no longer serve."""
        if instance not in self.slots.live or self.is_ending:
            return
        slot = self.slots.live.index(instance)
        if self.slots.coming[slot] is None:
            self.generation += 1
            self._boot(self.slots.coming, slot, now)

    def go_on(self, now: float) -> None:
        """Replace, or load, if that was asked for while it could not be done."""
        if self.wanted:
            self.replace(self.wanted, now)
        elif self.is_in_line:
            self.start(now)

    def halt(self, now: float) -> None:
        """End its instances and answer 503 until `resume`."""
        if self.is_stopped:
            return
        self.log.info("%s: stopped by the operator; it answers 503", self.name)
        self.is_stopped = True
        self.backoff.retry_at = None
        self.sleep(now)
        self.surroundings.release(self)

    def resume(self, now: float) -> None:
        """Start it again after `halt`, or now if it sleeps or waits for its next try."""
        if self.is_stopped:
            self.log.info("%s: started by the operator", self.name)
        self.is_stopped = False
        self.start(now)

    def sleep(self, now: float) -> None:
        """End its instances; the next request starts it again."""
        self.wanted = ""
        self.leave_line()
        self.succession.cancel()
        for instance in self.slots.clear():
            self.retire(instance, now)

    def leave(self, now: float) -> None:
        """End its instances for good: it is in no table any more, and nobody can ask for it."""
        self.is_ending = True
        self.backoff.give_up()
        self.sleep(now)
        self.surroundings.release(self)  # who waits for it is routed by the new table

    def finish(self) -> None:
        """Have each instance say `Connection: close` in every response: the worker is stopping."""
        self.is_ending = True
        for instance in self.slots.all():
            if instance.state not in ENDS:
                instance.finish()

    def stop(self) -> None:
        """Have each instance end."""
        self.is_ending = self.is_over = True
        self.leave_line()
        self.surroundings.release(self)  # who still waits is answered
        for instance in self.slots.all():
            if instance.state not in ENDS:
                instance.stop(frees=False)

    # What happens; told by its parts.

    def install(self, instance: Instance, now: float) -> None:
        """An instance is up: it takes its slot, and the instance that had it drains."""
        if instance in self.slots.retired:
            return  # its boot timed out before it was up, and it was told to end then
        self.backoff.succeeded()
        self.siting.trials = 0
        self.upkeep.set_quota(instance)
        self.slots.began[instance] = now
        before = self.slots.install(instance)
        if before is not None:
            self.retire(before, now)
        self.surroundings.release(self)
        self.go_on(now)

    def retire(self, instance: Instance, now: float) -> None:
        """Let an instance end: its idle connections go back to the acceptor, its requests are answered."""
        if instance.state in ENDS:
            return
        if instance.state is State.SERVING and now - self.slots.began.get(instance, now) > LONG_LIFE_S:
            self.backoff.crashes = 0  # those before it and those of the next have nothing to do with each other
        self.slots.began[instance] = now
        if instance not in self.slots.retired:  # as is one whose boot a trial has made needless, and that then does not end in time
            self.slots.retired.append(instance)
        instance.drain()
        instance.stop()

    # Inner workings.

    def _boot(self, slots: list[Instance | None], slot: int, now: float) -> bool:
        """Start an instance for a slot; False if nothing can be started now, which is tried again later."""
        try:
            instance = self.surroundings.make(self, slot)
        except Exception as exc:  # no thread, no descriptor, no memory, no row of the scoreboard
            self.recovery.cannot_start(exc, now)
            return False
        self.slots.began[instance] = now
        slots[slot] = instance
        return True


def _app_of(mount: Mount) -> str:
    if mount.files is not None:
        return f"files in {mount.files.path}"
    return f"redirect to {mount.redirect}" if mount.redirect else str(mount.app)


def facts_of(deployment: Deployment, mount: Mount) -> dict[str, Any]:
    """Return what both the status page and `isowsgi status` say of a mount, as JSON has it."""
    return {
        "app": _app_of(mount),
        "isolation": deployment.siting.isolation,
        "reason": deployment.siting.why(),
        "group": mount.group,
        "state": deployment.state(),
        "generation": deployment.generation,
        "reloads": deployment.reloads,
        "stuck": deployment.stuck,
    }
