"""The child process of a trial, run as a script: `trialchild.py RESULT_FD LIFELINE_FD`, with the task as JSON on its standard input.

Writes into RESULT_FD signs of what it is about to do, then one line of JSON, the fields of `trial.Outcome`, and leaves. For a
"process" trial it may be run by another CPython than the host's, whose folders have neither isowsgi nor gunicorn: both come from the
host's.
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

# How long an instance that serves nobody may take to end; its exit functions have 5 s of that.
_END_S = 10.0

# How often a copy is loaded again after all others have ended.
_REBIRTHS = 3

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from isowsgi.shared.messages import BootOrder


def main() -> None:
    if hasattr(sys, "set_lazy_imports_filter"):  # 3.15; else with PYTHON_LAZY_IMPORTS=all these are imported who knows when
        sys.set_lazy_imports_filter(lambda importer, *_: not importer.startswith("isowsgi"))
    result_fd, lifeline = int(sys.argv[1]), int(sys.argv[2])
    for fd in (result_fd, lifeline):
        os.set_inheritable(fd, False)
    _die_with(lifeline)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if folder and folder != here]  # the script's, whose names hide others'
    with open(0, encoding="utf-8", errors="surrogatepass", closefd=False) as file:
        task = json.load(file)
    for name, folder in task["order"]["host"]["packages"].items():
        _import_from(name, folder)
    _say_where_it_crashes()
    from isowsgi.shared import messages

    order = messages.read_boot_order(task["order"])
    try:
        os.chdir(order.environment.chdir)  # else it stays where an app has gone
    except OSError:
        pass
    from isowsgi.isolation import touches

    watch = touches.begin(order)
    outcome = _try(order, task["copies"], task["timeout_s"], lambda sign: os.write(result_fd, sign))
    with open(result_fd, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(json.dumps({**outcome, "touched": [] if watch is None else watch.lines()}) + "\n")
    # Where the app ran in this interpreter its policy is in force here, and knows isowsgi's own way out by the function.
    boot = sys.modules.get("isowsgi.inside.boot")
    leave = os._exit if boot is None else boot.end_process
    leave(0)


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
    from isowsgi.shared import releases

    faulthandler.enable(**releases.PYTHON_STACKS_ONLY)


class Unloadable(Exception):
    """A copy was not loaded; carries what is known of it, as fields of `trial.Outcome`."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(facts)
        self.facts = facts


def _try(order: BootOrder, copies: int, timeout_s: float, mark: Callable[[bytes], object]) -> dict[str, Any]:
    """Load copies one after the other, let them live and die as a worker does, and return how it went.

    Args:
        mark: tells the parent what comes next: a copy is loaded ("."), one is ended ("e"). It is all that is left of a crash.
    """
    nursery = _Nursery(order, copies, timeout_s, mark)
    if order.walls is not None:
        from isowsgi.inside import walls

        # Not before the scoreboard, whose memory is a file of some size. Other processes of the user's are not counted in a control group.
        walls.put_up(order.walls.replace(grouped=["processes"]))
    outcome = nursery.outcome
    is_process = order.isolation == "process"
    alive = []
    try:
        for _ in range(copies):
            before = 0.0 if is_process else _memory_mib()
            alive.append(nursery.load())
            outcome["memory_mib"] = round(_memory_mib() - before, 1)
        if order.loading.asked is not None:
            return {**outcome, **_answers(nursery.told), "loaded": True}
        outcome.update(_findings(nursery.told, copies))
        if not is_process:
            _replace_and_revive(nursery, alive)
    except Unloadable as exc:
        return {**outcome, **exc.facts}
    return {**outcome, "loaded": True}


def _replace_and_revive(nursery: _Nursery, alive: list[Any]) -> None:
    """Let one copy replace another, then let all end and one come again, as after `idle_timeout`.

    What keeps objects of one interpreter in C variables, and hands them to the next, shows when the first is gone.
    """
    for _ in range(len(alive) - 1):
        if not nursery.end(alive.pop(0)):
            return
        alive.append(nursery.load())
    # And again where there is C code, and to the end: whether it meets what the first has left depends on what lies there by then.
    # orjson 3.13.0 crashed a shared GIL's process in 11 of 12 trials that loaded it once more, and in 59 of 60 that went on so.
    rounds = _REBIRTHS if nursery.outcome["extensions"] else 1
    while rounds and all(nursery.end(instance) for instance in alive):
        alive, rounds = [nursery.load()], rounds - 1
    if not rounds:
        nursery.end(alive[0])


class _Nursery:
    """Loads and ends copies of an app.

    Attributes:
        outcome: what is known so far, as fields of `trial.Outcome`.
        told: a file in which the copies tell what their extension modules share.
    """

    def __init__(self, order: BootOrder, copies: int, timeout_s: float, mark: Callable[[bytes], object]) -> None:
        from isowsgi.instances.subinterpreter import InterpreterInstance
        from isowsgi.shared import interpreters
        from isowsgi.shared.scoreboard import Scoreboard

        is_process = order.isolation == "process"
        self._kind = _plain_instance() if is_process else InterpreterInstance
        if not is_process:
            interpreters.preload()
        self._order, self._copies, self._timeout_s, self._mark = order, copies, timeout_s, mark
        self._board = Scoreboard()
        self._sets = [select.epoll(), select.epoll()]
        self.told = os.memfd_create("isowsgi-survey")
        self._shared = {
            "survey": self.told,
            "returns": self._sets[0].fileno(),
            "lingering": self._sets[1].fileno(),
            "board": self._board.fd,
            "capacity": os.eventfd(0, os.EFD_CLOEXEC),
        }
        self.outcome: dict[str, Any] = {"loaded": False, "python": interpreters.version_text()}
        self._met: dict[Any, None] = {}  # extension modules that any copy loaded: the second one of an app may load others
        self._refused: dict[str, tuple[str, str, str]] = {}
        self._loads = 0

    def load(self) -> Any:
        """Return a copy that serves.

        Raises:
            Unloadable: it does not.
        """
        from isowsgi.instances.lifecycle import State

        order = self._order
        self._loads += 1
        self._mark(b".")
        first_row = self._board.allot(order.serving.threads, [member.mount for member in order.members])
        instance = self._kind(order.replace(place=order.place.replace(first_row=first_row)), self._shared, self._board)
        instance.start()
        _follow(instance, self._timeout_s, lambda: instance.state is not State.BOOTING)
        self._met.update(dict.fromkeys(map(tuple, instance.extensions)))
        self._refused.update((name, (name, path, error)) for name, path, error in instance.refused)
        self.outcome.update(extensions=list(self._met), refused=list(self._refused.values()))
        if self._loads <= self._copies:
            self.outcome.update(boot_s=instance.boot_s)
        if instance.state is State.BOOTING:
            error = f"it was not loaded within {self._timeout_s:g} s"
            raise Unloadable({"timed_out": True, "error": error, "traceback": _stack_of_boot(), "failed_copy": self._loads})
        if instance.state is not State.SERVING:
            raise Unloadable({"error": instance.error, "traceback": instance.traceback, "failed_copy": self._loads})
        return instance

    def end(self, instance: Any) -> bool:
        """End an instance and its interpreter; False if a thread or `__del__` of the app's does not let it: a worker leaves it behind."""
        from isowsgi.instances.lifecycle import State

        self._mark(b"e")
        instance.drain()
        instance.stop()
        _follow(instance, _END_S, lambda: instance.state in (State.CLOSED, State.FAILED))
        if instance.state is not State.CLOSED or instance.threads_left:
            return False
        instance.dispose(destroy=True)
        return bool(instance.join(_END_S))


def _findings(told: int, copies: int) -> dict[str, Any]:
    """Return what the copies have told of their extension modules, while all of them live."""
    os.lseek(told, 0, os.SEEK_SET)
    with open(told, encoding="utf-8", closefd=False) as file:
        surveys = [json.loads(line) for line in file]
    lost = sorted({name for survey in surveys for name in survey["lost"]})
    if len(surveys) != copies or copies < 2:
        return {"lost": lost}
    from isowsgi.isolation import sharing

    return {"lost": lost, "shared": sharing.compare(surveys[0], surveys[1])}


def _answers(told: int) -> dict[str, Any]:
    """Return how long the first copy took to load, and what it answered."""
    os.lseek(told, 0, os.SEEK_SET)
    with open(told, encoding="utf-8", closefd=False) as file:
        facts: dict[str, Any] = json.loads(file.readline())
    return facts


def _follow(instance: Any, limit_s: float, is_over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + limit_s
    while not is_over() and (left := deadline - time.monotonic()) > 0:
        if select.select([instance], [], [], left)[0]:
            while instance.read() is not None:
                pass


def _plain_instance() -> Any:
    """Return a class of instances that live in this interpreter, the only one of its process."""
    from isowsgi.inside import boot
    from isowsgi.instances.subinterpreter import InterpreterInstance
    from isowsgi.shared import messages

    class PlainInstance(InterpreterInstance):
        def _keep(self) -> None:
            try:
                boot.run(self._order)
            except BaseException as exc:
                import traceback

                text = traceback.format_exc()
                self._report_from_keeper(messages.Failed(error=f"{type(exc).__name__}: {exc}", traceback=text[-32_768:]))

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
