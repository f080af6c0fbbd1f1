"""What the operator's commands do: each is a generator that a `server.ControlServer` steps until it returns the answer.

On the acceptor's thread; nothing here waits. A step is sent monotonic seconds.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from isowsgi.configuration import Mount
from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.shared import interpreters
from isowsgi.shared.messages import Stacks
from isowsgi.shared.sockets import StopMarks
from isowsgi.worker.control.server import Errand, Refusal
from isowsgi.worker.deployment import Deployment, facts_of
from isowsgi.worker.memory import rss_mib
from isowsgi.worker.slots import Instance
from isowsgi.worker.supervisor import Supervisor

# How long an instance has for telling its stacks. Its control thread needs milliseconds; one that C code keeps from running needs more.
STACKS_S = 1.0

# What an instance may have told of its stacks before the rest is left out.
_MAX_STACKS_CHARS = 1024 * 1024


class Commands:
    """Carries out requests in one worker.

    Args:
        supervisor: whose mounts they are about.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._deployments = {member.pattern: deployment for deployment in supervisor.deployments for member in deployment.members}
        self._marks: StopMarks | None = None
        self._began_at = time.time()
        self._asked = 0
        self._heard: dict[int, dict[Instance, list[str]]] = {}  # stacks, by number of the question
        self._complete: dict[int, set[Instance]] = {}
        self._commands: dict[str, Callable[[Mapping[str, Any]], Errand]] = {
            "status": self._status,
            "reload": self._reload,
            "stop": self._stop,
            "start": self._start,
            "stacks": self._stacks,
            "errors": self._errors,
        }
        supervisor.hear_stacks(self._hear)

    def remember_stops(self, marks: StopMarks) -> None:
        """Keep stopped what was stopped in workers before this one, and note what is stopped from now on; before the mounts boot."""
        self._marks = marks
        for deployment in self._supervisor.deployments:
            if any(marks.holds(member.pattern) for member in deployment.members):
                deployment.halt(time.monotonic())

    def begin(self, request: Mapping[str, Any]) -> Errand:
        """Return the errand that a request asks for.

        Raises:
            Refusal: nobody knows the command.
        """
        name = request.get("do")
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            known = ", ".join(self._commands)
            raise Refusal("command", f"expected one of {known}, got {str(name)[:40]!r}", commands=list(self._commands))
        return command(request)

    # Commands.

    def _status(self, request: Mapping[str, Any]) -> Errand:
        deployments = [self._deployment(request)] if "mount" in request else self._supervisor.deployments
        now = time.monotonic()
        wanted = _pattern(request)
        return {
            "python": interpreters.version_text(),
            "up_s": round(time.time() - self._began_at, 1),
            "rss_mib": rss_mib(),
            "mounts": [
                self._status_of(deployment, member, now)
                for deployment in deployments
                for member in deployment.members
                if wanted in (None, member.pattern)
            ],
        }
        yield  # never reached: makes this function a generator, as the others are

    def _reload(self, request: Mapping[str, Any]) -> Errand:
        deployment = self._deployment(request)
        self._refuse_quarantined(deployment)
        if deployment.is_stopped:
            raise Refusal("stopped", f"{deployment.mount.pattern} is stopped; start it")
        if deployment.is_asleep():
            return _outcome(deployment, "asleep", "it is asleep, and is loaded at its next request")
        if deployment.siting.isolation == interpreters.MAIN:
            deployment.replace("the operator asked for it", time.monotonic())
            return _outcome(deployment, "restarting", "it lives in the main interpreter: a new worker takes over from this one")
        before = deployment.generation
        deployment.replace("the operator asked for it", time.monotonic())
        # Unchanged: a replacement is under way, and is followed by the one that was asked for.
        return (yield from self._follow(deployment, deployment.generation if deployment.generation > before else before + 1))

    def _start(self, request: Mapping[str, Any]) -> Errand:
        deployment = self._deployment(request)
        self._refuse_quarantined(deployment)
        if deployment.is_serving():
            return _outcome(deployment, "serving", "it serves already")
        if deployment.state() == "stuck" and not deployment.is_under_way():
            return (yield from self._reload(request))  # its slots are taken
        if not deployment.is_under_way():
            deployment.resume(time.monotonic())
            self._mark(deployment)
        return (yield from self._follow(deployment, deployment.generation))

    def _stop(self, request: Mapping[str, Any]) -> Errand:
        deployment = self._deployment(request)
        deployment.halt(time.monotonic())
        self._mark(deployment)
        while any(instance.state is not State.STUCK for instance in deployment.slots.all()):
            if not deployment.is_stopped:
                raise Refusal("started", f"{deployment.name} was started meanwhile")
            yield
        left = deployment.slots.all()
        text = f"stopped, but {len(left)} stuck instances of it are left behind until the worker is replaced" if left else "stopped"
        return _outcome(deployment, "stopped", text)

    def _stacks(self, request: Mapping[str, Any]) -> Errand:
        deployment = self._deployment(request)
        instances = [instance for instance in deployment.slots.all() if instance.state not in ENDS]
        self._asked += 1
        ask = self._asked
        heard = self._heard[ask] = {}
        complete = self._complete[ask] = set()
        now = time.monotonic()
        deadline = now + STACKS_S
        try:
            for instance in instances:
                instance.ask_stacks(ask)
            while now < deadline and len(complete) < len(instances):
                now = yield
        finally:
            del self._heard[ask], self._complete[ask]
        return {
            "instances": [self._stacks_of(instance, "".join(heard.get(instance, [])), instance in complete, now) for instance in instances]
        }

    def _errors(self, request: Mapping[str, Any]) -> Errand:
        deployment = self._deployment(request)
        return {"mount": deployment.mount.pattern, **deployment.reports.incidents.snapshot()}
        yield  # never reached, as above

    # What they share.

    def _deployment(self, request: Mapping[str, Any]) -> Deployment:
        """Return the deployment of the mount that a request names."""
        wanted = request.get("mount")
        if not isinstance(wanted, str):
            raise Refusal("mount", f'expected a pattern as "mount", got {str(wanted)[:40]!r}')
        if (deployment := self._deployments.get(wanted) or self._deployments.get(wanted.removesuffix("/"))) is not None:
            return deployment
        near = difflib.get_close_matches(wanted, self._deployments, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else "the patterns are " + ", ".join(map(repr, list(self._deployments)[:20]))
        raise Refusal("unknown-mount", f"no mount {wanted[:200]!r}; {hint}", near=near)

    def _mark(self, deployment: Deployment) -> None:
        if self._marks is not None:
            for member in deployment.members:
                self._marks.set(member.pattern, deployment.is_stopped)

    def _refuse_quarantined(self, deployment: Deployment) -> None:
        if deployment.is_quarantined:
            raise Refusal(
                "quarantined", f"{deployment.mount.pattern} crashed its worker too often and is quarantined until the next SIGHUP"
            )

    def _follow(self, deployment: Deployment, generation: int) -> Errand:
        """Wait until a generation, or a later one, serves in all slots, or has failed."""
        incidents = deployment.reports.incidents
        pattern = deployment.mount.pattern
        while True:
            if deployment.is_stopped:
                raise Refusal("stopped", f"{pattern} was stopped meanwhile")
            failure = incidents.last_boot
            if failure is not None and failure.generation >= generation:
                if deployment.is_serving():
                    then = f"generation {deployment.slots.oldest()} keeps serving"
                else:
                    then = "it answers 503 until a later try succeeds"
                raise Refusal("failed", f"{failure.tag}: {failure.error}; {then}", traceback=failure.details, generation=failure.generation)
            if deployment.has_arrived(generation):
                boot_s = max((instance.boot_s for instance in deployment.slots.serving()), default=0.0)
                return _outcome(deployment, "serving", f"loaded in {boot_s:.2f} s") | {"boot_s": boot_s}
            if deployment.is_asleep():
                return _outcome(deployment, "asleep", "it went to sleep meanwhile")
            if not deployment.is_under_way():
                raise Refusal("failed", f"{pattern}: was not loaded in time; the error log says more", generation=deployment.generation)
            yield

    def _status_of(self, deployment: Deployment, mount: Mount, now: float) -> dict[str, Any]:
        incident = deployment.reports.incidents.latest()
        return {
            "mount": mount.pattern,
            **facts_of(deployment, mount),
            "retry_in_s": deployment.backoff.left_s(now),
            "instances": [_instance_status(instance, now, mount.number) for instance in deployment.slots.all()],
            "last_error": None if incident is None else {"at": incident.at, "kind": incident.kind, "error": incident.error},
        }

    def _hear(self, instance: Instance, report: Stacks) -> None:
        """Take in a part of an instance's answer."""
        heard = self._heard.get(report.ask)
        if heard is None:
            return  # nobody waits for it any more
        parts = heard.setdefault(instance, [])
        if sum(map(len, parts)) < _MAX_STACKS_CHARS:
            parts.append(report.text)
        if report.is_last:
            self._complete[report.ask].add(instance)

    def _stacks_of(self, instance: Instance, text: str, is_complete: bool, now: float) -> dict[str, Any]:
        answer = {**_instance_status(instance, now), "stacks": text, "problem": ""}
        if not is_complete:
            answer["problem"] = (
                f"no answer within {STACKS_S:g} s: C code holds the GIL of this interpreter, so no Python code runs in it and its stacks "
                "cannot be read"
            )
        return answer


def _outcome(deployment: Deployment, outcome: str, text: str) -> dict[str, Any]:
    return {"mount": deployment.mount.pattern, "outcome": outcome, "text": text, "generation": deployment.generation}


def _instance_status(instance: Instance, now: float, mount: int | None = None) -> dict[str, Any]:
    return {
        "tag": instance.tag,
        "generation": instance.generation,
        "state": instance.state.value,
        "isolation": instance.isolation,
        "threads": instance.threads,
        "boot_s": instance.boot_s,
        "requests": instance.requests(mount),
        "in_flight": [{"request": line, "for_s": seconds} for line, seconds in instance.in_flight(now)],
        "error": instance.error,
    }


def _pattern(request: Mapping[str, Any]) -> str | None:
    """Return the pattern that a request names, as the config file has it."""
    wanted = request.get("mount")
    return None if wanted is None else str(wanted).removesuffix("/") or "/"


def facts(config_path: str, age: int) -> dict[str, Any]:
    """Return what every answer of a worker says of it.

    Args:
        age: gunicorn's number of the worker.
    """
    return {"worker": os.getpid(), "master": os.getppid(), "config": config_path, "age": age}
