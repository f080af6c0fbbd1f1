"""Tenants: a template is a mount with a wildcard for its host, whose tenants each have a deployment, made at the first request.

There are at most `max_live` of them. For one more the least recently used one that is quiet is ended, as any mount that is taken out of
the table: its requests in flight are answered, its idle connections go back to the acceptor, and whoever asks for it again loads it again.
One that was loaded or used a moment ago keeps its place, so that the worker does more than load. Where nobody may go, requests for
newcomers wait for a place, one after the other, see `dispatcher`. So a flood of names costs no more than that. What is no tenant is
answered 404 and leaves nothing behind; of one that failed it is remembered when it may be tried again, and why it failed.

On the scoreboard tenants count under their template's pattern, so numbers, rows and metrics are bounded by how many live at a time. Each
worker decides alone. On the acceptor's thread; nothing here waits, but for the file system of `exists`. Time is monotonic seconds and
passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import attrs

from isowsgi.configuration import Mount, tenants
from isowsgi.instances.lifecycle import State
from isowsgi.shared.routing import WILDCARD, Route, bare_host
from isowsgi.shared.rows import TENANT_EVICTIONS, TENANT_STARTS
from isowsgi.worker.backoff import Backoff
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.dispatcher import NotServing
from isowsgi.worker.incidents import Incidents
from isowsgi.worker.residents import Residents
from isowsgi.worker.upkeep import Upkeep

# Of how many tenants it is looked up in a second whether they still exist: each is a system call on the acceptor's thread.
_LOOKED_UP = 50

# For how long a request has waited for a place when the log says so, and how often at most it does.
_LONG_S = 1.0
_TELL_S = 60.0

# How long a request has waited for a place when it gets that of one that was used a moment ago; where `queue_timeout` says nothing. Half
# of its default.
_URGENT_S = 15.0


@attrs.frozen
class _Remembered:
    """What is kept of a tenant that has failed and lives no more."""

    generation: int
    backoff: Backoff
    retry_at: float | None
    incidents: Incidents


class NoTenant(Exception):
    """A pattern could be a tenant's, but there is no such tenant.

    Attributes:
        template: that it would have.
    """

    def __init__(self, template: Mount) -> None:
        super().__init__(template)
        self.template = template


class NotLoaded(Deployment):
    """A tenant that is not loaded, for who asks about it: it never starts, and who else lives does not change for it."""

    def start(self, now: float) -> None:
        """Do nothing: its next request loads it, as a deployment of the template's."""


class _UpkeepOfTemplate(Upkeep):
    """A template's own; its tenants have theirs for all else."""

    def tick(self, now: float) -> None:
        self._deployment.succession.look(now)


class Template(Deployment):
    """A mount that stands for its tenants; it has no instance of its own.

    Args:
        members: the one mount.
        surroundings: of its worker.
        make: returns a deployment for a tenant's mount.
        by_number: takes each tenant's deployment, by the number of its mount.
        is_stopped_before: whether the operator has stopped a tenant, by its pattern.
        settings: see `Deployment`.
    """

    def __init__(
        self,
        members: Sequence[Mount],
        surroundings: Any,
        make: Callable[[Mount], Deployment],
        by_number: dict[int, Deployment],
        is_stopped_before: Callable[[str], bool] = lambda pattern: False,
        **settings: Any,
    ) -> None:
        super().__init__(members, surroundings, **settings)
        self.upkeep = _UpkeepOfTemplate(self)
        self._make = make
        self._settings = settings
        self._by_number = by_number
        self._is_stopped_before = is_stopped_before
        self._live = Residents()
        self._leaving: list[Deployment] = []
        self._failed: dict[str, _Remembered] = {}  # by label, at most `max_live`, the latest last
        self._verdict: tuple[str, str, Mapping[str, Sequence[int]]] | None = None  # of the tenants' code, as one of them has found out
        self._looked_up = 0  # of those that live
        self._cannot_look_up = ""  # why
        self._told_full_at = -_TELL_S  # monotonic seconds when the log last said so
        self._is_crowded = False  # whether the scoreboard had no place for the last one
        self.births = self.evictions = self.unknown = 0  # in this worker
        self._counters = surroundings.board.mount_row(self.mount.number).words  # the same, for the metrics

    # What others ask.

    def tenants(self) -> list[Deployment]:
        """Return the deployments of all tenants, also of those that leave."""
        return [*self._live, *self._leaving]

    def live(self) -> list[Deployment]:
        return list(self._live)

    def facts(self) -> dict[str, Any]:
        """Return what is said of the tenants as a whole."""
        counts = {"births": self.births, "evictions": self.evictions, "unknown": self.unknown}
        return {"live": len(self._live), "max_live": self.mount.max_live, "leaving": len(self._leaving), **counts}

    def tenant(self, host: str, now: float, waited_s: float = 0.0, may_enter: bool = True) -> Deployment | NotServing | None:
        """Return the deployment of a tenant, which is made if need be; why there is none just now; or None: there is no such tenant.

        Args:
            host: the Host field of a request that is the template's.
            waited_s: for how long that request has waited for a place.
            may_enter: whether it may take a place; False: others were before it.
        """
        label = bare_host(host).partition(".")[0]
        deployment = self._live.use(label, now)
        if deployment is not None:
            return deployment
        is_known = self._is_known(label)
        if is_known is False:
            self.unknown += 1
            return None
        if is_known is None or self.is_quarantined or self.is_stopped or self.is_faulty or self.is_over:
            return NotServing.FAILED
        before = self._failed.get(label)
        if before is not None and before.retry_at is not None and now < before.retry_at:
            return NotServing.FAILED
        if self.succession.is_open or self._must_wait_for_itself(label):
            return NotServing.BOOTING
        if not may_enter or not self._has_place(now, waited_s):
            return NotServing.FULL
        return self._bear(label, now)

    def find(self, host: str) -> Deployment | None:
        """Return what an operator asks about: a tenant that lives, or what stands for one that does not; None: there is no such tenant.

        Nothing is loaded for it, and nobody ends.
        """
        label = bare_host(host).partition(".")[0]
        deployment = self._live.get(label)
        if deployment is not None or self._is_known(label) is False:
            return deployment
        mount = tenants.tenant_of(self.mount, label, self.mount.number)
        absent = NotLoaded([mount], self.surroundings, **self._settings)
        absent.is_stopped = self._is_stopped_before(mount.pattern)
        if (before := self._failed.get(label)) is not None:
            absent.reports.incidents, absent.backoff.retry_at = before.incidents, before.retry_at
        return absent

    def state(self) -> str:
        if self.is_quarantined or self.is_stopped or self.is_faulty:
            return super().state()
        if self.is_leaving:
            return "leaving"
        return "serving" if self.is_serving() else "asleep"

    def is_serving(self) -> bool:
        return any(deployment.is_serving() for deployment in self._live)

    def is_asleep(self) -> bool:
        return not self.is_stopped and not self.is_quarantined and not self.is_faulty

    # Actions.

    def start(self, now: float) -> None:
        """Look at the requests that wait: tenants are started by theirs."""
        self.surroundings.release(self)

    def choose(self, now: float) -> NotServing:
        return NotServing.FAILED  # it has no instance, whoever asks

    def replace(self, reason: str, now: float) -> None:
        """Load a new generation of each tenant that lives."""
        for deployment in self._live:
            _contained(deployment, deployment.replace, reason, now)

    def sleep(self, now: float) -> None:
        self.succession.cancel()
        for label in self._live.labels():
            self._let_go(label, now)

    def give_routes(self, routes: list[Route], tell: Callable[[Deployment, list[Route]], None]) -> None:
        """Let all tenants know by which routes it is decided whose a request is.

        Args:
            tell: gives a deployment its own.
        """
        self.routes = routes
        for deployment in self._live:
            _contained(deployment, tell, deployment, self._routes_of(deployment.mount))

    def adjust_tenants(self, adjust: Callable[[Deployment, Sequence[Mount]], None]) -> None:
        """Give the tenants the template's settings, which have changed."""

        def adjust_one(label: str, deployment: Deployment) -> None:
            adjust(deployment, [tenants.tenant_of(self.mount, label, deployment.mount.number)])

        for label in self._live.labels():
            deployment = self._live.get(label)
            assert deployment is not None, "it was among them"
            _contained(deployment, adjust_one, label, deployment)

    def look(self, now: float, is_tick: bool) -> None:
        """Do what is due.

        Args:
            is_tick: whether a second has passed; else something has happened to an instance.
        """
        if self._forget_gone() and self.mount.replace == "stop-first":
            self.surroundings.release(self)  # who waited for its own end
        if not is_tick:
            return
        for label in self._live.idle(now):
            self._let_go(label, now)
        too_many = self._live.count() - self.mount.max_live
        if too_many >= 0:
            self._live.note_uses(now)
        if too_many > 0:  # there were more before it was adjusted
            for label in self._live.quiet()[:too_many]:
                self._let_go(label, now)
        self._check_existing(now)

    # Inner workings.

    def _check_existing(self, now: float) -> None:
        """Let those go of which nothing exists any more; a part of them at a time."""
        if self.mount.exists is None:
            return
        labels = self._live.labels()
        first = self._looked_up if self._looked_up < len(labels) else 0
        self._looked_up = first + _LOOKED_UP
        for label in islice(labels, first, first + _LOOKED_UP):
            if self._is_known(label) is False:
                self.log.info("%s: %s no longer exists", tenants.host_of(self.mount, label), self.mount.exists)
                self._let_go(label, now)

    def _is_known(self, label: str) -> bool | None:
        """Whether there is such a tenant; None: that cannot be found out just now."""
        try:
            found = tenants.is_known(self.mount, label)
        except OSError as exc:
            if self._cannot_look_up != exc.strerror:
                self._cannot_look_up = str(exc.strerror)
                text = "%s: cannot look up %s: %s; tenants that are loaded keep serving, others are answered 503"
                self.log.error(text, self.name, self.mount.exists, exc)
            return None
        if self.mount.exists is not None:
            self._cannot_look_up = ""
        return found

    def _must_wait_for_itself(self, label: str) -> bool:
        """Whether a tenant still ends, and must not be loaded beside itself."""
        host = tenants.host_of(self.mount, label)
        return self.mount.replace == "stop-first" and any(each.mount.host == host and each.slots.all() for each in self._leaving)

    def _has_place(self, now: float, waited_s: float) -> bool:
        """Whether one more may live; lets the least recently used one go, if need be."""
        self._forget_gone()
        count = self._live.count()
        leaving = sum(bool(deployment.slots.all()) for deployment in self._leaving if State.STUCK not in _states(deployment))
        if count < self.mount.max_live:
            return count + leaving < self.mount.max_live + tenants.MOST_LEAVING
        is_urgent = waited_s > (self.mount.queue_timeout / 2 or _URGENT_S)
        label = self._live.who_may_go(now, is_urgent) if leaving < tenants.MOST_LEAVING else None
        if waited_s > _LONG_S and now - self._told_full_at > _TELL_S:
            self._told_full_at = now
            self.log.warning(
                "%s: as many tenants are in use as may be loaded (%d); requests for others wait; raise max_live", self.name, count
            )
        if label is None:
            return False
        self.evictions += 1
        self._counters[TENANT_EVICTIONS] += 1
        self._let_go(label, now)
        return True

    def _bear(self, label: str, now: float) -> Deployment | NotServing:
        """Make a tenant's deployment."""
        board = self.surroundings.board
        try:
            number = board.add_mount(self.mount.pattern)
        except MemoryError as exc:
            if not self._is_crowded:
                self.log.error("%s: answers 503 to requests for tenants that are not loaded: %s", self.name, exc)
            self._is_crowded = True
            return NotServing.FAILED
        self._is_crowded = False
        deployment = self._make(tenants.tenant_of(self.mount, label, number))
        deployment.routes, deployment.status = self._routes_of(deployment.mount), self.status
        deployment.is_ending = self.is_ending
        if not tenants.has_own_code(self.mount) and not deployment.siting.is_known:
            for other in self._live:
                self._note_verdict(other)
            if self._verdict is not None:
                deployment.siting.settle(*self._verdict)  # the same code: no trial of its own
        before = self._failed.pop(label, None)
        if before is not None:
            deployment.generation, deployment.backoff = before.generation, before.backoff
            deployment.reports.incidents = before.incidents
        deployment.reports.incidents.above = self.reports.incidents, self.mount.pattern
        self._live.add(label, deployment, now)
        self._by_number[number] = deployment
        self.births += 1
        self._counters[TENANT_STARTS] += 1
        if self._is_stopped_before(deployment.mount.pattern):
            deployment.halt(now)
        return deployment

    def _note_verdict(self, tenant: Deployment) -> None:
        if self._verdict is None and tenant.siting.is_auto and tenant.siting.is_known:
            self._verdict = tenant.siting.isolation, tenant.siting.reason, tenant.siting.extensions or {}

    def _let_go(self, label: str, now: float) -> None:
        """End a tenant's deployment; its requests in flight are answered first."""
        deployment = self._live.pop(label)
        self._by_number.pop(deployment.mount.number, None)
        self._note_verdict(deployment)
        incidents, backoff = deployment.reports.incidents, deployment.backoff
        if incidents.last_boot is not None or incidents.groups or backoff.retry_at is not None:
            self._failed[label] = _Remembered(deployment.generation, backoff, backoff.retry_at, incidents)
            if len(self._failed) > self.mount.max_live:
                del self._failed[next(iter(self._failed))]
        self._leaving.append(deployment)
        _contained(deployment, deployment.leave, now)

    def _forget_gone(self) -> bool:
        """Forget those that have left; return whether any has."""
        gone = [each for each in self._leaving if has_left(each)]
        for deployment in gone:
            deployment.upkeep.is_over = True
            self._leaving.remove(deployment)
            self.surroundings.board.free_mount(deployment.mount.number)
        return bool(gone)

    def _routes_of(self, tenant: Mount) -> list[Route]:
        """Return the routes that decide which requests are a tenant's: those of its host, as if each named it."""
        own = Route(tenant.number, tenant.host, tenant.prefix)
        exact = [route for route in self.routes if route.host == tenant.host]
        wild = [Route(route.mount, tenant.host, route.prefix) for route in self.routes if route.host == self.mount.host]
        wild = [own if route.mount == self.mount.number else route for route in wild]
        return [*exact, *(route for route in wild if not any(_covers(each, route) for each in exact))]


def _contained(deployment: Deployment, function: Callable[..., object], *args: Any) -> None:
    """Do something with one tenant; a mistake there concerns no other."""
    deployment.surroundings.containment.call(f"{deployment.name}: as a tenant", function, *args)


def _states(deployment: Deployment) -> set[State]:
    return {instance.state for instance in deployment.slots.all()}


def _covers(exact: Route, other: Route) -> bool:
    """Whether all that a wildcard's route takes of a host is that of a route that names the host."""
    return exact.prefix == other.prefix or other.prefix.startswith(exact.prefix + "/")


def host_in(pattern: str, template: Mount) -> str | None:
    """Return the host of a tenant's pattern; None if it is none of this template's."""
    host, slash, path = pattern.partition("/")
    is_ours = slash and (slash + path).removesuffix("/") == template.pattern.removeprefix(template.host).removesuffix("/")
    return host if is_ours and host.partition(".")[2] == template.host.removeprefix(WILDCARD) else None


def with_tenants(deployments: Iterable[Deployment]) -> list[Deployment]:
    """Return deployments, each template with its tenants behind it."""
    found: list[Deployment] = []
    for deployment in deployments:
        found.append(deployment)
        if isinstance(deployment, Template):
            found += deployment.tenants()
    return found


def has_left(deployment: Deployment) -> bool:
    """Whether nothing is left of what is in no table any more: no instance, no thread that one has left behind, no trial, no tenant."""
    if isinstance(deployment, Template) and deployment.tenants():
        return False
    return not deployment.slots.all() and not deployment.slots.left and not deployment.siting.is_on_trial
