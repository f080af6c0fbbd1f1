"""A trial: load an app in a process to throw away, to see whether and how it loads in one kind of home.

What an app may do when it is loaded (crash, exit, hang, print without end, take an extension module's only slot) it does there, and it is
a finding. The child is started anew, never forked, runs the same code as an instance in a worker, and cannot outlive its parent.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isowsgi import interpreters, refusals

PROCESS = "process"

# The end of what the app printed that is kept: a traceback of some depth, or what a crash left behind.
_OUTPUT_BYTES = 16 * 1024

# Longest result that is read: two copies' tracebacks and extension modules are far below.
_RESULT_BYTES = 4 * 1024 * 1024

# Reads of a pipe after the child's end: more than a pipe holds (64 KiB, or 1 MiB at most for other users than root).
_PIPE_READS = 20

# How long the child may take to start and to say how it went, beside the time limit for loading, which it keeps by itself if it can.
_MARGIN_S = 5.0

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
    exit_code: int | None = None  # if the app ended the process
    signal: str | None = None  # if the process crashed: "SIGSEGV"
    timed_out: bool = False
    output: str = ""  # the end of what the app and the interpreter printed

    @property
    def has_died(self) -> bool:
        return self.exit_code is not None or self.signal is not None

    @property
    def failure(self) -> refusals.Failure:
        """What its error comes to; only for one that was not loaded."""
        said = "\n".join(error for _, _, error in self.refused)
        failure = refusals.classify(self.error, f"{said}\n{self.traceback}")
        # By the name it is imported by: CPython's messages have the last part of it only.
        names = [name for name, _, error in self.refused if refusals.classify(error).kind == failure.kind]
        return refusals.Failure(failure.kind, names[0], failure.line) if names else failure


def run(order: Mapping[str, Any], isolation: str, *, copies: int = 1, timeout_s: float) -> Outcome:
    """Load an app in a child process and wait for the end of it; call it from a thread that may wait.

    Args:
        order: a boot order as `bootorder.Orders` writes it. Where it has a "python", that one runs the child of a "process" trial.
        isolation: "own-gil", "shared-gil" or "process".
        copies: how many to load in one process, one after the other, all of them staying alive.
        timeout_s: how long each of them may take.

    Returns:
        the outcome; never raises for what the app does, nor for a Python that does not start.
    """
    executable = (order.get("python") if isolation == PROCESS else None) or sys.executable
    task = {"order": _trial_order(order, isolation), "copies": copies, "timeout_s": timeout_s}
    lifeline, held = os.pipe()
    result_fd, result_end = os.pipe()
    output_fd, output_end = os.pipe()
    stdin = os.memfd_create("isowsgi-trial")
    try:
        with open(stdin, "w", closefd=False) as file:
            json.dump(task, file)
        os.lseek(stdin, 0, os.SEEK_SET)
        flags = [*subprocess._args_from_interpreter_flags(), "-P"] if executable == sys.executable else []  # type: ignore[attr-defined]
        try:
            child = subprocess.Popen(
                [executable, *flags, _CHILD, str(result_end), str(lifeline)],
                stdin=stdin,
                stdout=output_end,
                stderr=output_end,
                pass_fds=[result_end, lifeline],
                start_new_session=True,  # a process group of its own, so that all of it can be ended; and Ctrl-C is not for it
            )
        except OSError as exc:
            return Outcome(isolation=isolation, loaded=False, error=f"cannot run {executable!r}: {exc.strerror}", failed_copy=1)
        finally:
            os.close(result_end)
            os.close(output_end)
        try:
            result, output, is_over = _follow(child.pid, result_fd, output_fd, copies * timeout_s + _MARGIN_S)
        finally:
            # Before it is reaped, so that its number cannot be another's by then.
            os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
    finally:
        for fd in (lifeline, held, result_fd, output_fd, stdin):
            os.close(fd)
    return _outcome(isolation, result, output.decode("utf-8", "replace"), code if is_over else None, timeout_s)


def _trial_order(order: Mapping[str, Any], isolation: str) -> dict[str, Any]:
    is_interpreter = isolation != PROCESS
    return {
        **order,
        "settings": {**order["settings"], **_QUIET},
        "isolation": isolation,
        "tag": order["members"][0]["pattern"],
        "report_files": False,
        "watch": False,
        "extensions": None,
        "can_see_stacks": is_interpreter and interpreters.can_see_stacks(isolation),
        "blocked_modules": order["blocked_modules"] if is_interpreter else [],
        "needs_ticker": order["needs_ticker"] and is_interpreter,
    }


def _follow(pid: int, result_fd: int, output_fd: int, limit_s: float) -> tuple[bytes, bytes, bool]:
    """Read what a child has to say until it says how it went, ends, or has had its time.

    Returns:
        the result, the end of its output, and whether it ended by itself.
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
                elif not (_take(fd, result, _RESULT_BYTES) if fd == result_fd else _take(fd, output, _OUTPUT_BYTES)):
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
    if result.endswith(b"\n"):
        facts = json.loads(result)
        facts["extensions"] = tuple((name, path) for name, path in facts["extensions"])
        facts["refused"] = tuple((name, path, error) for name, path, error in facts["refused"])
        return Outcome(isolation=isolation, output=output, **facts)
    if code is None:
        error = f"it was not loaded within {timeout_s:g} s"
        return Outcome(isolation=isolation, loaded=False, error=error, failed_copy=1, timed_out=True, output=output)
    if code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        error = f"it crashed the process by {name} when it was loaded"
        return Outcome(isolation=isolation, loaded=False, error=error, failed_copy=1, signal=name, output=output)
    error = f"it ended the process with exit code {code} when it was loaded"
    return Outcome(isolation=isolation, loaded=False, error=error, failed_copy=1, exit_code=code, output=output)
