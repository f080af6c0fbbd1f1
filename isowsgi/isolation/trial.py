"""A trial: load an app in a throw-away process, to see whether and how it loads with one isolation.

What an app may do when it is loaded (crash, exit, hang, print without end, take an extension module's only slot) it does there, and it is
a finding. The child is a new process, never a fork, runs the same code as an instance in a worker, and cannot outlive its parent.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isowsgi.configuration.accounts import Account
from isowsgi.configuration.faults import Fault
from isowsgi.instances.privatefolder import with_folder
from isowsgi.isolation import whose
from isowsgi.isolation.sharing import Sharing, harmful
from isowsgi.shared import interpreters, loadfailures, messages, workdir
from isowsgi.shared.interpreters import PROCESS
from isowsgi.shared.messages import BootOrder, Place

# Set in the environment of an app that is only tried, so that it can leave its scheduler or its consumers off. Each trial has its own
# value: processes that the app started and that left the trial's process group are known by it (as Jenkins knows those of a build).
VARIABLE = "ISOWSGI_TRIAL"

# How often what a trial has left is looked for; only a program that starts others all the time needs more than two.
_SEARCHES = 5

# The end of what the app printed that is kept: a traceback of some depth, or what a crash left behind.
_OUTPUT_BYTES = 16 * 1024

# Longest result that is read: two copies' tracebacks and extension modules are far below.
_RESULT_BYTES = 4 * 1024 * 1024

# Reads of a pipe after the child's end: more than a pipe holds (64 KiB, or 1 MiB at most for other users than root).
_PIPE_READS = 20

# How much longer than a load may take the child may say nothing: it enforces the same limit itself if it can, takes a moment to start, and
# ending a copy takes 10 s at most.
_MARGIN_S = 12.0

_CHILD = str(Path(__file__).with_name("trialchild.py"))

# Of gunicorn's settings: the app's lines go to the child's standard error, and nowhere else.
_QUIET: dict[str, Any] = {
    "accesslog": None,
    "capture_output": False,
    "errorlog": "-",
    "logconfig": None,
    "logconfig_dict": {},
    "logconfig_json": None,
    "logger_class": "gunicorn.glogging.Logger",
    "loglevel": "info",
    "statsd_host": None,
    "syslog": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a trial went."""

    isolation: str
    loaded: bool
    error: str = ""  # one line, if it was not loaded
    traceback: str = ""
    failed_copy: int = 0  # which of the copies failed, from 1; 0: none
    boot_s: float = 0.0  # of the last copy, without starting Python
    memory_mib: float = 0.0  # that the last copy takes: an interpreter's share of its process, or a whole process
    python: str = ""  # version of the Python that loaded it
    extensions: tuple[tuple[str, str], ...] = ()  # name and path of each extension module that was loaded
    refused: tuple[tuple[str, str, str], ...] = ()  # name, path and error of each that refused
    lost: tuple[str, ...] = ()  # of the refused ones those whose package is not there at all
    shared: tuple[Sharing, ...] = ()  # what extension modules share between two copies in one process
    load_s: float = 0.0  # of a trial that compares: what of `boot_s` came before the paths were asked for
    answers: tuple[tuple[str, str, str], ...] = ()  # pattern, path, and status or exception
    touched: tuple[str, ...] = ()  # what its sandbox would have refused, and what to add to it
    exit_code: int | None = None  # if the app ended the process
    signal: str | None = None  # if the process crashed: "SIGSEGV"
    timed_out: bool = False
    output: str = ""  # the end of what the app and the interpreter printed

    @property
    def has_died(self) -> bool:
        return self.exit_code is not None or self.signal is not None

    @property
    def failure(self) -> loadfailures.Failure:
        """What its error comes to; only for one that was not loaded."""
        failure = loadfailures.classify(self.error, self.traceback)
        if not self.refused:
            return failure
        if failure.kind == loadfailures.BROKEN:
            # A missing module may be what a package turns to when its extension module was refused; other faults are the app's own.
            is_certain = "ModuleNotFoundError" not in self.error
            return failure if is_certain else loadfailures.Failure(loadfailures.UNCLEAR, "", failure.line)
        if failure.kind == loadfailures.UNCLEAR:
            failure = loadfailures.classify("\n".join(error for _, _, error in self.refused))
        # By the name it is imported by: CPython's messages have the last part of it only.
        names = [name for name, _, error in self.refused if loadfailures.classify(error).kind == failure.kind]
        return loadfailures.Failure(failure.kind, names[0], failure.line) if names else failure


def run(order: BootOrder, isolation: str, *, copies: int = 1, timeout_s: float) -> Outcome:
    """Load an app in a child process and wait for the end of it; call it from a thread that may wait.

    Args:
        order: a boot order as `BootOrders` writes it. If it names a Python, that one runs the child of a "process" trial.
        isolation: "own-gil", "shared-gil" or "process".
        copies: how many to load in one process, one after the other, all of them staying alive. Interpreters are then ended and others
            loaded, as when mounts are replaced and when they sleep: an extension module may crash only then.
        timeout_s: how long each load may take.

    Returns:
        the outcome; never raises for what the app does, nor for a Python that does not start.
    """
    outcome = _run(order, isolation, copies, timeout_s, os.environ)
    if not (outcome.loaded and outcome.extensions and isolation == interpreters.SHARED_GIL) or harmful(outcome.shared):
        return outcome
    if order.loading.asked is not None:
        return outcome
    # Extension modules that keep objects of an interpreter in C variables are caught by what lies there when it has gone; in one trial in
    # 60 that is something harmless. CPython's debug allocator fills what is freed, so that it never is (orjson 3.13.0: 36 crashes in 36
    # trials). A second run, as the first run's time and memory are those that are shown.
    strict = _run(order, isolation, copies, timeout_s, {**os.environ, "PYTHONMALLOC": "debug"})
    return strict if strict.signal else outcome


def _run(order: BootOrder, isolation: str, copies: int, timeout_s: float, environ: Mapping[str, str]) -> Outcome:
    try:
        account = whose.account_of(order)
    except Fault as exc:
        return Outcome(isolation=isolation, loaded=False, error=str(exc), failed_copy=1)
    if order.walls is not None:
        order = order.replace(walls=order.walls.replace(user=""))  # its folder for temporary files is made here
    remove = shutil.rmtree if account is None else functools.partial(whose.remove, account=account, environ=environ)
    with with_folder(order, remove) as housed:  # as in a worker: what is put there is allowed
        if account is not None and housed.walls is not None and housed.walls.sandbox is not None:
            os.chown(housed.walls.sandbox.tmp, account.uid, account.gid)
        return _run_in(housed, isolation, copies, timeout_s, environ, account)


def _run_in(
    order: BootOrder, isolation: str, copies: int, timeout_s: float, environ: Mapping[str, str], account: Account | None
) -> Outcome:
    executable = (order.host.python if isolation == PROCESS else None) or sys.executable
    token = f"{os.getpid()}-{secrets.token_hex(8)}"
    what = messages.encode(_trial_order(order, isolation, token))
    task = f'{{"copies": {copies}, "timeout_s": {timeout_s:g}, "order": '.encode() + what + b"}"
    with contextlib.ExitStack() as held, contextlib.ExitStack() as childs:
        lifeline, _ = _pipe(held, held)
        result_fd, result_end = _pipe(held, childs)
        output_fd, output_end = _pipe(held, childs)
        stdin = held.enter_context(open(os.memfd_create("isowsgi-trial"), "wb"))
        stdin.write(task)
        stdin.seek(0)
        flags = [*subprocess._args_from_interpreter_flags(), "-P"] if executable == sys.executable else []  # type: ignore[attr-defined]
        as_whom = whose.process_of(account, environ, has_own_python=executable == order.host.python)
        as_whom["env"][VARIABLE] = token
        try:
            child = subprocess.Popen(
                [executable, *flags, *(["-s"] if account is not None else []), _CHILD, str(result_end), str(lifeline)],
                stdin=stdin,
                cwd=workdir.for_child(),
                stdout=output_end,
                stderr=output_end,
                pass_fds=[result_end, lifeline],
                **as_whom,
                start_new_session=True,  # its own process group, so that the whole group can be ended, and Ctrl-C does not reach it
            )
        except OSError as exc:
            return Outcome(isolation=isolation, loaded=False, error=f"cannot run {executable!r}: {exc.strerror}", failed_copy=1)
        finally:
            childs.close()
        try:
            result, output, is_over = _follow(child.pid, result_fd, output_fd, timeout_s + _MARGIN_S)
        finally:
            # Before it is reaped, so that its number cannot be another's by then.
            os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
            _end_what_is_left(token)
    if not result and is_over:
        error = f"{executable!r} does not run isowsgi: it ended with exit code {code}"
        return Outcome(isolation=isolation, loaded=False, error=error, failed_copy=1, output=output.decode("utf-8", "replace"))
    return _outcome(isolation, result, output.decode("utf-8", "replace"), code if is_over else None, timeout_s)


def _pipe(reads: contextlib.ExitStack, writes: contextlib.ExitStack) -> tuple[int, int]:
    """Return both ends of a new pipe; each is closed with the stack that holds it."""
    ends = os.pipe()
    for end, stack in zip(ends, (reads, writes), strict=True):
        stack.callback(os.close, end)
    return ends


def _end_what_is_left(token: str) -> None:
    """Kill the processes that a trial's app started, daemons too, which have left its process group and have other parents."""
    for _ in range(_SEARCHES):
        found = [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _is_of_trial(pid, token)]
        for pid in found:
            try:
                process = os.pidfd_open(pid)
            except OSError:  # it has ended
                continue
            try:
                if _is_of_trial(pid, token):  # still, so the number is not another's by now
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            except OSError:
                continue
            finally:
                os.close(process)
        if not found:
            return


def _is_of_trial(pid: int, token: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{VARIABLE}={token}".encode() in file.read().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return False


def _trial_order(order: BootOrder, isolation: str, token: str) -> BootOrder:
    is_interpreter = isolation != PROCESS
    host, loading, around = order.host, order.loading, order.environment
    return order.replace(
        settings={**order.settings, **_QUIET},
        isolation=isolation,
        tag=order.members[0].pattern,
        log=None,
        log_files={},
        environment=around.replace(env={**around.env, VARIABLE: token}),
        place=Place(region=0, first_row=0),  # of the trial's own scoreboard
        # What hooks do is meant for an app that serves; only what their modules load counts.
        hooks={},
        loading=loading.replace(
            extensions=None,
            imports=[*loading.imports, *(text.partition(":")[0] for text in order.hooks.values())],
            watch=False,
            report_files=False,
        ),
        host=host.replace(
            can_see_stacks=is_interpreter and interpreters.can_see_stacks(isolation),
            frames_are_own=interpreters.frames_are_own(),
            blocked_modules=host.blocked_modules if is_interpreter else [],
            needs_ticker=host.needs_ticker and is_interpreter,
        ),
    )


def _follow(pid: int, result_fd: int, output_fd: int, limit_s: float) -> tuple[bytes, bytes, bool]:
    """Read a child's output until it reports its result, ends, or runs out of time.

    Args:
        limit_s: how long it may give no sign.

    Returns:
        the result, the last part of its output, and whether it ended without being killed.
    """
    process = os.pidfd_open(pid)
    deadline = time.monotonic() + limit_s
    result, output = bytearray(), bytearray()
    poller = select.poll()
    for fd in (process, result_fd, output_fd):
        poller.register(fd, select.POLLIN)
    is_over = is_told = False
    try:
        while not is_told and not is_over and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poller.poll(left * 1000):
                if fd == process:
                    is_over = True  # what it left in the pipes is read below
                elif fd == output_fd:
                    if not _take(fd, output, _OUTPUT_BYTES):
                        poller.unregister(fd)
                elif _take(fd, result, _RESULT_BYTES):
                    deadline = time.monotonic() + limit_s
                else:
                    poller.unregister(fd)
                is_told = result.endswith(b"\n")
    finally:
        os.close(process)
    for fd, taken, most in ((result_fd, result, _RESULT_BYTES), (output_fd, output, _OUTPUT_BYTES)):
        os.set_blocking(fd, False)  # a process that the app started may hold the other end, and write on
        for _ in range(_PIPE_READS):
            if not _take(fd, taken, most):
                break
    return bytes(result), bytes(output), is_over


def _take(fd: int, into: bytearray, most: int) -> bool:
    """Read on, and keep the last bytes; False at the end of it, or if there is nothing now."""
    try:
        data = os.read(fd, 65536)
    except BlockingIOError:
        return False
    into += data
    del into[:-most]
    return bool(data)


def _outcome(isolation: str, result: bytes, output: str, code: int | None, timeout_s: float) -> Outcome:
    facts = result.lstrip(b".e")
    signs = result[: len(result) - len(facts)]
    failed: dict[str, Any] = {"isolation": isolation, "loaded": False, "failed_copy": signs.count(b"."), "output": output}
    if facts.endswith(b"\n"):
        try:
            return _read(isolation, json.loads(facts), output)
        except (ValueError, TypeError, KeyError):
            # Another release of isowsgi was installed while this one runs, or the app wrote into a descriptor that is not its own.
            return Outcome(**failed, error="its trial sent an unreadable result")
    when = "it was loaded"
    if b"e" in signs:
        when = "a copy of it was ended" if signs.endswith(b"e") else "it was loaded after a copy had been ended"
    elif failed["failed_copy"] > 1:
        when = "a second copy was loaded"
    if code is None:
        error = f"it hung when {when}" if failed["failed_copy"] > 1 or b"e" in signs else f"it was not loaded within {timeout_s:g} s"
        return Outcome(**failed, timed_out=True, error=error)
    if code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        return Outcome(**failed, signal=name, error=f"it crashed the process by {name} when {when}")
    return Outcome(**failed, exit_code=code, error=f"it ended the process with exit code {code} when {when}")


def _read(isolation: str, facts: dict[str, Any], output: str) -> Outcome:
    facts["extensions"] = tuple((name, path) for name, path in facts["extensions"])
    facts["refused"] = tuple((name, path, error) for name, path, error in facts["refused"])
    facts["answers"] = tuple((pattern, path, status) for pattern, path, status in facts.get("answers", ()))
    facts["touched"] = tuple(facts.get("touched", ()))
    facts["lost"] = tuple(facts.get("lost", ()))
    facts["shared"] = tuple(Sharing(*each) for each in facts.get("shared", ()))
    return Outcome(isolation=isolation, output=output, **facts)
