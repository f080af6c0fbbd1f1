"""Machines of a test: network namespaces behind a switch, which nothing else on this machine sees."""

from __future__ import annotations

import ctypes
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

# Of setns(2): only the network is changed.
_CLONE_NEWNET = 0x40000000

_SWITCH = "switch"


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
        descriptor = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
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
        try:
            self._ip("link", "add", "bridge", "type", "bridge", on=self._add(_SWITCH))
            self._ip("link", "set", "bridge", "up", on=self._namespaces[0])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._namespaces:
            subprocess.run(["ip", "netns", "delete", self._namespaces.pop()], check=False)

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
