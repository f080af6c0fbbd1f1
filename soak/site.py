"""The gunicorn that is soaked: its mounts, its start and end, and the processes that belong to it."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from isowsgi.shared import interpreters
from soak.apps import hostile

APPS = Path(__file__).parent / "apps"
ROOT = Path(__file__).parent.parent

WORKERS = 3

# Requests at a time in each instance; so no kill of a process may cost more.
THREADS = 8

# Each isolation, a group, one that sleeps, and two frameworks with venvs of their own.
MOUNTS = ("/flask", "/shared", "/django", "/main", "/auto", "/group/a", "/group/b", "/lazy")
LAZY = ("/lazy",)

# Named as the log and `ps` have it, and the mounts that a kill of its process hits.
PROCESSES: Mapping[str, tuple[str, ...]] = {"/django": ("/django",), "pair": ("/group/a", "/group/b")}

# What a reload of a mount replaces.
RELOADS: Mapping[str, tuple[str, ...]] = {
    "/flask": ("/flask",),
    "/shared": ("/shared",),
    "/django": ("/django",),
    "/auto": ("/auto",),
    "/group/a": ("/group/a", "/group/b"),
    "/lazy": ("/lazy",),
}

# Its reload replaces whole workers, so it is none of those that take turns.
MAIN = "/main"

# Below it are the hostile apps. What is said of them in the log is theirs, but for mistakes of isowsgi's own.
HOSTILE = "/hostile"

# Few enough for an app to take them all, and far more than a worker needs.
_DESCRIPTORS = 1024

GRACEFUL_S = 30

_CONFIG = """
[defaults]
pythonpath = "{apps}"
threads = {threads}
preload = "auto"

[mounts]
"/shared"  = {{ app = "plain:create('/shared')", isolation = "shared-gil" }}
"/main"    = {{ app = "plain:create('/main')", isolation = "main" }}
"/auto"    = {{ app = "plain:create('/auto')", isolation = "auto" }}
"/lazy"    = {{ app = "plain:create('/lazy')", isolation = "{best}", lazy = true, idle_timeout = 3 }}
"/group/a" = {{ app = "plain:create('/group/a')", isolation = "process", group = "pair" }}
"/group/b" = {{ app = "plain:create('/group/b')", group = "pair" }}

[mounts."/flask"]
app = "flask_site:create('/flask')"
venv = "{flask}"
isolation = "{best}"

[mounts."/django"]
app = "django_site:application"
venv = "{django}"
isolation = "process"

[worker]
fork_server = true
max_leaked = 20    # on a release of CPython that keeps the memory of an interpreter that ended: 23 MiB each

[control]
folder = "control"
"""

_HOSTILE_MOUNT = """
[mounts."{pattern}"]
app = "hostile:create('{trick}')"
isolation = "{isolation}"
lazy = true
idle_timeout = 4
request_timeout = 2
boot_timeout = 5
threads = 3
"""

# The kernel ends gunicorn when whoever started it is gone, whatever ended that.
_LAUNCH = (
    "import ctypes, os, resource, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0); number = int(sys.argv[1]); "
    "resource.setrlimit(resource.RLIMIT_NOFILE, (number, number)); os.execv(sys.argv[2], sys.argv[2:])"
)

_START_S = 120.0
_STOP_S = GRACEFUL_S + 30.0


class Failed(Exception):
    """The server did not do what it should at its start or end; the text is a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One of the server's processes, as /proc has it."""

    pid: int
    parent: int
    started: int  # clock ticks since the machine's boot

    @property
    def age_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.started / os.sysconf("SC_CLK_TCK")


class Gunicorn:
    """A running gunicorn in a folder of its own; ended, with all its processes, when the block is left.

    Attributes:
        port: on the loopback.
        master: its process id.
        log: gunicorn's error log.

    Args:
        config: the text of the config file.
        serving: how many instances are awake once it is up, in all workers together.
        descriptors: that each process may have open.
    """

    def __init__(self, folder: Path, config: str, workers: int, serving: int, descriptors: int = _DESCRIPTORS) -> None:
        self.folder = folder
        self.config = folder / "isowsgi.toml"
        self.log = folder / "error.log"
        self.port = 0
        self._workers = workers
        self._serving = serving
        self._descriptors = descriptors
        self.config.write_text(config)
        (folder / "control").mkdir(mode=0o700)

    def __enter__(self) -> Self:
        command = [sys.executable, "-c", _LAUNCH, str(self._descriptors)]
        command += [sys.executable, "-m", "gunicorn", "-k", "isowsgi.Worker", "--no-control-socket"]
        command += [
            "--workers",
            str(self._workers),
            "--bind",
            "127.0.0.1:0",
            "--keep-alive",
            "5",
            "--worker-connections",
            "400",
            "--graceful-timeout",
            str(GRACEFUL_S),
        ]
        environ = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
        environ |= {"ISOWSGI_CACHE_DIR": str(self.folder / "verdicts"), "PYTHONPATH": str(ROOT)}
        with open(self.folder / "output", "wb") as output:
            self._process = subprocess.Popen(
                [*command, "--error-logfile", str(self.log), "isowsgi.toml"],
                cwd=self.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # by which its processes are known
            )
        self.master = self._process.pid
        try:
            self._wait_until_up()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def is_running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def stop(self) -> str:
        """End it in peace; return what was not as it should be, or ""."""
        self._process.terminate()
        try:
            status = self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            return f"gunicorn did not end within {_STOP_S:g} s of SIGTERM"
        deadline = time.monotonic() + 5.0  # a child of a worker's is killed when the worker has ended
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        if left:
            return f"{len(left)} processes outlived gunicorn: {', '.join(command_of(process.pid) for process in left)}"
        return f"gunicorn ended with status {status}" if status else ""

    def kill(self) -> None:
        """End whatever is left of it at once."""
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for process in self.processes():  # what was started meanwhile
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def processes(self) -> list[Process]:
        """Return all processes that were ever started below it and live."""
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit() or not (fields := _stat(int(name))) or fields[0] in "ZX":
                continue
            # Trials have a session of their own.
            if int(fields[3]) == self.master or _works_in(int(name), self.folder):
                found.append(Process(pid=int(name), parent=int(fields[1]), started=int(fields[19])))
        return found

    def workers(self) -> list[Process]:
        return [process for process in self.processes() if process.parent == self.master]

    def text(self) -> str:
        """Return what its processes wrote to their standard output and error, beside the log."""
        return (self.folder / "output").read_text(errors="replace")

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            log = self.log.read_text(errors="replace") if self.log.exists() else ""
            if len(re.findall(r"#\d+: serving", log)) >= self._serving:
                break
            if not self.is_running() or time.monotonic() > deadline:
                raise Failed(f"gunicorn did not come up: {' / '.join((log + self.text()).splitlines()[-5:])}")
            time.sleep(0.05)
        found = re.search(r"Listening at: http://[\d.]+:(\d+)", log)
        assert found is not None, "it is logged before the first worker is started"
        self.port = int(found[1])


class Site(Gunicorn):
    """The one that is soaked.

    Attributes:
        hostile: the hostile apps' mounts by isolation, in the order of the file.

    Args:
        flask, django: venvs with these.
        seed: of the hostile apps' order and isolations; None: there are none.
    """

    def __init__(self, folder: Path, flask: Path, django: Path, seed: int | None = None) -> None:
        best = "shared-gil" if interpreters.own_gil_error() else "own-gil"
        self.hostile = {} if seed is None else draw_hostile(random.Random(seed), best)
        text = _CONFIG.format(apps=APPS, threads=THREADS, best=best, flask=flask, django=django)
        for pattern, isolation in self.hostile.items():
            text += _HOSTILE_MOUNT.format(pattern=pattern, trick=pattern.rpartition("/")[2], isolation=isolation)
        super().__init__(folder, text, WORKERS, WORKERS * (len(RELOADS) + 1 - len(LAZY)))


def draw_hostile(chance: random.Random, best: str) -> dict[str, str]:
    """Return the hostile apps' mounts in random order, each with its isolation."""
    return {
        f"{HOSTILE}/{trick}": "process" if trick in hostile.ONLY_IN_A_PROCESS else chance.choice([best, "shared-gil", "process"])
        for trick in chance.sample(list(hostile.TRICKS), len(hostile.TRICKS))
    }


def command_of(pid: int) -> str:
    """Return a process's command line, or its number once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:200] or str(pid)
    except OSError:
        return str(pid)


def tag_of(pid: int) -> str:
    """Return which instance a worker's child is, such as "/django #3"; "" if it is none."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return words[4].decode() if len(words) > 4 and words[3] == b"isowsgi" else ""


def rss_mib(pid: int) -> float:
    """Return a process' resident memory."""
    return round(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used so far, 0 if it has ended."""
    fields = _stat(pid)
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def ports_of(pid: int, server_port: int) -> list[int]:
    """Return the clients' ports of all connections that a process has."""
    inodes = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                inodes.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    ports = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].partition(":")[2], 16) == server_port and f"socket:[{fields[9]}]" in inodes:
            ports.append(int(fields[2].partition(":")[2], 16))
    return [port for port in ports if port]


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(folder)
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """Return the fields of a process's /proc/N/stat from the third on, the state; none if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []
