"""An instance in the worker's main interpreter, as mod_wsgi's application group %{GLOBAL}: for what works nowhere else in a process.

It is what an interpreter is, minus the interpreter: the same code (`inside/`) in threads of the main one. There is one such instance, with
all mounts that ask for it. It shares modules, GIL and exit functions with the worker itself, and cannot be reloaded without a new worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isowsgi.instances.subinterpreter import InterpreterInstance
from isowsgi.shared.containment import traceback_of
from isowsgi.shared.messages import BootOrder
from isowsgi.shared.scoreboard import Scoreboard


class MainInstance(InterpreterInstance):
    """The apps of the main interpreter.

    Args:
        log: gunicorn's logger.
    """

    def __init__(self, order: BootOrder, shared_fds: Mapping[str, int], board: Scoreboard, log: Any) -> None:
        super().__init__(order, shared_fds, board)
        self._log = log

    def _run_interpreter(self) -> None:
        threads_left = 0
        try:
            # Late: the main interpreter needs none of this while no mount lives there. It opens files, and there may be no descriptor.
            from isowsgi.inside import boot

            threads_left = 1  # that there may be, from here on
            boot.run(self._order, self._log)
        except Exception as exc:
            self._report_failure(traceback_of(exc), threads_left)
        if self._disposal.get():
            self._owned.close()
