"""What is done to the server while it is under load: reloads, restarts and kills, each noted with what it may cost.

A process that is killed is stopped first (SIGSTOP), so that its descriptors can be read: they say exactly which clients' connections it
had. No other client may lose anything by that kill.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isowsgi.cli import client
from isowsgi.shared import controlmessages
from isowsgi.shared.controlmessages import Error
from soak.site import MAIN, PROCESSES, RELOADS, Process, Site, ports_of, tag_of

# How long a worker may take to carry out a reload: longer than `boot_timeout`, whose report is to be seen.
_RELOAD_S = 90.0

# How long a process may take to stand still once it was told to: each thread has to run for that, and a core may have fifty in its queue.
_STOP_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """When what happens; seconds."""

    run_s: float
    reload_s: float
    hup_s: float
    kill_s: float
    quiet_s: float  # at the end, without hostile apps
    main_s: float  # a reload of the main interpreter's mount replaces all workers, as a HUP does; it comes half-way between two

    @classmethod
    def of(cls, minutes: float, hup_s: float | None = None) -> Plan:
        """Return the plan of a run; a short one has restarts and some kills too."""
        run_s = minutes * 60
        hup_s = hup_s or min(60.0, run_s / 3)
        return cls(run_s=run_s, reload_s=1.0, hup_s=hup_s, kill_s=min(20.0, run_s / 12), quiet_s=min(60.0, run_s / 5), main_s=2 * hup_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """A process that was killed.

    Attributes:
        what: "worker" or "child".
        worker: whose child it was, or itself.
        tag: of the instance in it; "" for a worker.
        ports: of the clients that it had a connection with.
    """

    what: str
    at: float
    pid: int
    worker: int
    tag: str
    ports: list[int]

    @property
    def name(self) -> str:
        """Return which mount or group the child had."""
        return self.tag.partition(" #")[0]


@dataclass(slots=True)
class Journal:
    """All that was done so far; appended to by the threads below, read by others."""

    kills: list[Kill] = field(default_factory=list)
    hups: list[float] = field(default_factory=list)
    main_reloads: list[float] = field(default_factory=list)
    reloads: list[dict[str, Any]] = field(default_factory=list)  # at, mount, took_s and the answers of the workers
    scarce: list[list[float]] = field(default_factory=list)  # as `verdict.explain` takes it
    late_reloads: int = 0  # that were due while the one before went on

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Trouble:
    """Makes it, on threads of its own, until `stop`.

    Args:
        on_arrival: takes mount, worker, generation and time of what a reload has brought up.
        on_mistake: takes the text of an exception of ours.
    """

    def __init__(
        self,
        site: Site,
        plan: Plan,
        seed: int,
        on_arrival: Callable[[str, int, int, float], None],
        on_mistake: Callable[[str], None],
    ) -> None:
        self.journal = Journal()
        self._site = site
        self._plan = plan
        self._random = random.Random(seed)
        self._on_arrival = on_arrival
        self._on_mistake = on_mistake
        self._stop = threading.Event()
        self._spared: set[tuple[int, str]] = set()
        self._threads = [threading.Thread(target=self._guarded, args=(work,)) for work in (self._reload_all, self._restart_and_kill)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def hup(self) -> None:
        """Have all workers replaced."""
        self.journal.hups.append(time.monotonic())
        self._site.signal(signal.SIGHUP)

    def stop(self) -> None:
        """End it; a reload that is under way is waited for."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:  # else it was interrupted before it was started
                thread.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as exc:
            self._on_mistake(f"{type(exc).__name__} in the making of trouble: {exc}")

    # Reloads.

    def _reload_all(self) -> None:
        """Reload one mount after the other, one a second; a little later if the one before takes longer."""
        mounts = list(RELOADS)
        due = time.monotonic()
        while not self._stop.wait(max(due - time.monotonic(), 0)):
            mount = mounts[len(self.journal.reloads) % len(mounts)]
            self._reload(mount)
            due += self._plan.reload_s
            while due < time.monotonic():
                due += self._plan.reload_s
                self.journal.late_reloads += 1

    def _reload(self, mount: str) -> None:
        at = time.monotonic()
        try:
            places = client.find(str(self._site.config), None)
        except client.NobodyServes:
            places = []  # between the workers of before and those to come
        answers = client.ask(places, controlmessages.Reload(mount=mount), _RELOAD_S)
        now = time.monotonic()
        told = []
        for place, _, answer in answers:
            if isinstance(answer, Error):
                told.append({"worker": place.worker, "outcome": answer.kind, "text": answer.text})
                continue
            if answer.outcome == "serving":
                for each in RELOADS[mount]:
                    self._on_arrival(each, place.worker, answer.generation, now)
            told.append({"worker": place.worker, "outcome": answer.outcome, "text": answer.text})
        self.journal.reloads.append({"at": at, "mount": mount, "took_s": round(now - at, 3), "answers": told})

    # Restarts and kills.

    def _restart_and_kill(self) -> None:
        plan, began = self._plan, time.monotonic()
        due = {self.hup: began + plan.hup_s, self._kill: began + plan.kill_s, self._reload_main: began + plan.hup_s * 1.5}
        every = {self.hup: plan.hup_s, self._kill: plan.kill_s, self._reload_main: plan.main_s}
        while True:
            act = min(due, key=lambda act: due[act])
            if self._stop.wait(max(due[act] - time.monotonic(), 0)):
                return
            act()
            due[act] += every[act]

    def _reload_main(self) -> None:
        self.journal.main_reloads.append(time.monotonic())
        try:
            places = client.find(str(self._site.config), None)
        except client.NobodyServes:
            return
        client.ask(places, controlmessages.Reload(mount=MAIN), _RELOAD_S)

    def _kill(self) -> None:
        """Kill a process at random: a child of a worker's three times out of four, else a worker."""
        workers = self._site.workers()
        # A mount that crashes twice soon after its start has to wait for its next one, and answers 503 meanwhile. That is a rule, and
        # no failure; so the same one is spared in a worker where it was killed before.
        children = [
            (process, tag)
            for process in self._site.processes()
            if process.parent in {worker.pid for worker in workers}
            and (tag := tag_of(process.pid)).partition(" #")[0] in PROCESSES
            and (process.parent, tag.partition(" #")[0]) not in self._spared
            and self._serves(process.parent, tag)
        ]
        if len(self.journal.kills) % 4 != 3 and children:
            process, tag = self._random.choice(children)
            self._spared.add((process.parent, tag.partition(" #")[0]))
            self._kill_one("child", process, process.parent, tag)
        elif workers:
            worker = self._random.choice(workers)
            self._kill_one("worker", worker, worker.pid, "")

    def _serves(self, worker: int, tag: str) -> bool:
        """Whether an instance is up; a mount whose boot is killed is tried again after a pause, by rule."""
        try:
            places = [place for place in client.find(str(self._site.config), None) if place.worker == worker]
        except client.NobodyServes:
            return False
        for _, _, answer in client.ask(places, controlmessages.Status(), 5.0):
            for mount in [] if isinstance(answer, Error) else answer.mounts:
                for instance in mount.instances:
                    if instance.tag == tag:
                        return instance.state in ("serving", "draining")
        return False

    def _kill_one(self, what: str, process: Process, worker: int, tag: str) -> None:
        pid = process.pid
        try:
            os.kill(pid, signal.SIGSTOP)
            is_still = _stands_still(pid)
            ports = ports_of(pid, self._site.port)
            at = time.monotonic()
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it has just ended by itself
        if is_still:
            self.journal.kills.append(Kill(what=what, at=at, pid=pid, worker=worker, tag=tag, ports=ports))
        else:
            self._on_mistake(f"{what} {pid} did not stand still within {_STOP_S:g} s; what it had is not known")


def _stands_still(pid: int) -> bool:
    """Wait until no thread of a process runs any more."""
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline:
        try:
            states = [
                Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(") ")[2][0] for thread in os.listdir(f"/proc/{pid}/task")
            ]
        except OSError:
            continue
        if all(state in "TZX" for state in states):
            return True
        time.sleep(0.001)
    return False
