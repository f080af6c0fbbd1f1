"""Tenants: a template is a mount with a wildcard for its host, whose tenants each have a deployment, made at the first request.

There are at most `max_live` of them. For one more the least recently used one that is quiet is ended, as any mount that is taken out of
the table: its requests in flight are answered, its idle connections go back to the acceptor, and whoever asks for it again loads it again.
Where none is quiet, requests for newcomers wait for a place, of as many tenants as `queue` says and as long as `queue_timeout`; more are
answered 503. So a flood of names costs no more than that. What is no tenant is answered 404 and leaves nothing behind.

On the scoreboard tenants count under their template's pattern, so numbers, rows and metrics are bounded by how many live at a time. Each
worker decides alone. On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from isowsgi.configuration import Mount, tenants
from isowsgi.instances.lifecycle import State
from isowsgi.shared.routing import WILDCARD, Route, bare_host
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.dispatcher import NotServing

# How many that leave, beside those that live, may have instances that still answer requests, before newcomers wait for their end.
_MOST_LEAVING = 4


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
        self._make = make
        self._by_number = by_number
        self._is_stopped_before = is_stopped_before
        self._live: dict[str, Deployment] = {}  # by label, the least recently used one first
        self._requests: dict[str, int] = {}  # that each had when it was last looked at
        self._leaving: list[Deployment] = []
        self._waiting: dict[str, float] = {}  # labels of those for which there is no place, and since when
        self.births = self.evictions = self.unknown = self.turned_away = 0

    # What others ask.

    def tenants(self) -> list[Deployment]:
        """Return the deployments of all tenants, also of those that leave."""
        return [*self._live.values(), *self._leaving]

    def live(self) -> list[Deployment]:
        return list(self._live.values())

    def facts(self) -> dict[str, Any]:
        """Return what is said of the tenants as a whole."""
        counts = {"births": self.births, "evictions": self.evictions, "unknown": self.unknown, "turned_away": self.turned_away}
        return {
            "live": len(self._live),
            "max_live": self.mount.max_live,
            "leaving": len(self._leaving),
            "waiting": len(self._waiting),
            **counts,
        }

    def tenant(self, host: str, now: float) -> Deployment | NotServing | None:
        """Return the deployment of a tenant, which is made if need be; why there is none just now; or None: there is no such tenant.

        Args:
            host: the Host field of a request that is the template's.
        """
        label = bare_host(host).partition(".")[0]
        deployment = self._live.get(label)
        if deployment is not None:
            self._live[label] = self._live.pop(label)  # the last one now
            return deployment
        if not tenants.is_known(self.mount, label):
            self.unknown += 1
            return None
        if self.is_quarantined or self.is_stopped or self.is_faulty or self.is_over:
            return NotServing.FAILED
        if self._must_wait_for_itself(label) or not self._has_place(now):
            return self._wait(label, now)
        self._waiting.pop(label, None)
        return self._bear(label, now)

    def state(self) -> str:
        if self.is_quarantined or self.is_stopped:
            return super().state()
        return "serving" if self.is_serving() else "asleep"

    def is_serving(self) -> bool:
        return any(deployment.is_serving() for deployment in self._live.values())

    def is_asleep(self) -> bool:
        return not self.is_stopped and not self.is_quarantined

    # Actions.

    def start(self, now: float) -> None:
        """Do nothing: its tenants are started by their requests."""

    def choose(self, now: float) -> NotServing:
        return NotServing.FAILED  # it has no instance, whoever asks

    def replace(self, reason: str, now: float) -> None:
        """Load a new generation of each tenant that lives."""
        for deployment in self.live():
            _contained(deployment, deployment.replace, reason, now)

    def sleep(self, now: float) -> None:
        for label in list(self._live):
            self._let_go(label, now)
        self._waiting.clear()

    def give_routes(self, routes: list[Route], tell: Callable[[Deployment, list[Route]], None]) -> None:
        """Let all tenants know by which routes it is decided whose a request is.

        Args:
            tell: gives a deployment its own.
        """
        self.routes = routes
        for deployment in self._live.values():
            _contained(deployment, tell, deployment, self._routes_of(deployment.mount))

    def adjust_tenants(self, adjust: Callable[[Deployment, Sequence[Mount]], None]) -> None:
        """Give the tenants the template's settings, which have changed."""
        for label, deployment in self._live.items():
            _contained(deployment, adjust, deployment, [tenants.tenant_of(self.mount, label, deployment.mount.number)])

    def look(self, now: float) -> None:
        """Do what is due: once a second, and when something has happened to an instance."""
        self._forget_gone()
        for label, deployment in list(self._live.items()):
            if deployment.is_asleep() and not deployment.slots.all() and not deployment.is_in_line:  # `idle_timeout`
                self._let_go(label, now)
        quiet = [label for label, deployment in self._live.items() if self._is_quiet(deployment)]
        for label in quiet[: max(self._count() - self.mount.max_live, 0)]:  # there were more before it was adjusted
            self._let_go(label, now)
        if self._waiting:
            self.surroundings.release(self)
            limit_s = self.mount.queue_timeout or float("inf")
            self._waiting = {label: since for label, since in self._waiting.items() if now - since <= 2 * limit_s}

    def check_existing(self, now: float) -> None:
        """Let those go of which nothing exists any more; once a second."""
        for label in list(self._live) if self.mount.exists is not None else ():
            if not tenants.is_known(self.mount, label):
                self.log.info("%s: %s no longer exists", self._live[label].name, self.mount.exists)
                self._let_go(label, now)

    # Inner workings.

    def _must_wait_for_itself(self, label: str) -> bool:
        """Whether a tenant still ends, and must not be loaded beside itself."""
        host = f"{label}.{self.mount.host.removeprefix(WILDCARD)}"
        return self.mount.replace == "stop-first" and any(each.mount.host == host and each.slots.all() for each in self._leaving)

    def _has_place(self, now: float) -> bool:
        """Whether one more may live; lets the least recently used one go, if need be."""
        self._forget_gone()
        if sum(bool(deployment.slots.all()) for deployment in self._leaving if State.STUCK not in _states(deployment)) >= _MOST_LEAVING:
            return False
        if self._count() < self.mount.max_live:
            return True
        for label in [*self._live, *self._live]:  # who has served since the last look is passed over once
            deployment = self._live[label]
            requests = sum(instance.requests() for instance in deployment.slots.serving())
            was_used, self._requests[label] = self._requests.get(label) != requests, requests
            if was_used:
                self._live[label] = self._live.pop(label)
            elif self._is_quiet(deployment):
                self.evictions += 1
                self._let_go(label, now)
                return True
        return False

    def _count(self) -> int:
        """Return how many live that the operator has not stopped."""
        return sum(not deployment.is_stopped for deployment in self._live.values())

    def _is_quiet(self, deployment: Deployment) -> bool:
        """Whether nobody waits for it: it serves no request and is not on its way, and the operator has not stopped it."""
        is_busy = any(instance.is_busy() for instance in deployment.slots.serving())
        return not (is_busy or deployment.is_under_way() or deployment.is_stopped)

    def _wait(self, label: str, now: float) -> NotServing:
        """Let a tenant wait for a place, if not too many do."""
        since = self._waiting.get(label)
        if since is None and len(self._waiting) < self.mount.queue:
            self._waiting[label] = now
            return NotServing.BOOTING
        if since is not None and (not self.mount.queue_timeout or now - since <= self.mount.queue_timeout):
            return NotServing.BOOTING
        self.turned_away += 1
        return NotServing.FAILED

    def _bear(self, label: str, now: float) -> Deployment | NotServing:
        """Make a tenant's deployment."""
        board = self.surroundings.board
        try:
            number = board.add_mount(self.mount.pattern)
        except MemoryError as exc:
            self.log.error("%s: no place on the scoreboard for %s: %s", self.name, label, exc)
            return NotServing.FAILED
        deployment = self._make(tenants.tenant_of(self.mount, label, number))
        deployment.routes, deployment.status = self._routes_of(deployment.mount), self.status
        if not tenants.has_own_code(self.mount) and not deployment.siting.is_known:
            for other in self._live.values():
                if other.siting.is_auto and other.siting.is_known:  # the same code: no trial of its own
                    deployment.siting.settle(other.siting.isolation, other.siting.reason, other.siting.extensions or {})
                    break
        self._live[label] = self._by_number[number] = deployment
        self.births += 1
        if self._is_stopped_before(deployment.mount.pattern):
            deployment.halt(now)
        return deployment

    def _let_go(self, label: str, now: float) -> None:
        """End a tenant's deployment; its requests in flight are answered first."""
        deployment = self._live.pop(label)
        self._requests.pop(label, None)
        self._by_number.pop(deployment.mount.number, None)
        self._leaving.append(deployment)
        _contained(deployment, deployment.leave, now)

    def _forget_gone(self) -> None:
        for deployment in list(self._leaving):
            if not deployment.slots.all() and not deployment.slots.left and not deployment.siting.is_on_trial:
                self._leaving.remove(deployment)
                self.surroundings.board.free_mount(deployment.mount.number)

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
