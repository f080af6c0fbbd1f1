"""Stand-ins of our own for what a unit test does without."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs

from isowsgi.configuration import App, Mount
from isowsgi.inside.runner import Runner
from isowsgi.instances.counters import ServingThread
from isowsgi.instances.lifecycle import ENDS, Event, State, step
from isowsgi.shared.cgroups import Group, Use
from isowsgi.shared.containment import Containment
from isowsgi.shared.messages import (
    Census,
    Closed,
    Exited,
    Failed,
    Known,
    Measure,
    Measured,
    Order,
    Part,
    Profile,
    Ready,
    Report,
    Stuck,
    TellStacks,
)
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.shared.wire import MessageError
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.reloadqueue import Turns
from tests.conftest import DEADLINE_S


class FakePort:
    """Stands in for an instance's service: what is fed is polled, by one thread at a time or the test fails.

    Args:
        work: serves a descriptor.
    """

    def __init__(self, work: Callable[[int], None]) -> None:
        self._work = work
        self.settled: list[int] = []  # by the holder of the baton
        self.settled_later: list[int] = []  # by a thread that had lost it
        self.polling: list[str] = []  # names of the threads inside
        self.most_polling = 0
        self.polls = 0
        self.repairs = 0  # asked for, now or later
        self._waiting: deque[int] = deque()
        self._something = threading.Condition()
        self._poked = False

    def feed(self, *fds: int) -> None:
        with self._something:
            self._waiting.extend(fds)
            self._something.notify_all()

    def poke(self) -> None:
        """Let the thread that waits return, as the eventfd does; it stays readable until it was read."""
        with self._something:
            self._poked = True
            self._something.notify_all()

    def poll(self, wait: bool) -> list[int]:
        self.polling.append(threading.current_thread().name)
        self.most_polling = max(self.most_polling, len(self.polling))
        self.polls += 1
        with self._something:
            if wait:
                assert self._something.wait_for(lambda: self._waiting or self._poked, DEADLINE_S)
            self._poked = False
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), 16))]
        self.polling.pop()
        return batch

    def serve(self, fd: int) -> int:
        self._work(fd)
        return fd

    def settle(self, fd: int) -> None:
        assert not self.polling, "a connection is settled under the baton, and whoever polls has it"
        self.settled.append(fd)

    def settle_later(self, fd: int) -> None:
        self.settled_later.append(fd)

    def abandon(self, fd: int) -> int:
        return fd

    def repair(self, in_service: object) -> None:
        self.repairs += 1

    def repair_later(self) -> None:
        self.repairs += 1


class Crew:
    """Threads that work for a runner."""

    def __init__(self, count: int, serve: Callable[[int], None], rouse: Callable[[], None] = lambda: None) -> None:
        self.port = FakePort(serve)
        self.runner: Runner[int] = Runner(rouse)
        self.threads = [
            threading.Thread(target=self.runner.work, args=(self.port,), name=f"crew-{number}", daemon=True) for number in range(count)
        ]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Let them end; fails if one does not."""
        self.runner.stopping = True
        self.port.poke()
        for thread in self.threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), f"{thread.name} did not end"


class Gate:
    """A request that lasts until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._open = threading.Event()

    def pass_through(self) -> None:
        self.entered.set()
        assert self._open.wait(DEADLINE_S)

    def wait_until_entered(self) -> None:
        assert self.entered.wait(DEADLINE_S)

    def let_go(self) -> None:
        self._open.set()


class FakeInstance:
    """An instance without an interpreter: the test says what happens in it."""

    def __init__(self, slot: int = 0, generation: int = 1, isolation: str = "own-gil") -> None:
        self.tag = f"/ #{generation}"
        self.slot = slot
        self.generation = generation
        self.isolation = isolation
        self.state = State.BOOTING
        self.is_loaded = self.failed_in_hook = False
        self.error = self.traceback = self.how_it_ended = ""
        self.refused: list[tuple[str, str, str]] = []
        self.unknown_extension: str | None = None
        self.boot_s = self.stuck_since = 0.0
        self.threads = self.threads_left = self.objects = self.objects_at_boot = self.first_row = self.rows = 0
        self.memory = self.memory_at_boot = -1
        self.grown = 0
        self.pid: int | None = None
        self.grouped: frozenset[str] = frozenset()
        self.group: Group | None = None
        self.group_use: Use | None = None
        self.has_gone = self.is_overdue = self.is_in_line = self.is_walled = False
        self.started = self.drained = self.stopped = self.busy = self.holds_gil = self.can_be_killed = self.killed = False
        self.served = self.measures = self.thread = 0
        self.was_freed: bool | None = None  # None: it was not disposed of
        self.mounts_cut: list[int] = []  # whose requests the judge has cut off
        self.asked: list[TellStacks | Profile | Census] = []  # questions that are answered in parts
        self.known: list[Known] = []  # answers to what it has asked itself
        self.most_unread: int | None = None  # of them; None: it reads each at once
        self.said: deque[Report | bytes] = deque()  # what `read` returns; bytes are no report

    def start(self) -> None:
        self.started = True

    def dispose(self, destroy: bool) -> None:
        self.was_freed = destroy

    def read(self) -> Report | None:
        if not self.said:
            return None
        report = self.said.popleft()
        if isinstance(report, bytes):
            raise MessageError("expected JSON")
        self.takes_in(report)
        return report

    def takes_in(self, report: Report) -> None:
        if isinstance(report, Ready):
            self.boot_s, self.objects_at_boot = report.boot_s, report.objects
            self.happens(Event.READY)
        elif isinstance(report, Failed):
            self.error, self.traceback = report.error, report.traceback
            self.happens(Event.BOOT_FAILED)
        elif isinstance(report, (Closed, Exited)):
            self.threads_left = report.threads if isinstance(report, Closed) else 0
            self.happens(Event.ENDED)

    def give(self, fd: int) -> None:
        raise AssertionError("a deployment hands nothing over")

    def drain(self) -> None:
        self.drained = True
        self.happens(Event.DRAIN)

    finish = drain

    def stop(self, frees: bool = True) -> None:
        self.stopped = True

    def abandon(self) -> None:
        self.happens(Event.DRAIN_TIMEOUT)

    def kill(self) -> None:
        self.killed = True

    def time_out_boot(self) -> None:
        self.happens(Event.BOOT_TIMEOUT)

    def call_stuck(self) -> None:
        self.happens(Event.THREAD_STUCK)

    def distrust(self) -> None:
        self.happens(Event.BROKEN)

    def requests(self, mount: int | None = None) -> int:
        return self.served

    def serving_threads(self) -> list[ServingThread]:
        return [ServingThread(self.thread, self.served, self.busy)]

    def is_busy(self) -> bool:
        return self.busy

    def progress(self) -> int:
        return self.served

    def has_ended(self) -> bool:
        return self.state in ENDS

    def has_free_thread(self) -> bool:
        return not self.busy

    def is_at_leisure(self) -> bool:
        return not self.busy

    def requests_in_flight(self) -> list[str]:
        return ["GET / HTTP/1.1"] if self.busy else []

    def in_flight(self, now: float) -> list[tuple[str, float]]:
        return [("GET /\udcff HTTP/1.1", 0.5)]

    def tell(self, order: Order) -> bool:
        self.measures += isinstance(order, Measure)
        if isinstance(order, (TellStacks, Profile, Census)):
            self.asked.append(order)
        if isinstance(order, Known):
            if len(self.known) == self.most_unread:
                return False
            self.known.append(order)
        return True

    def take_cuts(self) -> list[tuple[int, str]]:
        return [(self.mounts_cut.pop(0), "GET /slow HTTP/1.1")] if self.mounts_cut else []

    def cut_off(self, older_than_s: float, now: float) -> bool:
        return self.holds_gil

    def happens(self, event: Event) -> None:
        if event is Event.READY:
            self.is_loaded = True
        self.state = step(self.state, event)


class FakeSurroundings:
    """A worker around a deployment: makes instances that are the test's, and remembers what it is asked for.

    Attributes:
        shortage: what the start of an instance raises; None: nothing.
        trial_shortage: the same of a trial.
    """

    drain_s = 30.0

    def __init__(self, turns: Turns | None = None) -> None:
        self.log = logging.getLogger("test")
        self.board = Scoreboard()
        os.close(self.board.fd)  # its memory stays mapped
        self.containment = Containment(self.log, self.board.row(0).words)
        self.made: list[FakeInstance] = []
        self.disposed: list[FakeInstance] = []
        self.releases = self.trials = 0
        self.stacks: list[tuple[Any, Part]] = []
        self.files: list[str] = []
        self.shortage: Exception | None = None
        self.trial_shortage: Exception | None = None
        self.is_crowded = False
        self.hurried: list[Deployment] = []
        self._turns = turns

    def make(self, deployment: Deployment, slot: int) -> FakeInstance:
        if self.shortage is not None:
            raise self.shortage
        instance = FakeInstance(slot, deployment.generation, deployment.siting.isolation)
        instance.start()
        self.made.append(instance)
        return instance

    def dispose(self, instance: Any, is_awaited: bool) -> None:
        self.disposed.append(instance)

    def release(self, deployment: Deployment) -> None:
        self.releases += 1

    def try_out(self, deployment: Deployment, unknown_extension: str | None) -> bool:
        if self.trial_shortage is not None:
            raise self.trial_shortage
        self.trials += 1
        return True

    def take_turn(self, deployment: Deployment, now: float) -> bool:
        return self._turns is None or self._turns.take(deployment, now)

    def may_boot(self, deployment: Deployment, now: float) -> bool:
        return not self.is_crowded

    def hurry(self, deployment: Deployment) -> None:
        self.hurried.append(deployment)

    def leave_line(self, deployment: Deployment) -> None: ...

    def on_files(self, files: list[str]) -> None:
        self.files += files

    def on_answer(self, instance: Any, report: Part) -> None:
        self.stacks.append((instance, report))

    def on_measured(self, instance: Any, report: Measured, now: float) -> None: ...


class Site:
    """A deployment with everything a test wants to see.

    Args:
        turns: in which it is replaced; None: at once.
        changes: of its mount.
    """

    def __init__(self, turns: Turns | None = None, **changes: Any) -> None:
        self.now = 100.0
        self.around = FakeSurroundings(turns)
        self.made = self.around.made
        mount = attrs.evolve(Mount(pattern="/", app=App(kind="module", target="x", call="application"), isolation="own-gil"), **changes)
        self.deployment = Deployment([mount], self.around, isolation="own-gil")

    def reports(self, instance: FakeInstance, report: Report) -> None:
        """Have an instance report something."""
        instance.takes_in(report)
        self.deployment.reports.handle(instance, report, self.now)

    def ready(self, instance: FakeInstance) -> None:
        self.reports(instance, Ready(boot_s=0.25, objects=9, extensions=[], refused=[]))

    def failed(self, instance: FakeInstance, error: str = "NameError: x", traceback: str = "NameError: x") -> None:
        self.reports(instance, Failed(error=error, traceback=traceback))

    def stuck(self, instance: FakeInstance) -> None:
        self.reports(instance, Stuck(stack="GET / HTTP/1.1\n  a stack"))

    def closed(self, instance: FakeInstance) -> None:
        self.reports(instance, Closed(threads=0))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.deployment.upkeep.tick(self.now)

    def chosen(self) -> Any:
        return self.deployment.choose(self.now)


def up(turns: Turns | None = None, **changes: Any) -> Site:
    """Return a site that serves."""
    site = Site(turns, **changes)
    site.deployment.start(site.now)
    for instance in list(site.made):
        site.ready(instance)
    return site
