"""Fixtures: a real gunicorn with isowsgi's worker, on a port of its own, started and ended by its process id.

Functional tests run several at a time, on machines with two cores and other work. So that they are quick and say the same each time:

- Starting and ending a server takes about 0.4 s, 0.2 s of it CPU time, and twice that unless it is forked by `starter`. What a test asks of
  the system about a master, its command line or environment in /proc, needs one that is not: `launcher=["env"]`.
- Tests that leave a server as they found it share one:
  `server = shared_server(CONFIG, wait_for=2)` in a module is a fixture. They run in one process then, one after the other.
- `serve(CONFIG, wait_for=2)` starts one for a test alone. Who needs several starts them with `wait_for=0` and calls `wait_until_serving`
  for each after that. All of a test's servers are told to end together.
- Nothing is slept for. A test waits for what it needs with `eventually` or `wait_for_log`; what must last until the test has seen
  something waits for a file (tests/apps/sleeps.py, gated.py) rather than for two seconds.
- "It took less than N seconds" holds on a busy machine only where N is the length of a wait, 10 s or more, that would have come instead.
  Where isowsgi's own limit is shorter, `again_if_disturbed` runs a test again that failed while this machine stood still.
- What measures load, or can be broken by any other test's work, is marked `alone`: it runs when all others have ended, with one core idle.
  So what shows no more than another test does, only longer, is for whole runs: `WHOLE`.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest
import requests

from tests import scheduling
from tests.starter import Started, Starter

APPS = Path(__file__).parent / "apps"
ROOT = Path(__file__).parent.parent

# Longer than anything here takes on a busy machine; a wait ends as soon as its condition holds.
DEADLINE_S = 60.0

# Where the servers of a test run remember the isolation of apps: not in the user's own memory, and an app that many tests serve is tried
# once.
VERDICTS = tempfile.TemporaryDirectory(prefix="isowsgi-tests-")


# Where the processes of a run leave word of the groups of tests, below the run's temporary folder.
GROUPS = "groups.json"

# Each process that a test starts imports the same modules. Where the environment forbids bytecode files, or the interpreter cannot write
# them beside its own library, they are compiled over and over: a gunicorn took 1.05 s of CPU time to start and end, and 0.30 s with them.
BYTECODE = ROOT / ".pytest_cache" / "bytecode"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(BYTECODE)
sys.dont_write_bytecode = False

# When the files of a server were written, in seconds since the epoch. Bytecode is told to be old by its source's size and time in whole
# seconds: a test that writes a module anew, as long as before and within the second, would get the old one.
AN_HOUR_AGO = time.time() - 3600

# How many times as many examples of each property to try: `ISOWSGI_EXAMPLES=20 python -m pytest tests/test_peek.py`.
EXAMPLES_FACTOR = int(os.environ.get("ISOWSGI_EXAMPLES", "1"))


# Whether all of a corpus is used where a part of it shows as much, but for surprises: `ISOWSGI_WHOLE=1 make test`, as CI does once.
WHOLE = bool(os.environ.get("ISOWSGI_WHOLE"))
# How many gunicorns there are to one that is started as a user does, and not as in `starter`; 0: none is. What measures coverage begins
# with a Python.
COLD_OF = 1 if "COVERAGE_PROCESS_CONFIG" in os.environ or "COVERAGE_PROCESS_START" in os.environ else 4 if WHOLE else 0

T = TypeVar("T")


def whole_only(why: str) -> pytest.MarkDecorator:
    """Leave a test to whole runs, because of what it takes and what others show as well."""
    return pytest.mark.skipif(not WHOLE, reason=f"{why}; ISOWSGI_WHOLE=1")


def sample(corpus: Sequence[T], every: int) -> Sequence[T]:
    """Return one in so many members of a corpus, always the same ones, or all of them."""
    return corpus if WHOLE else corpus[::every]


# Each run has the same examples of a property, so one that fails fails because of a change. New ones are tried by `make fuzz`, and with
# ISOWSGI_EXAMPLES or ISOWSGI_WHOLE set. No example has a time limit, as machines are busy.
hypothesis.settings.register_profile("isowsgi", deadline=None, derandomize=not WHOLE and EXAMPLES_FACTOR == 1)
hypothesis.settings.load_profile("isowsgi")


def any_seed() -> int:
    """Return a seed of what a test makes up by chance: the same one in each run, but for whole ones."""
    return random.randrange(1 << 32) if WHOLE else 1


def examples(count: int, **options: Any) -> hypothesis.settings:
    """Return hypothesis' settings for a property that `count` examples show well enough, and a quarter of them nearly as well."""
    return hypothesis.settings(max_examples=(count if WHOLE else -(-count // 4)) * EXAMPLES_FACTOR, **options)


def eventually(condition: Callable[[], T | None], what: str = "the condition", deadline_s: float = DEADLINE_S) -> T:
    """Wait until a condition holds and return its value; fail after the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            pytest.fail(f"{what} did not come true within {deadline_s} s")
        time.sleep(0.01)


# The isolation for the mounts of a test run that name none: `ISOWSGI_ISOLATION=process python -m pytest tests/functional/test_wsgi.py`.
ISOLATION = os.environ.get("ISOWSGI_ISOLATION", "")


_starters: list[Starter] = []
_starts = itertools.count()


def is_cold() -> bool:
    """Whether the next gunicorn is started as a user does."""
    return bool(COLD_OF) and next(_starts) % COLD_OF == 0


def starter(env: Mapping[str, str]) -> Starter:
    """Return what starts the gunicorns of this process of the tests; started when it is first needed."""
    if not _starters:
        _starters.append(Starter(env))
    return _starters[0]


def start_gunicorn(
    folder: Path, arguments: Sequence[str], env: Mapping[str, str] | None = None, launcher: Sequence[str] = ()
) -> subprocess.Popen[bytes] | Started:
    """Start a gunicorn in a folder; the file `stdout` there has all that it prints.

    Args:
        env: added to its environment.
        launcher: a command that executes what follows in its arguments.
    """
    env = env or {}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "ISOWSGI_CACHE_DIR": VERDICTS.name}
    with open(folder / "stdout", "wb") as stdout:
        if not launcher and not is_cold() and not any(name.startswith(("PYTHON", "LD_")) for name in env):
            started = starter(ours).start(arguments, folder, {**ours, **env}, stdout.fileno())
            if started is not None:
                return started
        return subprocess.Popen(
            [*launcher, sys.executable, "-m", "gunicorn", *arguments],
            cwd=folder,
            env={**ours, **env},
            stdout=stdout,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )


def run_gunicorn(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a gunicorn with isowsgi's worker that is expected to end by itself, and return its code and all that it printed."""
    command = ["-k", "isowsgi.Worker", "--no-control-socket", "-b", "127.0.0.1:0", *arguments]
    process = start_gunicorn(folder, command)
    try:
        code = process.wait(DEADLINE_S)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, code, (folder / "stdout").read_text())


class Server:
    """A running gunicorn.

    Attributes:
        host, port: where it listens ("" and 0 if only on Unix sockets).
        folder: where its config file and log lie; its working directory.
        process: the master.
    """

    def __init__(
        self, folder: Path, arguments: list[str], env: dict[str, str], app: str | None, bind: str | None, launcher: list[str]
    ) -> None:
        self.folder = folder
        self.log_path = folder / "error.log"
        self.host = "127.0.0.1"
        self.port = 0
        self._connections: list[socket.socket] = []
        self._was_told = False
        binds = [] if bind is None else ["--bind", bind]
        arguments = ["-k", "isowsgi.Worker", "--no-control-socket", *binds, "--error-logfile", str(self.log_path), *arguments]
        if app is not None:
            arguments.append(app)
        self.process = start_gunicorn(folder, arguments, env, launcher)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def output(self) -> str:
        """What the processes wrote to their standard output and error; the log goes to a file."""
        return (self.folder / "stdout").read_text(errors="replace")

    def wait_for_log(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until a regular expression was found `count` times in the log; return all its matches."""

        def found() -> list[str] | None:
            if self.process.poll() is not None and len(re.findall(pattern, self.log())) < count:
                pytest.fail(f"gunicorn ended with {self.process.returncode} before its log had {pattern!r}:\n{self.log()}{self.output()}")
            matches = re.findall(pattern, self.log())
            return matches if len(matches) >= count else None

        try:
            return eventually(found, f"{count} x {pattern!r} in the log")
        except pytest.fail.Exception:
            print(self.log(), self.output())
            raise

    def wait_until_serving(self, mounts: int = 1) -> None:
        """Wait until so many instances have loaded their apps; then `port` is known."""
        self.wait_for_log(r"#\d+\w?: serving", mounts)
        self.learn_port()

    def learn_port(self) -> None:
        """Set `port` once gunicorn listens."""
        listening = re.search(r"Listening at: https?://[\d.]+:(\d+)", self.log())
        if listening:
            self.port = int(listening[1])

    def workers(self) -> list[int]:
        """The process ids of the workers that live now."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def get(self, path: str, **options: object) -> requests.Response:
        return requests.get(self.url + path, timeout=DEADLINE_S, **options)  # type: ignore[arg-type]

    def connect(self) -> socket.socket:
        """Open a connection; closed before the server is ended at the latest."""
        sock = socket.create_connection((self.host, self.port), DEADLINE_S)
        self._connections.append(sock)
        return sock

    def close_connections(self) -> None:
        for sock in self._connections:
            sock.close()

    def ask(self, path: str, connection: str = "close") -> socket.socket:
        """Send a request on a new connection and return the connection; the answer is the caller's to read."""
        sock = self.connect()
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n\r\n".encode())
        return sock

    def exchange(self, data: bytes) -> bytes:
        """Send bytes as they are on a new connection and return all that comes until it is closed."""
        with self.connect() as sock:
            sock.sendall(data)
            return receive_all(sock)

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def tell_to_stop(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal, unless it has ended; who waits for it then is `stop`."""
        self.close_connections()
        if self.process.poll() is None and not self._was_told:
            self.process.send_signal(number)
            self._was_told = True

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal and return the exit code."""
        if self.process.poll() is None and not self._was_told:
            self.process.send_signal(number)
        try:
            return self.process.wait(DEADLINE_S + 10)
        except subprocess.TimeoutExpired:
            for pid in [*self.workers(), self.process.pid]:
                os.kill(pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"gunicorn did not end:\n{self.log()}{self.output()}") from None


def receive_all(sock: socket.socket) -> bytes:
    chunks = []
    while chunk := sock.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


StartServer = Callable[..., Server]


@contextmanager
def running_server(
    folder: Path,
    config: str,
    *arguments: str,
    env: dict[str, str] | None = None,
    app: str | None = "isowsgi.toml",
    bind: str | None = "127.0.0.1:0",
    wait_for: int | None = None,
    files: dict[str, str] | None = None,
    launcher: list[str] | None = None,
) -> Iterator[Server]:
    """Run gunicorn on a config; `{apps}` in it is the folder of the test apps. Ended when the block is left.

    Args:
        env: added to gunicorn's environment.
        app: gunicorn's APP_MODULE; None leaves it out, for a conf file that names it.
        wait_for: how many instances shall serve before the block begins; 0 does not wait.
        files: texts put into the server's folder before it starts, by name.
        launcher: a command that executes what follows in its arguments.
    """
    text = textwrap.dedent(config).replace("{apps}", str(APPS))
    if "pythonpath" not in text:
        text = (
            f"[defaults]\npythonpath = ['{APPS}']\n{text}"
            if "[defaults]" not in text
            else text.replace("[defaults]", f"[defaults]\npythonpath = ['{APPS}']")
        )
    if ISOLATION:
        text = text if "[defaults]" in text else f"[defaults]\n{text}"
        text = text.replace("[defaults]", f"[defaults]\nisolation = '{ISOLATION}'")
    (folder / "isowsgi.toml").write_text(text)
    for name, content in (files or {}).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(content))
        os.utime(path, (AN_HOUR_AGO, AN_HOUR_AGO))
    server = Server(folder, list(arguments), env or {}, app, bind, launcher or [])
    try:
        if wait_for != 0:
            server.wait_until_serving(wait_for or 1)
        yield server
    finally:
        server.tell_to_stop()
        server.stop()


def shared_server(config: str, *arguments: str, **options: Any) -> Any:
    """Make a fixture of a server that all tests of a module share; the arguments are those of `running_server`."""

    @pytest.fixture(scope="module")
    def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
        with running_server(tmp_path_factory.mktemp("server"), config, *arguments, **options) as server:
            yield server

    return server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    scheduling.put_in_order(items)


def _base_folder(config: pytest.Config) -> Path:
    folder: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined,unused-ignore] # pytest sets it in a plugin of its own
    return folder


@pytest.hookimpl(tryfirst=True)  # before xdist tells its schedule which tests there are
def pytest_collection_finish(session: pytest.Session) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        scheduling.write_groups(_base_folder(session.config).parent / GROUPS, session.items)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Forget the bytecode of modules that tests wrote; that of the library and of the packages is kept for the next run."""
    while _starters:
        _starters.pop().end()
    written = getattr(getattr(config, "_tmp_path_factory", None), "_basetemp", None)
    if written is not None and "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(f"{BYTECODE}{written}", ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> scheduling.AloneLast:
    return scheduling.AloneLast(config, log, _base_folder(config) / GROUPS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    return scheduling.default_jobs()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[StartServer]:
    """Start servers that end with the test: `serve(config, *gunicorn_arguments, wait_for=instances)`."""
    with ExitStack() as stack:
        started: list[Server] = []

        def start(config: str, *arguments: str, **options: object) -> Server:
            folder = tmp_path / f"server{len(started) + 1}"
            folder.mkdir()
            started.append(stack.enter_context(running_server(folder, config, *arguments, **options)))  # type: ignore[arg-type]
            return started[-1]

        yield start
        for server in started:
            server.tell_to_stop()
