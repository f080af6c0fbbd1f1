"""Starts gunicorns: a process that has imported what a gunicorn with isowsgi's worker imports, and that forks itself for each.

These imports are half of the CPU time of a gunicorn with a small app, and the tests start three hundred. One that is forked is a child of
the tests, as others are, and runs `python -m gunicorn` from its first line on: with its own arguments, environment, folder and output.
`gunicorn.config` is imported there, as it takes defaults from all of these. At its end the objects of all these modules are not freed one
by one: that was a quarter of what was left, as the kernel copies each page that is written to.

`ISOWSGI_WHOLE=1` starts one gunicorn in four as a user does. So do tests with a launcher, and with variables that Python reads when it
starts.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

# Longest order: the arguments and the environment of a process.
_MAX_ORDER_BYTES = 128 * 1024


class Started:
    """A process that was forked for the tests: what of `subprocess.Popen` they use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None:
            fd = os.pidfd_open(self.pid)
            try:
                poll = select.poll()  # not select, for which a number of 1024 or more is too large
                poll.register(fd, select.POLLIN)
                if not poll.poll(None if timeout is None else timeout * 1000):
                    raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            finally:
                os.close(fd)
            self.poll()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Starter:
    """The process that forks them, from the tests' side.

    Args:
        env: its environment; what each gunicorn has of Python's own settings.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # As users do: the interpreters that a Python with `-c` makes cannot begin in a deleted folder (3.13.0).
            command = [sys.executable, "-m", "tests.starter", str(theirs.fileno())]
            self._process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])

    def start(self, arguments: Sequence[str], folder: Path, env: Mapping[str, str], stdout: int) -> Started | None:
        """Return a new gunicorn; None: it has to be started without this."""
        order = json.dumps({"arguments": arguments, "folder": str(folder), "env": dict(env)}).encode()
        if len(order) > _MAX_ORDER_BYTES:
            return None
        try:
            socket.send_fds(self._socket, [order], [stdout])
            answer = self._socket.recv(64)
        except (BrokenPipeError, ConnectionResetError):
            return None
        return Started(int(answer)) if answer else None

    def end(self) -> None:
        self._socket.close()
        self._process.wait()


def wait_for_orders(fd: int) -> None:
    """Be the process that forks; returns when the tests have ended, and in each gunicorn when that has."""
    import gunicorn.arbiter  # noqa: F401
    from rich import console, table, text  # noqa: F401 # what draws the table that the log begins with

    import isowsgi.worker.gunicorn  # noqa: F401
    from isowsgi.inside.cloning import CannotClone, Cloner
    from isowsgi.shared import interpreters

    interpreters.preload()

    assert "gunicorn.config" not in sys.modules, "it takes its defaults from the environment when it is imported"
    sock = socket.socket(fileno=fd)
    try:
        cloner = Cloner()
    except CannotClone:
        return
    gc.collect()
    gc.freeze()  # a collection in a gunicorn would write to all of it
    while True:
        order, fds, _, _ = socket.recv_fds(sock, _MAX_ORDER_BYTES, 1)
        if not order:
            return
        pid = cloner.fork()
        if pid == 0:
            break
        os.close(fds[0])
        sock.send(str(pid).encode())
    sock.close()
    _become_gunicorn(json.loads(order), fds[0])


def _become_gunicorn(order: dict[str, object], stdout: int) -> None:
    arguments, folder, env = order["arguments"], order["folder"], order["env"]
    assert isinstance(arguments, list)
    assert isinstance(folder, str)
    assert isinstance(env, dict)
    os.dup2(stdout, 1)
    os.dup2(stdout, 2)
    os.close(stdout)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    sys.argv[:] = ["-m", *arguments]
    sys.path[0] = folder
    try:
        runpy.run_module("gunicorn", run_name="__main__", alter_sys=True)
    except SystemExit as exc:  # the master's, and a worker's that has no mounts: one that has ends without this
        if not isinstance(exc.code, int):
            raise
        _end(exc.code)


def _end(code: int) -> NoReturn:
    """Do what Python does at its end, but for freeing all objects."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    wait_for_orders(int(sys.argv[1]))
