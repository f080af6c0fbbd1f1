"""A deployment's instances: which one has which slot, which comes next, and which are on their way out. Bookkeeping only, no decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from isowsgi.instances.counters import ServingThread
from isowsgi.instances.lifecycle import ENDS, SETTLED, State
from isowsgi.instances.original import Edition
from isowsgi.shared.cgroups import Group, Use
from isowsgi.shared.messages import Order, Report


class Instance(Protocol):
    """What a deployment needs of an instance; see `instances.base`."""

    state: State
    tag: str
    generation: int
    isolation: str
    is_loaded: bool
    error: str
    traceback: str
    refused: list[tuple[str, str, str]]
    unknown_extension: str | None
    failed_in_hook: bool
    how_it_ended: str
    can_be_killed: bool
    has_gone: bool
    is_walled: bool
    is_in_line: bool
    is_overdue: bool
    threads_left: int
    stuck_since: float
    boot_s: float
    objects: int
    memory: int
    memory_at_boot: int
    grown: int
    pid: int | None
    grouped: frozenset[str]
    group: Group | None
    group_use: Use | None
    objects_at_boot: int
    threads: int
    first_row: int
    rows: int

    def start(self) -> None: ...
    def read(self) -> Report | None: ...
    def give(self, fd: int) -> None: ...
    def drain(self) -> None: ...
    def finish(self) -> None: ...
    def stop(self, frees: bool = True) -> None: ...
    def abandon(self) -> None: ...
    def kill(self) -> None: ...
    def dispose(self, destroy: bool) -> None: ...
    def time_out_boot(self) -> None: ...
    def call_stuck(self) -> None: ...
    def distrust(self) -> None: ...
    def requests(self, mount: int | None = None) -> int: ...
    def is_busy(self) -> bool: ...
    def serving_threads(self) -> Sequence[ServingThread]: ...
    def has_free_thread(self) -> bool: ...
    def is_at_leisure(self) -> bool: ...
    def progress(self) -> int: ...
    def has_ended(self) -> bool: ...
    def requests_in_flight(self) -> list[str]: ...
    def in_flight(self, now: float) -> list[tuple[str, float]]: ...
    def tell(self, order: Order) -> bool: ...
    def cut_off(self, older_than_s: float, now: float) -> bool: ...
    def take_cuts(self) -> list[tuple[int, str]]: ...


class Slots:
    """The slots of one deployment, as many as its mount has `instances`.

    Attributes:
        live: the instance in each slot, whatever its state.
        coming: what replaces it.
        retired: those that were replaced, or whose boot timed out, and have not ended yet.
        left: those that have ended, but whose interpreter cannot be freed, as threads of the app's run in it.
        began: monotonic seconds when each was started, or loaded, or retired.
        asking: those whose boots wait for a verdict on an extension module.
        held: those that get no further connection: C code holds their GIL, or their state is unknown.
        edition: of what those that are started now are copies, where a mount's processes are.
    """

    def __init__(self, count: int) -> None:
        self.live: list[Instance | None] = [None] * count
        self.coming: list[Instance | None] = [None] * count
        self.retired: list[Instance] = []
        self.left: list[Instance] = []
        self.began: dict[Instance, float] = {}
        self.asking: list[Instance] = []
        self.held: list[Instance] = []
        self.edition = Edition()
        self._before: Edition | None = None  # that of what serves, while all of it is being replaced
        self._turn = 0

    def renew(self) -> None:
        """Have those that are started from now on load the app again, as it is now."""
        self._before, self.edition = self.edition, Edition()

    def choose(self) -> Instance | None:
        """Return the instance for the next connection, each in turn; None if none can serve it."""
        able = [instance for instance in self.live if instance is not None and self._can_serve(instance)]
        if not able:
            return None
        self._turn += 1
        return able[self._turn % len(able)]

    def all(self) -> list[Instance]:
        """Return all that have not ended, newest first; and what failed in a slot that nothing else has taken."""
        return [*filter(None, (*self.coming, *self.live, *self.retired))]  # asked ten times a second, of up to a thousand mounts

    def current(self) -> list[Instance]:
        """Return all but the retired ones."""
        return [instance for instance in (*self.coming, *self.live) if instance is not None]

    def serving(self) -> list[Instance]:
        return [instance for instance in self.live if instance is not None and instance.state is State.SERVING]

    def states(self) -> set[State]:
        """Return the states of those in the slots."""
        return {instance.state for instance in self.live if instance is not None}

    def is_settled(self) -> bool:
        return self.states() <= SETTLED

    def oldest(self) -> int:
        """Return the oldest generation that is in a slot."""
        return min((instance.generation for instance in self.live if instance is not None), default=0)

    def booting(self) -> int:
        """Return how many are being loaded, and do not wait in the midst of it."""
        return sum(instance.state is State.BOOTING and instance not in self.asking for instance in self.current())

    def is_booting(self) -> bool:
        return self.booting() > 0

    def is_replacing(self) -> bool:
        return any(instance is not None for instance in self.coming)

    def is_empty(self) -> bool:
        return not self.current()

    def fill(self) -> list[int]:
        """Move what is coming into slots that nobody is in; return those that stay vacant."""
        vacant = [slot for slot, instance in enumerate(self.live) if instance is None or instance.state in ENDS]
        for slot in vacant:  # a later generation must not be there before it
            self.live[slot], self.coming[slot] = self.coming[slot], None
        if self.is_empty():
            self.renew()
        return [slot for slot in vacant if self.live[slot] is None]

    def install(self, instance: Instance) -> Instance | None:
        """Let a loaded instance take its slot; return the instance that had it."""
        if instance not in self.coming:
            return None
        slot = self.coming.index(instance)
        before, self.live[slot], self.coming[slot] = self.live[slot], instance, None
        self._before = None
        return before

    def vacate(self, instance: Instance) -> str:
        """Take an instance out of its slot; return where it was: "coming", "live" or ""."""
        for name in ("coming", "live"):
            slots: list[Instance | None] = getattr(self, name)
            if instance in slots:
                slots[slots.index(instance)] = None
                if self._before is not None and not self.is_replacing():  # nothing came of it
                    self.edition, self._before = self._before, None
                return name
        return ""

    def clear(self) -> list[Instance]:
        """Take all instances out of their slots and return them."""
        taken = self.current()
        self.live, self.coming = [None] * len(self.live), [None] * len(self.live)
        return taken

    def forget(self, instance: Instance, now: float) -> float:
        """Forget one that has ended, but for its place in a slot; return for how long it had been what it was."""
        if instance in self.retired:
            self.retired.remove(instance)
        if instance.threads_left:
            self.left.append(instance)
        for each in (self.held, self.asking):
            each[:] = [other for other in each if other is not instance]
        return now - self.began.pop(instance, now)

    def _can_serve(self, instance: Instance) -> bool:
        """Whether a request would be served by it, though perhaps not at once."""
        if not instance.is_loaded or instance.state in ENDS:
            return False
        # One with a stuck thread serves with its other threads until it is replaced.
        return instance.state is not State.STUCK or (instance not in self.held and instance.has_free_thread())
