"""What the operator's commands do: each is a generator that a `server.ControlServer` steps until it returns the answer.

On the acceptor's thread; nothing here waits. A step is sent monotonic seconds.
"""

from __future__ import annotations

import difflib
import os
import secrets
import time
from collections.abc import Callable
from typing import Any

from isowsgi.configuration import Mount, differences
from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.shared import controlmessages, interpreters, messages
from isowsgi.shared.certificates import Told
from isowsgi.shared.conffile import ConfFile
from isowsgi.shared.controlmessages import (
    CertificateStatus,
    GunicornFile,
    InFlight,
    InstanceStacks,
    InstanceStatus,
    LastError,
    MountCounts,
    MountErrors,
    MountStacks,
    MountStatus,
    MountTable,
    Outcome,
    Refusal,
    Request,
    ServedTable,
    Worker,
    WorkerErrors,
    WorkerStatus,
)
from isowsgi.shared.messages import Counted, Part, Profiled, ShellOutput
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.shared.sockets import StopMarks
from isowsgi.worker.control.applying import Applying
from isowsgi.worker.control.counts import counts_of
from isowsgi.worker.control.growth import Growths
from isowsgi.worker.control.leaving import leave, set_leaving
from isowsgi.worker.control.profiling import Profiling
from isowsgi.worker.control.server import AT_ONCE, Errand
from isowsgi.worker.control.shells import Shells
from isowsgi.worker.deployment import Deployment, facts_of
from isowsgi.worker.meter import memory_of
from isowsgi.worker.processmemory import rss_mib
from isowsgi.worker.slots import Instance
from isowsgi.worker.supervisor import Supervisor
from isowsgi.worker.tenants import NoTenant, NotLoaded, Template, with_tenants

# How long an instance has for telling its stacks. Its control thread needs milliseconds; one that C code keeps from running needs more.
STACKS_S = 1.0

# What an instance may have told of its stacks before the rest is left out.
_MAX_STACKS_CHARS = 1024 * 1024

# Of how many mounts the settings are told before connections are looked at: a millisecond.
_MOUNTS_AT_A_TIME = 50


class Commands:
    """Carries out requests in one worker.

    Args:
        supervisor: whose mounts they are about.
        applying: carries out those about the table.
        conf_file: of gunicorn's settings, as they were read.
        board: the worker's.
        say: writes a warning to the log.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        applying: Applying,
        conf_file: ConfFile | None = None,
        board: Scoreboard | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._supervisor = supervisor
        self._board = board
        self._conf_file = conf_file
        self._applying = applying
        self._marks: StopMarks | None = None
        self._began_at = time.time()
        self._asked = 0
        self._heard: dict[int, dict[Instance, list[str]]] = {}  # stacks, by number of the question
        self._complete: dict[int, set[Instance]] = {}
        self._profiling = Profiling()
        self._growths = Growths()
        self.asker: Callable[[], str] = lambda: ""  # who has sent the request that begins
        self.shells = Shells(lambda text: say(f"{text} ({self.asker()})"))
        self._commands: dict[type[Request[Any]], Callable[[Any], Errand]] = {
            controlmessages.Status: self._status,
            controlmessages.Reload: self._reload,
            controlmessages.Stop: self._stop,
            controlmessages.Start: self._start,
            controlmessages.Stacks: self._stacks,
            controlmessages.Profile: self._profile,
            controlmessages.Memory: self._memory,
            controlmessages.Shell: self._shell,
            controlmessages.ShellLine: self.shells.line,
            controlmessages.Errors: self._errors,
            controlmessages.AllErrors: self._all_errors,
            controlmessages.Table: self._table,
            controlmessages.Prepare: applying.prepare,
            controlmessages.Switch: applying.switch,
            controlmessages.Drop: applying.drop,
        }
        supervisor.hear_answers(self._hear)

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

    def begin(self, request: Request[Any]) -> Errand:
        """Return the errand that a request asks for; its first step may raise Refusal."""
        return self._commands[type(request)](request)

    # Commands.

    def _status(self, request: controlmessages.Status) -> Errand:
        deployments = with_tenants(self._supervisor.deployments if request.mount is None else [self._deployment(request.mount)])
        wanted = None if request.mount is None else {request.mount, request.mount.removesuffix("/")}
        now = time.monotonic()
        counts = {} if self._board is None else counts_of(self._board)
        return WorkerStatus(
            at=now,
            python=interpreters.version_text(),
            up_s=round(time.time() - self._began_at, 1),
            rss_mib=rss_mib(),
            certificates=[*map(_certificate_status, self._supervisor.certificates())],
            mounts=[
                self._status_of(deployment, member, now, counts.get(member.pattern))
                for deployment in deployments
                for member in deployment.members
                if wanted is None or member.pattern in wanted or deployment is not deployments[0]
            ],
        )
        yield None  # never reached: makes this function a generator, as the others are

    def _reload(self, request: controlmessages.Reload | controlmessages.Start) -> Errand:
        deployment = self._deployment(request.mount)
        self._refuse_quarantined(deployment)
        if deployment.is_stopped:
            raise Refusal("stopped", f"{deployment.mount.pattern} is stopped; start it with `isowsgi start`")
        if isinstance(deployment, Template) and (tenants := deployment.live()):
            deployment.replace("requested by the operator", time.monotonic())
            return _outcome(deployment, "reloading", f"loading a new generation of each of its {len(tenants)} tenants")
        if deployment.is_asleep():
            return _outcome(deployment, "asleep", "asleep; the next request loads it")
        if deployment.siting.isolation == interpreters.MAIN:
            deployment.replace("requested by the operator", time.monotonic())
            return _outcome(deployment, "restarting", "runs in the main interpreter; a new worker replaces this one")
        before = deployment.generation
        deployment.replace("requested by the operator", time.monotonic())
        # Unchanged: a replacement is under way, and is followed by the one that was asked for.
        return (yield from self._follow(deployment, deployment.generation if deployment.generation > before else before + 1))

    def _start(self, request: controlmessages.Start) -> Errand:
        deployment = self._deployment(request.mount)
        self._refuse_quarantined(deployment)
        if deployment.is_serving():
            was_leaving = set_leaving(deployment, False, self._supervisor.publish)
            return _outcome(deployment, "serving", "keeps serving" if was_leaving else "already serving")
        if deployment.state() == "stuck" and not deployment.is_under_way():
            return (yield from self._reload(request))  # its slots are taken
        if not deployment.is_under_way():
            deployment.resume(time.monotonic())
            self._mark(deployment)
        if isinstance(deployment, (Template, NotLoaded)):
            return _outcome(deployment, "asleep", "not loaded; the next request loads it")
        return (yield from self._follow(deployment, deployment.generation))

    def _stop(self, request: controlmessages.Stop) -> Errand:
        deployment = self._deployment(request.mount)
        _refuse_redirect(deployment)
        yield from leave(deployment, request.drain_s, self._supervisor.publish)
        deployment.halt(time.monotonic())
        self._mark(deployment)
        while any(instance.state is not State.STUCK for instance in deployment.slots.all()):
            if not deployment.is_stopped:
                raise Refusal("started", f"{deployment.name} was started meanwhile")
            yield None
        left = deployment.slots.all()
        text = f"stopped, but {len(left)} stuck instances remain until the worker is replaced" if left else "stopped"
        return _outcome(deployment, "stopped", text)

    def _stacks(self, request: controlmessages.Stacks) -> Errand:
        deployment = self._deployment(request.mount)
        instances = [instance for instance in deployment.slots.all() if instance.state not in ENDS]
        self._asked += 1
        ask = self._asked
        heard = self._heard[ask] = {}
        complete = self._complete[ask] = set()
        now = time.monotonic()
        deadline = now + STACKS_S
        try:
            for instance in instances:
                instance.tell(messages.TellStacks(ask=ask))
            while now < deadline and len(complete) < len(instances):
                now = yield None
        finally:
            del self._heard[ask], self._complete[ask]
        return MountStacks(
            instances=[_stacks_of(instance, "".join(heard.get(instance, [])), instance in complete, now) for instance in instances]
        )

    def _profile(self, request: controlmessages.Profile) -> Errand:
        deployment = self._deployment(request.mount)
        _refuse_without_app(deployment)
        return (yield from self._profiling.profile(request, deployment, _number(deployment, request.mount)))

    def _memory(self, request: controlmessages.Memory) -> Errand:
        return (yield from self._growths.grow(request, self._deployment(request.mount)))

    def _shell(self, request: controlmessages.Shell) -> Errand:
        deployment = self._deployment(request.mount)
        _refuse_without_app(deployment)
        is_allowed = self._supervisor.table.config.control.shell
        return (yield from self.shells.open(request, deployment, _number(deployment, request.mount), is_allowed))

    def _errors(self, request: controlmessages.Errors) -> Errand:
        deployment = self._deployment(request.mount)
        incidents = deployment.reports.incidents
        patterns = {member.pattern for member in deployment.members}
        pattern = request.mount if request.mount in patterns else request.mount.removesuffix("/")
        if request.changed_since:
            groups = incidents.summary_of(pattern, request.changed_since)
            return MountErrors(mount=pattern, boot=None, requests=[], groups=groups)
        return MountErrors(
            mount=pattern, boot=incidents.last_boot, requests=incidents.of_requests(pattern), groups=incidents.groups_of(pattern)
        )
        yield None  # never reached, as above

    def _all_errors(self, request: controlmessages.AllErrors) -> Errand:
        mounts = []
        tenants = [(each.mount, each) for each in self._supervisor.live.tenants()]  # whose requests' errors their template has
        for mount, deployment in [*self._supervisor.table.mounts, *tenants]:
            incidents = deployment.reports.incidents
            groups = [] if incidents.above is not None else incidents.summary_of(mount.pattern, request.changed_since)
            boot = incidents.last_boot and incidents.last_boot.replace(details="")
            if groups or boot:
                mounts.append(MountErrors(mount=mount.pattern, boot=boot, requests=[], groups=groups))
        return WorkerErrors(mounts=mounts)
        yield None  # never reached, as above

    def _table(self, request: controlmessages.Table) -> Errand:
        salt = secrets.token_hex(16)
        config = self._supervisor.table.config
        mounts = []
        for number, mount in enumerate(config.mounts, 1):
            mounts.append(MountTable(mount=mount.pattern, settings=differences.settings_of(mount, salt)))
            if number % _MOUNTS_AT_A_TIME == 0:
                yield AT_ONCE
        tables, facts = differences.tables_of(config, salt), self._applying.tls_facts()
        return ServedTable(salt=salt, tables=tables, mounts=mounts, gunicorn=_gunicorn_file(self._conf_file), **facts)

    # What they share.

    def _deployment(self, wanted: str) -> Deployment:
        """Return the deployment of the mount with a pattern.

        Raises:
            Refusal: there is none.
        """
        deployments = {mount.pattern: deployment for mount, deployment in self._supervisor.table.mounts}
        if (deployment := deployments.get(wanted) or deployments.get(wanted.removesuffix("/"))) is not None:
            return deployment
        try:
            tenant = self._supervisor.live.find_tenant(wanted)
        except NoTenant as exc:
            why = f"{exc.template.exists} does not exist for it" if exc.template.exists else "it is no host name of a tenant"
            raise Refusal("unknown-mount", f"{exc.template.pattern} has no tenant {wanted[:200]!r}: {why}") from None
        if tenant is not None:
            return tenant
        near = difflib.get_close_matches(wanted, deployments, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else "the patterns are " + ", ".join(map(repr, list(deployments)[:20]))[:2000]
        raise Refusal("unknown-mount", f"no mount {wanted[:200]!r}; {hint}", near=near)

    def _mark(self, deployment: Deployment) -> None:
        if self._marks is not None:
            for member in deployment.members:
                self._marks.set(member.pattern, deployment.is_stopped)

    def _refuse_quarantined(self, deployment: Deployment) -> None:
        _refuse_redirect(deployment)
        if deployment.is_quarantined:
            raise Refusal(
                "quarantined", f"{deployment.mount.pattern} crashed its worker too often and is quarantined until gunicorn reloads (SIGHUP)"
            )
        if deployment.is_faulty:
            raise Refusal("failed", f"its config file has a fault: {deployment.mount.fault}")

    def _follow(self, deployment: Deployment, generation: int) -> Errand:
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
                return _outcome(deployment, "serving", f"loaded in {boot_s:.2f} s").replace(boot_s=boot_s)
            if deployment.is_asleep():
                return _outcome(deployment, "asleep", "went to sleep meanwhile")
            if not (deployment.is_under_way() or is_retried):
                raise Refusal("failed", f"{pattern}: was not loaded in time; see the error log", generation=deployment.generation)
            yield None

    def _status_of(self, deployment: Deployment, mount: Mount, now: float, counts: MountCounts | None) -> MountStatus:
        incident = deployment.reports.incidents.latest(mount.pattern)
        return MountStatus(
            mount=mount.pattern,
            **facts_of(deployment, mount),
            memory_bytes=memory_of(deployment),
            retry_in_s=deployment.backoff.left_s(now),
            instances=[InstanceStatus(**_instance_facts(instance, now, mount.number)) for instance in deployment.slots.all()],
            last_error=None if incident is None else LastError(at=incident.at, kind=incident.kind, error=incident.error),
            counts=counts,
        )

    def _hear(self, instance: Instance, report: Part) -> None:
        """Take in a part of an instance's answer."""
        if isinstance(report, Profiled):
            self._profiling.hear(instance, report)
            return
        if isinstance(report, Counted):
            self._growths.hear(instance, report)
            return
        if isinstance(report, ShellOutput):
            self.shells.hear(instance, report)
            return
        heard = self._heard.get(report.ask)
        if heard is None:
            return  # its asker no longer waits
        parts = heard.setdefault(instance, [])
        if sum(map(len, parts)) < _MAX_STACKS_CHARS:
            parts.append(report.text)
        if report.is_last:
            self._complete[report.ask].add(instance)


def _gunicorn_file(found: ConfFile | None) -> GunicornFile | None:
    return None if found is None else GunicornFile(path=found.path, digest=found.digest)


def _certificate_status(told: Told) -> CertificateStatus:
    return CertificateStatus(hosts=list(told.hosts), path=told.path, expires=told.expires)


def _refuse_redirect(deployment: Deployment) -> None:
    if deployment.mount.redirect:
        raise Refusal("failed", f"{deployment.mount.pattern} has no app: its requests are sent to {deployment.mount.redirect}")


def _refuse_without_app(deployment: Deployment) -> None:
    """Refuse what is about one app where there is none.

    Raises:
        Refusal: a redirect, or a mount that stands for its tenants.
    """
    _refuse_redirect(deployment)
    if isinstance(deployment, Template):
        raise Refusal("not-serving", f"{deployment.name} has no app of its own: name one of its tenants, by the host in place of the *")


def _stacks_of(instance: Instance, text: str, is_complete: bool, now: float) -> InstanceStacks:
    problem = (
        f"no answer within {STACKS_S:g} s: C code holds the GIL of this interpreter, so no Python code runs in it and its stacks "
        "cannot be read"
    )
    return InstanceStacks(**_instance_facts(instance, now), stacks=text, problem="" if is_complete else problem)


def _number(deployment: Deployment, wanted: str) -> int:
    """Return the number of the mount with a pattern, one of a deployment's."""
    patterns = (wanted, wanted.removesuffix("/") or "/")
    return next((member.number for member in deployment.members if member.pattern in patterns), deployment.mount.number)


def _outcome(deployment: Deployment, outcome: str, text: str) -> Outcome:
    return Outcome(mount=deployment.mount.pattern, outcome=outcome, text=text, generation=deployment.generation)


def _instance_facts(instance: Instance, now: float, mount: int | None = None) -> dict[str, Any]:
    """Return the fields of an `InstanceStatus`."""
    return {
        "tag": instance.tag,
        "generation": instance.generation,
        "state": instance.state.value,
        "isolation": instance.isolation,
        "threads": instance.threads,
        "boot_s": instance.boot_s,
        "requests": instance.requests(mount),
        "in_flight": [InFlight(request=line, for_s=seconds) for line, seconds in instance.in_flight(now)],
        "error": instance.error,
        "memory_bytes": instance.memory if instance.memory >= 0 else None,
        "memory_at_boot_bytes": instance.memory_at_boot if instance.memory_at_boot >= 0 else None,
    }


def this_worker(config_path: str, age: int) -> Worker:
    """Return what every answer of this worker says of it.

    Args:
        age: gunicorn's number of the worker.
    """
    return Worker(worker=os.getpid(), master=os.getppid(), config=config_path, age=age)
