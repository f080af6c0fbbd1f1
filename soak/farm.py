"""A gunicorn with many small mounts and some of Flask, whose table changes while it serves; and what can be seen of it from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isowsgi.cli import client
from isowsgi.shared import controlmessages, interpreters
from isowsgi.shared.board import Board
from isowsgi.shared.controlmessages import Error, MountStatus
from isowsgi.shared.scoreboard import Scoreboard
from soak.site import APPS, ROOT, Failed, Gunicorn, cpu_s, rss_mib
from soak.wire import Broken, Connection

# How long a command may take: longer than its own time limit.
_COMMAND_S = 150.0

# How long what was replaced may take to end: a second until it is looked at, and some for a busy machine.
_END_S = 30.0

# A farm has settled when it has used no more of a core for so long: 20 s after their first request interpreters are measured, 600 of
# them in half a minute.
_SETTLED_CORES, _SETTLED_S, _MOST_SETTLING_S = 0.25, 25.0, 300.0

# Connections that are opened at most to have one to each worker; the kernel gives them out as it likes.
_MOST_CONNECTIONS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What came of `isowsgi apply`."""

    code: int
    output: str
    took_s: float


class Farm(Gunicorn):
    """Small mounts "/small/0" to n and Flask's "/flask/0" to n. Small ones answer `/interpreters` too.

    Attributes:
        mounts: lines of the config file by pattern; `write` puts them there.
    """

    def __init__(self, folder: Path, *, small: int, flask: int, workers: int) -> None:
        self.mounts: dict[str, str] = {}
        for number in range(flask):
            self.put(f"/flask/{number}", "flask_site")
        for number in range(small):
            self.put(f"/small/{number}", "plain")
        count = len(self.mounts)
        self.count_of_workers = workers
        # An instance has some ten descriptors.
        super().__init__(folder, self.text(), workers, workers * count, descriptors=min(1024 + 20 * count, _most_descriptors()))

    def put(self, pattern: str, module: str, **env: object) -> None:
        """Put a mount into the table, or change it."""
        values = ", ".join(f'{name} = "{value}"' for name, value in env.items())
        self.mounts[pattern] = f'''"{pattern}" = {{ app = "{module}:create('{pattern}')", env = {{ {values} }} }}'''

    def text(self) -> str:
        best = interpreters.best_isolation()  # without the trials of `auto`
        defaults = f'[defaults]\npythonpath = "{APPS}"\nthreads = 2\nisolation = "{best}"\n'
        lines = [defaults, '[control]\nfolder = "control"\n', "[mounts]", *self.mounts.values()]
        return "\n".join(lines) + "\n"

    def write(self) -> None:
        self.config.write_text(self.text())

    def apply(self) -> Applied:
        """Run `isowsgi apply` as an operator does: one that is installed has its bytecode, and need not compile itself each time."""
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "isowsgi", "apply", "--config", str(self.config)],
            cwd=self.folder,
            env={**environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        return Applied(code=done.returncode, output=done.stdout + done.stderr, took_s=time.monotonic() - began)

    def connections(self) -> dict[int, Connection]:
        """Return an open connection to each worker."""
        found: dict[int, Connection] = {}
        for _ in range(_MOST_CONNECTIONS):
            connection = Connection(("127.0.0.1", self.port))
            worker = int(ask(connection, "/small/0/small")["soak-worker"])
            if worker in found:
                connection.close()
            else:
                found[worker] = connection
            if len(found) == self.count_of_workers:
                return found
        raise Failed(f"of {self.count_of_workers} workers only {len(found)} answered {_MOST_CONNECTIONS} connections")

    def identities(self) -> dict[tuple[int, str], tuple[str, str]]:
        """Return the interpreter, and when it was born, of each mount in each worker."""
        found = {}
        for worker, connection in self.connections().items():
            for pattern in self.mounts:
                fields = ask(connection, f"{pattern}/small")
                found[worker, pattern] = (fields["soak-interpreter"], fields["soak-born"])
            connection.close()
        return found

    def status(self) -> dict[tuple[int, str], MountStatus]:
        """Return what each worker says of each mount."""
        found = {}
        for told in client.ask(client.find(str(self.config), None), controlmessages.Status(), 30.0):
            if isinstance(told.answer, Error):
                raise Failed(f"a worker did not say its status: {told.answer.text}")
            found.update({(told.place.worker, mount.mount): mount for mount in told.answer.mounts})
        return found

    def come_to_rest(self) -> dict[tuple[int, str], MountStatus]:
        """Wait until what was replaced has ended, and return the status then."""
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline:
            status = self.status()
            if all([instance.state for instance in mount.instances] == ["serving"] for mount in status.values()):
                return status
            time.sleep(0.1)
        raise Failed(f"what was replaced did not end within {_END_S:g} s")

    def settle(self, *more: int) -> bool:
        """Wait until it has done no more than to serve for a while; False: it is busy after five minutes still.

        Args:
            more: other processes whose use of a core counts too.
        """
        began = quiet_since = looked_at = time.monotonic()
        used_s = self.used_s(*more)
        while looked_at - began < _MOST_SETTLING_S:
            time.sleep(1.0)
            last_looked_at, looked_at = looked_at, time.monotonic()
            last_used_s, used_s = used_s, self.used_s(*more)
            if used_s - last_used_s > _SETTLED_CORES * (looked_at - last_looked_at):
                quiet_since = looked_at
            elif looked_at - quiet_since >= _SETTLED_S:
                return True
        return False

    def sizes(self) -> dict[str, float]:
        """Return what the fullest worker has of everything, and the master's memory."""
        workers = [each.pid for each in self.workers()]
        kinds = [_descriptors(pid) for pid in workers]
        numbers = []
        for connection in self.connections().values():
            numbers.append(int(ask(connection, "/small/0/interpreters")["soak-interpreters"]))
            connection.close()
        return {
            "resident memory of a worker, MiB": max(map(rss_mib, workers)),
            "resident memory of the master, MiB": rss_mib(self.master),
            "descriptors of a worker": max(kind.total() for kind in kinds),
            "epoll sets of a worker": max(kind["anon_inode:[eventpoll]"] for kind in kinds),
            "descriptors of the master": _descriptors(self.master).total(),
            "threads of a worker": max(len(os.listdir(f"/proc/{pid}/task")) for pid in workers),
            "interpreters of a worker": max(numbers),
            "scoreboard rows of a worker": max(self._rows()),
        }

    def used_s(self, *more: int) -> float:
        """Return the CPU time that its processes have used so far, and some more, and this one with its children that have ended."""
        return sum(os.times()[:4]) + sum(cpu_s(pid) for pid in {*more, *(process.pid for process in self.processes())})

    def _rows(self) -> list[int]:
        """Return how many rows of its region each worker has allotted."""
        for name in os.listdir(f"/proc/{self.master}/fd"):
            path = f"/proc/{self.master}/fd/{name}"
            if os.readlink(path).startswith("/memfd:isowsgi-scoreboard"):
                fd = os.open(path, os.O_RDWR)
                try:
                    board = Board(fd)
                    numbers = [region.number for region in board.read().regions]
                    board.close()
                    return [Scoreboard(fd, number).rows_used() for number in numbers]
                finally:
                    os.close(fd)
        raise Failed("the master has no scoreboard")


def busy_s() -> float:
    """Return for how long all cores together have not been idle; what a hypervisor took from them counts."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def differences(
    before: Mapping[tuple[int, str], MountStatus],
    after: Mapping[tuple[int, str], MountStatus],
    touched: Sequence[str],
    asked: Sequence[str],
) -> list[str]:
    """Return what is no more as it was in mounts that a change did not name.

    Args:
        touched: patterns that it did name.
        asked: patterns that get requests all the time.
    """
    found = []
    for key, old in before.items():
        worker, pattern = key
        if pattern in touched:
            continue
        new = after.get(key)
        if new is None:
            found.append(f"{pattern} of worker {worker} is gone")
            continue
        if (facts := _lasting(old)) != _lasting(new):
            found.append(f"{pattern} of worker {worker}: {facts} became {_lasting(new)}")
        for was, now in zip(old.instances, new.instances, strict=False):
            if now.requests < was.requests or (pattern not in asked and now.requests > was.requests):
                found.append(f"{pattern} of worker {worker}: its {was.requests} requests became {now.requests}")
    return found


def _lasting(mount: MountStatus) -> list[Any]:
    """Return of a mount's status what only a reload changes."""
    instances = [(each.tag, each.state, each.boot_s) for each in mount.instances]
    return [mount.generation, mount.reloads, mount.stuck, instances]


def ask(connection: Connection, path: str) -> dict[str, str]:
    """Send a request and return the fields of its answer; raises Failed if it is none of an app of ours."""
    connection.begin_request()
    connection.send(f"GET {path} HTTP/1.1\r\nHost: soak\r\nSoak-Token: farm\r\n\r\n".encode())
    try:
        head = connection.head()
        connection.body(head, lambda data: None)
    except Broken as exc:
        raise Failed(f"{path}: {exc}") from exc
    if head.status != 200:
        raise Failed(f"{path}: status {head.status}")
    return head.fields


def _most_descriptors() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _descriptors(pid: int) -> Counter[str]:
    """Return how many descriptors of each kind a process has; those of connections are left out, for they come and go."""
    kinds: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            kinds[re.sub(r"\[\d+\]$", "", os.readlink(f"/proc/{pid}/fd/{name}"))] += 1
        except OSError:  # closed meanwhile
            continue
    del kinds["socket:"]
    return kinds
