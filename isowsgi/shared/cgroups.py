"""Control groups, version 2 (cgroups(7), Documentation/admin-guide/cgroup-v2.rst): what the kernel counts and limits of several processes.

A service manager may delegate a part of the tree to a service (`Delegate=yes`): its own group, and all below. There isowsgi makes a group
for each process of an app that has limits. A group has processes or hands controllers on, never both; so gunicorn moves to a group beside
those first.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import select
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from isowsgi.shared import residentmemory

# What limits are made of, by controller.
CONTROLLERS = ("cpu", "memory", "pids")

# The file of a group that has a limit, by the limit's word in a config file.
LIMITS = {"memory": "memory.max", "cpu": "cpu.max", "processes": "pids.max"}

# The group of gunicorn's master and its workers, and what those of apps are called, with the worker's process id.
_LEAF = "gunicorn"
_GROUP = re.compile(r"mount-([0-9]+)\.")

# What a name keeps of the app's: letters that no shell and no unit file takes for something else.
_ODD = re.compile(r"[^A-Za-z0-9_.]+")
_MOST_NAME_CHARS = 40

# How often gunicorn's processes are moved on: a process that is moved may fork another one just before.
_MOVES = 5

# How long the processes of a group may take to die when they are killed. One that waits for a dead disk takes longer; `sweep` comes again.
_DYING_S = 1.0
_MOMENT_S = 0.002

# What `cpu.max` is counted in: a process that has used up its part stands still for the rest of it (the kernel's default; as CPUQuota=).
_PERIOD_US = 100_000

# What some kernels lack, and a limit is sound without: swap is off, or not accounted for.
_DISPENSABLE = ("memory.swap.max", "memory.oom.group")

_numbers = itertools.count(1)


class Unavailable(Exception):
    """There is no group in which limits can be set."""


class Subtree:
    """The part of the tree that is this service's.

    Attributes:
        path: of the service's own group.
        controllers: those that can limit something there.
    """

    def __init__(self, path: str, controllers: frozenset[str]) -> None:
        self.path = path
        self.controllers = controllers

    def prepare(self, owner: tuple[int, int] | None) -> None:
        """Move the service's processes to a group of their own, so that others can have controllers; each worker may do so again.

        Args:
            owner: user and group that will make groups here, if they are not this process'.

        Raises:
            Unavailable: it cannot be done.
        """
        leaf = os.path.join(self.path, _LEAF)
        try:
            os.makedirs(leaf, exist_ok=True)
            self._vacate(leaf)
            if owner is not None:
                for path in (self.path, leaf):
                    for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
                        os.chown(os.path.join(path, name), owner[0], owner[1])
        except OSError as exc:
            raise Unavailable(f"{self.path}: {exc.strerror}") from exc
        self._sweep(leaf)

    def make(self, name: str, files: Iterable[tuple[str, str]]) -> Group:
        """Make a group.

        Args:
            name: what people call it.
            files: of the group, with what is written there, see `files_of`.

        Raises:
            OSError: it cannot be made, or a limit cannot be set.
        """
        word = _ODD.sub("-", name).strip("-")[:_MOST_NAME_CHARS] or "root"
        group = Group(os.path.join(self.path, f"mount-{os.getpid()}.{next(_numbers)}-{word}"))
        os.mkdir(group.path)
        try:
            for file, text in files:
                group.limit(file, text)
        except OSError:
            group.remove()
            raise
        return group

    def _vacate(self, leaf: str) -> None:
        wanted = " ".join(f"+{name}" for name in sorted(self.controllers))
        for left in reversed(range(_MOVES)):
            for pid in _processes(self.path):
                try:
                    _write(os.path.join(leaf, "cgroup.procs"), str(pid))
                except ProcessLookupError:  # it has ended
                    pass
            try:
                _write(os.path.join(self.path, "cgroup.subtree_control"), wanted)
                break
            except OSError as exc:
                if exc.errno != errno.EBUSY or not left:
                    raise

    def _sweep(self, leaf: str) -> None:
        """Remove the groups of workers that were killed, with all that is left in them."""
        try:
            found = [match for match in map(_GROUP.match, os.listdir(self.path)) if match]
            workers = set(_processes(leaf))  # after the names: one that begins meanwhile has none of these groups
        except OSError:
            return
        left = [Group(os.path.join(self.path, match.string)) for match in found if int(match[1]) not in workers]
        for group in left:
            group.kill()
        deadline = time.monotonic() + _DYING_S
        for group in left:
            group.remove(deadline)


class Use(NamedTuple):
    """What the processes of a group have taken so far, and have now."""

    memory_bytes: int  # as its limit counts it
    cpu_s: float
    throttled_s: float  # how long they stood still for the limit of processor time
    processes: int  # and threads


class Group:
    """A control group for one process of an app, and for what that starts."""

    def __init__(self, path: str) -> None:
        self.path = path

    def door(self) -> int:
        """Return a descriptor: a process that writes "0" to it enters. Who may do so is decided when it is opened (from Linux 5.16 on).

        Raises:
            OSError: no descriptor is left.
        """
        return os.open(os.path.join(self.path, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)

    def limit(self, file: str, text: str) -> None:
        """Set a limit.

        Raises:
            OSError: it cannot be set.
        """
        try:
            _write(os.path.join(self.path, file), text)
        except FileNotFoundError:
            if file not in _DISPENSABLE:
                raise

    def count(self, file: str, name: str) -> int:
        """Return one of the counts in a file such as `memory.events`; 0 if there is none."""
        try:
            lines = residentmemory.read(os.path.join(self.path, file)).decode().splitlines()
            return next((int(value) for word, _, value in (line.partition(" ") for line in lines) if word == name), 0)
        except (OSError, ValueError):
            return 0

    def use(self) -> Use:
        """Return what is used; 0 for what has no controller."""
        cpu_us, throttled_us = (self.count("cpu.stat", name) for name in ("usage_usec", "throttled_usec"))
        return Use(self._number("memory.current"), cpu_us / 1e6, throttled_us / 1e6, self._number("pids.current"))

    def _number(self, file: str) -> int:
        try:
            return int(residentmemory.read(os.path.join(self.path, file)))
        except (OSError, ValueError):
            return 0

    def kill(self) -> None:
        """Kill what is left in it; before Linux 5.14 nothing happens."""
        with contextlib.suppress(OSError):
            _write(os.path.join(self.path, "cgroup.kill"), "1")

    def remove(self, deadline: float | None = None) -> bool:
        """Kill what is left in it, and remove it; return whether it is gone.

        Args:
            deadline: how long it may take, by the monotonic clock; None: as long as processes usually take to die.
        """
        self.kill()
        deadline = time.monotonic() + _DYING_S if deadline is None else deadline
        while True:
            try:
                os.rmdir(self.path)
                return True
            except FileNotFoundError:
                return True
            except OSError as exc:
                left_s = deadline - time.monotonic()
                if exc.errno != errno.EBUSY or left_s <= 0:
                    return False
                self._wait(left_s)

    def _wait(self, limit_s: float) -> None:
        """Wait until it has no process any more; the kernel says so by a change of `cgroup.events`."""
        try:
            fd = os.open(os.path.join(self.path, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
            try:
                if b"populated 1" in os.read(fd, residentmemory.MOST_BYTES):
                    poll = select.poll()
                    poll.register(fd, select.POLLPRI)
                    poll.poll(limit_s * 1000)
                    return
            finally:
                os.close(fd)
        except OSError:  # no descriptor is left, or it is gone by now
            pass
        time.sleep(_MOMENT_S)  # what has just ended holds it for a moment


def files_of(memory: int, cpu: float, processes: int, controllers: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield the files of a group that say its limits, with their texts; 0: no limit."""
    if memory and "memory" in controllers:
        yield LIMITS["memory"], str(memory)
        yield "memory.swap.max", "0"  # a process that swaps instead of ending takes the disk from all
        yield "memory.oom.group", "1"  # all of the app at once, and not one of its processes
    if cpu and "cpu" in controllers:
        yield LIMITS["cpu"], f"{round(cpu * _PERIOD_US)} {_PERIOD_US}"
    if processes and "pids" in controllers:
        yield LIMITS["processes"], str(processes)


def find() -> Subtree:
    """Return the part of the tree that was delegated to this process' service; changes nothing.

    Raises:
        Unavailable: there is none.
    """
    try:
        path = _service(_path(_text("/proc/self/cgroup"), _text("/proc/self/mountinfo")))
        there = frozenset(_text(os.path.join(path, "cgroup.controllers")).split())
    except OSError as exc:
        raise Unavailable(f"{exc.filename}: {exc.strerror}") from exc
    controllers = there & frozenset(CONTROLLERS)
    if not controllers:
        raise Unavailable(f"{path} has none of the controllers {', '.join(CONTROLLERS)}")
    return Subtree(path, controllers)


def _service(own: str) -> str:
    """Return the group of the service; gunicorn is in a group below it if it was started by a gunicorn (USR2) or with DelegateSubgroup=."""
    above = os.path.dirname(own)
    for path in (above, own) if os.path.basename(own) == _LEAF else (own,):
        if _is_delegated(path) and all(
            os.access(os.path.join(path, name), os.W_OK) for name in ("", "cgroup.procs", "cgroup.subtree_control")
        ):
            return path
    raise Unavailable(f"the control group {own} was not delegated to gunicorn; set Delegate=yes in its unit")


def _is_delegated(path: str) -> bool:
    for name in ("user.delegate", "trusted.delegate"):  # systemd's marks; the second one is for root to read
        try:
            return os.getxattr(path, name) == b"1"
        except OSError:
            continue
    # Before systemd 251 only root can read one; a service's group belongs to its user if it was delegated to that.
    is_services = path.endswith(".service") and os.stat(path).st_uid == os.geteuid() != 0
    # A container's whole tree is its own. The machine's is nobody's, and has no such file.
    return is_services or (os.path.ismount(path) and os.path.exists(os.path.join(path, "cgroup.type")))


def _path(own: str, mounts: str) -> str:
    """Return where the group of this process lies.

    Args:
        own, mounts: texts of /proc/self/cgroup and /proc/self/mountinfo (proc_pid_mountinfo(5)).
    """
    inner = next((line.removeprefix("0::") for line in own.splitlines() if line.startswith("0::")), None)
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if inner is None or after.split(" ", 1)[0] != "cgroup2":
            continue
        root, point = before.split(" ")[3:5]
        relative = os.path.relpath(inner, root)
        if not relative.startswith(".."):
            return os.path.normpath(os.path.join(point, relative))
    raise Unavailable("this machine has no control groups of version 2")


def _processes(path: str) -> list[int]:
    return [int(line) for line in _text(os.path.join(path, "cgroup.procs")).split()]


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
