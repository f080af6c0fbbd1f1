"""The table that serves, and the change to the next one: one at a time, see `change`.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from isowsgi.configuration import Config, Mount
from isowsgi.instances.bootorder import own_routes, reroutes
from isowsgi.instances.lifecycle import ENDS
from isowsgi.shared.containment import Containment
from isowsgi.shared.routing import Route, may_win
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker import adjusting
from isowsgi.worker.change import Change
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.table import Table, grouped
from isowsgi.worker.tenants import NoTenant, Template, has_left, host_in, with_tenants


class LiveTable:
    """One worker's.

    Args:
        config: what is served at first.
        board: the worker's scoreboard.
        containment: ends our own mistakes.
        make: returns a deployment for the mounts of a group, or for one.
        recall: settles what is known of a new deployment from earlier runs.
        on_switch: has all who look at the table see another one; called while the old one's deployments still serve.

    Attributes:
        table: what serves.
    """

    def __init__(
        self,
        config: Config,
        board: Scoreboard,
        containment: Containment,
        make: Callable[[Sequence[Mount]], Deployment],
        recall: Callable[[Deployment], None],
        on_switch: Callable[[Table], None],
    ) -> None:
        self._board = board
        self._containment = containment
        self._make = make
        self._recall = recall
        self._on_switch = on_switch
        self.table = Table(config, [(members, make(members)) for members in grouped(config.mounts)])
        for deployment in self.table.deployments:
            deployment.routes, deployment.status = self.table.routes_of(deployment), config.status
        self._change: Change | None = None  # that is being prepared
        self._leaving: list[Deployment] = []  # that are in no table any more, and have not ended

    def all(self) -> list[Deployment]:
        """Return the deployments of the table, those that are being prepared for the next one, and those that leave."""
        fresh = self._change.fresh if self._change is not None else ()
        return [*self._of_table(), *with_tenants([*fresh, *self._leaving])]

    def _of_table(self) -> Sequence[Deployment]:
        """Return the deployments of the table, each template with its tenants behind it."""
        # Asked some ten times a second, of up to a thousand mounts: who has no templates need not look for their tenants.
        return with_tenants(self.table.deployments) if self.table.templates else self.table.deployments

    def tenants(self) -> list[Deployment]:
        """Return the tenants that live, of all templates of the table."""
        return [each for template in self.table.templates for each in template.live()]

    def find_tenant(self, pattern: str) -> Deployment | None:
        """Return the deployment of a tenant by its pattern, or what stands for one that is not loaded; None: there is none such.

        Raises:
            NoTenant: the pattern could be a tenant's, and there is no such tenant.
        """
        for template in self.table.templates:
            if (host := host_in(pattern, template.mount)) is not None:
                found = template.find(host)
                if found is None:
                    raise NoTenant(template.mount)
                return found
        return None

    def look_at_tenants(self, now: float, is_tick: bool = False) -> None:
        """Do what is due of those who come and go."""
        leaving = [each for each in self._leaving if isinstance(each, Template)]
        for template in [*self.table.templates, *leaving]:
            self._containment.call(f"{template.name}: its tenants", template.look, now, is_tick)

    def plan(self, config: Config) -> Change:
        """Begin to change to a config; nothing is loaded before `begin`. To be ended by `switch` or `drop`.

        Raises:
            Unchangeable: only a new worker can serve it.
            MemoryError: there is no place on the scoreboard.
        """
        assert self._change is None, "one at a time"
        change = self._change = Change(self.table, config, self._board, self._make)
        for deployment in change.fresh:
            self._containment.call(f"{deployment.name}: result of an earlier trial", self._recall, deployment)
        return change

    def begin(self, now: float) -> None:
        """Load what is new in the change that was planned, if that has not begun."""
        assert self._change is not None, "it was planned"
        try:
            self._change.begin(now)
        except BaseException:
            self.drop(now)
            raise

    def narrow(self, names: Iterable[str], now: float) -> None:
        """Let mounts of the change that is being prepared stay as they are, see `Change.narrow`."""
        assert self._change is not None, "it is prepared"
        self._let_go(self._change.narrow(names), now)

    def drop(self, now: float) -> None:
        """Give up the change that is being prepared."""
        change, self._change = self._change, None
        if change is not None:
            self._let_go(change.fresh, now)

    def switch(self, now: float) -> None:
        """Serve the table that was prepared, from now on."""
        change, self._change = self._change, None
        assert change is not None, "it was prepared"
        routes = set(self.table.router.routes) ^ set(change.new.router.routes)
        self.table = change.new
        for deployment in change.fresh:
            deployment.is_prepared = False
        following = change.following()
        for deployment, before in following:  # first of all: requests that wait are looked at as soon as the table is another one
            deployment.succession.follow(with_tenants(before))
        self._containment.call("switch to another table", self._on_switch, self.table)
        for deployment in with_tenants(self.table.deployments):
            deployment.status = self.table.config.status
        for deployment in self.table.deployments:
            if deployment not in change.fresh and _is_concerned(deployment, routes):
                self._containment.call(f"{deployment.name}: its routes", _reroute, deployment, self.table.routes_of(deployment))
        for members, deployment in change.adjusted:
            self._containment.call(f"{deployment.name}: its settings", adjusting.adjust, deployment, members)
            if isinstance(deployment, Template):
                self._containment.call(f"{deployment.name}: settings of its tenants", deployment.adjust_tenants, adjusting.adjust)
        self._containment.call("what was stopped meanwhile", change.catch_up, now)
        self._let_go(change.gone, now)
        for deployment, _ in following:
            if not deployment.succession.is_open and not deployment.mount.lazy:  # nothing of it was loaded
                self._containment.call(f"{deployment.name}: start", deployment.start, now)

    def tick(self) -> None:
        """Do what is owed; about once a second."""
        for deployment in self._of_table():
            if deployment.owes_routes:
                _reroute(deployment, deployment.routes)
            adjusting.pay(deployment)
        self._forget_gone()

    def _forget_gone(self) -> None:
        """Forget deployments that have ended; what threads of theirs have left behind is kept in sight."""
        for deployment in list(self._leaving):
            if has_left(deployment):
                deployment.upkeep.is_over = True
                self._leaving.remove(deployment)
                for member in deployment.members:
                    self._board.free_mount(member.number)

    def _let_go(self, deployments: Sequence[Deployment], now: float) -> None:
        """End deployments that are in no table any more; their requests in flight are answered first."""
        self._leaving += deployments
        for deployment in deployments:
            self._containment.call(f"{deployment.name}: stop", deployment.leave, now)


def _is_concerned(deployment: Deployment, routes: Iterable[Route]) -> bool:
    """Whether routes that come or go may take requests from a deployment, or give it some."""
    own = own_routes(deployment.members)
    numbers = {member.number for member in deployment.members}  # one of its own hosts may come or go
    return any(route.mount in numbers or may_win(route, each) for route in routes for each in own)


def _reroute(deployment: Deployment, routes: list[Route]) -> None:
    """Tell a deployment's instances which requests are theirs from now on, on connections that they keep."""
    deployment.routes, deployment.owes_routes = routes, False
    if isinstance(deployment, Template):
        deployment.give_routes(routes, _reroute)
    for instance in deployment.slots.all():
        if instance.state not in ENDS and not all(instance.tell(order) for order in reroutes(routes)):
            deployment.owes_routes = True  # it reads nothing just now; all of it once more, later
