"""What a worker says of itself on the scoreboard, beside the counters: states, generations, reasons, stacks, sizes.

Published as one JSON text, about once a second and when something happened. The main interpreter counts here too what only it sees:
boots, reloads, instances left behind; in the mounts' own rows.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import isowsgi
from isowsgi.configuration import Mount
from isowsgi.instances.bootorder import BootOrders
from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.shared import interpreters
from isowsgi.shared.certificates import Told
from isowsgi.shared.controlmessages import ErrorGroup
from isowsgi.shared.rows import RELOADS, STUCK
from isowsgi.shared.scoreboard import Scoreboard, text_of
from isowsgi.worker.acceptor import Acceptor
from isowsgi.worker.deployment import Deployment, facts_of
from isowsgi.worker.meter import memory_of, size_of
from isowsgi.worker.pieces import Pieces
from isowsgi.worker.processmemory import rss_bytes
from isowsgi.worker.recent import Recent
from isowsgi.worker.slots import Instance
from isowsgi.worker.tenants import Template

# Part of the text, so that a reader of another release can tell; readers ignore what they do not know.
VERSION = 1

# Most of an error that is published: the log has it whole.
_MAX_ERROR_CHARS = 500
_MAX_REQUEST_CHARS = 200

# Share of the acceptor's time that may go into texts published because something happened; what is left out comes with the next tick.
_MOST_OF_TIME = 0.05

# The same of those published at ticks, when nothing has happened; with a thousand mounts a text takes long. And how old one may get.
_MOST_OF_IDLE_TIME = 0.004
_OLDEST_S = 3.0

# Groups of errors of each mount that are published, failures first, the most frequent; `isowsgi errors` has them all.
_MOST_GROUPS = 10

# How long a report that was too long is shortened before it is written: else all of it is encoded for nothing each time.
_SHORT_S = 30.0

# Of how many mounts a text is made in one piece: a quarter of a millisecond.
_MOUNTS_AT_A_TIME = 10

# Shown if nothing else fits.
_TOO_LONG = "the report is too long for the scoreboard"


class Reporter:
    """Publishes one worker's report.

    Args:
        board: the worker's.
        mounts: all, in the order of the config file, with their deployments; those of a group have the same one.
        all_deployments: returns also those that are in no table yet, or no more.
        orders: knows what the mounts are given.
        acceptor: of whose connections it tells.
        certificates: returns those that serve, see `shared.certificates.Told`.
    """

    def __init__(
        self,
        board: Scoreboard,
        mounts: Sequence[tuple[Mount, Deployment]],
        all_deployments: Callable[[], Iterable[Deployment]],
        orders: BootOrders,
        acceptor: Acceptor,
        certificates: Callable[[], list[Told]],
    ) -> None:
        self._board = board
        self.mounts = mounts
        self._all = all_deployments
        self._orders = orders
        self._acceptor = acceptor
        self._certificates = certificates
        self._recent = Recent(board)
        self._started = time.time()
        self._next = 0.0
        self._next_idle = 0.0
        self._short_until = 0.0
        self._is_stopping = self._is_planned = self._is_outdated = False
        self._pieces = Pieces("report to the scoreboard", acceptor.later)  # of a text that is being made
        self._texts: dict[int, tuple[dict[str, Any], str]] = {}  # what was last told of each mount, by its number, and as JSON
        self._recent_texts: dict[tuple[Any, ...], str] = {}  # what its text says of recent responses, which is the same for most mounts

    def stop(self, now: float) -> None:
        """Say from now on that the worker stops."""
        self._is_stopping = True
        self.publish(now)

    def publish_soon(self, now: float) -> None:
        """Publish, as soon as it may be again: something has happened, and readers ask whether a mount is ready."""
        if self._pieces.is_under_way:
            self._is_outdated = True  # what it says of the first mounts may be
        elif now >= self._next:
            self._begin(now)
        elif not self._is_planned:
            self._is_planned = True
            self._acceptor.later(self._next - now, self._as_planned, "report to the scoreboard")

    def _as_planned(self) -> None:
        self._is_planned = False
        self.publish_soon(time.monotonic())

    def tick(self, now: float) -> None:
        """Publish what has changed without an event, such as sizes; about once a second, or less often if it takes long."""
        if now >= self._next_idle:
            self._begin(now)

    def publish(self, now: float) -> None:
        """Publish at once.

        Args:
            now: monotonic seconds.
        """
        self._pieces.drop()
        for _ in self._publishing(now):
            continue

    def _begin(self, now: float) -> None:
        """Publish, a piece at a time: requests are routed meanwhile. If one fails, the next text begins at its start."""
        if not self._pieces.is_under_way:
            self._pieces.begin(self._publishing(now))

    def _publishing(self, now: float) -> Iterator[None]:
        began = time.thread_time()
        took_s = 0.0
        self._count()
        self._recent.look(now)
        self._recent_texts = {}
        parked = self._acceptor.parked()
        mounts: list[dict[str, Any]] = []
        texts: list[str] = []
        served = list(self.mounts)  # the table may become another one
        for number, (mount, deployment) in enumerate(served):
            if number % _MOUNTS_AT_A_TIME == 0:
                took_s += time.thread_time() - began
                yield
                began = time.thread_time()
            facts, recent = self._mount(mount, deployment, parked[mount.number]), self._recent.of(mount.number)
            mounts.append({**facts, "recent": recent})
            texts.append(self._text_of(mount.number, facts, recent))
        try:
            self._publish({**self._worker(), **({} if texts else {"mounts": []})}, mounts, texts, now)
        except ValueError:
            self._board.publish({**self._worker(), "mounts": [], "error": _TOO_LONG})
        if len(self._texts) > len(served):  # mounts have gone
            self._texts = {mount.number: self._texts[mount.number] for mount, _ in served}
        took_s += time.thread_time() - began
        self._next = now + took_s / _MOST_OF_TIME
        self._next_idle = now + min(took_s / _MOST_OF_IDLE_TIME, _OLDEST_S)
        if self._is_outdated:
            self._is_outdated = False
            self.publish_soon(now)

    def _count(self) -> None:
        """Count reloads and stuck instances where all workers are counted."""
        for deployment in self._all():
            reloads, stuck = deployment.reloads - deployment.told[0], deployment.stuck - deployment.told[1]
            deployment.told = deployment.reloads, deployment.stuck
            if reloads or stuck:
                for member in deployment.members:
                    words = self._board.mount_row(member.number).words
                    words[RELOADS] += reloads
                    words[STUCK] += stuck

    def _publish(self, report: dict[str, Any], mounts: Sequence[dict[str, Any]], texts: Sequence[str], now: float) -> None:
        """Publish all of a report; or, if that is too long, what is needed to know which mounts are ready.

        Args:
            texts: the mounts as JSON.

        Raises:
            ValueError: that is too long too.
        """
        if now >= self._short_until:
            try:
                self._board.publish(report, texts)
                return
            except ValueError:
                self._short_until = now + _SHORT_S
        self._board.publish(report, [text_of({**mount, "boot_error": None, "errors": [], "instances": []}) for mount in mounts])

    def _worker(self) -> dict[str, Any]:
        # Not sys.getallocatedblocks(): it walks the arenas of all interpreters without their GILs, and crashes while one of them
        # allocates or ends (CPython 3.14.10 and 3.15.2, within seconds of three threads that create, fill and destroy one each).
        connections = self._acceptor.statistics()
        return {
            "version": VERSION,
            "isowsgi": isowsgi.__version__,
            "python": interpreters.version_text(),
            "pid": os.getpid(),
            "started": round(self._started, 3),
            "updated": round(time.time(), 3),
            "is_accepting": self._acceptor.is_accepting,
            "is_stopping": self._is_stopping,
            "rss_bytes": rss_bytes(),
            "cpu_s": round(time.process_time(), 3),
            "connections": {"open": connections.open, "reading_head": connections.peeking, "lingering": connections.lingering},
            **({"certificates": [each._asdict() for each in certificates]} if (certificates := self._certificates()) else {}),
        }

    def _text_of(self, number: int, facts: dict[str, Any], recent: dict[str, Any]) -> str:
        """Return what is told of a mount as JSON, most of it as it was the last time: of a thousand mounts few have changed.

        Args:
            facts: without what changes all the time; nothing of it changes later.
        """
        known = self._texts.get(number)
        if known is None or known[0] != facts:
            known = self._texts[number] = facts, text_of(facts)[:-1]
        figures = tuple(recent.values())
        text = self._recent_texts.get(figures)
        if text is None:
            text = self._recent_texts[figures] = text_of(recent)
        return f'{known[1]}, "recent": {text}}}'

    def _mount(self, mount: Mount, deployment: Deployment, parked: int) -> dict[str, Any]:
        slots, incidents = deployment.slots, deployment.reports.incidents
        boot = incidents.last_boot
        instances = [*(instance for instance in slots.all() if instance.state not in ENDS), *slots.left]
        return {
            "pattern": mount.pattern,
            **facts_of(deployment, mount),
            "threads": self._orders.threads_of(mount),
            "parked": parked,
            **({"tenants": deployment.facts()} if isinstance(deployment, Template) else {}),
            "memory_bytes": memory_of(deployment),
            "memory_trend": {"step_s": deployment.trend.step_s, "mib": list(deployment.trend.mib)},
            "boot_error": None if boot is None else {"at": round(boot.at, 3), "text": f"{boot.tag}: {boot.error}"[:_MAX_ERROR_CHARS]},
            "errors": [_group(group) for group in incidents.groups_of(mount.pattern, _MOST_GROUPS, with_details=False)],
            "error_types": dict(incidents.of(mount.pattern).by_type),
            "instances": [self._instance(instance, deployment) for instance in instances],
        }

    def _instance(self, instance: Instance, deployment: Deployment) -> dict[str, Any]:
        is_stuck = instance.state is State.STUCK
        return {
            "tag": instance.tag,
            "generation": instance.generation,
            "isolation": instance.isolation,
            "state": "left" if instance.threads_left else instance.state.value,
            "is_loaded": instance.is_loaded,
            "boot_s": instance.boot_s,
            "requests": instance.requests(),
            "objects": max(instance.objects, 0) or instance.objects_at_boot,
            "memory_bytes": size_of(instance),
            "memory_at_boot_bytes": instance.memory_at_boot if instance.memory_at_boot >= 0 else None,
            "control_group": None if instance.group_use is None else instance.group_use._asdict(),
            "first_row": instance.first_row,
            "rows": instance.rows,
            "stuck_since": instance.stuck_since if is_stuck else None,
            "stack": deployment.reports.stacks.get(instance) if is_stuck else None,
        }


def _group(group: ErrorGroup) -> dict[str, Any]:
    names = ("kind", "type", "place", "count", "first", "at", "generation", "request", "error")
    facts = {name: getattr(group, name) for name in names}
    return {**facts, "error": group.error[:_MAX_ERROR_CHARS], "request": group.request[:_MAX_REQUEST_CHARS]}
