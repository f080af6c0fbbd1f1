"""What a worker says of itself on the scoreboard, beside the counters: states, generations, reasons, stacks, sizes.

Published as one JSON text, about once a second and when something happened. The main interpreter counts here too what only it sees:
boots, reloads, instances left behind; in the mounts' own rows.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import isowsgi
from isowsgi.configuration import Mount
from isowsgi.instances.bootorder import Orders
from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.shared import interpreters
from isowsgi.shared.scoreboard import BOOT_FAILURES, BOOT_NS, BOOTS, CRASHES, RELOADS, STUCK, Scoreboard
from isowsgi.worker.acceptor import Acceptor
from isowsgi.worker.deployment import Home, Instance

# Part of the text, so that a reader of another release can tell; readers ignore what they do not know.
VERSION = 1

# Most of a stack or an error that is published: the log has it whole.
_MAX_STACK_CHARS = 8 * 1024
_MAX_ERROR_CHARS = 500

# Share of the acceptor's time that may go into texts published because something happened; what is left out comes with the next tick.
_MOST_OF_TIME = 0.05

# The same of those published at ticks, when nothing has happened; with a thousand mounts a text takes long. And how old one may get.
_MOST_OF_IDLE_TIME = 0.01
_OLDEST_S = 3.0

# Shown if nothing else fits.
_TOO_LONG = "the report is too long for the scoreboard"


class Reporter:
    """Publishes one worker's report.

    Args:
        board: the worker's.
        mounts: all, by number.
        homes: theirs, by the mount's number; those of a group have the same one.
        orders: knows what the mounts are given.
        acceptor: of whose connections it tells.
    """

    def __init__(self, board: Scoreboard, mounts: Sequence[Mount], homes: Mapping[int, Home], orders: Orders, acceptor: Acceptor) -> None:
        self._board = board
        self._mounts = mounts
        self._homes = homes
        self._orders = orders
        self._acceptor = acceptor
        self._started = time.time()
        self._stacks: dict[Instance, str] = {}
        self._stuck_since: dict[Instance, float] = {}
        self._errors: dict[Home, tuple[float, str]] = {}  # when, and what kept it from booting
        self._next = 0.0
        self._next_idle = 0.0
        self._is_stopping = False

    def note(self, home: Home, instance: Instance, event: Mapping[str, Any]) -> None:
        """Take in what an instance reported, after its state has changed accordingly; for each mount that it serves."""
        kind = event["event"]
        rows = [self._board.mount_row(number).words for number, other in self._homes.items() if other is home]
        if kind == "ready":
            for words in rows:
                words[BOOTS] += 1
                words[BOOT_NS] += int(instance.boot_s * 1e9)
        elif kind == "failed" and instance.unknown_extension is None:  # else it is tried elsewhere, and no failure yet
            for words in rows:
                words[BOOT_FAILURES] += not instance.is_loaded
            self._errors[home] = (time.time(), f"{instance.tag}: {instance.error}"[:_MAX_ERROR_CHARS])
        elif kind == "stuck":
            self._stacks[instance] = event["stack"][-_MAX_STACK_CHARS:]
        elif kind == "closed":
            self._stacks.pop(instance, None)
            self._stuck_since.pop(instance, None)
            for words in rows:
                words[CRASHES] += bool(instance.how_it_ended)

    def stop(self, now: float) -> None:
        """Say from now on that the worker stops."""
        self._is_stopping = True
        self.publish(now)

    def publish_soon(self, now: float) -> None:
        """Publish, unless that was done a moment ago; something has happened."""
        if now >= self._next:
            self.publish(now)

    def tick(self, now: float) -> None:
        """Publish what has changed without an event, such as sizes; about once a second, or less often if it takes long."""
        if now >= self._next_idle:
            self.publish(now)

    def publish(self, now: float) -> None:
        """Publish.

        Args:
            now: monotonic seconds.
        """
        for number, home in self._homes.items():
            words = self._board.mount_row(number).words
            words[RELOADS], words[STUCK] = home.reloads, home.stuck
        report = self._worker()
        parked = self._acceptor.parked()
        try:
            self._board.publish(
                {**report, "mounts": [self._mount(mount, self._homes[number], parked[number]) for number, mount in enumerate(self._mounts)]}
            )
        except ValueError:
            self._board.publish({**report, "mounts": [], "error": _TOO_LONG})
        took_s = time.monotonic() - now
        self._next = now + took_s / _MOST_OF_TIME
        self._next_idle = now + min(took_s / _MOST_OF_IDLE_TIME, _OLDEST_S)

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
        }

    def _mount(self, mount: Mount, home: Home, parked: int) -> dict[str, Any]:
        error = self._errors.get(home)
        return {
            "pattern": mount.pattern,
            "app": f"{mount.app.target}:{mount.app.call}",
            "isolation": home.isolation,
            "reason": home.why(),
            "group": mount.group,
            "state": state_of(home),
            "generation": home.generation,
            "threads": self._orders.threads_of(mount),
            "reloads": home.reloads,
            "stuck": home.stuck,
            "parked": parked,
            "boot_error": None if error is None else {"at": round(error[0], 3), "text": error[1]},
            "instances": [self._instance(instance) for instance in home.instances() if instance.state not in ENDS],
        }

    def _instance(self, instance: Instance) -> dict[str, Any]:
        is_stuck = instance.state is State.STUCK
        if is_stuck:
            self._stuck_since.setdefault(instance, time.time())
        return {
            "tag": instance.tag,
            "generation": instance.generation,
            "isolation": instance.isolation,
            "state": instance.state.value,
            "is_loaded": instance.is_loaded,
            "boot_s": instance.boot_s,
            "requests": instance.requests(),
            "objects": max(instance.objects, 0) or instance.objects_at_boot,
            "first_row": instance.first_row,
            "rows": instance.rows,
            "stuck_since": self._stuck_since.get(instance) if is_stuck else None,
            "stack": self._stacks.get(instance) if is_stuck else None,
        }


def state_of(home: Home) -> str:
    """Return what a request would find: "serving", "booting", "asleep", "failed", "stopped" or "quarantined"."""
    if home.is_quarantined or home.is_stopped:
        return "quarantined" if home.is_quarantined else "stopped"
    if home.is_serving():
        return "serving"
    if home.is_asleep():
        return "asleep"
    return "booting" if home.is_under_way() else "failed"


def rss_bytes() -> int:
    """Return the memory that this process has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
