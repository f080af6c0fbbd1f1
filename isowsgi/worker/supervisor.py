"""The supervisor: all deployments of a worker together. What concerns one mount only is its deployment's.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from isowsgi.configuration import Config, Mount
from isowsgi.instances.bootorder import BootOrders
from isowsgi.instances.controlgroups import ControlGroups
from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.instances.spawnedprocess import SpawnerClient
from isowsgi.shared import interpreters, messages
from isowsgi.shared.certificates import Told
from isowsgi.shared.containment import Containment
from isowsgi.shared.messages import Part
from isowsgi.shared.rows import REQUESTS
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker.acceptor import Acceptor
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.dispatcher import NotServing
from isowsgi.worker.instancefactory import Workshop
from isowsgi.worker.livetable import LiveTable
from isowsgi.worker.memorylimit import MemoryWatch
from isowsgi.worker.meter import Meter
from isowsgi.worker.processmemory import rss_mib
from isowsgi.worker.reloadqueue import Places
from isowsgi.worker.rounds import Rounds
from isowsgi.worker.slots import Instance
from isowsgi.worker.table import Table
from isowsgi.worker.tenants import Template
from isowsgi.worker.workerreport import Reporter


class Supervisor:
    """Owns all deployments of this worker.

    Args:
        config: the mounts.
        orders: writes boot orders.
        board: the worker's scoreboard.
        log: gunicorn's logger.
        containment: ends our own mistakes.
        drain_s: how long requests of a replaced instance may take to end.
        quarantined: patterns that crashed workers too often; they are answered 503.
        moved: patterns that crashed workers too often and shall live in a process.
        suspects: patterns that were being loaded when a worker died.
        on_files: takes files that, once changed, should make the worker reload; None: no file is watched.
        origins_fd: of the table that says where connections come from; None: their sockets do.
        places: where workers may load something beside what serves; None: this worker is alone.
        groups: for processes with limits.
        spawner: of processes of other users; None if no mount has a user.

    Attributes:
        live: the table that serves, and its changes.
        rounds: looks at all of them once a second.
        rss_at_start: MiB, before the first mount was loaded.
        on_report: called when an instance has had something to say, and all others have dealt with it.
    """

    def __init__(
        self,
        *,
        config: Config,
        orders: BootOrders,
        board: Scoreboard,
        log: Any,
        containment: Containment,
        drain_s: float,
        quarantined: Collection[str] = (),
        moved: Collection[str] = (),
        suspects: Collection[str] = (),
        on_files: Callable[[list[str]], None] | None,
        origins_fd: int | None = None,
        places: Places | None = None,
        groups: ControlGroups | None = None,
        spawner: SpawnerClient | None = None,
    ) -> None:
        self._board = board
        self._log = log
        self._containment = containment
        self._reporter: Reporter | None = None
        self.certificates: Callable[[], list[Told]] = list  # that serve; set where there is TLS
        self.on_report: Callable[[], object] = lambda: None
        self.rss_at_start = 0
        self._quarantined, self._moved, self._suspects = quarantined, moved, suspects
        self._tenants: dict[int, Deployment] = {}  # those that live, by their mounts' numbers
        self.was_stopped: Callable[[str], bool] = lambda pattern: False  # whether a tenant was, by its pattern; set by the commands
        self._workshop = Workshop(
            orders, board, log, containment, drain_s, origins_fd, places or Places(), groups or ControlGroups(log), spawner
        )
        self._workshop.on_report = self._on_report
        if on_files is not None:
            self._workshop.on_files = on_files
        self.live = LiveTable(config, board, containment, self._make_deployment, self._workshop.recall, self._on_switch)
        self._acceptor: Acceptor | None = None
        self._meter = Meter(self.live.all, lambda each: bool(each.mount.max_memory or self.table.config.limits.max_rss))
        self._memory = MemoryWatch(lambda: [*self.deployments, *self.live.tenants()], lambda: self.table.config.limits.max_rss, self._meter)
        self.rounds = Rounds(self.live, self._workshop, self._meter, self._memory, containment)
        self._workshop.on_measured = self._meter.on_measured
        self._meter.departing = self._workshop.departures.instances
        self._workshop.forks_processes = lambda: self.table.config.limits.fork_server

    @property
    def table(self) -> Table:
        """Return what serves."""
        return self.live.table

    @property
    def deployments(self) -> list[Deployment]:
        """Return those of the table that serves, in the order of the config file."""
        return self.live.table.deployments

    def _make_deployment(self, members: Sequence[Mount]) -> Deployment:
        isolation = interpreters.PROCESS if _is_any(members, self._moved) else _isolation_of(members[0])
        is_quarantined, is_suspect = _is_any(members, self._quarantined), _is_any(members, self._suspects)
        settings: dict[str, Any] = {"isolation": isolation, "is_suspect": is_suspect}
        if not members[0].max_live:
            return Deployment(members, self._workshop, is_quarantined=is_quarantined, **settings)
        return Template(
            members,
            self._workshop,
            make=lambda mount: Deployment([mount], self._workshop, **settings),
            by_number=self._tenants,
            is_stopped_before=lambda pattern: self.was_stopped(pattern),
            is_quarantined=is_quarantined,
            **settings,
        )

    def _tenant(self, number: int, host: str, waited_s: float, may_enter: bool) -> int | NotServing | None:
        """Return the number of a tenant's mount, by its template's, see `Template.tenant`."""
        template = self.table.deployment_of(number)
        assert isinstance(template, Template), "the table says so"
        found = template.tenant(host, time.monotonic(), waited_s, may_enter)
        return found.mount.number if isinstance(found, Deployment) else found

    def _of(self, number: int) -> Deployment:
        return self._tenants.get(number) or self.table.deployment_of(number)

    def _on_switch(self, table: Table) -> None:
        """Have all who look at the table see another one."""
        assert self._acceptor is not None, "mounts were started"
        self._acceptor.set_table(table.router, table.config.head_timeout, table.stall_s, table.special)
        if self._reporter is not None:
            self._reporter.mounts = table.mounts

    def start(self, acceptor: Acceptor) -> None:
        """Boot every mount that is not lazy."""
        self._workshop.start(acceptor)
        self._acceptor = acceptor
        acceptor.dispatcher.special, acceptor.dispatcher.tenant = self.table.special, self._tenant
        acceptor.dispatcher.is_asleep = lambda mount: self._of(mount).is_asleep()
        self._reporter = Reporter(
            self._board, self.table.mounts, self.live.all, self._workshop.orders, acceptor, lambda: self.certificates()
        )
        interpreters.preload()
        self.rss_at_start = rss_mib()
        self._meter.start(acceptor.later)
        self.rounds.start(acceptor.later)
        self.rounds.reporter = self._reporter
        now, call = time.monotonic(), self._containment.call
        for deployment in self.deployments:
            # Of all of them first: what one may load, others may.
            call(f"{deployment.name}: result of an earlier trial", self._workshop.recall, deployment)
        for deployment in self.deployments:
            if deployment.is_quarantined:
                self._log.error(
                    "%s: crashed its worker too often; it answers 503 until gunicorn reloads (SIGHUP)", deployment.mount.pattern
                )
            elif not deployment.mount.lazy:
                call(f"{deployment.name}: start", deployment.start, now)  # without effect if the operator has stopped it
        self._reporter.publish(now)

    def hear_answers(self, on_answer: Callable[[Instance, Part], None]) -> None:
        """Have the answers that come in parts taken."""
        self._workshop.on_answer = on_answer

    def choose(self, mount: int) -> Instance | NotServing:
        return self._of(mount).choose(time.monotonic())

    def count_refused(self, mount: int, line: str, text: str) -> None:
        """Note a request of a mount that was answered without any instance; see `replies.Replies`."""
        self._of(mount).reports.refused(mount, line.removesuffix(" HTTP/1.1"), text)

    def restart_reason(self) -> str | None:
        """Say why the worker should be replaced by a new one, gracefully, or None."""
        limits = self.table.config.limits
        for deployment in self.live.all():
            if deployment.restart_reason:
                return deployment.restart_reason
        # A boot that hangs would hang in the next worker too.
        stuck = sum(instance.state is State.STUCK and instance.is_loaded for instance in self._instances())
        stuck += sum(instance.is_loaded for deployment in self.live.all() for instance in deployment.slots.left)
        stuck += self._workshop.departures.overdue()
        if stuck > limits.max_stuck:
            return f"{stuck} instances are stuck or left behind, max_stuck is {limits.max_stuck}"
        leaked = self._workshop.leaked
        if leaked > limits.max_leaked:
            return f"this Python has not freed the memory of {leaked} ended interpreters, max_leaked is {limits.max_leaked}"
        if self._workshop.spawner is not None and self._workshop.spawner.is_gone:
            return "its spawner, which starts the processes of mounts with a user, has ended"
        return self._memory.restart_reason(time.monotonic())

    def is_settled(self) -> bool:
        """Whether every mount that was started serves or has failed."""
        return not any(each.siting.is_on_trial or each.is_in_line or not each.slots.is_settled() for each in self.deployments)

    def nothing_serves(self) -> bool:
        return not any(deployment.is_serving() or deployment.is_asleep() or deployment.is_stopped for deployment in self.deployments)

    def requests(self) -> int:
        """Return how many requests the instances have begun to serve, but for those that only a walled process says it has."""
        return self._board.total(REQUESTS) - self._workshop.claimed

    def reopen_logs(self) -> None:
        for instance in self._instances():
            instance.tell(messages.Reopen())

    def finish(self) -> None:
        """Tell every instance that its next response on each connection is the last."""
        self._workshop.is_stopping = True
        self._containment.call("queue of replacements", self._workshop.turns.end)
        self._containment.call("ends of interpreters", self._workshop.departures.end)
        for deployment in self.live.all():
            self._containment.call(f"{deployment.name}: closing its connections", deployment.finish)
        self._containment.call("report to the scoreboard", self.publish, True)

    def publish(self, is_stopping: bool = False) -> None:
        """Publish the report now: something has changed that its readers must not learn late.

        Args:
            is_stopping: whether to say from now on that the worker stops, so that `/ready` does not count it.
        """
        if self._reporter is not None:
            (self._reporter.stop if is_stopping else self._reporter.publish)(time.monotonic())

    def stop(self) -> None:
        """Let every instance end its threads and run its app's exit functions; who waits for a mount is answered 503."""
        self._workshop.is_stopping = True
        self.rounds.end()
        self._containment.call("ends of interpreters", self._workshop.departures.end)
        for deployment in self.live.all():
            self._containment.call(f"{deployment.name}: stop", deployment.stop)

    def lost_connections(self) -> int:
        """Return how many connections are held by threads that do not come out of their requests; their clients were answered."""
        return sum(len(instance.requests_in_flight()) for instance in self._instances() if instance.state is State.STUCK)

    def has_ended(self) -> bool:
        """Whether all that ever served has ended; an app that is still being loaded has no exit functions worth waiting for."""
        return not any(instance.is_loaded for instance in self._instances() if instance.state is not State.STUCK)

    def abandon(self) -> list[str]:
        """Give up on instances that did not end, and end what starts others; return the tags of those."""
        left = [instance for instance in self._instances() if instance.is_loaded and instance.state is State.DRAINING]
        for instance in left:
            instance.abandon()
        self._containment.call("fork servers", self._workshop.fork_servers.end)
        return [instance.tag for instance in left]

    def _instances(self) -> list[Instance]:
        """Return all instances that have not ended."""
        return [instance for deployment in self.live.all() for instance in deployment.slots.all() if instance.state not in ENDS]

    def _on_report(self) -> None:
        now = time.monotonic()
        self.live.look_at_tenants(now)
        self._containment.call("queue of replacements", self._workshop.turns.pass_on, now)
        self._containment.call("queue of boots", self._workshop.boots.pass_on, now)
        if self._reporter is not None:
            self._containment.call("report to the scoreboard", self._reporter.publish_soon, now)
        self.on_report()


def _is_any(members: Sequence[Mount], patterns: Collection[str]) -> bool:
    return any(member.pattern in patterns for member in members)


def _isolation_of(mount: Mount) -> str:
    if mount.isolation == "auto":
        return interpreters.PROCESS if mount.needs_process else interpreters.best_isolation()
    return mount.isolation
