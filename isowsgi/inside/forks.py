"""Forks by an app: refused in an interpreter; in a child process the copy ends where the app's code does.

A fork copies the thread that calls it. A copy that came back from the app would keep serving: it would answer the same client once more,
take events of the set that it shares with the original, and outlive it. So it ends instead, as a child of `multiprocessing` does.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from isowsgi.inside.private import theirs

apps_os = theirs("os")  # see `private`

is_copy = False


def watch() -> None:
    """Note from now on when this process is a copy; once for each process."""
    os.register_at_fork(after_in_child=_note)


def refuse() -> None:
    """Make fork and exec a RuntimeError that says what to use instead.

    CPython itself refuses them from 3.13 on (`interpreters.create`). Before, the child of a fork aborts, and exec ends the worker.
    """

    def refusal(text: str) -> Callable[..., Any]:
        def refuse(*args: Any, **options: Any) -> Any:
            raise RuntimeError(text)

        return refuse

    fork = refusal("an app in a subinterpreter cannot fork; use subprocess, or multiprocessing.get_context('spawn')")
    execute = refusal("exec would replace the worker with all its mounts; use subprocess")
    apps_os.fork, apps_os.forkpty, apps_os.execv, apps_os.execve = fork, fork, execute, execute  # what the others of their families call


def leave() -> None:
    """End this copy, with the status that the app has asked for, if it raised SystemExit."""
    status = 0
    try:
        exc = sys.exc_info()[1]
        if isinstance(exc, SystemExit):
            status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        elif exc is not None:
            status = 1
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _note() -> None:
    global is_copy
    is_copy = True
