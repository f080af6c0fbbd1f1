"""`isowsgi memory` in a worker: has the instances of a mount count their objects twice, and hands on what they found.

On the acceptor's thread; nothing here waits, and nothing here reads what was found: that is for the command, which has time for it.
"""

from __future__ import annotations

import itertools
import json
import time

from isowsgi.instances.lifecycle import ENDS
from isowsgi.shared import controlmessages, messages
from isowsgi.shared.controlmessages import InstanceMemory, MountMemory, Refusal
from isowsgi.shared.messages import Counted
from isowsgi.worker.control.server import Errand
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.slots import Instance

# How long all instances may take for one census: looks of 8 ms, one every 50 ms, are 9 s of CPU time then, for some two million objects.
COUNT_S = 60.0

# Commands at a time in a worker: each holds one of the 16 connections of the control socket.
MOST_SESSIONS = 4

# Between two looks.
_PAUSE_S = 0.02

MOST_SECONDS = 3600.0

# Most that an instance may tell in both censuses, see the limits in `inside.census`, in bytes of JSON; and all instances together, for the
# answer is made in one step, for which all mounts wait: 4 MB took 0.07 s on a busy machine. An app of Flask, Django and Jinja tells 0.4 MB.
_MOST_BYTES, _MOST_OF_ALL_BYTES = 4 * 1024 * 1024, 8 * 1024 * 1024

_BEFORE, _AFTER = 0, 1


class _Counting:
    """One instance's two censuses."""

    def __init__(self) -> None:
        self.texts: tuple[list[str], list[str]] = ([], [])
        self.bytes = 0  # of their JSON
        self.problem = ""
        self.is_complete = [False, False]
        self.next_at = 0.0  # monotonic seconds when the next look is due


class _Session:
    """One command's censuses of one deployment."""

    def __init__(self, deployment: Deployment, ask: int, seconds: float) -> None:
        self.deployment = deployment
        self.seconds = seconds
        self.phase = _BEFORE
        self._ask = ask
        self.found = {instance: _Counting() for instance in deployment.slots.serving()}

    def turn(self, now: float) -> bool:
        """Have instances continue whose next look is due; return whether all have counted, or have ended."""
        waits = False
        for instance, found in self.found.items():
            if instance.state in ENDS or found.is_complete[self.phase] or (self.phase and not found.is_complete[_BEFORE]):
                continue
            waits = True
            if now >= found.next_at:
                found.next_at = now + COUNT_S  # until it has answered
                trace_s = 0.0 if self.phase else self.seconds + 2 * COUNT_S
                instance.tell(messages.Census(ask=self._ask, trace_s=trace_s))
        return not waits

    def hear(self, instance: Instance, report: Counted, now: float) -> None:
        found = self.found.get(instance)
        if found is None or found.is_complete[self.phase]:
            return
        found.bytes += len(json.dumps(report.text))
        if found.bytes > _MOST_BYTES or sum(each.bytes for each in self.found.values() if not each.problem) > _MOST_OF_ALL_BYTES:
            found.texts, found.problem = ([], []), "it told more than is taken"
        elif not found.problem:
            found.texts[self.phase].append(report.text)
        found.is_complete[self.phase] = report.is_last
        found.next_at = now + _PAUSE_S if not report.text or report.is_last else found.next_at

    def answer(self) -> MountMemory:
        return MountMemory(
            mount=self.deployment.mount.pattern,
            instances=[
                InstanceMemory(tag=each.tag, generation=each.generation, isolation=each.isolation, **self._of(each)) for each in self.found
            ],
        )

    def _of(self, instance: Instance) -> dict[str, str]:
        found = self.found[instance]
        if found.problem:
            return {"before": "", "after": "", "problem": found.problem}
        if all(found.is_complete):
            return {"before": "".join(found.texts[_BEFORE]), "after": "".join(found.texts[_AFTER]), "problem": ""}
        if instance.state in ENDS:
            return {"before": "", "after": "", "problem": "ended before its objects were counted twice"}
        return {
            "before": "",
            "after": "",
            "problem": f"its objects were not counted within {COUNT_S:g} s: too many, or C code holds its GIL",
        }

    def end(self, ask: int) -> None:
        for instance in self.found:
            if instance.state not in ENDS:
                instance.tell(messages.EndCensus(ask=ask))


class Growths:
    """One worker's; one of a deployment at a time."""

    def __init__(self) -> None:
        self._sessions: dict[int, _Session] = {}  # by the number of the question
        self._numbers = itertools.count(1)

    def grow(self, request: controlmessages.Memory, deployment: Deployment) -> Errand:
        """Return the errand of a command."""
        self._check(request, deployment)
        now = time.monotonic()
        ask = next(self._numbers)
        session = self._sessions[ask] = _Session(deployment, ask, request.seconds)
        try:
            end = now + COUNT_S
            while not session.turn(now) and now < end:
                now = yield None
            end = now + request.seconds
            while now < end:
                now = yield None
            session.phase, end = _AFTER, now + COUNT_S
            for found in session.found.values():
                found.next_at = now
            while not session.turn(now) and now < end:
                now = yield None
            return session.answer()
        finally:  # also if the command has gone
            del self._sessions[ask]
            session.end(ask)

    def hear(self, instance: Instance, report: Counted) -> None:
        """Take in a part of an instance's answer."""
        session = self._sessions.get(report.ask)
        if session is not None:
            session.hear(instance, report, time.monotonic())

    def _check(self, request: controlmessages.Memory, deployment: Deployment) -> None:
        """Refuse what cannot be done.

        Raises:
            Refusal: that is so.
        """
        if not 0 < request.seconds <= MOST_SECONDS:
            raise Refusal("malformed", f"expected more than 0 and at most {MOST_SECONDS:g} seconds, got {request.seconds:g}")
        if any(session.deployment is deployment for session in self._sessions.values()):
            raise Refusal("busy", f"the objects of {deployment.name} are being counted for another command; try again later")
        if len(self._sessions) >= MOST_SESSIONS:
            raise Refusal("busy", f"this worker counts the objects of {MOST_SESSIONS} mounts already; try again later")
        if not deployment.slots.serving():
            raise Refusal("not-serving", f"{deployment.name} is {deployment.state()}: there is nothing to count until it serves")
