"""What code that was taken over can do to a neighbour, to the worker and to the machine: in a process, and in one with a sandbox.

The table on the page about isolation says what is found here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from isowsgi.cli import client
from isowsgi.shared import landlock
from isowsgi.shared.controlmessages import Outcome, Reload, Status, WorkerStatus
from tests.apps import hostile
from tests.conftest import APPS, DEADLINE_S, ROOT, Server, eventually, running_server
from tests.load import Load
from tests.otherusers import IS_POSSIBLE
from tests.pressure import count_begun

PAGE = ROOT / "docs" / "explanation" / "isolation.md"

# Landlock's ABI on which the table is right; newer ones restrict more.
ABI = 6

pytestmark = pytest.mark.skipif(landlock.abi() < ABI, reason=f"this kernel has Landlock ABI {landlock.abi()}, these need {ABI}")

CONFIG = """
[defaults]
pythonpath = "{apps}"
[mounts]
"/plain" = {{ app = "hostile", isolation = "process", threads = 1 }}
"/forked" = {{ app = "hostile", preload = "sqlite3", sandbox = true, threads = 1 }}
"/copied" = {{ app = "hostile", copies = "fork", instances = 2, sandbox = true, threads = 1 }}
"/neighbour" = {{ app = "hostile", isolation = "process", threads = 1 }}

[mounts."/its-own"]
app = "starts:app"
python = "{site}/venv/bin/python"
pythonpath = "{site}"
threads = 1
preload = "sqlite3"
limits = {{ files = 128, file_size = "4K" }}
sandbox = {{ connect = [] }}

[mounts."/walled"]
app = "hostile"
threads = 1
limits = {{ memory = "192M", files = 128, file_size = "1M" }}
sandbox = {{ connect = [] }}
"""

# A user that /etc/passwd does not know.
OWNED = """
[mounts."/owned"]
app = "hostile"
threads = 1
user = "20001:20001"
limits = { memory = "192M", files = 128, file_size = "1M" }
sandbox = { connect = [] }
"""

# A file of a venv of the app's, which its Python runs before anything else. What it finds out is what the app answers.
PTH = """import starts; starts.look()
"""
STARTS = """
import json, os, resource, sys

found = []

def look():
    try:
        open("{site}/from-pth", "w")
    except OSError as exc:
        found.append(type(exc).__name__)
    found.append(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink("/proc/self/fd/" + fd))
        except FileNotFoundError:  # that by which they were listed
            pass
    found.append(names)

def app(environ, start_response):
    start_response("200 OK", [])
    return [json.dumps([sys.prefix, found, open("/proc/self/cmdline").read().split("\\0")[-2]]).encode()]
"""

WHAT = {
    "read_env": "read a file of another site",
    "list_folder": "list another site's folder",
    "write_file": "put a file there",
    "overwrite_file": "overwrite one of its files",
    "cut_off_file": "cut one of its files off",
    "remove_file": "remove one of its files",
    "link_file": "read one by a hard link",
    "follow_symlink": "read one by a symbolic link",
    "change_mode": "change the mode of one of its files",
    "poison_bytecode": "plant bytecode beside another app's modules",
    "write_to_shared_tmp": "write to the `/tmp` of all",
    "read_shadow": "read `/etc/shadow`, where gunicorn runs as root",
    "read_config": "read `isowsgi.toml`",
    "read_log": "read gunicorn's log",
    "forge_log": "open gunicorn's log for writing",
    "read_environ": "read another process' environment",
    "read_memory": "read another process' memory",
    "trace_worker": "trace the worker",
    "take_descriptor": "take a descriptor of the worker's: a client's connection, a listening socket",
    "signal_worker": "send the worker a signal",
    "signal_master": "send gunicorn's master a signal",
    "signal_neighbour": "send a neighbour's process a signal",
    "limit_neighbour": "change the limits of a neighbour's process",
    "connect_to_abstract_socket": "connect to an abstract Unix socket",
    "connect_to_port": "connect to a TCP port that it may not",
    "listen_on_port": "listen on a TCP port",
    "open_control_socket": "connect to the control socket",
    "execute_what_it_wrote": "execute a file that it wrote",
    "use_roots_rights": "use a right of root's, where gunicorn runs as root",
    "gain_rights_by_exec": "gain rights by a setuid program",
    "raise_limits": "raise its own limits, where gunicorn runs as root",
    "take_all_memory": "take more memory than its limit",
    "take_all_descriptors": "take more descriptors than its limit",
    "fill_the_disk": "write a larger file than its limit",
    "escape_by_a_child": "do any of it in a child process",
    "write_on_the_scoreboard": "write on the scoreboard, where the neighbours' requests and counters stand",
}

# What only root's process can do at all, and what needs a limit to be there.
OF_ROOT = {"read_shadow", "use_roots_rights"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Iterator[Server]:
    venv.create(site / "venv")
    [packages] = site.glob("venv/lib/python*/site-packages")
    (packages / "hostile.pth").write_text(f"import sys; sys.path.append({str(site)!r}); {PTH}")
    (site / "starts.py").write_text(STARTS.format(site=site))
    config = CONFIG.format(apps=APPS, site=site) + (OWNED if IS_POSSIBLE else "")
    with running_server(tmp_path_factory.mktemp("server"), config, "--graceful-timeout", "1", wait_for=7 + IS_POSSIBLE) as server:
        yield server


@pytest.fixture(scope="module")
def site() -> Iterator[Path]:
    """Give another site's folder, which others may read: those of pytest are closed to them."""
    with tempfile.TemporaryDirectory(prefix="isowsgi-site-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture(scope="module")
def place(server: Server, site: Path) -> Iterator[dict[str, Any]]:
    """Give what an attacker may know, and something to find."""
    [worker] = server.workers()
    with socket.socket(socket.AF_UNIX) as abstract, socket.create_server(("127.0.0.1", 0)) as port:
        abstract.bind("")  # the kernel chooses a name (unix(7))
        abstract.listen(100)
        [control] = client.find(str(server.folder / "isowsgi.toml"), None)
        yield {
            "folder": str(site),
            "apps": str(APPS),
            "shared tmp": tempfile.gettempdir(),
            "config": str(server.folder / "isowsgi.toml"),
            "log": str(server.folder / "error.log"),
            "neighbour": said(server, "/neighbour", {})["pid"],
            "worker": worker,
            "master": server.process.pid,
            "abstract": abstract.getsockname()[1:].decode(),
            "port": port.getsockname()[1],
            "control": os.path.join(control.folder, control.name),
        }


def said(server: Server, path: str, place: dict[str, Any]) -> dict[str, Any]:
    answer = requests.post(server.url + path, data=json.dumps(place), timeout=30)
    assert answer.status_code == 200, answer.text
    facts: dict[str, Any] = answer.json()
    return facts


def outcome(server: Server, mount: str, name: str, place: dict[str, Any]) -> str:
    for file in (".env", "victim"):
        Path(place["folder"], file).write_text("SECRET=1")
    return str(said(server, f"{mount}/{name}", place)["outcome"])


def table() -> dict[str, tuple[str, str, str]]:
    """Return what the page says, by what is tried: in a process, in a sandbox, and in a sandbox of another user."""
    cell = "(succeeds|fails)"
    rows = re.findall(rf"^\| ([^|]+) \| (succeeds|fails|-) \| {cell} \| {cell} \|$", PAGE.read_text(), re.MULTILINE)
    return {what: (plain, walled, owned) for what, plain, walled, owned in rows}


def test_every_attack_is_in_the_table() -> None:
    assert {*hostile.ATTACKS} == {*WHAT}
    assert [*table()] == [*WHAT.values()]


@pytest.mark.parametrize("name", WHAT)
def test_an_attack_comes_off_only_where_the_page_says_so(server: Server, place: dict[str, Any], name: str) -> None:
    plain, walled = (outcome(server, mount, name, place) for mount in ("/plain", "/walled"))

    expected = table()[WHAT[name]]
    assert ("succeeds" if walled == "succeeds" else "fails") == expected[1], walled
    if IS_POSSIBLE:
        owned = outcome(server, "/owned", name, place)
        assert ("succeeds" if owned == "succeeds" else "fails") == expected[2], owned
    if (os.getuid() == 0 or name not in OF_ROOT) and expected[0] != "-":
        assert ("succeeds" if plain == "succeeds" else "fails") == expected[0], plain


def test_a_sandbox_has_its_own_folder_for_temporary_files_which_goes_with_it(server: Server) -> None:
    facts = said(server, "/walled", {})
    assert re.fullmatch(r"isowsgi-\w+", Path(facts["tmp"]).name)
    assert Path(facts["tmp"]).stat().st_mode & 0o777 == 0o700

    os.kill(facts["pid"], 9)

    eventually(lambda: not Path(facts["tmp"]).exists(), "its removal")
    server.wait_for_log("/walled #1: ended unexpectedly: its process was killed by SIGKILL")
    eventually(lambda: requests.get(server.url + "/walled", timeout=30).status_code == 200, "the next process")


def test_a_process_from_a_fork_server_is_in_its_sandbox_too(server: Server, place: dict[str, Any]) -> None:
    assert outcome(server, "/forked", "read_env", place).startswith("PermissionError")
    assert outcome(server, "/forked", "connect_to_port", place) == "succeeds"  # as it names none
    assert said(server, "/forked", {})["tmp"] != said(server, "/walled", {})["tmp"]


def test_a_python_of_the_apps_own_starts_in_the_sandbox(server: Server, site: Path) -> None:
    """Its .pth files, which may be the app's, ran before the walls were up, and for a fork server without any."""
    prefix, found, tag = requests.get(server.url + "/its-own", timeout=30).json()

    assert (prefix, tag) == (str(site / "venv"), "/its-own #1")
    assert not (site / "from-pth").exists()
    assert found[:2] == ["PermissionError", 128]
    assert len(found[2]) > 3
    assert not any("cgroup" in name for name in found[2])
    assert "/its-own: preload has no effect with `python` and a sandbox or limits" in server.log()

    # Nor is the folder that gunicorn was started in, which may be the app's, looked at for modules before the walls are up.
    (server.folder / "json.py").write_text(f"open({str(site / 'from-cwd')!r}, 'w').close()\n")
    for mount in ("/its-own", "/walled"):
        [answer] = client.ask(client.find(str(server.folder / "isowsgi.toml"), None), Reload(mount=mount), DEADLINE_S)
        assert isinstance(answer.answer, Outcome)
        assert answer.answer.outcome == "serving", answer
    (server.folder / "json.py").unlink()
    assert not (site / "from-cwd").exists()


def test_copies_are_in_the_sandbox_of_their_original_with_its_folder(server: Server, place: dict[str, Any]) -> None:
    assert "copies are not forked" not in server.log()
    assert outcome(server, "/copied", "read_env", place).startswith("PermissionError")
    folders = {said(server, "/copied", {})["tmp"] for _ in range(2)}
    assert len(folders) == 1
    Path(folders.pop()).joinpath("mine").write_text("")


def test_whatever_it_writes_to_the_worker_harms_its_own_connections_only(server: Server, place: dict[str, Any]) -> None:
    """Random bytes in its rows, as mail and as reports, and a flood of reports that make sense."""
    mount = "/owned" if IS_POSSIBLE else "/walled"
    pid = said(server, mount, {})["pid"]
    with Load(server.connect, ["/neighbour"], clients=2) as load:
        with contextlib.suppress(requests.RequestException):
            requests.post(f"{server.url}{mount}/noise", data="{}", timeout=30)
        server.wait_for_log(rf"{mount} #\d+: unreliable after the error above; replacing it")
        eventually(lambda: requests.post(server.url + mount, data="{}", timeout=30).status_code == 200, "the next process")

    assert load.failures == []
    assert said(server, mount, {})["pid"] != pid
    assert server.workers() == [place["worker"]]
    [status] = client.ask(client.find(str(server.folder / "isowsgi.toml"), None), Status(), 30)
    assert isinstance(status.answer, WorkerStatus)


@pytest.mark.parametrize("mount", ["/walled", pytest.param("/owned", marks=pytest.mark.skipif(not IS_POSSIBLE, reason="no users"))])
def test_shutting_down_its_sockets_to_the_worker_ends_that_process_only(server: Server, place: dict[str, Any], mount: str) -> None:
    """The worker had the same end of one, by which it was to hear of the process' end: it never did, and looked for it without a pause."""
    pid = said(server, mount, {})["pid"]
    with Load(server.connect, ["/neighbour"], clients=2) as load:
        with contextlib.suppress(requests.RequestException):
            requests.post(f"{server.url}{mount}/cut", data="{}", timeout=30)
        eventually(lambda: requests.post(server.url + mount, data="{}", timeout=30).status_code == 200, "the next process")

    assert load.failures == []
    assert said(server, mount, {})["pid"] != pid
    server.wait_for_log(rf"{mount} #\d+: its process has shut down its socket to the worker")
    assert server.log().count("shut down its socket") <= 2
    assert server.workers() == [place["worker"]]


def test_who_boasts_of_what_it_serves_gets_no_more_than_its_share_of_the_connections(tmp_path: Path) -> None:
    """What waits for it was counted by its own word, so all connections of the worker could wait there, and none was left for others."""
    config = """
        [mounts]
        "/boasts" = { app = "hostile", sandbox = true, threads = 1, request_timeout = 0, queue = 1000, queue_timeout = 600 }
        "/neighbour" = { app = "hello", isolation = "process", threads = 1 }
    """
    with running_server(tmp_path, config, "--worker-connections", "20", "--graceful-timeout", "1", wait_for=2) as server:
        asked = [server.ask("/boasts/boast") for _ in range(20)]
        eventually(lambda: count_begun(asked) == 10, "answers to those beyond its share, which is half of all")
        for sock in asked:
            if count_begun([sock]):
                assert sock.recv(12) == b"HTTP/1.1 503"
                sock.close()
        for _ in range(5):
            assert server.get("/neighbour").status_code == 200


@pytest.mark.parametrize("fate", ["closed", "lingering"])
def test_a_connection_whose_close_would_wait_for_its_client_keeps_nobody_waiting(server: Server, place: dict[str, Any], fate: str) -> None:
    """SO_LINGER makes close(2) wait, and what a process has set on a connection the worker has too: it stood still with all its mounts."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(DEADLINE_S)
        sock.connect((server.host, server.port))
        body = b"Content-Length: 2\r\n\r\n{}" if fate == "closed" else b"Content-Length: 1000000\r\n\r\n{}"
        sock.sendall(b"POST /walled/linger HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + body)
        assert sock.recv(9, socket.MSG_PEEK)
        for _ in range(20):
            assert requests.get(server.url + "/neighbour", timeout=DEADLINE_S).status_code == 200
            time.sleep(0.15)  # longer than the worker reads away what such a client still sends
    assert server.workers() == [place["worker"]]


def test_who_talks_nonsense_as_soon_as_it_serves_is_started_again_with_pauses(tmp_path: Path) -> None:
    """It was started again at once each time, so the worker did little else than start it."""
    config = """
        [mounts]
        "/talks" = { app = "hostile", sandbox = true, threads = 1 }
        "/neighbour" = { app = "hello", isolation = "process", threads = 1 }
    """
    with running_server(tmp_path, config, "--graceful-timeout", "1", wait_for=2) as server:

        def is_paused() -> bool:
            with contextlib.suppress(requests.RequestException):
                requests.post(f"{server.url}/talks/nonsense", data="{}", timeout=30)
            return re.search(r"/talks: ended \d+ times soon after its start; restarting in 2 s", server.log()) is not None

        eventually(is_paused, "a pause before the next start")
        assert server.get("/neighbour").status_code == 200


def test_the_neighbour_and_the_worker_are_still_there(server: Server, place: dict[str, Any]) -> None:
    assert server.workers() == [place["worker"]]
    assert said(server, "/neighbour", {})["pid"] == place["neighbour"]
