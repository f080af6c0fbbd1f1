"""What the operator's commands do: each is a generator that a `server.ControlServer` steps until it returns the answer.

Which part of the worker carries a command out is said here; a step is sent monotonic seconds. On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from isowsgi.shared import controlmessages
from isowsgi.shared.conffile import ConfFile
from isowsgi.shared.controlmessages import Request, Worker
from isowsgi.shared.messages import Counted, Part, Profiled, ShellOutput
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker.control.applying import Applying
from isowsgi.worker.control.finding import find_deployment, number_of, refuse_without_app
from isowsgi.worker.control.growth import Growths
from isowsgi.worker.control.profiling import Profiling
from isowsgi.worker.control.running import Running
from isowsgi.worker.control.server import Errand
from isowsgi.worker.control.shells import Shells
from isowsgi.worker.control.stacks import StackTraces
from isowsgi.worker.control.viewing import Views
from isowsgi.worker.slots import Instance
from isowsgi.worker.supervisor import Supervisor


class Commands:
    """Carries out requests in one worker.

    Args:
        supervisor: whose mounts they are about.
        applying: carries out those about the table.
        conf_file: of gunicorn's settings, as they were read.
        board: the worker's.
        say: writes a warning to the log.

    Attributes:
        running: which mounts were stopped.
        shells: the sessions that are open.
        asker: tells who has sent the request that begins.
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
        self._stacks = StackTraces()
        self._profiling = Profiling()
        self._growths = Growths()
        self.asker: Callable[[], str] = lambda: ""
        self.shells = Shells(lambda text: say(f"{text} ({self.asker()})"))
        self.running = Running(supervisor)
        views = Views(supervisor, applying, conf_file, board)
        self._commands: dict[type[Request[Any]], Callable[[Any], Errand]] = {
            controlmessages.Status: views.status,
            controlmessages.Errors: views.errors,
            controlmessages.AllErrors: views.all_errors,
            controlmessages.Table: views.table,
            controlmessages.Reload: self.running.reload,
            controlmessages.Stop: self.running.stop,
            controlmessages.Start: self.running.start,
            controlmessages.Stacks: self._tell_stacks,
            controlmessages.Profile: self._profile,
            controlmessages.Memory: self._memory,
            controlmessages.Shell: self._shell,
            controlmessages.ShellLine: self.shells.line,
            controlmessages.Prepare: applying.prepare,
            controlmessages.Switch: applying.switch,
            controlmessages.Drop: applying.drop,
        }
        supervisor.hear_answers(self._hear)

    def begin(self, request: Request[Any]) -> Errand:
        """Return the errand that a request asks for; its first step may raise Refusal."""
        return self._commands[type(request)](request)

    def _tell_stacks(self, request: controlmessages.Stacks) -> Errand:
        return (yield from self._stacks.tell(find_deployment(self._supervisor, request.mount)))

    def _profile(self, request: controlmessages.Profile) -> Errand:
        deployment = find_deployment(self._supervisor, request.mount)
        refuse_without_app(deployment)
        return (yield from self._profiling.profile(request, deployment, number_of(deployment, request.mount)))

    def _memory(self, request: controlmessages.Memory) -> Errand:
        return (yield from self._growths.grow(request, find_deployment(self._supervisor, request.mount)))

    def _shell(self, request: controlmessages.Shell) -> Errand:
        deployment = find_deployment(self._supervisor, request.mount)
        refuse_without_app(deployment)
        is_allowed = self._supervisor.table.config.control.shell
        return (yield from self.shells.open(request, deployment, number_of(deployment, request.mount), is_allowed))

    def _hear(self, instance: Instance, report: Part) -> None:
        """Take in a part of an instance's answer."""
        if isinstance(report, Profiled):
            self._profiling.hear(instance, report)
        elif isinstance(report, Counted):
            self._growths.hear(instance, report)
        elif isinstance(report, ShellOutput):
            self.shells.hear(instance, report)
        else:
            self._stacks.hear(instance, report)


def this_worker(config_path: str, age: int) -> Worker:
    """Return what every answer of this worker says of it.

    Args:
        age: gunicorn's number of the worker.
    """
    return Worker(worker=os.getpid(), master=os.getppid(), config=config_path, age=age)
