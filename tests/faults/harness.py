"""The server, the neighbour that is asked all the time, and what is done to the other mounts while a point fails."""

from __future__ import annotations

import http.client
import importlib.util
import json
import mmap
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrs

from isowsgi import configuration
from isowsgi.configuration import stored
from tests.faults.inject import ALWAYS, FAILED, MASTER, MET, MODE, NUMBER, OFF, ONCE, POINTS, SWITCH, WORDS

ROOT = Path(__file__).parent.parent.parent
MODES = {"once": ONCE, "always": ALWAYS}

# What is come to when a process is forked, and how long that may take: its mount waits for its turn to be loaded.
_BIRTHS = ("isowsgi.instances.fork", "isowsgi.instances.original", "isowsgi.instances.process.ProcessInstance._")
_BIRTH_S = 1.0

# How long a point is made to fail, and how long all may take to be well again.
_TROUBLE_S = 0.15
_DEADLINE_S = 20.0

# How long a worker may take to load what is new in a table; a small app needs a twentieth of a second.
_APPLY_S = 5.0

# Kinds of messages come in their time: a reload that boots an app takes longer than the rest. Some come on no occasion that is made here.
_MESSAGES = ("report ", "order ")
_MESSAGE_S = 2.0

# Parts of the names of points that are met when a table is applied.
_OF_TABLES = (
    "table",
    "Table",
    "change",
    "Change",
    "pplying",
    "pplied",
    "stored",
    "Reroute",
    "imit",
    "adjust",
    "costs",
    "partial",
    "add_mount",
    "free_mount",
    "set_status",
    "leave",
)

# What the master needs to have a worker at all, whatever else it does without.
NEEDED_BY_EACH_WORKER = (
    *(f"{MASTER}isowsgi.shared.{name}." for name in ("scoreboard.Scoreboard", "rows.Region", "rows.Row")),
    *(f"{MASTER}isowsgi.master.workerplan.{name}" for name in ("Share.__init__", "Plan.share", "Plan._new_region")),
    f"{MASTER}isowsgi.master.crashes.WatchedTmp.__init__",
)

# The last of what the worker's loop calls about once a second.
_ONCE_A_SECOND = ("isowsgi.worker.gunicorn.Worker._look_for_restart", "isowsgi.worker.acceptor.Acceptor._sweep")

_APP = """
import os
import time

def application(environ, start_response):
    if environ["PATH_INFO"] == "/raises":
        raise RuntimeError("as asked")
    if environ["PATH_INFO"] == "/hangs":
        time.sleep(4)  # past request_timeout, and past the time that an interrupted thread has to come out
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3"), ("X-Worker", str(os.getpid()))])
    return [b"ok\\n"]
"""
_BAD = "from app import application\n"
_CONFIG = """
[mounts]
"/good" = { app = "app", on_crash = "serve" }
"/bad" = { app = "bad:application", threads = 2, request_timeout = 1, boot_timeout = 10, watch = true }
"/child" = { app = "app", threads = 2, isolation = "process", preload = ["auto", "xml.dom.minidom"] }
"/copies" = { app = "app", threads = 1, isolation = "process", instances = 2, copies = "fork" }
"*.example/" = { app = "app", threads = 1, max_live = 2 }
"/moved" = { redirect = "/good{path}" }
[worker]
fork_server = true
max_stuck = 1000000  # what is believed of made-up reports leaves interpreters behind
[control]
folder = "FOLDER"
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """What went wrong while one point failed."""

    point: str
    mode: str
    text: str

    def __str__(self) -> str:
        return f"{self.point} ({self.mode}): {self.text}"


class Neighbour:
    """Asks a mount by a connection that is kept, all the time, and notes what is lost."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.answered = 0
        self.worker = 0  # that answered last
        self.lost: list[str] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_DEADLINE_S)
        while not self._ends.is_set():
            try:
                connection.request("GET", "/good")
                response = connection.getresponse()
                if response.status != 200 or response.read() != b"ok\n":
                    raise AssertionError(f"status {response.status}")
                self.worker = int(response.headers["X-Worker"])
                self.answered += 1
            except Exception as exc:
                self.lost.append(f"{type(exc).__name__}: {exc}")
                connection.close()
            self._ends.wait(0.005)
        connection.close()

    def stop(self) -> None:
        self._ends.set()
        self._thread.join()


class Place:
    """A gunicorn with a worker whose functions can be made to fail.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "app.py").write_text(_APP)
        (folder / "bad.py").write_text(_BAD)
        (folder / "isowsgi.toml").write_text(_CONFIG.replace("FOLDER", str(folder / "control")))
        (folder / SWITCH).write_bytes(bytes(8 * WORDS))
        with open(folder / SWITCH, "r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
        self._log = folder / "log"
        command = [sys.executable, "-m", "gunicorn", "-k", "isowsgi.Worker", "--no-control-socket", "-b", "127.0.0.1:0"]
        command += ["-c", str(ROOT / "tests/faults/inject.py"), "--timeout", "60"]
        # A worker that fails to count a connection waits so long for it at its stop: less than the deadline here.
        command += ["--graceful-timeout", "5", "isowsgi.toml"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "ISOWSGI_FAULTS": str(folder), "ISOWSGI_CACHE_DIR": str(folder / "cache")}
        with open(self._log, "wb") as output:
            self._process = subprocess.Popen(command, cwd=folder, env=environ, stdout=output, stderr=output)
        self._wait(lambda: self.log().count("#1: serving") == 3, "the start", 3 * _DEADLINE_S)
        self.port = int(re.findall(r"Listening at: http://127.0.0.1:(\d+)", self.log())[0])
        self.points: list[str] = json.loads((folder / POINTS).read_text())
        self.worker = self._workers()
        self._is_there = False  # the mount that comes and goes
        self._neighbour = Neighbour(self.port)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def _log_since(self) -> str:
        """Return the log's last lines: of this point, and maybe of some before it."""
        return self.log()[-3000:]

    def close(self) -> None:
        self._words[MODE] = OFF
        self._neighbour.stop()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    def try_point(self, point: str, mode: str) -> tuple[list[Finding], int]:
        """Make a point fail while all kinds of work are done; return what went wrong, and how often it failed."""
        self._reaches(self._is_settled)
        neighbour, before = self._neighbour, self._neighbour.answered
        # On a connection that this worker keeps: what fails may cost one that is not handed over yet.
        self._wait(lambda: [neighbour.worker] == self.worker and neighbour.answered > before, "the neighbour's connection")
        neighbour.lost.clear()
        before = neighbour.answered
        self._words[FAILED] = 0
        self._words[NUMBER] = self.points.index(point) + 1
        self._words[MODE] = MODES[mode]
        problems = self._restart(point) if _needs_restart(point) else self._trouble(point)
        self._words[MODE] = OFF
        failed = self._words[FAILED]
        if self._process.poll() is not None:
            raise AssertionError(f"{point} ({mode}): gunicorn ended: {self.log()[-5000:]}")
        if (workers := self._workers()) != self.worker:
            problems.append(f"worker {self.worker} became {workers}")
            self._wait(lambda: len(self._workers()) == 1 and self._ask("/good") == 200, "another worker")
            self.worker = self._workers()
        if failed and _is_of_tables(point) and not self._reaches(self._applies):
            problems.append("no table can be applied any more")
        if failed and _is_of_tenants(point) and not self._reaches(lambda: self._ask("/", host="well.example") == 200):
            problems.append("no tenant is served any more")
        for path in ("/bad", "/child", "/copies"):
            if failed and not self._gets_well(path):
                problems.append(f"{path} does not serve again: {self._ask(path)}")
        answered = neighbour.answered
        if self._reaches(lambda: neighbour.answered > answered):
            if neighbour.answered == before:
                problems.append("the neighbour was not answered meanwhile")
        else:
            problems.append("the neighbour is not answered any more")
        problems += [f"the neighbour lost a request: {lost}" for lost in neighbour.lost]
        neighbour.lost.clear()
        return [Finding(point, mode, problem) for problem in problems], failed

    def _is_settled(self) -> bool:
        """Whether the neighbour's mount is not being replaced: a made-up report asks for that, and its connection is handed over then."""
        log = self.log().rpartition("Booting worker")[2]
        generation = int((re.findall(r"/good: loading generation (\d+)", log) or ["1"])[-1])
        return generation == 1 or (f"/good #{generation}: serving" in log and f"/good #{generation - 1}: ended" in log)

    def points_met(self) -> list[str]:
        """Return the points that are come to while all kinds of work are done, but for those of a start, which are met once."""
        for number in range(1, len(self.points) + 1):
            self._words[MET + number] = 0
        boots = self.log().count(": serving")
        self._trouble("")
        self._wait(lambda: self.log().count(": serving") >= boots + 2, "the end of two reloads")
        late = [self._words[MET + 1 + self.points.index(point) :] for point in _ONCE_A_SECOND]
        self._wait(lambda: all(words[0] for words in late), "what is due once a second")
        return [point for number, point in enumerate(self.points, 1) if self._words[MET + number]]

    def _trouble(self, point: str) -> list[str]:
        """Do what a worker that stays can meet, and what this point is for."""
        end = time.monotonic() + _TROUBLE_S
        self._stir()
        if "stuck" in point.lower():
            self._ask("/bad/hangs", 0.1)
            self._reaches(lambda: "a thread is stuck" in self._log_since or self._words[FAILED])
        elif "reopen" in point.lower():
            self._process.send_signal(signal.SIGUSR1)
        elif "Changed" in point or "files" in point.lower():
            os.utime(self._folder / "bad.py")
            self._reaches(lambda: "bad.py has changed" in self._log_since or self._words[FAILED])
        elif _is_of_verdicts(point):
            self._loads_what_nobody_knows()
        elif "Failed" in point:
            (self._folder / "bad.py").write_text("raise ImportError('as asked')\n")
            self._control("reload", "/bad")
        if _is_of_tables(point):
            self._applies()
        for name in "abc" if _is_of_tenants(point) else "":
            self._ask("/", 2.0, host=f"{name}.example")
        if point.startswith(_MESSAGES):
            self._reaches(lambda: self._words[FAILED], _MESSAGE_S)
        elif point.startswith(_BIRTHS):
            self._reaches(lambda: self._words[FAILED], _BIRTH_S)
        while time.monotonic() < end:
            time.sleep(0.01)
        (self._folder / "bad.py").write_text(_BAD)
        return []

    def _loads_what_nobody_knows(self) -> None:
        """Load the bad app with an extension module that was never tried: a copy of MarkupSafe's, which can do with an own GIL."""
        speedups = importlib.util.find_spec("markupsafe._speedups")
        if speedups is None or speedups.origin is None:
            return
        package = self._folder / f"copied{len(list(self._folder.glob('copied*')))}"
        package.mkdir()
        shutil.copy(speedups.origin, package)
        (self._folder / "bad.py").write_text(f"import {package.name}._speedups\n{_BAD}")
        self._control("reload", "/bad")
        self._reaches(lambda: self._words[FAILED], _MESSAGE_S)

    def _restart(self, point: str) -> list[str]:
        """Have the master do its work: a worker that is replaced, which costs nobody a request, and one that dies.

        While the master can have no memory for a worker at all, there is none. Each attempt is told, and the first one after that serves.
        """
        problems = []
        may_have_none = point.startswith(NEEDED_BY_EACH_WORKER) and self._words[MODE] == ALWAYS
        for number in (signal.SIGHUP, signal.SIGKILL):
            old = self._workers()
            if not old:
                raise AssertionError(f"no worker is left: {self.log()[-3000:]}")

            def another_serves(old: list[int] = old) -> bool:
                return len(now := self._workers()) == 1 and now != old and self._ask("/good") == 200

            mode, failed = self._words[MODE], self._words[FAILED]
            if number == signal.SIGHUP:
                self._process.send_signal(number)
            else:
                os.kill(old[0], number)
            if may_have_none:
                self._reaches(lambda failed=failed: self._words[FAILED] > failed + 1 or another_serves())
                self._words[MODE] = OFF
            if not self._reaches(another_serves):
                problems.append(f"{number.name}: no other worker serves")
            if may_have_none:
                self._words[MODE] = mode
            if number == signal.SIGHUP and not may_have_none:
                problems += [f"the neighbour lost a request in a reload: {lost}" for lost in self._neighbour.lost]
            self._neighbour.lost.clear()  # one that is killed takes its requests along
        self.worker = self._workers()
        return problems

    def _stir(self) -> None:
        """Have everything happen that goes by the worker's loop, in the bad mounts."""
        for path in ("/bad", "/child", "/nowhere", "/bad/raises", "/moved"):
            self._ask(path, 0.5)
        self._ask("/", 0.5, host="a.example")
        for command in ("status", "stacks", "profile", "memory", "reload"):
            for mount in ("/bad", "/child"):
                self._control(command, mount)
        self._control("reload", "/copies")
        for half in (b"GET /ba", b"GET /bad HTTP/1.1\nx\r\n\r\n"):
            self._send(half)

    def _gets_well(self, path: str) -> bool:
        """Whether a mount serves, after a reload if need be. One that is being loaded is waited for: a reload would begin it once more."""

        def is_well() -> bool:
            if self._ask(path, _DEADLINE_S) == 200:
                return True
            self._control("start", path)
            self._control("reload", path)
            return False

        return self._reaches(is_well, 2 * _DEADLINE_S)

    def _reaches(self, condition: Any, within_s: float = _DEADLINE_S) -> bool:
        end = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def _wait(self, condition: Any, what: str, within_s: float = _DEADLINE_S) -> None:
        if not self._reaches(condition, within_s):
            raise AssertionError(f"{what} never came: {self.log()[-5000:]}")

    def _ask(self, path: str, timeout_s: float = 5.0, host: str = "localhost") -> object:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("GET", path, headers={"Connection": "close", "Host": host})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException) as exc:
            return f"{type(exc).__name__}: {exc}"
        finally:
            connection.close()

    def _send(self, data: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self.port), 1) as sock:
            sock.sendall(data)

    def _control(self, command: str, mount: str) -> None:
        """Ask for something on the worker's control socket, and do not wait for the answer."""
        brief = {"seconds": 0.05} if command in ("profile", "memory") else {}
        request = json.dumps({"v": 1, "do": command, "mount": mount, **brief}).encode()
        for path in (self._folder / "control").glob("*.sock"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(1.0)  # a worker that accepts nothing just now has a full queue soon
                try:
                    sock.connect(str(path))
                    sock.sendall(struct.pack(">I", len(request)) + request)
                except OSError:
                    continue

    def _applies(self) -> bool:
        """Have another table applied: a mount comes or goes, one has other settings, one cannot be loaded. Return whether it is served."""
        self._is_there = not self._is_there
        config = configuration.load(self._folder / "isowsgi.toml")
        good, bad, child, *others = config.mounts
        comes = [attrs.evolve(good, pattern="/good/comes", prefix="/good/comes")] if self._is_there else []
        if self._is_there:
            never = attrs.evolve(good.app, target="nothing_such")
            comes.append(attrs.evolve(good, pattern="/good/never", prefix="/good/never", app=never))
        child = attrs.evolve(child, threads=3 if self._is_there else 2)
        bad = attrs.evolve(bad, queue=99 if self._is_there else 100)
        table = stored.plain(attrs.evolve(config, mounts=(good, bad, child, *others, *comes)))
        serial = f"{time.monotonic_ns()}"
        prepare = {"do": "prepare", "serial": serial, "config": table, "keep_going": True}
        if self._answered(prepare) and self._answered({"do": "switch", "serial": serial, "without": ["/good/never"]}):
            return True
        self._answered({"do": "drop", "serial": serial})
        return False

    def _answered(self, request: dict[str, Any]) -> bool:
        """Return whether the worker did what it was asked for on its control socket."""
        data = json.dumps({"v": 1, **request}).encode()
        for path in (self._folder / "control").glob("*.sock"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(_APPLY_S)
                try:
                    sock.connect(str(path))
                    sock.sendall(struct.pack(">I", len(data)) + data)
                    answer = b""
                    while part := sock.recv(65536):
                        answer += part
                    return json.loads(answer[4:])["ok"] is True
                except (OSError, ValueError, KeyError):
                    continue
        return False

    def _workers(self) -> list[int]:
        try:
            text = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in text.split()]


def room_of(point: str) -> str:
    """Return the part of isowsgi that a point is of, for an account."""
    if point.startswith(MASTER):
        return MASTER.removesuffix(": ")
    if point.startswith("isowsgi."):
        return ".".join(point.split(".")[1:3] if point.startswith("isowsgi.worker.control.") else point.split(".")[1:2])
    return "messages" if point.startswith(_MESSAGES) else "epoll sets" if point.startswith("epoll ") else "system calls"


def _is_of_verdicts(point: str) -> bool:
    return any(name in point for name in ("nknown", "Known", "worker.trials.", "isolation.Siting."))


def _is_of_tables(point: str) -> bool:
    return any(part in point for part in _OF_TABLES)


def _is_of_tenants(point: str) -> bool:
    """Whether a point is met when tenants come and go."""
    return any(part in point for part in ("enant", "Template", "add_mount", "free_mount", "Peeker.host"))


def _needs_restart(point: str) -> bool:
    """Whether a point is met only when a worker goes or comes."""
    return point.startswith((MASTER, "order Last"))


def pairs(points: list[str], seed: int = 0, count: int | None = None) -> Iterator[tuple[str, str]]:
    """Return points with a mode each, all or a sample, which one point more or less hardly changes."""
    every = [(point, mode) for point in points for mode in MODES]
    yield from every if count is None else sorted(every, key=lambda pair: zlib.crc32(f"{seed} {pair}".encode()))[:count]
