"""What is due about once a second in a worker: a round, in which each deployment is looked at, then what all of them have in common.

It goes in pieces (`pieces`): to look at 200 mounts takes 5 ms of CPU time, for which requests waited at each tick when it was one step. A
round has the deployments that are there when it begins. One that has left by its turn is passed over, one that has come is for the next
round. What a tick finds left of the round before, on a busy machine, is done then at once. So each deployment is looked at once between two
ticks, in the same order: two looks at it are a second apart, and never two. If one look fails, the others are made all the same.

What must not wait for a round is not in it: the time limits of requests are kept inside their instances, by threads of their own, and a
thread that has died or is stuck is reported as soon as that is seen there (`inside.deadlines`, `inside.controlthread`). A round notices
what nobody inside can tell: boots and ends that take too long, and requests in an interpreter that stands still.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from isowsgi.shared.containment import Containment
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.instancefactory import Workshop
from isowsgi.worker.livetable import LiveTable
from isowsgi.worker.memorylimit import MemoryWatch
from isowsgi.worker.meter import Meter
from isowsgi.worker.pieces import Later, Pieces
from isowsgi.worker.workerreport import Reporter


class Rounds:
    """One worker's.

    Args:
        live: has the deployments.
        workshop: has what they share.
        meter: measures their instances.
        memory: watches the limits of memory.
        containment: ends our own mistakes.

    Attributes:
        reporter: publishes what has changed; None: nobody reads it yet.
    """

    def __init__(self, live: LiveTable, workshop: Workshop, meter: Meter, memory: MemoryWatch, containment: Containment) -> None:
        self._live = live
        self._workshop = workshop
        self._meter = meter
        self._memory = memory
        self._containment = containment
        self._pieces = Pieces("supervisor")
        self._is_over = False
        self.reporter: Reporter | None = None

    def start(self, later: Later) -> None:
        """Go in pieces from now on."""
        self._pieces.start(later)

    def tick(self) -> None:
        """Begin a round; to be called about once a second."""
        if not self._is_over:
            self._pieces.begin(self._round(), at_once=True)

    def end(self) -> None:
        """Look at nothing more."""
        self._is_over = True
        self._pieces.drop()

    def _round(self) -> Iterator[None]:
        workshop, call = self._workshop, self._containment.call
        for deployment in self._live.all():
            if not deployment.upkeep.is_over:
                self._look_at(deployment, time.monotonic())
                yield
        now = time.monotonic()
        call("the table", self._live.tick)
        call("tenants", self._live.look_at_tenants, now, True)
        call("queue of boots", workshop.boots.tick, now)
        if workshop.is_stopping:
            return  # what was accepted may still wait for a mount; nothing else is begun
        call("queue of replacements", workshop.turns.pass_on, now)
        call("ends of interpreters", workshop.departures.tick, now)
        call("fork servers", workshop.keep_fork_servers, self._live.all())
        yield
        yield from self._contained("measuring memory", self._meter.look(now))
        now = time.monotonic()
        call("memory check", self._memory.tick, now)
        if self.reporter is not None:
            call("report to the scoreboard", self.reporter.tick, now)

    def _look_at(self, deployment: Deployment, now: float) -> None:
        self._containment.call(f"{deployment.name}: periodic check", deployment.upkeep.tick, now)
        self._containment.call("counters of walled processes", self._workshop.copy_rows, deployment)

    def _contained(self, what: str, work: Iterator[None]) -> Iterator[None]:
        """Do a work of its own in pieces; if one fails, the rest of it is left out."""
        try:
            yield from work
        except Exception:
            self._containment.failed(what)
