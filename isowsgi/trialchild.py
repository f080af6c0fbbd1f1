"""The child process of a trial, run as a script: `trialchild.py RESULT_FD LIFELINE_FD`, with the task as JSON on its standard input.

Prints one line of JSON, the fields of `trial.Outcome`, into RESULT_FD and leaves. For a "process" trial it may be run by another CPython
than the host's, whose folders have neither isowsgi nor gunicorn: both come from the host's.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import resource
import select
import signal
import sys
import time
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    result_fd, lifeline = int(sys.argv[1]), int(sys.argv[2])
    for fd in (result_fd, lifeline):
        os.set_inheritable(fd, False)
    _die_with(lifeline)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if folder and folder != here]  # the script's, whose names hide others'
    with open(0, closefd=False) as file:
        task = json.load(file)
    for name, folder in task["order"]["packages"].items():
        _import_from(name, folder)
    _say_where_it_crashes()
    outcome = _try(task["order"], task["copies"], task["timeout_s"])
    with open(result_fd, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(json.dumps(outcome) + "\n")
    os._exit(0)


def _die_with(lifeline: int) -> None:
    """Have the kernel kill this process group when the parent is gone, which holds the other end of this pipe.

    So it works while the app holds the GIL. PR_SET_PDEATHSIG would fire when the thread ends that started the child.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:
        os._exit(1)  # it was gone before


def _import_from(name: str, folder: str) -> None:
    """Import a package from a folder that is not on the path; its submodules are found by its own path."""
    spec = PathFinder.find_spec(name, [folder])
    assert spec is not None, f"the host has {name} in {folder}"
    assert spec.loader is not None, "a package with an __init__.py has one"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _say_where_it_crashes() -> None:
    try:
        import faulthandler
    except ImportError:  # left out of some builds
        return
    if sys.version_info >= (3, 14):
        faulthandler.enable(c_stack=False)
    else:
        faulthandler.enable()


def _try(order: dict[str, Any], copies: int, timeout_s: float) -> dict[str, Any]:
    """Load the copies one after the other, and return how it went."""
    from isowsgi import interpreters
    from isowsgi.instances.interpreter import InterpreterInstance
    from isowsgi.lifecycle import State
    from isowsgi.scoreboard import Scoreboard

    is_process = order["isolation"] == "process"
    if not is_process:
        interpreters.preload()
    board = Scoreboard()
    returns, lingering = select.epoll(), select.epoll()
    shared = {"returns": returns.fileno(), "lingering": lingering.fileno(), "board": board.fd, "capacity": os.eventfd(0, os.EFD_CLOEXEC)}
    outcome: dict[str, Any] = {"loaded": False, "python": interpreters.version_text()}
    kept: list[Any] = [returns, lingering]  # all stay alive
    for copy in range(1, copies + 1):
        before = 0.0 if is_process else _memory_mib()
        order["first_row"] = board.allot(1 + order["threads"])
        instance = (_plain_instance() if is_process else InterpreterInstance)(order, shared, board)
        kept.append(instance)
        instance.start()
        deadline = time.monotonic() + timeout_s
        while instance.state is State.BOOTING and (left := deadline - time.monotonic()) > 0:
            if select.select([instance], [], [], left)[0]:
                instance.read_reports()
        outcome |= {"extensions": instance.extensions, "refused": instance.refused, "boot_s": instance.boot_s}
        if instance.state is not State.SERVING:
            if instance.state is State.BOOTING:
                outcome |= {"timed_out": True, "error": f"it was not loaded within {timeout_s:g} s", "traceback": _stack_of_boot()}
            else:
                outcome |= {"error": instance.error, "traceback": instance.traceback}
            return {**outcome, "failed_copy": copy}
        outcome["memory_mib"] = round(_memory_mib() - before, 1)
    return {**outcome, "loaded": True}


def _plain_instance() -> Any:
    """Return a class of instances that live in this interpreter, the only one of its process."""
    from isowsgi.inside import boot
    from isowsgi.instances.interpreter import InterpreterInstance

    class PlainInstance(InterpreterInstance):
        def _keep(self) -> None:
            try:
                boot.run(self._order)
            except BaseException as exc:
                import traceback

                text = traceback.format_exc()
                self._report_from_keeper("failed", error=f"{type(exc).__name__}: {exc}", traceback=text[-32_768:])

    return PlainInstance


def _stack_of_boot() -> str:
    """Return where the thread that loads the app is, if that is in this interpreter."""
    import threading
    import traceback

    boots = [thread.ident for thread in threading.enumerate() if thread.name == "isowsgi-0"]
    frames = sys._current_frames() if boots else {}
    return "".join("".join(traceback.format_stack(frames[ident])) for ident in boots if ident in frames)


def _memory_mib() -> float:
    """Return the memory of this process: its own and its share of what it has in common with others (PSS)."""
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii") as file:
            [line] = [line for line in file if line.startswith("Pss:")]
        return int(line.split()[1]) / 1024
    except (OSError, ValueError):  # hidden from us, or a kernel before 4.14
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1024 * 1024)


if __name__ == "__main__":
    main()
