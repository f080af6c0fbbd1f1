"""Processes from a fork server: they are as those that were started on their own, and nothing depends on the server."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from isowsgi.cli import client
from isowsgi.cli.main import main
from isowsgi.shared.controlmessages import Outcome, Reload
from tests.conftest import DEADLINE_S, Server, StartServer, eventually, running_server
from tests.functional.test_kinds_of_isolation import children_of, facts, title_of

FORKED = "[worker]\nfork_server = true\n"
MIRRORS = """
[defaults]
isolation = "process"
[mounts]
"/a" = { app = "mirror", env = { TZ = "America/Nome", PLACE = "a" } }
"/b" = { app = "mirror", threads = 2 }
"""


def fork_server_of(worker: int) -> int | None:
    """Return the process id of a worker's fork server: `ps` shows what it is."""
    return next((child for child in children_of(worker) if title_of(child).endswith("fork server")), None)


def reload(server: Server, mount: str) -> int:
    [answer] = client.ask(client.find(str(server.folder / "isowsgi.toml"), None), Reload(mount=mount), DEADLINE_S)
    assert isinstance(answer.answer, Outcome)
    return int(json.loads(server.get(mount).content)["pid"])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two mounts find, without a fork server ("own/a", "own/b") and with one ("forked/a", "forked/b")."""
    answers: dict[str, dict[str, Any]] = {}
    folder = tmp_path_factory.mktemp("server")
    for way, config in (("own", MIRRORS + FORKED.replace("true", "false")), ("forked", MIRRORS + FORKED)):
        with running_server(folder, config, "--threads", "3", wait_for=2) as server:
            [worker] = server.workers()
            assert (fork_server_of(worker) is not None) == (way == "forked")
            for mount in ("/a", "/b"):
                answers[way + mount] = server.get(mount).json()
                assert answers[way + mount]["ids"]["parent"] == worker
            assert "fork server" not in server.log()
        (folder / "error.log").unlink()
    return answers


@pytest.mark.parametrize("mount", ["/a", "/b"])
def test_a_forked_process_finds_what_one_finds_that_was_started_on_its_own(found: dict[str, dict[str, Any]], mount: str) -> None:
    own, forked = found["own" + mount], found["forked" + mount]
    odd = {name: (own["found"][name], forked["found"][name]) for name in own["found"] if own["found"][name] != forked["found"][name]}

    assert odd == {}, "\n".join(f"{name}: {each[0]} {each[1]}" for name, each in odd.items())


def test_of_modules_a_forked_process_has_only_more_of_the_standard_library(found: dict[str, dict[str, Any]]) -> None:
    own, forked = set(found["own/a"]["modules"]), set(found["forked/a"]["modules"])

    assert own - forked == set()
    more = {name.partition(".")[0] for name in forked - own}
    assert more - sys.stdlib_module_names == set()
    assert more & {"multiprocessing", "zoneinfo", "isowsgi", "gunicorn", "site", "pydoc", "tkinter"} == set()


def test_no_two_forked_processes_draw_the_same_random_numbers(found: dict[str, dict[str, Any]]) -> None:
    first, second = found["forked/a"]["secrets"], found["forked/b"]["secrets"]

    assert [name for name in first if first[name] == second[name]] == []


def test_a_folder_with_a_module_of_a_name_that_is_loaded_already_gets_its_own(serve: StartServer) -> None:
    """`sys.modules` would have the library's, and the app another module than on its own."""
    app = "import calendar\ndef application(environ, start_response):\n    start_response('200 OK', [])\n    return [calendar.WHOSE]\n"
    server = serve(
        FORKED + '[mounts]\n"/x" = { app = "shadowed", pythonpath = ["site"], isolation = "process" }',
        files={"site/shadowed.py": app, "site/calendar.py": "WHOSE = b'mine'\ndef timegm(tuple): return 0\n"},
    )

    assert server.get("/x").content == b"mine"


def test_a_fork_server_that_dies_costs_its_processes_nothing_and_others_a_slower_start(serve: StartServer) -> None:
    server = serve(FORKED + '[defaults]\nisolation = "process"\n[mounts]\n"/b" = "housed"\n"/c" = "housed"', wait_for=2)
    [worker] = server.workers()
    child = int(str(facts(server, "/b")["pid"]))
    fork_server = fork_server_of(worker)
    assert fork_server is not None

    os.kill(fork_server, signal.SIGKILL)
    other = reload(server, "/c")

    server.wait_for_log("fork server of .*; processes start without it, next attempt in 10 s")
    assert int(str(facts(server, "/b")["pid"])) == child
    assert fork_server_of(worker) is None
    eventually(lambda: sorted(children_of(worker)) == sorted([child, other]), "the end of the generation before, and of nothing else")
    assert "Traceback" not in server.log() + server.output()


def test_a_fork_server_that_no_mount_has_any_more_is_ended_and_its_processes_are_not(serve: StartServer) -> None:
    """It stayed until the worker ended, with all that it had loaded."""
    server = serve(FORKED + '[mounts]\n"/b" = { app = "housed", isolation = "process" }')
    [worker] = server.workers()
    child = int(str(facts(server, "/b")["pid"]))
    assert fork_server_of(worker) is not None

    config = server.folder / "isowsgi.toml"
    config.write_text(config.read_text().replace("fork_server = true", "fork_server = false"))
    result = CliRunner().invoke(main, ["apply", "--config", str(config)])

    assert result.exit_code == 0, result.output
    eventually(lambda: fork_server_of(worker) is None, "the end of the fork server")
    assert int(str(facts(server, "/b")["pid"])) == child


def test_a_crash_of_a_forked_process_is_told_with_its_signal_and_its_stacks(serve: StartServer) -> None:
    server = serve(FORKED + '[mounts]\n"/b" = { app = "housed", isolation = "process" }')

    assert server.get("/b/crash").status_code == 502

    server.wait_for_log(r"/b #1: .*process was killed by SIGSEGV while serving GET /b/crash")
    server.wait_for_log("/b #2: serving")
    eventually(lambda: "Fatal Python error: Segmentation fault" in server.output(), "the stacks of the dead process")


def test_forked_processes_and_their_server_end_with_a_killed_worker(serve: StartServer) -> None:
    server = serve(FORKED + '[mounts]\n"/b" = { app = "housed", isolation = "process" }')
    [worker] = server.workers()
    children = children_of(worker)
    assert len(children) == 2

    os.kill(worker, signal.SIGKILL)

    eventually(lambda: not any(_is_alive(pid) for pid in children), "the end of all of them")


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_app_reaches_no_socket_of_the_fork_server(serve: StartServer) -> None:
    """It would have it fork, or end it; all that a forked process has are the descriptors that the worker gave it."""
    code = (
        "import os, json\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    ends = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "    return [json.dumps(ends).encode()]\n"
    )
    server = serve(
        FORKED + '[mounts]\n"/x" = { app = "looks", pythonpath = ["site"], isolation = "process" }', files={"site/looks.py": code}
    )
    [worker] = server.workers()
    fork_server = fork_server_of(worker)
    assert fork_server is not None
    [its] = {os.readlink(path) for path in Path(f"/proc/{fork_server}/fd").iterdir() if os.readlink(path).startswith("socket:")}

    assert its not in json.loads(server.get("/x").content)


PRELOADING = """
[defaults]
isolation = "process"
venv = "venv"
pythonpath = ["site"]
preload = ["leaver", "failing", "heavy", "multiprocessing"]
[mounts]
"/a" = "sharing"
"/b" = "sharing"
"/own" = { app = "sharing", pythonpath = ["other", "site"] }
"/one" = { app = "learning", venv = "other_venv", preload = "auto" }
"/two" = { app = "learning", venv = "other_venv", preload = "auto" }
"""
PACKAGES = "venv/lib/python{}.{}/site-packages".format(*sys.version_info[:2])
SHARING = """
import heavy, json, multiprocessing, os, sys
def application(environ, start_response):
    start_response("200 OK", [])
    key = multiprocessing.current_process().authkey.hex()
    missing = [name for name in ("leaver", "failing") if name not in sys.modules]
    facts = {"pid": os.getpid(), "heavy": heavy.PID, "version": heavy.VERSION, "missing": missing}
    return [json.dumps({**facts, "prefix": sys.prefix, "env": heavy.SEEN, "key": key}).encode()]
"""
LEARNING = """
import common.part, harmful, json, os
def application(environ, start_response):
    start_response("200 OK", [])
    return [json.dumps({"pid": os.getpid(), "common": common.part.PID, "harmful": harmful.PID}).encode()]
"""
HARMFUL = "import os, threading, time\nPID = os.getpid()\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
HEAVY = "import os\nPID, VERSION, SEEN = os.getpid(), {}, os.environ.get('VIRTUAL_ENV')\n"


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("preloaded")
    files = {
        "venv/pyvenv.cfg": "home = /nowhere\nversion = {}.{}.0\n".format(*sys.version_info[:2]),
        f"{PACKAGES}/heavy.py": HEAVY.format(1),
        f"{PACKAGES}/leaver.py": "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n",
        f"{PACKAGES}/failing.py": "raise SystemExit('as it was told')\n",
        "site/sharing.py": SHARING,
        "other/heavy.py": HEAVY.format(9),
        "other_venv/pyvenv.cfg": "home = /nowhere\nversion = {}.{}.0\n".format(*sys.version_info[:2]),
        f"other_{PACKAGES}/common/__init__.py": "",
        f"other_{PACKAGES}/common/part.py": HEAVY.format(1),
        f"other_{PACKAGES}/harmful.py": HARMFUL,
        "site/learning.py": LEARNING,
    }
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with running_server(folder, PRELOADING, wait_for=5, files=files) as server:
        for mount in ("/a", "/b"):
            shared(server, mount)
        yield server


def shared(server: Server, mount: str) -> dict[str, Any]:
    """Return what a mount finds in a process that has a preloaded package. On a busy machine the first ones did not wait for the server."""

    def found() -> dict[str, Any] | None:
        answer: dict[str, Any] = server.get(mount).json()
        if answer["heavy"] == answer["pid"]:
            reload(server, mount)
            return None
        return answer

    return eventually(found, "a process from a server that is warm")


def test_a_preloaded_package_is_imported_once_for_all_processes_of_a_venv(preloaded: Server) -> None:
    first, second = shared(preloaded, "/a"), shared(preloaded, "/b")

    assert first["pid"] != second["pid"]
    assert first["heavy"] == second["heavy"] not in (first["pid"], second["pid"])
    assert first["key"] != second["key"]  # which multiprocessing makes when it is imported
    assert first["prefix"] == first["env"] == str(preloaded.folder / "venv")


def test_a_package_that_leaves_a_thread_or_cannot_be_imported_is_named_and_not_preloaded(preloaded: Server) -> None:
    assert preloaded.get("/a").json()["missing"] == ["leaver", "failing"]
    log = preloaded.log()
    assert log.count("'leaver' is not preloaded: its import leaves a thread behind") == 1
    assert log.count("'failing' is not preloaded: it cannot be imported: SystemExit: as it was told") == 1


def test_a_module_of_the_apps_own_folder_comes_before_a_preloaded_one(preloaded: Server) -> None:
    own = preloaded.get("/own").json()

    assert (own["version"], own["heavy"]) == (9, own["pid"])


def test_what_the_apps_of_a_venv_have_in_common_is_learnt_and_preloaded(preloaded: Server) -> None:
    """But a package that leaves a thread behind: the fork would cut that off."""

    def found(mount: str) -> dict[str, Any]:
        def from_server() -> dict[str, Any] | None:
            answer: dict[str, Any] = preloaded.get(mount).json()
            if answer["common"] != answer["pid"]:
                return answer
            reload(preloaded, mount)
            return None

        return eventually(from_server, "a process that found what the apps have in common")

    one, two = found("/one"), found("/two")

    assert one["pid"] != two["pid"]
    assert [each["harmful"] for each in (one, two)] == [one["pid"], two["pid"]]
    assert preloaded.log().count("'harmful' is not preloaded: its import leaves a thread behind") == 1


def test_a_changed_package_is_loaded_anew_by_the_next_process(preloaded: Server) -> None:
    before = shared(preloaded, "/b")
    (preloaded.folder / PACKAGES / "heavy.py").write_text(HEAVY.format(22))

    reload(preloaded, "/b")

    assert (before["version"], preloaded.get("/b").json()["version"]) == (1, 22)
    after = shared(preloaded, "/b")
    assert (after["version"], after["heavy"] == before["heavy"]) == (22, False)
    assert "Traceback" not in preloaded.log() + preloaded.output()
