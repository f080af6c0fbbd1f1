"""Fork servers from the worker's side: what they fork is a child of ours, and one that fails, hangs or lies costs a start without it."""

from __future__ import annotations

import ast
import errno
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import isowsgi
from isowsgi.inside import warmth
from isowsgi.inside.warmth import shadows
from isowsgi.instances import forkserver, forkservers
from isowsgi.instances.forkedprocess import ForkedProcess
from isowsgi.instances.forkserver import START, ForkServer, Replaceable
from isowsgi.instances.forkservers import ForkServers
from isowsgi.shared import births
from isowsgi.shared.births import Forked, ForkOrder, NotForked, Settled, Unfit, Warm
from isowsgi.shared.containment import Containment
from isowsgi.shared.messages import BootOrder
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.shared.wire import MessageError
from tests.conftest import DEADLINE_S, ROOT, eventually, examples
from tests.orders import any_order, any_orders, with_values
from tests.test_process_instance import no_descriptors

ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT)}

_FDS = "map(int, os.listdir('/proc/self/fd'))"
FIND_SOCKET = f"import os; SERVER = next(fd for fd in {_FDS} if fd > 2 and 'socket:' in os.path.realpath(f'/proc/self/fd/{{fd}}')); "


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkServers]:
    monkeypatch.setattr(forkservers, "_WARM_UP_S", DEADLINE_S)  # a busy machine is no reason to do without
    board = Scoreboard()
    made = ForkServers(any_orders([]).packages, logging.getLogger("test"), Containment(logging.getLogger("test"), board.row(0).words))
    yield made
    made.end()
    os.close(board.fd)


def order_that_fails() -> BootOrder:
    """Return one whose process ends as soon as it reads it."""
    return any_order("own-gil", worker_pid=os.getpid())


def fork(servers: ForkServers, python: str = sys.executable) -> ForkedProcess | None:
    return servers.fork(python, ENVIRON, order_that_fails())


def test_a_forked_process_is_a_child_of_the_worker_with_its_status(servers: ForkServers) -> None:
    process = fork(servers)

    assert process is not None
    assert process.wait() == 1
    process.kill()  # without effect, and without an error
    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, 0)


def test_a_process_whose_status_somebody_else_has_taken_has_ended(servers: ForkServers) -> None:
    """An app in the worker may call os.wait(). Its keeper died of that, and the mount went on with a process that was not there."""
    process = fork(servers)
    assert process is not None
    os.waitpid(process.pid, 0)

    process.kill()  # nobody else who has the number by now

    assert process.wait() == 0


def test_a_process_that_does_not_end_is_not_waited_for_without_limit(servers: ForkServers) -> None:
    process = fork(servers)
    assert process is not None
    process.wait()
    [server] = servers._servers.values()
    assert server._process is not None
    forked = ForkedProcess(server._process.pid)

    with pytest.raises(subprocess.TimeoutExpired):
        forked.wait(0.01)
    os.close(forked._fd or 0)


def test_a_new_process_is_known_by_the_kernels_word_and_not_its_own(servers: ForkServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package in the server could have had the worker kill any of its children, or given a number that no process can have."""
    code = (
        "import socket; from array import array; server = socket.socket(fileno=SERVER);"
        'server.send(b\'{"is": "Warm", "names": []}\'); _, [(_, _, fd)], _, _ = server.recvmsg(1, 64);'
        "birth = socket.socket(fileno=array('i', fd)[0]); birth.send(b'{\"is\": \"Forked\"}'); import time; time.sleep(600)"
    )
    monkeypatch.setattr(forkserver, "START", FIND_SOCKET + code)

    assert fork(servers) is None
    assert servers._servers == {}


def test_forking_leaves_no_descriptor(servers: ForkServers) -> None:
    def fork_and_wait() -> int:
        process = fork(servers)
        assert process is not None
        process.wait()
        return len(os.listdir("/proc/self/fd"))

    before = fork_and_wait()
    [server] = servers._servers.values()
    assert server._process is not None
    its = Path(f"/proc/{server._process.pid}/fd")
    its_before = len(list(its.iterdir()))

    assert [fork_and_wait() for _ in range(5)] == [before] * 5
    eventually(lambda: len(list(its.iterdir())) == its_before, "the server's descriptors of before")


def stopped(servers: ForkServers) -> Any:
    """Return the process of the one server, which hangs from now on."""
    process = fork(servers)
    assert process is not None
    process.wait()
    [server] = servers._servers.values()
    assert server._process is not None
    hanging: Any = server._process
    os.kill(hanging.pid, signal.SIGSTOP)
    return hanging


def test_a_server_that_hangs_is_ended_and_not_asked_again_at_once(
    servers: ForkServers, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = stopped(servers)
    monkeypatch.setattr(forkserver, "_STEP_S", 0.1)

    assert fork(servers) is None

    assert hanging.returncode == -signal.SIGKILL
    assert "it did not fork within 0.1 s; processes start without it, next attempt in 10 s" in caplog.text
    assert fork(servers) is None
    assert caplog.text.count("fork server") == 1


def test_a_server_that_never_gets_ready_keeps_a_process_waiting_only_so_long(servers: ForkServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkservers, "_WARM_UP_S", 0.05)
    monkeypatch.setattr(forkserver, "START", "import sys; sys.stdin.close(); import time; time.sleep(600)")

    assert fork(servers) is None


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.stdin.read()", "it died before it could get ready"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it died before it could get ready"),
        ("import socket; socket.socket(fileno=SERVER).send(b'{}')", "it said what makes no sense"),
        ("import socket; socket.socket(fileno=SERVER).send(b'\\xff' * 9)", "it said what makes no sense"),
        ('import socket; socket.socket(fileno=SERVER).send(b\'{"is": "Settled"}\')', "it said Settled"),
        (
            'import socket; socket.socket(fileno=SERVER).send(b\'{"is": "Unfit", "error": "no such call"}\')',
            "no such call; .* not trying again",
        ),
    ],
)
def test_a_server_that_dies_or_talks_nonsense_at_its_start_is_done_without(
    servers: ForkServers, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    monkeypatch.setattr(forkserver, "START", FIND_SOCKET + code)

    assert fork(servers) is None

    eventually(lambda: "processes start without it" in caplog.text, "the line in the log")
    [line] = [record.getMessage() for record in caplog.records]
    assert re.search(said, line)


def test_without_a_descriptor_left_nothing_is_forked_and_the_server_stays(servers: ForkServers) -> None:
    process = fork(servers)
    assert process is not None
    process.wait()

    with no_descriptors():
        assert fork(servers) is None

    assert servers._servers
    process = fork(servers)
    assert process is not None
    process.wait()


CALLS: tuple[tuple[Any, str], ...] = (
    (socket, "socketpair"),
    (socket.socket, "setsockopt"),
    (os, "memfd_create"),
    (os, "pidfd_open"),
    (births, "send"),
)


def test_each_system_call_of_a_birth_may_fail_and_nothing_is_left_behind(servers: ForkServers, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "as it was told")

    def fork_and_count() -> int:
        servers._pauses.clear()  # as if the pause were over
        process = fork(servers)
        assert process is not None
        process.wait()
        return len(os.listdir("/proc/self/fd"))

    before_all = children()
    before = fork_and_count()
    for owner, name in CALLS:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            assert fork(servers) is None, name
        assert fork_and_count() == before, name
    [server] = servers._servers.values()
    servers.end()
    assert server._process is None
    assert children() == before_all  # neither the servers nor a process that was not wanted is left


def children() -> set[str]:
    """Return the numbers of the children of this process; zombies are among them."""
    return {number for task in Path("/proc/self/task").iterdir() for number in (task / "children").read_text().split()}


@pytest.mark.parametrize("step", ["fork", "is_warm", "_await_fork"])
def test_a_mistake_of_ours_costs_a_process_no_more_than_the_server(
    servers: ForkServers, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    process = fork(servers)
    assert process is not None
    process.wait()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("as it was told")

    monkeypatch.setattr(forkserver.ForkServer, step, fail)

    assert fork(servers) is None
    assert "fork server: internal error, contained" in caplog.text


def preloading(*modules: str) -> BootOrder:
    return with_values(order_that_fails(), preload=list(modules))


def test_a_server_that_hangs_while_a_venvs_is_forked_from_it_is_replaced(
    servers: ForkServers, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the venv's was given up: the dead one stayed in its place, and nothing was forked until the worker ended."""
    stopped(servers)
    monkeypatch.setattr(forkserver, "_STEP_S", 0.1)

    assert servers.fork(sys.executable, ENVIRON, preloading("this")) is None

    assert f"fork server of {sys.executable}: it did not fork within 0.1 s" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(forkservers, "_WARM_UP_S", DEADLINE_S)
    servers._pauses.clear()  # as if the pause were over
    process = fork(servers)
    assert process is not None
    process.wait()


def preload(servers: ForkServers, venv: Path, *modules: str, name: str = "/a", **changes: Any) -> ForkedProcess:
    order = with_values(preloading(*(modules or ("this",))), venv=str(venv), **changes).replace(name=name)
    process = servers.fork(sys.executable, ENVIRON, order)
    assert process is not None
    process.wait()
    return process


def make_venv(folder: Path, **modules: str) -> Path:
    packages = folder / "lib/python{}.{}/site-packages".format(*sys.version_info[:2])
    packages.mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text("")
    for name, code in modules.items():
        (packages / f"{name}.py").write_text(code)
    return folder


def of_venv(servers: ForkServers) -> ForkServer:
    [server] = [server for server in servers._servers.values() if server.key.venv]
    return server


NOFILE = "import resource; soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)"
LEAVES = {
    "file": ("kept = open(__file__)", r"its import leaves an open file \(/.*\) behind"),
    "sock": ("import socket; kept = socket.socket()", "its import leaves a socket behind"),
    "mask": ("import os; os.umask(0o7)", "its import changes the umask, for apps too that do not import it"),
    "handler": ("import signal; signal.signal(signal.SIGUSR1, print)", "its import changes signal handlers"),
    "limit": (f"{NOFILE}; resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))", "its import changes resource limits"),
    "place": ("import locale; locale.setlocale(locale.LC_ALL, 'C')", "its import changes the locale"),
    "limit_s": ("import socket; socket.setdefaulttimeout(9)", "its import changes the default timeout of sockets"),
    "elsewhere": ("import os; os.chdir('/proc')", "its import changes the working directory"),
}


def test_a_package_that_leaves_or_changes_what_all_processes_would_have_is_not_preloaded(
    servers: ForkServers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    venv = make_venv(tmp_path / "venv", **{name: code for name, (code, _) in LEAVES.items()})

    preload(servers, venv, *LEAVES, "this")

    said = {str(record.args[1]): record.getMessage() for record in caplog.records if isinstance(record.args, tuple)}
    assert [name for name, (_, reason) in LEAVES.items() if not re.search(reason, said.get(name, ""))] == [], said
    assert of_venv(servers).key.modules == ("this",)


def test_what_a_package_prints_is_written_once_and_a_lazy_module_is_not_loaded(
    servers: ForkServers, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each process wrote the text again when it ended."""
    lazy = (
        "print('once')\nimport sys\nfrom importlib.util import LazyLoader, find_spec, module_from_spec\nspec = find_spec('asleep')\n"
        "spec.loader = LazyLoader(spec.loader)\nmodule = sys.modules['asleep'] = module_from_spec(spec)\nspec.loader.exec_module(module)\n"
    )
    venv = make_venv(tmp_path / "venv", lazy=lazy, asleep="print('woken')")

    preload(servers, venv, "lazy")
    preload(servers, venv, "lazy")

    assert capfd.readouterr().out.split() == ["once"]


def test_whoever_asks_a_server_that_is_out_of_date_is_told_so(servers: ForkServers, tmp_path: Path) -> None:
    """It left after the first: to others it had died, and processes did without it for a while."""
    venv = make_venv(tmp_path / "venv", changing="")
    preload(servers, venv, "changing")
    server = of_venv(servers)
    next(venv.rglob("changing.py")).write_text("import this")
    order = preloading("changing")

    for _ in range(2):
        with pytest.raises(Replaceable):
            server.fork(order)


def test_a_file_that_is_written_while_it_is_loaded_is_loaded_anew(
    servers: ForkServers, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As by an upgrade in the middle of the imports: only what came after them was noticed."""
    venv = make_venv(tmp_path / "venv", upgraded="open(__file__, 'w').write('print(2)')")

    order = with_values(preloading("upgraded"), venv=str(venv))
    eventually(lambda: servers.fork(sys.executable, ENVIRON, order), "a process from a server that came long enough after the write").wait()

    assert set(capfd.readouterr().out.split()) == {"2"}  # more than once if it came too soon after the write to tell


def test_a_server_is_replaced_when_what_python_loads_at_its_start_has_changed(
    servers: ForkServers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = tmp_path / "sitecustomize.py"
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}

    def fork_and_tell() -> ForkServer:
        process = servers.fork(sys.executable, environ, order_that_fails())
        assert process is not None
        process.wait()
        [server] = servers._servers.values()
        return server

    site.write_text("")
    first, again = fork_and_tell(), fork_and_tell()
    site.write_text("kept = open(__file__)")

    assert first is again
    assert servers.fork(sys.executable, environ, order_that_fails()) is None
    assert "a module that is loaded at the start of Python leaves an open file (" in caplog.text


@pytest.mark.parametrize("changes", [{"env": {"OPENSSL_CONF": "/x"}}, {"policy": {"umask": "deny"}}])
def test_a_mount_whose_settings_come_too_late_for_a_loaded_package_does_without(
    servers: ForkServers, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """OpenSSL reads its variables when it is loaded; a policy judges what an import does."""
    order = with_values(preloading("this"), venv=str(make_venv(tmp_path / "venv")), **changes)

    process = servers.fork(sys.executable, ENVIRON, order)

    assert (process is None) == ("env" in changes)
    assert [server for server in servers._servers.values() if server.key.modules] == []
    if process is not None:
        process.wait()


def test_servers_of_releases_that_were_left_are_ended(servers: ForkServers, tmp_path: Path) -> None:
    """Each switch of a link made another server, and all of them stayed until the worker ended."""
    releases = [make_venv(tmp_path / str(number)) for number in range(3)]
    preload(servers, releases[0], name="/other")
    for release in releases:
        preload(servers, release)
    everyone: Any = {server.key.venv: server._process for server in servers._servers.values()}

    servers.keep({"/a", "/other"})

    eventually(lambda: not _is_there(everyone[str(releases[1])].pid), "the end of the server in between")
    assert {key.venv for key in servers._servers} == {None, str(releases[0]), str(releases[2])}
    assert [_is_there(everyone[str(release)].pid) for release in releases] == [True, False, True]

    servers.keep(set())

    eventually(lambda: not any(_is_there(each.pid) for each in everyone.values()), "the end of all servers")
    assert servers._servers == {}


def _is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_module_that_cannot_be_preloaded_is_tried_again_after_a_while(
    servers: ForkServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was done without until the worker ended."""
    order = with_values(preloading("no_such_module"), venv=str(make_venv(tmp_path / "venv")))

    def fork_and_count() -> int:
        process = servers.fork(sys.executable, ENVIRON, order)
        assert process is not None
        process.wait()
        return str(caplog.text).count("'no_such_module' is not preloaded")

    assert [fork_and_count(), fork_and_count()] == [1, 1]
    monkeypatch.setattr(servers, "_dropped", dict.fromkeys(servers._dropped, 0.0))  # as if that were long ago
    assert fork_and_count() == 2


def test_a_server_that_takes_its_time_delays_no_other(servers: ForkServers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(forkservers, "_WARM_UP_S", 0.05)
        assert fork(servers, str(slow)) is None

    process = fork(servers)

    assert process is not None
    process.wait()


def test_without_a_thread_left_nothing_is_forked_until_there_is_one(
    servers: ForkServers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server was waited for, by each process, until the worker ended."""

    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert fork(servers) is None

    process = fork(servers)
    assert process is not None
    process.wait()
    assert caplog.text == ""


def test_a_python_that_is_not_there_is_done_without(servers: ForkServers, caplog: pytest.LogCaptureFixture) -> None:
    assert fork(servers, "/no/such/python") is None
    eventually(lambda: "fork server of /no/such/python" in caplog.text, "the line in the log")


@pytest.mark.parametrize(
    ("made", "is_shadow"),
    [
        ("calendar.py", True),
        ("calendar/__init__.py", True),
        ("calendar.abi3.so", True),
        ("calendar.pyc", True),
        ("calendar/notes.txt", False),  # a namespace package comes after the library's module
        ("calendar.toml", False),
        ("calendars.py", False),
        ("sub/calendar.py", False),
    ],
)
def test_a_folder_with_a_module_of_such_a_name_shadows_the_librarys(tmp_path: Path, made: str, is_shadow: bool) -> None:
    (tmp_path / made).parent.mkdir(exist_ok=True)
    (tmp_path / made).touch()

    assert shadows([str(tmp_path)], {"calendar", "html"}) is is_shadow


def test_what_is_no_folder_may_shadow_anything_and_what_is_not_there_nothing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as file:
        file.writestr("calendar.py", "")

    assert shadows([str(tmp_path / "app.zip")], {"calendar"})
    assert not shadows([str(tmp_path / "missing")], {"calendar"})


# Run in a process of its own, as the modules may be here already. It prints what their import looked up or left behind.
_WATCHED = """
import os, sys, threading
sys.path.insert(0, {root!r})
import isowsgi
from isowsgi.inside import warmth
asked = set()
class Watched(type(os.environ)):
    def __getitem__(self, key):
        asked.add(key)
        return super().__getitem__(key)
    def __contains__(self, key):
        asked.add(key)
        return super().__contains__(key)
os.environ = Watched(os.environ._data, os.environ.encodekey, os.environ.decodekey, os.environ.encodevalue, os.environ.decodevalue)
fds, before = len(os.listdir("/proc/self/fd")), set(sys.modules)  # what measures coverage is there at the start
names = warmth.load()
import logging
asked.discard("_PYTHON_SUBPROCESS_USE_POSIX_SPAWN")  # of subprocess, which each process has anyway
left = len(os.listdir("/proc/self/fd")) - fds, threading.active_count()
print(sorted(asked), *left, sorted(logging.root.manager.loggerDict))
public = {{name for name in names if name[0] != "_"}}
print(public - sys.stdlib_module_names, "multiprocessing" in set(sys.modules) - before)
"""


def test_what_is_loaded_before_the_fork_asks_for_no_variable_and_leaves_nothing_open() -> None:
    """A mount's own variables are set after the fork."""
    done = subprocess.run([sys.executable, "-c", _WATCHED.format(root=str(ROOT))], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.splitlines() == ["[] 0 1 []", "set() False"]


def test_nothing_of_a_working_directory_is_loaded_before_the_fork_and_nothing_at_all_beside_a_path_that_hides_the_library(
    tmp_path: Path,
) -> None:
    (tmp_path / "calendar.py").write_text("raise SystemExit('it was loaded')")
    code = "import sys; sys.path[:0] = {}; from isowsgi.inside import warmth; print('email' in warmth.load())"
    run = partial(subprocess.run, check=True, timeout=60, cwd=tmp_path, capture_output=True, text=True)

    assert run([sys.executable, "-c", code.format(["", str(ROOT)])]).stdout == "True\n"
    assert run([sys.executable, "-c", code.format(["", str(ROOT), str(tmp_path)])]).stdout == "False\n"


def test_a_server_has_loaded_what_serves_whole() -> None:
    """After an upgrade a process would load the rest of another release: what the rooms import late, the server imports at its start."""
    trees = {path.stem: ast.parse(path.read_text()) for path in (ROOT / "isowsgi/inside").glob("*.py")}
    bodies = [node for tree in trees.values() for node in tree.body if not isinstance(node, (ast.ImportFrom, ast.If))]
    late = {name for node in bodies for name in imported(node)}
    at_once = {name for node in trees["forkserver"].body for name in imported(node)}

    assert {"hooks", "pace", "policy", "survey"} <= late  # or the search has found nothing
    assert late - at_once == set()


def imported(node: ast.AST) -> Iterator[str]:
    """Yield the modules of the room that are imported anywhere in this."""
    for each in ast.walk(node):
        if isinstance(each, ast.ImportFrom) and (each.module or "").startswith("isowsgi.inside"):
            last = (each.module or "").removeprefix("isowsgi.inside").lstrip(".")
            yield from [last] if last else [alias.name for alias in each.names]


def test_the_names_are_sorted_and_each_is_there_once() -> None:
    assert list(warmth.NAMES) == sorted(set(warmth.NAMES))


@pytest.mark.parametrize("message", [Warm(names=["a"]), Unfit(error="x"), Forked(), NotForked(error="y"), Settled()])
def test_what_is_said_about_a_birth_is_understood(message: births.Birth) -> None:
    assert births.decode(births.encode(message)) == message


_WRONG = [b"", b"[]", b'{"is": []}', b'{"is": "Unfit"}', b'{"is": "Unfit", "error": 1}', b'{"is": "Warm", "names": 1}']


@given(st.binary(max_size=200) | st.sampled_from(_WRONG))
@examples(100)
def test_whatever_a_server_says_is_a_birth_or_an_error(packet: bytes) -> None:
    try:
        births.decode(packet)
    except MessageError:
        return


def test_an_order_of_another_release_is_refused() -> None:
    facts = {"release": "0", "packages": {}, "server": 3, "worker_pid": 1}
    with pytest.raises(MessageError, match="restart gunicorn"):
        births.read_order(facts)
    assert isinstance(births.read_order({**facts, "release": isowsgi.__version__}), ForkOrder)


def test_what_a_process_runs_first_takes_nothing_from_the_folder_that_it_is_started_in(tmp_path: Path) -> None:
    """It may be the app's, and its walls are not up yet."""
    (tmp_path / "json.py").write_text("raise SystemExit('code of the app runs')")
    source = "import json, sys; print(json.dumps('' in sys.path))"

    done = subprocess.run([sys.executable, "-c", START], input=source, capture_output=True, text=True, cwd=tmp_path, timeout=60)

    assert (done.stdout, done.stderr) == ("false\n", "")
