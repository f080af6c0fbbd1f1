"""`isowsgi profile` in a worker: has the instances of a mount sample their threads, and gathers what they found.

On the acceptor's thread; nothing here waits, and nothing here reads what was found: that is for the command, which has time for it.
"""

from __future__ import annotations

import itertools
import json
import time

from isowsgi.instances.lifecycle import ENDS
from isowsgi.shared import controlmessages, interpreters, messages
from isowsgi.shared.controlmessages import InstanceProfile, MountProfile, Refusal
from isowsgi.shared.messages import Profiled
from isowsgi.shared.rows import OWN_GILS
from isowsgi.worker.control.server import Errand
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.slots import Instance

# How long an instance may take for its answer once its time is over. Its control thread needs milliseconds; one that waits for a GIL more.
GRACE_S = 3.0

# Limits of a profile: an hour's would be out of date when it comes, and samples more often than this cost more than they tell.
MOST_SECONDS = 600.0
MOST_RATE = 1000

# Profiles at a time in a worker: each holds one of the 16 connections of the control socket.
MOST_SESSIONS = 4

# Longest answer to a command, in bytes of JSON: it is made in one step, for which all mounts wait; 4 MB took 0.07 s on a busy machine. Each
# instance has its share, twice, as a reload doubles them; and is told half of it, for it can only estimate what its names are as JSON.
_MOST_BYTES = 4 * 1024 * 1024


class _Found:
    """What one instance has told so far."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.bytes = 0  # of its JSON
        self.is_complete = False
        self.problem = ""


class _Session:
    """One command's profile of one deployment."""

    def __init__(self, deployment: Deployment, order: messages.Profile, end: float) -> None:
        self.deployment = deployment
        self.order = order
        self.end = end  # monotonic seconds
        self.found: dict[Instance, _Found] = {}
        self.most_bytes = _MOST_BYTES // (2 * max(len(deployment.slots.serving()), 1))  # of an instance

    def ask_new_ones(self, now: float) -> None:
        """Have all that serve sample, those that were loaded meanwhile too; until the end."""
        for instance in self.deployment.slots.serving():
            if instance not in self.found and self.end - now >= 1 / self.order.rate:
                found = self.found[instance] = _Found()
                if not _can_profile(self.deployment, instance):  # it came by a reload, with another isolation than those before
                    found.problem = interpreters.why_not_profiled(instance.isolation)
                elif not instance.tell(self.order.replace(seconds=self.end - now, most_chars=self.most_bytes // 2)):
                    found.problem = "it took no order: it has many to read yet, or has ended"
                found.is_complete = bool(found.problem)

    def take(self, found: _Found, report: Profiled) -> None:
        """Take in a part of an instance's answer."""
        found.bytes += len(json.dumps(report.text))
        if found.bytes > self.most_bytes or sum(each.bytes for each in self.found.values() if not each.problem) > _MOST_BYTES:
            found.parts.clear()
            found.problem = "it told more than is taken: profile fewer seconds, or without --by request"
        elif not found.problem:
            found.parts.append(report.text)
        found.is_complete = report.is_last
        if found.is_complete and not any(found.parts):
            found.problem = found.problem or "it could not sample: its log says why"

    def is_complete(self) -> bool:
        return all(found.is_complete or instance.state in ENDS for instance, found in self.found.items())

    def answer(self) -> MountProfile:
        return MountProfile(
            mount=self.deployment.mount.pattern,
            instances=[
                InstanceProfile(tag=each.tag, generation=each.generation, isolation=each.isolation, **self._of(each)) for each in self.found
            ],
        )

    def _of(self, instance: Instance) -> dict[str, str]:
        found = self.found[instance]
        if found.is_complete:
            return {"profile": "" if found.problem else "".join(found.parts), "problem": found.problem}
        if instance.state in ENDS:
            return {"profile": "", "problem": "ended before it told what was sampled"}
        return {"profile": "", "problem": f"no answer within {GRACE_S:g} s: C code holds the GIL of this interpreter"}


class Profiling:
    """One worker's profiles; one of a deployment at a time."""

    def __init__(self) -> None:
        self._sessions: dict[int, _Session] = {}  # by the number of the question
        self._numbers = itertools.count(1)

    def profile(self, request: controlmessages.Profile, deployment: Deployment, mount: int) -> Errand:
        """Return the errand of a command.

        Args:
            mount: the number of the mount that is meant.
        """
        now = time.monotonic()
        self._check(request, deployment, now)
        ask = next(self._numbers)
        order = messages.Profile(
            ask=ask, mount=mount, seconds=request.seconds, rate=request.rate, cpu=request.cpu, by_request=request.by_request
        )
        session = self._sessions[ask] = _Session(deployment, order, now + request.seconds)
        try:
            while now < session.end + GRACE_S and not (now >= session.end and session.is_complete()):
                session.ask_new_ones(now)
                now = yield None
            return session.answer()
        finally:  # also if the command has gone
            del self._sessions[ask]
            for instance, found in session.found.items():
                if not found.is_complete and instance.state not in ENDS:
                    instance.tell(messages.EndProfile(ask=ask))

    def hear(self, instance: Instance, report: Profiled) -> None:
        """Take in a part of an instance's answer."""
        session = self._sessions.get(report.ask)
        found = session.found.get(instance) if session is not None else None
        if session is None or found is None or found.is_complete:
            return  # its asker no longer waits
        session.take(found, report)

    def _check(self, request: controlmessages.Profile, deployment: Deployment, now: float) -> None:
        """Refuse what cannot be done, or must not.

        Raises:
            Refusal: that is so.
        """
        name = deployment.name
        if not (0 < request.seconds <= MOST_SECONDS and 0 < request.rate <= MOST_RATE):
            limits = f"expected more than 0 and at most {MOST_SECONDS:g} seconds and {MOST_RATE} samples/s"
            raise Refusal("malformed", f"{limits}, got {request.seconds:g} and {request.rate}")
        running = next((session for session in self._sessions.values() if session.deployment is deployment), None)
        if running is not None:
            raise Refusal(
                "busy", f"{name} is being profiled by another command, for {max(running.end - now, 0):.0f} s more; try again then"
            )
        if len(self._sessions) >= MOST_SESSIONS:
            raise Refusal("busy", f"{MOST_SESSIONS} mounts are being profiled already; try again when one is done")
        serving = deployment.slots.serving()
        if not serving:
            raise Refusal("not-serving", f"{name} is {deployment.state()}: there is nothing to profile until it serves")
        unsafe = {each.isolation for each in serving if not _can_profile(deployment, each)}
        if unsafe:
            raise Refusal("unsafe", f"{name}: {interpreters.why_not_profiled(unsafe.pop())}")


def _can_profile(deployment: Deployment, instance: Instance) -> bool:
    has_own_gils = deployment.surroundings.board.row(0).words[OWN_GILS] == 1
    return interpreters.can_profile(instance.isolation, has_own_gils)
