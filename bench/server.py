"""One running peer: its processes, when its apps answer, what it uses of the machine, and its end.

Each process that is started here leads a process group of its own. So its children are known by their group, whoever their parent is,
a Ctrl-C at the terminal reaches none of them, and one signal to the group ends what a server did not end itself. Not a session of its
own: Linux shares the CPU out by session first (sched_autogroup), so that many processes would get more of it than many threads.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

from bench.peers import ADDRESS, Mount, Peer, Site

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

# Where free ports are looked for: below Linux's ephemeral ones (from 32768), of which a client's connection could take one at any time.
_PORTS = range(21000, 32000)

# Seconds for a server to answer for its first app, and more for each app. A busy machine needs half a second for a framework.
_PATIENCE_S = 60.0
_PATIENCE_PER_APP_S = 1.0

# Seconds from SIGTERM to SIGKILL. uWSGI with several interpreters crashes at every stop, after its 2 s of mercy.
_STOP_S = 5.0


class Failed(Exception):
    """A server did not start or did not answer; the text is one line with the end of its log."""


class Server:
    """A peer that serves a site; a context manager that starts it and ends it.

    Args:
        modules: texts of modules that are made for this site, by name.

    Attributes:
        first_s, all_s: seconds from the start of its first process to the first app's answer, and to all apps' answers.
    """

    def __init__(self, peer: Peer, mounts: Sequence[Mount], venv: Path, *, modules: Mapping[str, str], threads: int) -> None:
        self.peer = peer
        self.first_s = self.all_s = 0.0
        self._processes: list[subprocess.Popen[bytes]] = []
        folder = Path(tempfile.mkdtemp(prefix="isowsgi-bench-"))  # not in the checkout: a Unix socket's path has at most 107 bytes
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
        port, close_port = _free_ports(2)
        self.site = Site(mounts=tuple(mounts), folder=folder, venv=venv, port=port, close_port=close_port, threads=threads)

    def __enter__(self) -> Server:
        try:
            commands = self.peer.commands(self.site)
            began = time.monotonic()
            for command in commands:
                self._start(command)
            self._wait_for_all(began)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop()

    def url(self, path: str, *, closes: bool = False) -> str:
        port = self.site.close_port if closes and self.peer.has_close_port else self.site.port
        return f"http://{ADDRESS}:{port}{path}"

    def check(self, path: str, *, closes: bool = False) -> None:
        """Ask for a path once; raises Failed if that is not answered with 200."""
        status = _status(self.url(path, closes=closes))
        if status != http.client.OK:
            raise Failed(f"{self.peer.name}: {path}: expected an answer with 200, got {status!r}{self._log_end()}")

    def cpu_s(self) -> float:
        """CPU seconds its processes have used so far, those that have ended included."""
        return sum(map(cpu_s_of, self._pids()))

    def pss_mib(self) -> float:
        """Proportional set size of all its processes: private memory, and its share of what several processes map."""
        total_kib = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):  # it has just ended
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total_kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total_kib / 1024

    @contextlib.contextmanager
    def on_one_core(self, core: int) -> Iterator[None]:
        """Bind all its threads to a core for a while; threads that come meanwhile inherit it."""
        before = os.sched_getaffinity(0)
        self._bind({core})
        try:
            yield
        finally:
            self._bind(before)

    def _bind(self, cores: set[int]) -> None:
        for pid in self._pids():
            with contextlib.suppress(OSError):  # it has just ended
                for thread in os.listdir(f"/proc/{pid}/task"):
                    os.sched_setaffinity(int(thread), cores)

    def _pids(self) -> list[int]:
        groups = {process.pid for process in self._processes}
        return [pid for pid, stat in _stats() if int(stat[2]) in groups and stat[0] != b"Z"]

    def _start(self, command: Sequence[str]) -> None:
        environ = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
        environ["PYTHONPATH"] = os.pathsep.join(self.site.python_path)
        with open(self.site.folder / "output.log", "ab") as log, interrupts_put_off():
            self._processes.append(
                subprocess.Popen(
                    command,
                    cwd=self.site.folder,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                )
            )

    def _wait_for_all(self, began: float) -> None:
        deadline = began + _PATIENCE_S + _PATIENCE_PER_APP_S * len(self.site.mounts)
        for mount in self.site.mounts:
            while (status := _status(self.url(f"{mount.prefix}/"))) != http.client.OK:
                ended = [process for process in self._processes if process.poll() is not None]
                if ended or time.monotonic() > deadline:
                    what = f"ended with status {ended[0].returncode}" if ended else f"answered {status!r} until the time was over"
                    raise Failed(f"{self.peer.name}: {mount.prefix}: it {what}{self._log_end()}")
                time.sleep(0.01)  # a hundredth of what the quickest start takes
            self.first_s = self.first_s or time.monotonic() - began
        self.all_s = time.monotonic() - began

    def _stop(self) -> None:
        try:
            for process in reversed(self._processes):
                if process.poll() is None:
                    process.terminate()
            deadline = time.monotonic() + _STOP_S
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for process in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            shutil.rmtree(self.site.folder, ignore_errors=True)

    def _log_end(self) -> str:
        lines = [line for log in sorted(self.site.folder.glob("*.log")) for line in log.read_text(errors="replace").splitlines()[-3:]]
        return "; its log ends: " + " / ".join(line.strip() for line in lines) if lines else ""


@contextlib.contextmanager
def interrupts_put_off() -> Iterator[None]:
    """Let an interrupt that comes during the block be raised after it: else a child could start of which nobody knows."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def cpu_s_of(pid: int) -> float:
    """CPU seconds of a process and of its children that have ended; 0 if it is no more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, stat[11:15])) / _TICKS_PER_S


def machine_cpu_s() -> float:
    """CPU seconds that the whole machine has spent so far, a hypervisor's share included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def _stats() -> Iterator[tuple[int, list[bytes]]]:
    """Yield the number of each process with the fields of its /proc/N/stat from the third on, the state."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                yield int(name), Path(f"/proc/{name}/stat").read_bytes().rpartition(b") ")[2].split()


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now; each is given out once, so two servers that start together differ."""
    found: list[int] = []
    while len(found) < count:
        port = next(_unused)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT of a former run is no obstacle to a server either
            with contextlib.suppress(OSError):
                probe.bind((ADDRESS, port))
                found.append(port)
    return found


def _cycle(ports: range) -> Iterator[int]:
    while True:
        yield from ports


_unused = _cycle(_PORTS)


def _status(url: str) -> int | str:
    """Return the status of a GET, or what went wrong."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=10)  # a server may let a request wait for its app
    try:
        connection.request("GET", f"/{path}", headers={"Connection": "close"})
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException) as exc:
        return repr(exc)
    finally:
        connection.close()
