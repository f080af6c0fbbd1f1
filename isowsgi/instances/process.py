"""An instance in a child process of the worker: the worker's side of it.

The child runs the same code as an interpreter does (`inside/`), writes to the same scoreboard, and takes and gives the same packets. Only
the connections come by mail (`handover.Loans`). It may be of another Python version. A keeper thread starts it and waits for its end; if it
ends by a crash, only the requests that it was serving are lost, and these are answered 502.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping

from isowsgi.instances.base import ShutDown
from isowsgi.instances.bootorder import first_python
from isowsgi.instances.controlgroups import ControlGroups
from isowsgi.instances.forkedprocess import ForkedProcess
from isowsgi.instances.forkserver import START, memory_file
from isowsgi.instances.forkservers import ForkServers
from isowsgi.instances.keepers import Words
from isowsgi.instances.lending import LendingInstance, Owner
from isowsgi.instances.lifecycle import State
from isowsgi.instances.original import Edition
from isowsgi.instances.ownrows import OwnRows
from isowsgi.instances.preloads import MOST_MODULES
from isowsgi.instances.privatefolder import with_folder
from isowsgi.instances.spawnedprocess import SpawnedProcess, SpawnerClient, SpawnFailed, spawn
from isowsgi.instances.subinterpreter import boot_source
from isowsgi.shared import messages, workdir
from isowsgi.shared.containment import Containment
from isowsgi.shared.messages import BootOrder, Descriptors, Report
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.shared.wire import MessageError


class ProcessInstance(LendingInstance):
    """One live copy in its own process.

    Args:
        shared_fds: board, and origins if there are any. They stay the caller's.
        owner: of the connections that come back.
        environ: the environment of the worker, without what apps in it have changed.
        containment: where mistakes end that are one connection's.
        groups: of the worker, for what it limits.
        servers: fork its process, if there are any.
        edition: of what its process is a copy; None: it loads the app.
        spawner: starts it, if it is another user's.
        own_rows: what it writes in the place of the scoreboard; this object's from now on. None: it writes there.
        wake: called on its keeper's thread when `read` has what that says.
    """

    can_be_killed = True

    def __init__(
        self,
        order: BootOrder,
        shared_fds: Mapping[str, int],
        board: Scoreboard,
        owner: Owner,
        environ: Mapping[str, str],
        containment: Containment,
        groups: ControlGroups,
        servers: ForkServers | None = None,
        edition: Edition | None = None,
        spawner: SpawnerClient | None = None,
        own_rows: OwnRows | None = None,
        wake: Callable[[ProcessInstance], object] = lambda instance: None,
    ) -> None:
        super().__init__(order, board, owner, containment, own_rows)
        self._python: str = (first := first_python(order)) or sys.executable
        # Of the host's Python; another one would look for its standard library there.
        self._environ = {name: value for name, value in environ.items() if name != "PYTHONHOME" or not first}
        fds = Descriptors(**(own_rows.fds if own_rows else shared_fds), channel=self._inner.fileno(), mail=self._inner_mail.fileno())
        self._order = order.replace(fds=fds, worker_pid=os.getpid())
        self._effects[messages.Closed] = lambda report: None  # the process ends next, and that brings the connections back
        self._effects[messages.Exited] = self._on_exited
        self._effects[messages.Imported] = self._on_imported
        self._groups = groups
        self._servers = servers if first == order.host.python else None  # a fork server would run the app's Python outside the walls
        self._edition = edition
        self._spawner = spawner
        self._imported: list[str] = []  # as its process says, until it is ready
        self._child: subprocess.Popen[bytes] | ForkedProcess | SpawnedProcess | None = None
        self._is_killed = False
        self._words = Words(functools.partial(wake, self))
        self._is_shut_down = False  # whether the child says nothing more
        self._has_exited = False  # as its keeper knows
        self._keeper = threading.Thread(target=self._keep, name=f"isowsgi-keeper {self.tag}", daemon=True)

    @property
    def pid(self) -> int | None:  # type: ignore[override] # is known once the keeper has started it
        """Return the child's process id, once it was started."""
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        self._keeper.start()

    def read(self) -> Report | None:
        try:
            report = None if self._is_shut_down else super().read()
        except ShutDown:
            self._is_shut_down = True
            self._owner.unwatch(self.fileno())  # else its event would come again and again
            raise
        if report is None and (report := self._words.next()) is not None:
            self._effects[type(report)](report)
        return report

    def _report_from_keeper(self, report: Report) -> None:
        self._words.say(report)

    def abandon(self) -> None:
        super().abandon()
        self.kill()

    def time_out_boot(self) -> None:
        super().time_out_boot()
        self.kill()

    def kill(self) -> None:
        self._is_killed = True
        if self._child is not None:
            self._child.kill()
        elif self._edition is not None:
            self._edition.give_up()

    def distrust(self) -> None:
        super().distrust()
        self.kill()

    def dispose(self, destroy: bool) -> None:
        # Not left to the garbage collector, which has to find cycles first and in an idle worker seldom looks.
        self.discard()
        # Only now, as the deployment knows of the end: a request that waits there would be handed to this instance again.
        for fd in self._unserved:
            self._owner.take_back(fd)

    def _on_imported(self, report: messages.Imported) -> None:
        if self._order.environment.learns and self.state is State.BOOTING:
            self._imported += report.modules[: MOST_MODULES - len(self._imported)]

    def _on_ready(self, report: messages.Ready) -> None:
        super()._on_ready(report)
        imported, self._imported = self._imported, []
        if self._servers is not None and imported:
            self._servers.learn(self._python, self._order, imported)

    def _on_exited(self, report: messages.Exited) -> None:
        if not self._has_exited:
            raise MessageError("a child says that it has ended, and runs")
        if not self._is_killed and (report.status or self.state in (State.BOOTING, State.SERVING)):
            self.how_it_ended = f"process was killed {self._killed_by}" if self._killed_by else _ended_by(report.status)
            if requests := self.requests_in_flight():
                self.how_it_ended += f" while serving {'; '.join(requests)}"
        try:
            self._settle()
            if self.own_rows is not None:
                self.own_rows.exchange()
        finally:
            for row in self._thread_rows:
                row.clear()
            if self.state is State.BOOTING:
                how = self.how_it_ended or "process was killed"
                self.error = self.traceback = f"its {how} before the app was loaded{_hint(self._order, report.status)}"
            self._on_ended(threads_left=0)

    def _end_cut_off(self) -> None:
        if self._child is not None and not self._has_exited:
            self._child.kill()  # and so its end is reported as a crash

    def _keep(self) -> None:
        """The keeper's whole life: one child, from its start to its end. The kernel kills the child when this thread ends (prctl)."""
        status = 0
        try:
            with contextlib.ExitStack() as owned:
                order, group = owned.enter_context(self._groups.hold(self._order))
                self.group = None if group is None else group.kernels
                if group is not None and not is_of_another_user(order):  # such a one limits itself too: its spawner takes no word of this
                    self.grouped = frozenset(group.limits)
                self._child = self._copy(order, owned)
                if self._child is None:
                    order = owned.enter_context(with_folder(order))
                    self._child = spawn(self._spawner, order) if is_of_another_user(order) else self._fork(order) or self._start(order)
                self._inner_mail.close()
                if self._is_killed:
                    self._child.kill()
                status = self._child.wait()
                if group is not None:
                    self._killed_by = group.why_killed(status) or self._killed_by
        except SpawnFailed as exc:
            self._report_from_keeper(messages.Failed(error=str(exc), traceback=""))
        except Exception as exc:  # no memory, no descriptor, no such file
            self._report_from_keeper(messages.Failed(error=f"cannot start {self._python!r}: {exc}", traceback=""))
        self._has_exited = self.has_gone = True
        self._report_from_keeper(messages.Exited(status=status))

    def _copy(self, order: BootOrder, owned: contextlib.ExitStack) -> ForkedProcess | None:
        """Return a process that is a copy of one with the app; its original is there until `owned` is closed."""
        if self._edition is None or self._servers is None:
            return None
        owned.enter_context(self._edition.membership())
        return self._servers.copy(self._python, self._environ, order, self._edition)

    def _fork(self, order: BootOrder) -> ForkedProcess | None:
        return None if self._servers is None else self._servers.fork(self._python, self._environ, order)

    def _start(self, order: BootOrder) -> subprocess.Popen[bytes]:
        with memory_file(boot_source(order).encode()) as source:
            return subprocess.Popen(
                [self._python, "-c", START, "isowsgi", self.tag],  # the last two are for people who read `ps`
                stdin=source,
                cwd=workdir.for_child(),
                env=self._environ,
                pass_fds=[*(order.fds.known() if order.fds else ()), *order.log_files.values()],
            )


def is_of_another_user(order: BootOrder) -> bool:
    """Whether only a spawner can start its process."""
    return order.walls is not None and bool(order.walls.user)


def _hint(order: BootOrder, status: int) -> str:
    """Return what may be why a process has ended without a word: a Python that is refused its standard library exits with status 1."""
    if status != 1 or order.host.python is None or order.walls is None or order.walls.sandbox is None:
        return ""
    return f"; if {order.host.python!r} cannot start in its sandbox, add the folders of that Python to sandbox.read"


def _ended_by(status: int) -> str:
    if status >= 0:
        return f"process exited with status {status}"
    try:
        return f"process was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"process was killed by signal {-status}"
