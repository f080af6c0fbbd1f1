"""Makes instances and frees their resources; it is all that a deployment knows of its worker, see `deployment.Surroundings`.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from isowsgi.configuration import Mount
from isowsgi.instances.base import HostedInstance
from isowsgi.instances.bootorder import BootOrders
from isowsgi.instances.controlgroups import ControlGroups
from isowsgi.instances.forkservers import ForkServers
from isowsgi.instances.keepers import Keepers
from isowsgi.instances.maininterpreter import MainInstance
from isowsgi.instances.original import Edition
from isowsgi.instances.ownrows import OwnRows
from isowsgi.instances.process import ProcessInstance, is_of_another_user
from isowsgi.instances.spawnedprocess import SpawnerClient
from isowsgi.instances.subinterpreter import InterpreterInstance
from isowsgi.shared.containment import Containment
from isowsgi.shared.interpreters import MAIN, OWN_GIL, PROCESS, SHARED_GIL, keeps_memory
from isowsgi.shared.messages import BootOrder, Measured, Part
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker.acceptor import Acceptor
from isowsgi.worker.bootqueue import Boots, boots_at_a_time, machine_times
from isowsgi.worker.departures import Departures
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.reloadqueue import LOOK_S, Places, Turns
from isowsgi.worker.slots import Instance
from isowsgi.worker.trials import Placement


def has_copies(mount: Mount) -> bool:
    """Whether a mount's processes are forked from one that has loaded its app; a single one would gain nothing."""
    return mount.copies == "fork" and mount.instances > 1


class Workshop:
    """One worker's.

    Args:
        orders: writes boot orders.
        board: the worker's scoreboard.
        log: gunicorn's logger.
        containment: ends our own mistakes.
        drain_s: how long requests of a replaced instance may take to end.
        origins_fd: of the table that says where connections come from; None: their sockets do.
        places: where something may be loaded beside what serves.
        groups: for processes with limits.
        spawner: of processes of other users; None if no mount has a user.

    Attributes:
        claimed: requests that walled processes say that they have begun to serve; the worker does not count on it.
        leaked: interpreters ended on a release that keeps their memory.
        is_stopping: whether the worker is, so that nothing needs to be freed any more.
        fork_servers: fork the mounts' processes.
        forks_processes: whether processes come from fork servers; asked for each.
        on_report: called when an instance has something to say, and the deployment has dealt with it.
        on_files, on_answer, on_measured: see `Surroundings`; set by those who want to know.
    """

    def __init__(
        self,
        orders: BootOrders,
        board: Scoreboard,
        log: Any,
        containment: Containment,
        drain_s: float,
        origins_fd: int | None,
        places: Places,
        groups: ControlGroups,
        spawner: SpawnerClient | None = None,
    ) -> None:
        self.orders = orders
        self.board = board
        self.log = log
        self.containment = containment
        self.drain_s = drain_s
        self.placement = Placement(orders, containment)
        self.turns = Turns(places, self._look_again)
        self._will_look = False
        self.boots = Boots(boots_at_a_time(orders.workers), log, containment.call, machine_times)
        self.departures = Departures(log, places.for_ends(), self._look_again)
        self.groups = groups
        self.spawner = spawner
        self.leaked = self.claimed = 0
        self.is_stopping = False
        self.forks_processes: Callable[[], bool] = lambda: False
        self.on_report: Callable[[], None] = lambda: None
        self.on_files: Callable[[list[str]], None] = lambda files: None
        self.on_answer: Callable[[Instance, Part], None] = lambda instance, report: None
        self.on_measured: Callable[[Instance, Measured, float], None] = lambda instance, report, now: None
        self._acceptor: Acceptor | None = None
        self._capacity = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._keepers = Keepers(containment)
        self._fds = {"board": board.fd} if origins_fd is None else {"board": board.fd, "origins": origins_fd}
        self.fork_servers = ForkServers(orders.packages, log, containment)
        self._environ = dict(os.environ)  # before an app in the main interpreter changes it

    def start(self, acceptor: Acceptor) -> None:
        """Begin to work for an acceptor; instances can be made from now on."""
        self._acceptor = acceptor
        acceptor.watch(self._capacity, self._on_capacity)
        acceptor.watch(self._keepers.fileno(), self._keepers.turn)
        acceptor.watch(self.placement.fileno(), self._on_verdicts)
        if self.spawner is not None:
            acceptor.watch(self.spawner.fileno(), self._on_spawners_end)

    def make(self, deployment: Deployment, slot: int) -> Instance:
        acceptor, board, mount = self._parts(), self.board, deployment.mount
        self.recall(deployment)
        numbers = [member.number for member in deployment.members]
        isolation = deployment.siting.isolation
        first_row = board.allot(self.orders.threads_of(mount), numbers, isolation)
        with contextlib.ExitStack() as undo:
            undo.callback(board.give_back, first_row)
            instance = self._make(self._order(deployment, slot, first_row), self._edition_of(deployment))
            undo.callback(instance.discard)
            read = partial(self._on_reports, deployment, instance)
            self._keepers.expect(instance, read)
            undo.callback(self._keepers.forget, instance)
            acceptor.watch(instance.fileno(), read)
            undo.callback(acceptor.unwatch, instance.fileno())
            instance.start()
            undo.pop_all()
        return instance

    def dispose(self, instance: Instance, is_awaited: bool) -> None:
        assert isinstance(instance, HostedInstance), "made here"
        self._parts().unwatch(instance.fileno())
        self._keepers.forget(instance)
        if instance.threads_left:
            text = "%s: ended, but %d of the app's threads are still running, so its interpreter cannot be freed"
            self.log.warning(text, instance.tag, instance.threads_left)
        else:
            self.board.give_back(instance.first_row)
            if not self.is_stopping:
                self.log.info("%s: ended", instance.tag)
                self.leaked += keeps_memory(instance.isolation)
                if instance.isolation in (OWN_GIL, SHARED_GIL) and not is_awaited:
                    self.departures.put_off(instance, time.monotonic())
                    return
                self.departures.add(instance, time.monotonic())
        # At a worker's exit the process goes with all it holds; ending interpreters one by one would only add risks.
        instance.dispose(destroy=not self.is_stopping)

    def release(self, deployment: Deployment) -> None:
        if self._acceptor is None:
            return  # nobody waits before the start
        for member in deployment.members:
            self._acceptor.release(member.number)

    def try_out(self, deployment: Deployment, unknown_extension: str | None) -> bool:
        return self.placement.try_out(deployment, unknown_extension)

    def take_turn(self, deployment: Deployment, now: float) -> bool:
        return self.turns.take(deployment, now)

    def may_boot(self, deployment: Deployment, now: float) -> bool:
        return self.turns.take(deployment, now) if deployment.is_prepared else self.boots.take(deployment, now)

    def hurry(self, deployment: Deployment) -> None:
        self.boots.hurry(deployment)

    def leave_line(self, deployment: Deployment) -> None:
        self.boots.leave(deployment)
        self.turns.leave(deployment)

    def recall(self, deployment: Deployment) -> None:
        """Settle where a deployment lives by what an earlier trial found."""
        siting = deployment.siting
        if not siting.is_known:
            verdict = self.placement.recall(deployment.members)
            if verdict is not None and verdict.isolation is not None:
                siting.settle(verdict.isolation, verdict.reason, verdict.extensions)
                siting.late_imports = list(verdict.imports)

    def keep_fork_servers(self, deployments: Iterable[Deployment]) -> None:
        """End the fork servers that no process of these comes from any more."""
        forks = self.forks_processes()
        in_processes = [each for each in deployments if each.siting.isolation == PROCESS]
        self.fork_servers.keep({each.name for each in in_processes if forks or each.mount.preload or has_copies(each.mount)})

    def _order(self, deployment: Deployment, slot: int, first_row: int) -> BootOrder:
        siting = deployment.siting
        extensions = siting.extensions if siting.is_known or siting.isolation != OWN_GIL else self.placement.vouched()
        return self.orders.write(
            deployment.members,
            siting.isolation,
            slot,
            deployment.generation,
            first_row,
            extensions,
            has_time=deployment.is_serving() or deployment.is_prepared,
            routes=deployment.routes,
            status=deployment.status,
            asks=True,
        )

    def _edition_of(self, deployment: Deployment) -> Edition | None:
        """Return of what a deployment's processes are copies; None if each loads its app."""
        if not has_copies(deployment.mount):
            return None
        edition = deployment.slots.edition
        edition.limit_s, edition.groups = deployment.mount.boot_timeout, self.groups
        return edition

    def _make(self, order: BootOrder, edition: Edition | None) -> HostedInstance:
        acceptor, board = self._parts(), self.board
        if order.isolation == PROCESS:
            around = order.environment
            servers = self.fork_servers if self.forks_processes() or around.preload or around.learns or edition else None
            if is_of_another_user(order):
                servers = edition = None
            known = (order, self._fds, board, acceptor, self._environ, self.containment, self.groups)
            return self._with_own_rows(order, partial(ProcessInstance, *known, servers, edition, self.spawner, wake=self._keepers.wake))
        fds = {**self._fds, "returns": acceptor.returns_fd, "lingering": acceptor.lingering_fd, "capacity": self._capacity}
        if order.isolation == MAIN:
            return MainInstance(order, fds, board, self.log)
        return InterpreterInstance(order, fds, board)

    def _with_own_rows(self, order: BootOrder, make: Callable[..., ProcessInstance]) -> ProcessInstance:
        """Make a process with memory of its own for its rows, if its order says so."""
        if order.walls is None or not order.walls.has_own_rows:
            return make(own_rows=None)
        own = OwnRows(self.board, order, self._fds.get("origins"), self._on_claimed)
        try:
            return make(own_rows=own)
        except BaseException:
            own.close()
            raise

    def _on_claimed(self, requests: int) -> None:
        self.claimed += requests

    def copy_rows(self, deployment: Deployment) -> None:
        """Show on the scoreboard what processes say in memory of their own; about once a second."""
        for instance in deployment.slots.all():
            if isinstance(instance, ProcessInstance) and instance.own_rows is not None:
                self.containment.call(f"{instance.tag}: its counters", instance.own_rows.exchange)

    def _look_again(self) -> None:
        if not self._will_look:
            self._will_look = True
            self._parts().later(LOOK_S, self._look_for_place, "places of workers")

    def _look_for_place(self) -> None:
        self._will_look = False
        if not self.is_stopping:
            now = time.monotonic()
            self.containment.call("queue of replacements", self.turns.pass_on, now)
            self.containment.call("ends of interpreters", self.departures.pass_on, now)

    def _on_reports(self, deployment: Deployment, instance: HostedInstance) -> None:
        deployment.reports.read(instance, time.monotonic())
        self.on_report()

    def _on_verdicts(self) -> None:
        self.placement.read_verdicts()
        self.on_report()

    def _on_spawners_end(self) -> None:
        assert self.spawner is not None, "it is watched"
        self._parts().unwatch(self.spawner.fileno())
        self.spawner.note_end()

    def _on_capacity(self) -> None:
        os.eventfd_read(self._capacity)
        self._parts().on_capacity()

    def _parts(self) -> Acceptor:
        assert self._acceptor is not None, "set by start(), before any instance"
        return self._acceptor
