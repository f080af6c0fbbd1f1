"""Which mounts run: starting, stopping and reloading one, and what stays stopped in the workers that come after.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import time

from isowsgi.instances.lifecycle import State
from isowsgi.shared import controlmessages, interpreters
from isowsgi.shared.controlmessages import Refusal
from isowsgi.shared.sockets import StopMarks
from isowsgi.worker.control.finding import find_deployment, outcome_of, refuse_redirect
from isowsgi.worker.control.leaving import leave, set_leaving
from isowsgi.worker.control.server import Errand
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.supervisor import Supervisor
from isowsgi.worker.tenants import NotLoaded, Template


class Running:
    """Has the mounts of one worker start, stop and reload.

    Args:
        supervisor: whose mounts they are.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._marks: StopMarks | None = None

    def remember_stops(self, marks: StopMarks) -> None:
        """Keep stopped what was stopped in workers before this one, and note what is stopped from now on; before the mounts boot."""
        self._marks = marks
        self._supervisor.was_stopped = marks.holds
        for deployment in self._supervisor.deployments:
            if any(marks.holds(member.pattern) for member in deployment.members):
                deployment.halt(time.monotonic())

    def forget_stops(self, patterns: list[str]) -> None:
        """Forget that mounts were stopped that are no more: others with their patterns may come."""
        if self._marks is not None:
            for pattern in patterns:
                self._marks.set(pattern, False)

    def reload(self, request: controlmessages.Reload | controlmessages.Start) -> Errand:
        deployment = find_deployment(self._supervisor, request.mount)
        _refuse_quarantined(deployment)
        if deployment.is_stopped:
            raise Refusal("stopped", f"{deployment.mount.pattern} is stopped; start it with `isowsgi start`")
        if isinstance(deployment, Template) and (tenants := deployment.live()):
            deployment.replace("requested by the operator", time.monotonic())
            return outcome_of(deployment, "reloading", f"loading a new generation of each of its {len(tenants)} tenants")
        if deployment.is_asleep():
            return outcome_of(deployment, "asleep", "asleep; the next request loads it")
        if deployment.siting.isolation == interpreters.MAIN:
            deployment.replace("requested by the operator", time.monotonic())
            return outcome_of(deployment, "restarting", "runs in the main interpreter; a new worker replaces this one")
        before = deployment.generation
        deployment.replace("requested by the operator", time.monotonic())
        # Unchanged: a replacement is under way, and is followed by the one that was asked for.
        return (yield from _follow(deployment, deployment.generation if deployment.generation > before else before + 1))

    def start(self, request: controlmessages.Start) -> Errand:
        deployment = find_deployment(self._supervisor, request.mount)
        _refuse_quarantined(deployment)
        if deployment.is_serving():
            was_leaving = set_leaving(deployment, False, self._supervisor.publish)
            return outcome_of(deployment, "serving", "keeps serving" if was_leaving else "already serving")
        if deployment.state() == "stuck" and not deployment.is_under_way():
            return (yield from self.reload(request))  # its slots are taken
        if not deployment.is_under_way():
            deployment.resume(time.monotonic())
            self._mark(deployment)
        if isinstance(deployment, (Template, NotLoaded)):
            return outcome_of(deployment, "asleep", "not loaded; the next request loads it")
        return (yield from _follow(deployment, deployment.generation))

    def stop(self, request: controlmessages.Stop) -> Errand:
        deployment = find_deployment(self._supervisor, request.mount)
        refuse_redirect(deployment)
        yield from leave(deployment, request.drain_s, self._supervisor.publish)
        deployment.halt(time.monotonic())
        self._mark(deployment)
        while any(instance.state is not State.STUCK for instance in deployment.slots.all()):
            if not deployment.is_stopped:
                raise Refusal("started", f"{deployment.name} was started meanwhile")
            yield None
        left = deployment.slots.all()
        text = f"stopped, but {len(left)} stuck instances remain until the worker is replaced" if left else "stopped"
        return outcome_of(deployment, "stopped", text)

    def _mark(self, deployment: Deployment) -> None:
        if self._marks is not None:
            for member in deployment.members:
                self._marks.set(member.pattern, deployment.is_stopped)


def _refuse_quarantined(deployment: Deployment) -> None:
    refuse_redirect(deployment)
    if deployment.is_quarantined:
        raise Refusal(
            "quarantined", f"{deployment.mount.pattern} crashed its worker too often and is quarantined until gunicorn reloads (SIGHUP)"
        )
    if deployment.is_faulty:
        raise Refusal("failed", f"its config file has a fault: {deployment.mount.fault}")


def _follow(deployment: Deployment, generation: int) -> Errand:
    """Wait until a generation, or a later one, serves in all slots, or has failed."""
    incidents, pattern = deployment.reports.incidents, deployment.mount.pattern
    while True:
        if deployment.is_ending:
            raise Refusal("outvoted", f"{pattern} was replaced by a table that was applied meanwhile")
        if deployment.is_stopped:
            raise Refusal("stopped", f"{pattern} was stopped meanwhile")
        failure = incidents.last_boot
        is_retried = deployment.backoff.is_worth_waiting(time.monotonic())
        if failure is not None and failure.generation >= generation and not is_retried:
            if deployment.is_serving():
                then = f"generation {deployment.slots.oldest()} keeps serving"
            else:
                then = "it answers 503 until a retry succeeds"
            raise Refusal("failed", f"{failure.tag}: {failure.error}; {then}", traceback=failure.details, generation=failure.generation)
        if deployment.has_arrived(generation):
            boot_s = max((instance.boot_s for instance in deployment.slots.serving()), default=0.0)
            return outcome_of(deployment, "serving", f"loaded in {boot_s:.2f} s").replace(boot_s=boot_s)
        if deployment.is_asleep():
            return outcome_of(deployment, "asleep", "went to sleep meanwhile")
        if not (deployment.is_under_way() or is_retried):
            raise Refusal("failed", f"{pattern}: was not loaded in time; see the error log", generation=deployment.generation)
        yield None
