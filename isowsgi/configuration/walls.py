"""Checks of what confines an app's process: its user, umask, priority, limits and sandbox. Also what of it only a process can have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from isowsgi.configuration.checks import typed
from isowsgi.configuration.faults import Fault, spelt, wrong_type
from isowsgi.configuration.values import Mount

# Keys that are a process' own: an interpreter shares all of this with its neighbours.
OF_A_PROCESS = ("user", "umask", "working_directory", "nice", "limits", "sandbox")

# Those of `limits` that are set by a control group where there is one; the others are always each process' own.
OF_GROUPS = frozenset(("memory", "cpu", "processes"))

# What a Unix socket begins with, where it may be an address too.
UNIX = "unix:"

# Lowest priority (setpriority(2)). A higher one than gunicorn's own is root's to give.
_LEAST_PRIORITY = 19

# What an app needs to be loaded and to serve: an idle one with 4 threads has 58 MiB of data, 8 MiB for each thread's stack among it.
LEAST_MEMORY = 64 * 2**20
LEAST_FILES = 64  # some 20 are the instance's own, and each connection that it has is one
LEAST_PROCESSES = 16  # each thread counts
_OWN_THREADS = 2  # of an instance, beside those that serve: its main one, and the control thread

# Cores of a machine, at most; and the part of one with which an app is still loaded within seconds.
_MOST_CPU, _LEAST_CPU = 1024, 0.05


def umask(value: Any) -> str:
    """Return a umask as three octal digits; a number in TOML is decimal, and so hardly ever what is meant."""
    if type(value) is int:
        raise Fault(f"expected a string of octal digits, such as '027', got {spelt(value)} (a whole number)")
    digits = typed(str, value)
    if not 3 <= len(digits) <= 4 or not set(digits) <= set("01234567") or int(digits, 8) > 0o777:
        raise Fault(f"expected a string of three octal digits, such as '027', got {spelt(value)}")
    return f"{int(digits, 8):03o}"


def nice(value: Any) -> int:
    if not 0 <= typed(int, value) <= _LEAST_PRIORITY:
        hint = "; for a higher priority set Nice= in gunicorn's unit" if value < 0 else ""
        raise Fault(f"must be 0 to {_LEAST_PRIORITY}, got {spelt(value)}{hint}")
    return typed(int, value)


def at_least(size: int, *, least: int, text: str) -> int:
    """Check a size or a number that 0 makes unlimited."""
    if 0 < size < least:
        raise Fault(f"must be {text} or more, or 0 for no limit: less does not load an app")
    return size


def cpu(value: Any) -> float:
    """Return a share of one core; 0 is no limit."""
    if type(value) not in (int, float):
        raise wrong_type("a share of one core, such as 0.5", value)
    if value != 0 and not _LEAST_CPU <= value <= _MOST_CPU:
        raise Fault(f"must be {_LEAST_CPU} to {_MOST_CPU} (cores), or 0 for no limit, got {spelt(value)}")
    return float(value)


def need_groups(mounts: Iterable[Mount]) -> bool:
    """Whether any has a limit that is set by a control group where there is one."""
    return any(mount.limits.keys() & OF_GROUPS for mount in mounts)


def with_user(mounts: Iterable[Mount]) -> list[Mount]:
    """Return those that are served by processes of another user; one whose file has a fault is not served."""
    return [mount for mount in mounts if mount.user and not mount.fault]


def limits(said: Mapping[str, Any]) -> dict[str, float]:
    """Return limits by name, as a mount has them."""
    return {name: float(value) for name, value in said.items() if value is not None}


def peer(value: Any) -> str:
    """Check who may be connected to: a host with a port, or a Unix socket or a folder of such."""
    if typed(str, value).startswith(UNIX):
        if not value.startswith(UNIX + "/") or "\0" in value:
            raise Fault(f"expected the absolute path of a socket, or of its folder, after 'unix:', got {spelt(value)}")
        return str(value)
    return listener(value)


def listener(value: Any) -> str:
    host, _, port = typed(str, value).rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 2**16:
        raise Fault(f"expected a host and a port of 1 to 65535, such as '127.0.0.1:5432', got {spelt(value)}")
    return str(value)


def sandbox(said: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {word: tuple(value) for word, value in said.items() if value is not None}


def faults(values: Mapping[str, Any]) -> Iterator[tuple[str, Fault]]:
    """Yield the keys of a mount that need a process, where its isolation is another; and a limit that would keep it from serving."""
    threads, processes = values.get("threads"), (values.get("limits") or {}).get("processes")
    if threads and processes and processes < threads + _OWN_THREADS:
        text = f"processes must be {threads + _OWN_THREADS} or more, as each thread counts and threads = {threads}, got {processes:g}"
        yield "limits", Fault(text)
    isolation = values.get("isolation", "auto")
    if isolation in ("auto", "process"):
        return
    for key in OF_A_PROCESS:
        wanted = values.get(key)
        if (wanted and (key != "limits" or any(wanted.values()))) or (wanted == {} and key == "sandbox"):
            yield key, Fault(f'only a process has its own: expected isolation = "process" (or "auto"), got {isolation!r}')
