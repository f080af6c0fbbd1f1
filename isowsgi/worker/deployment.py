"""A mount's home: which of its instances serves, which comes next, which are on their way out.

Replacing never leaves a gap: the new generation boots while the old one serves; only when it is up the route switches, and the old one
drains. If it fails to boot, the old one goes on.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from isowsgi.configuration import Mount
from isowsgi.instances.bootorder import name_of
from isowsgi.instances.lifecycle import ENDS, SETTLED, State
from isowsgi.shared.interpreters import MAIN, OWN_GIL, PROCESS, best_isolation, version_text
from isowsgi.worker.acceptor import NotServing

# Waits before a mount that failed to boot is tried again: doubled each time.
_RETRY_FIRST_S = 1.0
_RETRY_MOST_S = 60.0

# An instance that ends unasked after so long is started again at once; sooner, with growing pauses. Short enough that a mount which crashes
# twice a minute is away for as long as it boots, and not for most of the time; long enough that its boots take little of a core.
_LONG_LIFE_S = 10.0

# Boots of one mount that may hang at a time. Each keeps an interpreter and a thread, and a worker's restart would not help.
_MOST_HUNG_BOOTS = 2


class Instance(Protocol):
    """What a home needs of an instance; see `instances.interpreter`."""

    state: State
    tag: str
    generation: int
    isolation: str
    is_loaded: bool
    error: str
    traceback: str
    unknown_extension: str | None
    how_it_ended: str
    can_be_killed: bool
    threads_left: int
    boot_s: float
    objects: int
    objects_at_boot: int
    threads: int
    first_row: int
    rows: int

    def start(self) -> None: ...
    def give(self, fd: int) -> None: ...
    def drain(self) -> None: ...
    def finish(self) -> None: ...
    def stop(self) -> None: ...
    def abandon(self) -> None: ...
    def kill(self) -> None: ...
    def time_out_boot(self) -> None: ...
    def call_stuck(self) -> None: ...
    def requests(self, mount: int | None = None) -> int: ...
    def is_busy(self) -> bool: ...
    def has_free_thread(self) -> bool: ...
    def requests_in_flight(self) -> list[str]: ...
    def in_flight(self, now: float) -> list[tuple[str, float]]: ...
    def ask_stacks(self, ask: int) -> None: ...
    def cut_off(self, older_than_s: float, now: float) -> bool: ...
    def measure(self) -> None: ...
    def reopen_logs(self) -> None: ...


Make = Callable[[str, int, int], Instance]  # isolation, slot, generation


class Home:
    """One mount with its instances, or a group of mounts that share theirs.

    Args:
        members: what is served: one mount, or those of a group, for which all that matters here is the same.
        make: makes an instance, not started yet, for a slot and generation.
        try_out: has a trial made, see `begin_trial`.
        released: called when requests that wait for the mount should be looked at again.
        log: gunicorn's logger.
        drain_s: how long a replaced instance's requests may take to end.
        isolation: where its instances live; for "auto" the first that is tried.
        take_turn: whether it may load a new generation now, see `turns`; if not, `go_on` is called later.
        is_quarantined: whether it crashed the worker too often; it is answered 503 then.
        is_suspect: whether a worker died while it was loaded; it is loaded here only after a trial.
    """

    def __init__(
        self,
        *,
        members: Sequence[Mount],
        make: Make,
        released: Callable[[], None],
        try_out: Callable[[Home], None],
        log: Any,
        drain_s: float,
        isolation: str,
        take_turn: Callable[[Home, float], bool],
        is_quarantined: bool = False,
        is_suspect: bool = False,
    ) -> None:
        self.members = tuple(members)
        self.mount = mount = members[0]
        self.isolation = isolation
        self.reason = ""  # why there, if it was found out
        self.is_auto = mount.isolation == "auto" and isolation not in (PROCESS, MAIN)  # whether a better home may be found for it
        self.extensions: Mapping[str, Sequence[int]] | None = {} if self.is_auto else None  # that its boots may load; None: all
        self.late_imports: list[str] = []  # extension modules that were refused when a request imported them
        self.trials = 0  # since it was last loaded
        self._is_on_trial = False
        self.name = name_of(mount)
        self.generation = 0
        self.is_quarantined = is_quarantined
        self.is_stopped = False  # by the operator
        self.reloads = 0
        self.stuck = 0  # instances left behind so far, in this worker
        self._make = make
        self._released = released
        self._try_out = try_out
        self._take_turn = take_turn
        self._is_suspect = is_suspect and isolation != PROCESS
        self._log = log
        self._drain_s = drain_s
        self._live: list[Instance | None] = [None] * mount.instances  # by slot
        self._next: list[Instance | None] = [None] * mount.instances
        self._retired: list[Instance] = []
        self._held: list[Instance] = []  # those in which C code holds the GIL
        self._began: dict[Instance, float] = {}  # when it was started, or retired
        self._quotas: dict[Instance, int] = {}  # requests after which it is replaced
        self._turn = 0
        self._is_ending = False  # with the worker, which answers what it has accepted
        self._is_over = False  # all of that was answered
        self._failures = 0
        self._crashes = 0  # one soon after the other
        self.restart_reason = ""  # why the worker should be replaced for it
        self._traceback = ""  # of the last boot that failed
        self._retry_at: float | None = None
        self._is_reload_wanted = ""  # why, while one is under way already, or it waits for its turn
        self._touched = _changed_at(mount.touch)
        self._requests = 0
        self._quiet_since = 0.0

    # What others ask.

    def choose(self, now: float) -> Instance | NotServing:
        """Return the instance for the next connection, each in turn; start the mount if it sleeps."""
        if self.is_quarantined or self.is_stopped:
            return NotServing.FAILED
        serving = [instance for instance in self._live if instance is not None and self._can_serve(instance)]
        if serving:
            self._turn += 1
            return serving[self._turn % len(serving)]
        if self._is_on_trial or any(
            instance is not None and instance.state in (State.BOOTING, State.DRAINING) for instance in (*self._live, *self._next)
        ):
            return NotServing.BOOTING
        if self.is_asleep() and not self._is_over:
            self.start(now)
            return NotServing.BOOTING
        return NotServing.FAILED

    def instances(self) -> list[Instance]:
        """Return all that have not ended, newest first."""
        return [instance for instance in (*self._next, *self._live, *self._retired) if instance is not None]

    def is_asleep(self) -> bool:
        """Whether it has no instance because nobody asked for one."""
        is_held_back = self.is_quarantined or self.is_stopped or self._is_on_trial or self._retry_at is not None
        return not is_held_back and all(instance is None for instance in (*self._live, *self._next))

    def why(self) -> str:
        """Say in a line why it lives where it does."""
        if self.reason:
            return self.reason
        if self.mount.isolation != "auto":
            return "configured"
        if self.mount.python is not None:
            return "it has a Python of its own"
        if self.isolation == PROCESS:
            return "it kept crashing the worker"
        if best_isolation() == OWN_GIL:
            return "auto"
        return f"auto: an own GIL is not sound on Python {version_text()}"

    def is_settled(self) -> bool:
        return not self._is_on_trial and all(instance is None or instance.state in SETTLED for instance in self._live)

    def is_serving(self) -> bool:
        return any(instance is not None and instance.state is State.SERVING for instance in self._live)

    def serving(self) -> list[Instance]:
        return [instance for instance in self._live if instance is not None and instance.state is State.SERVING]

    def is_replacing(self) -> bool:
        return any(instance is not None for instance in self._next)

    def has_arrived(self, generation: int) -> bool:
        """Whether every slot is served by a generation, or a later one, and nothing newer is on its way."""
        serving = self.serving()
        is_whole = len(serving) == len(self._live) and all(instance.generation >= generation for instance in serving)
        return is_whole and not self._is_reload_wanted and not self.is_replacing()

    def is_under_way(self) -> bool:
        """Whether some instance is being loaded, or will be at once."""
        coming = (*self._next, *self._live)
        is_booting = self._is_on_trial or any(instance is not None and instance.state is State.BOOTING for instance in coming)
        return is_booting or bool(self._is_reload_wanted)

    def retry_in_s(self, now: float) -> float | None:
        """Return after how many seconds it is tried again, if its last boot failed."""
        return None if self._retry_at is None else max(round(self._retry_at - now, 1), 0.0)

    def summary(self) -> str:
        """Return in a word how the mount is."""
        if self.is_quarantined or self.is_stopped:
            return "quarantined" if self.is_quarantined else "stopped"
        if self.is_asleep():
            return "asleep"
        states = {instance.state for instance in self._live if instance is not None}
        if State.STUCK in states:
            return "stuck"
        if self.is_serving():
            return "reloading" if self.is_replacing() or self._is_reload_wanted else "serving"
        return "booting" if State.BOOTING in states or self._is_on_trial else "failed"

    # What is to be done.

    def halt(self, now: float) -> None:
        """End its instances and answer 503 until `resume`."""
        if self.is_stopped:
            return
        self._log.info("%s: is stopped by the operator; it answers 503", self.name)
        self.is_stopped = True
        self._retry_at, self._is_reload_wanted = None, ""
        under_way = [instance for instance in (*self._next, *self._live) if instance is not None]
        self._live, self._next = [None] * self.mount.instances, [None] * self.mount.instances
        for instance in under_way:
            self._retire(instance, now)
        if under_way:
            self._released()

    def resume(self, now: float) -> None:
        """Start it again after `halt`, or now if it sleeps or waits for its next try."""
        if self.is_stopped:
            self._log.info("%s: is started by the operator", self.name)
        self.is_stopped = False
        self.start(now)

    def start(self, now: float) -> None:
        """Boot an instance for every slot that has none, and none on its way."""
        if self.is_quarantined or self.is_stopped or self._is_on_trial:
            return
        self._retry_at = None
        if self._is_suspect:
            self.begin_trial(None)
            self._try_out(self)
            return
        vacant = [slot for slot, instance in enumerate(self._live) if instance is None or instance.state in ENDS]
        for slot in vacant:  # what was to replace it is on its way already; a later generation must not be there before it
            self._live[slot], self._next[slot] = self._next[slot], None
        if vacant := [slot for slot in vacant if self._live[slot] is None]:
            self.generation += 1
        for slot in vacant:
            self._live[slot] = self._boot(slot, now)
        self._quiet_since = now

    def replace(self, reason: str, now: float) -> None:
        """Boot a new generation beside the one that serves; without effect on a mount that sleeps, and while the worker stops."""
        if self.is_quarantined or self.is_stopped or self._is_ending or self.is_asleep():
            return
        if self.isolation == MAIN and self.is_serving():
            # What is loaded in the main interpreter stays so until the process ends.
            self.restart_reason = f"{self.name} lives in the main interpreter and is to be loaded anew: {reason}"
            return
        if self._is_on_trial or self.is_replacing():
            self._is_reload_wanted = reason  # what it was loaded from may be out of date already
            return
        if not any(instance is not None and instance.is_loaded and instance.state not in ENDS for instance in self._live):
            self._log.info("%s: is started again: %s", self.name, reason)
            for instance in self._live:
                if instance is not None and instance.state not in ENDS:
                    self._retire(instance, now)
            self._live = [None] * self.mount.instances
            self.start(now)
            return
        if not self._take_turn(self, now):
            self._is_reload_wanted = reason
            return
        self._is_reload_wanted = ""
        self.generation += 1
        self.reloads += 1
        self._log.info("%s: generation %d is to replace the one before: %s", self.name, self.generation, reason)
        for slot in range(self.mount.instances):
            self._next[slot] = self._boot(slot, now)

    def go_on(self, now: float) -> None:
        """Replace if that was asked for while it could not be done."""
        if self._is_reload_wanted:
            self.replace(self._is_reload_wanted, now)

    def sleep(self, now: float) -> None:
        """End its instances; the next request starts it again."""
        self._is_reload_wanted = ""
        for instance in self._live:
            if instance is not None:
                self._retire(instance, now)
        self._live = [None] * self.mount.instances

    def finish(self) -> None:
        """Have each instance say `Connection: close` in every response: the worker is stopping."""
        self._is_ending = True
        for instance in self.instances():
            if instance.state not in ENDS:
                instance.finish()

    def stop(self) -> None:
        """Have each instance end."""
        self._is_ending = self._is_over = True
        for instance in self.instances():
            if instance.state not in ENDS:
                instance.stop()

    # What happens.

    def on_ready(self, instance: Instance, now: float) -> None:
        """An instance is up: it takes its slot, and who had it drains."""
        if instance in self._retired:
            return  # it was given up before it was up, and was told to end then
        self._failures = self.trials = 0
        self._traceback = ""
        self._quotas[instance] = self.mount.max_requests + random.randint(0, self.mount.max_requests_jitter)
        self._began[instance] = now
        if instance in self._next:
            slot = self._next.index(instance)
            before, self._live[slot], self._next[slot] = self._live[slot], instance, None
            if before is not None:
                self._retire(before, now)
        self._released()
        self.go_on(now)

    def is_news(self, traceback: str) -> bool:
        """Whether a boot failed in another way than the one before: the same traceback need not be read every minute."""
        before, self._traceback = self._traceback, traceback
        return before != traceback

    def on_failed(self, instance: Instance, now: float) -> None:
        """An instance could not be booted."""
        if instance in self._next:
            self._next[self._next.index(instance)] = None
            self._log.error("%s: the generation before goes on", instance.tag)
            self.go_on(now)
        elif instance in self._live:
            self._plan_retry(now)
        self._released()

    def begin_trial(self, instance: Instance | None) -> bool:
        """Wait for a verdict on where it can live; what serves goes on.

        Args:
            instance: that could not be booted where it was; None: all serve.

        Returns:
            whether a trial is to be made; False if one is being made already.
        """
        for slots in (self._live, self._next):
            if instance in slots:
                slots[slots.index(instance)] = None
        is_new, self._is_on_trial = not self._is_on_trial, True
        self.trials += is_new
        return is_new

    def settle(self, isolation: str, reason: str, extensions: Mapping[str, Sequence[int]]) -> None:
        """Take note of where it can live; for its instances from now on."""
        self.isolation, self.reason = isolation, reason
        self.extensions = extensions if self.is_auto and isolation != PROCESS else None

    def move(self, isolation: str, reason: str, extensions: Mapping[str, Sequence[int]], now: float) -> None:
        """Live where a trial found that it can."""
        self._is_on_trial = self._is_suspect = False
        self.settle(isolation, reason, extensions)
        if self._is_ending or self.is_stopped:
            return
        if self.is_serving():
            self.replace(self._is_reload_wanted or f"its home is {isolation} from now on: {reason}", now)
        else:
            self.start(now)

    def stay_away(self, now: float) -> None:
        """Take note that a trial found no home."""
        self._is_on_trial = False
        if self._is_ending or self.is_stopped:
            return
        if self.is_serving():
            self._log.error("%s: the generation before goes on", self.name)
            self.go_on(now)
        else:
            self._plan_retry(now)
        self._released()

    def on_stuck(self, instance: Instance, now: float) -> None:
        """A thread of an instance does not come out of its request."""
        if instance.state is not State.STUCK:
            self.stuck += 1
        instance.call_stuck()
        if instance in self._live:
            self._replace_slot(self._live.index(instance), now)

    def on_closed(self, instance: Instance, now: float) -> None:
        """The threads of an instance have ended; it needs nothing any more."""
        began = self._began.pop(instance, now)
        if instance in self._held:
            self._held.remove(instance)
        self._quotas.pop(instance, None)
        if instance in self._retired:
            self._retired.remove(instance)
        elif instance in self._live and instance.state is State.CLOSED and not self._is_over:
            self._log.error("%s: its %s although nobody asked for it", instance.tag, instance.how_it_ended or "threads ended")
            if self._is_ending:  # the next request starts it again, if one still comes
                self._live[self._live.index(instance)] = None
            else:
                self._make_up_for(instance, now - began, now)

    def tick(self, now: float) -> None:
        """Do what time has made due; called about once a second."""
        if self._retry_at is not None and now >= self._retry_at and self._hung_boots() < _MOST_HUNG_BOOTS:
            self._log.info("%s: is tried again", self.name)
            self.start(now)
        for instance in self.instances():
            self._look_at(instance, now)
        self._look_at_files(now)
        self._look_for_quiet(now)

    # Inner workings.

    def _can_serve(self, instance: Instance) -> bool:
        """Whether a request would be served by it, though perhaps not at once."""
        if instance.state is State.STUCK:  # until it is replaced, its other threads go on, if there are any
            return instance.is_loaded and instance not in self._held and instance.has_free_thread()
        return instance.is_loaded and instance.state not in ENDS

    def _boot(self, slot: int, now: float) -> Instance:
        instance = self._make(self.isolation, slot, self.generation)
        self._began[instance] = now
        instance.start()
        return instance

    def _retire(self, instance: Instance, now: float) -> None:
        """Let an instance end: its idle connections go back to the acceptor, its requests are answered."""
        if instance.state in ENDS:
            return
        if instance.state is State.SERVING and now - self._began.get(instance, now) > _LONG_LIFE_S:
            self._crashes = 0  # those before it and those of the next have nothing to do with each other
        self._began[instance] = now
        self._retired.append(instance)
        instance.drain()
        instance.stop()

    def _hung_boots(self) -> int:
        return sum(instance.state is State.STUCK and not instance.is_loaded for instance in self._retired)

    def _plan_retry(self, now: float) -> None:
        wait_s = min(_RETRY_FIRST_S * 2**self._failures, _RETRY_MOST_S)
        self._failures += 1
        self._retry_at = now + wait_s
        self._log.error("%s: answers 503; the next try is in %d s", self.name, wait_s)

    def _make_up_for(self, instance: Instance, lived_s: float, now: float) -> None:
        """Start again what ended: at once, unless it keeps ending soon after its start, or what replaces it is on its way already."""
        self._crashes = 0 if lived_s > _LONG_LIFE_S else self._crashes + 1
        if self._next[self._live.index(instance)] is None and self._crashes > 1:
            wait_s = min(_RETRY_FIRST_S * 2 ** (self._crashes - 2), _RETRY_MOST_S)
            self._log.error("%s: has ended %d times soon after its start; the next start is in %d s", self.name, self._crashes, wait_s)
            self._retry_at = now + wait_s
        else:
            self.start(now)

    def _replace_slot(self, slot: int, now: float) -> None:
        if self._next[slot] is None and not self._is_ending:
            self.generation += 1
            self._next[slot] = self._boot(slot, now)

    def _look_at(self, instance: Instance, now: float) -> None:
        mount, age = self.mount, now - self._began.get(instance, now)
        if instance.state is State.BOOTING and mount.boot_timeout and age > mount.boot_timeout:
            self._give_up_boot(instance, now)
        elif instance in self._retired:
            if instance.state is State.DRAINING and age > self._drain_s:
                self.stuck += 1
                self._log.warning("%s: did not end within %d s; %s", instance.tag, self._drain_s, _fate_of(instance))
                instance.abandon()
            elif instance.state is State.STUCK and age > self._drain_s and instance.can_be_killed:
                instance.kill()
        elif instance.state is State.SERVING and instance in self._live:
            quota = self._quotas.get(instance, 0)
            if quota and instance.requests() >= quota:
                self._quotas[instance] = 0
                self.replace(f"{instance.requests()} requests", now)
            elif mount.max_age and age > mount.max_age:
                self._began[instance] = now
                self.replace(f"{mount.max_age:g} s of age", now)
        if mount.request_timeout and instance.cut_off(mount.request_timeout, now) and instance.state is not State.STUCK:
            self._held.append(instance)
            self._log.error("%s: C code holds the interpreter's GIL and does not give it back; the instance is replaced", instance.tag)
            self.on_stuck(instance, now)

    def _give_up_boot(self, instance: Instance, now: float) -> None:
        self.stuck += 1
        instance.time_out_boot()
        self._log.error("%s: was not loaded within %g s; %s", instance.tag, self.mount.boot_timeout, _fate_of(instance))
        if instance in self._next:
            self._next[self._next.index(instance)] = None
            self.go_on(now)
        elif instance in self._live:
            self._live[self._live.index(instance)] = None
            self._plan_retry(now)
        self._retire(instance, now)
        self._released()

    def _look_at_files(self, now: float) -> None:
        changed_at = _changed_at(self.mount.touch)
        if changed_at != self._touched:
            self._touched = changed_at
            self.replace(f"{self.mount.touch} was touched", now)

    def _look_for_quiet(self, now: float) -> None:
        if not self.mount.idle_timeout or not self.is_serving() or self.is_replacing():
            return
        live = [instance for instance in self._live if instance is not None]
        requests = sum(instance.requests() for instance in live)
        if requests != self._requests or any(instance.is_busy() for instance in live):
            self._requests, self._quiet_since = requests, now
        elif now - self._quiet_since > self.mount.idle_timeout:
            self._log.info("%s: no request for %g s; it sleeps until the next one", self.name, self.mount.idle_timeout)
            self.sleep(now)


def _fate_of(instance: Instance) -> str:
    return "it is killed" if instance.can_be_killed else "it is left behind"


def _changed_at(path: str | None) -> int | None:
    if path is None:
        return None
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None
