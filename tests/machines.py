"""Machines of a test: network namespaces behind a switch, which nothing else on this machine sees."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

# Of setns(2): only the network is changed.
_CLONE_NEWNET = 0x40000000

_SWITCH = "switch"

# What the namespaces of a network are called: by the process that made them, so that another one knows whether anybody needs them still.
_NAME = re.compile(r"isowsgi(\d+)-.+")

# Where iproute2 keeps namespaces that have names.
_NAMED = Path("/run/netns")


class Machine(NamedTuple):
    """A network namespace with one address."""

    namespace: str
    address: str

    @property
    def launcher(self) -> list[str]:
        """A command that executes what follows in its arguments on this machine."""
        return ["ip", "netns", "exec", self.namespace]

    def enter(self) -> None:
        """Have the sockets that this thread makes from now on be this machine's."""
        descriptor = os.open(_NAMED / self.namespace, os.O_RDONLY)
        try:
            libc = ctypes.CDLL(None, use_errno=True)  # os.setns() came with Python 3.12
            if libc.setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)

    def set(self, name: str, value: str) -> None:
        """Set one of the kernel's parameters below /proc/sys, on this machine only."""

        def write() -> None:
            self.enter()
            Path("/proc/sys", name).write_text(value)

        with ThreadPoolExecutor(1) as pool:
            pool.submit(write).result()


class Network:
    """A switch with machines, removed when the block is left; their processes must have ended then."""

    def __init__(self) -> None:
        self._prefix = f"isowsgi{os.getpid()}"
        self._namespaces: list[str] = []

    def __enter__(self) -> Network:
        _remove_left()
        try:
            self._ip("link", "add", "bridge", "type", "bridge", on=self._add(_SWITCH))
            self._ip("link", "set", "bridge", "up", on=self._namespaces[0])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._namespaces:
            _delete(self._namespaces.pop())

    def machine(self, name: str, number: int) -> Machine:
        """Plug a machine in; its address ends with the number."""
        switch, namespace = self._namespaces[0], self._add(name)
        self._ip("link", "add", "name", name, "type", "veth", "peer", "name", "eth0", "netns", namespace, on=switch)
        self._ip("link", "set", name, "master", "bridge", "up", on=switch)
        machine = Machine(namespace, f"10.0.0.{number}")
        self._ip("address", "add", f"{machine.address}/24", "dev", "eth0", on=namespace)
        for device in ("lo", "eth0"):
            self._ip("link", "set", device, "up", on=namespace)
        return machine

    def _add(self, name: str) -> str:
        namespace = f"{self._prefix}-{name}"
        subprocess.run(["ip", "netns", "add", namespace], check=True, capture_output=True)
        self._namespaces.append(namespace)
        return namespace

    def _ip(self, *arguments: str, on: str) -> None:
        subprocess.run(["ip", "-n", on, *arguments], check=True, capture_output=True)


def _remove_left() -> None:
    """Remove what runs that were killed have left behind, and end what still runs there."""
    for path in list(_NAMED.glob("isowsgi*")):
        match = _NAME.fullmatch(path.name)
        if match is None or Path("/proc", match[1]).exists():
            continue
        for pid in pids_inside(path.name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _delete(path.name)


def pids_inside(namespace: str) -> list[int]:
    """Return whose network is that of a namespace."""
    shown = subprocess.run(["ip", "netns", "pids", namespace], check=False, capture_output=True, text=True)
    return [int(pid) for pid in shown.stdout.split()]


def _delete(namespace: str) -> None:
    subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)


def why_not() -> str:
    """Return why there can be no such machines here; "" if there can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    try:
        with Network() as network:
            machine = network.machine("tried", 1)
            machine.set("net/ipv4/tcp_migrate_req", "1")
            subprocess.run([*machine.launcher, "true"], check=True, capture_output=True)
    except subprocess.CalledProcessError as exc:
        return f"no network namespaces here: {exc.stderr.decode(errors='replace').strip()}"
    except OSError as exc:  # no iproute2, a kernel before 5.14, or /proc/sys is read-only
        return f"no network namespaces here: {exc}"
    return ""
