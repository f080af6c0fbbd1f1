"""What confines an app's process: it is there before the app is imported, and reaching a limit costs nobody but the app."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from isowsgi.cli import client
from isowsgi.shared import cgroups
from isowsgi.shared.controlmessages import Outcome, Reload
from tests.conftest import DEADLINE_S, WHOLE, Server, eventually, running_server
from tests.load import Load
from tests.raw import Client

# Above that of whoever runs the tests: a lower one has no effect.
NICE = min(os.getpriority(os.PRIO_PROCESS, 0) + 1, 19)

CONFIG = """
[defaults]
limits = {{ files = 100, file_size = "1M" }}

[mounts]
"/free" = {{ app = "confined", isolation = "process", limits = {{ files = 0, file_size = 0 }} }}
"/neighbour" = {{ app = "hello", isolation = "shared-gil", limits = {{ files = 0, file_size = 0 }} }}

[mounts."/own"]
app = "confined"
umask = "027"
nice = {nice}
working_directory = "{folder}"
limits = {{ memory = "192M", cpu = 0.9, processes = 1000 }}

[mounts."/forked"]
app = "confined"
umask = "077"
nice = {nice}
working_directory = "{folder}"
limits.memory = "160M"
preload = "sqlite3"

[mounts."/copied"]
app = "confined"
umask = "037"
nice = {nice}
working_directory = "{folder}"
limits.memory = "224M"
copies = "fork"
instances = 2
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with running_server(folder, CONFIG.format(folder=folder, nice=NICE), wait_for=6) as server:
        yield server


def told(server: Server, path: str) -> dict[str, Any]:
    answer = server.get(path)
    assert answer.status_code == 200
    facts: dict[str, Any] = json.loads(answer.content)
    return facts


@pytest.mark.parametrize(("mount", "umask", "memory"), [("/own", "027", 192), ("/forked", "077", 160), ("/copied", "037", 224)])
def test_what_confines_a_process_is_there_when_its_app_is_imported(server: Server, mount: str, umask: str, memory: int) -> None:
    facts = told(server, mount)

    assert (facts["umask"], facts["nice"]) == (umask, NICE)
    assert facts["cwd"] == facts["cwd at import"] == str(server.folder)
    most = {"memory": memory * 2**20, "files": 100, "file_size": 2**20}
    del facts["limits"]["processes"]
    assert facts["limits"] == {name: [value, value] for name, value in most.items()}


def test_only_a_process_has_what_is_asked_for_so_auto_is_one(server: Server) -> None:
    server.wait_for_log(r"/own #1: serving, loaded in .* \(process: only a process has what it asks for\)")


def test_what_only_a_control_group_can_limit_is_said_at_the_start_where_there_is_none(server: Server) -> None:
    """In one, tests/guest."""
    reason = ""
    try:
        cgroups.find()
    except cgroups.Unavailable as exc:
        reason = str(exc)
    count = "has no effect on root's" if os.getuid() == 0 else "counts all processes and threads of gunicorn's user, not only this app's"

    said = [
        f"/own: limits.cpu has no effect here: {reason}\n" in server.log(),
        f"/own: limits.processes {count}: {reason}\n" in server.log(),
    ]
    assert said == [bool(reason)] * 2
    assert told(server, "/own")["limits"]["processes"] == [1000, 1000] or not reason


def test_a_mount_without_limits_has_those_of_gunicorn(server: Server) -> None:
    """`limits` of the defaults are taken back by 0."""
    facts = told(server, "/free")

    assert facts["nice"] == os.getpriority(os.PRIO_PROCESS, 0)
    assert facts["limits"]["file_size"] == [resource.RLIM_INFINITY] * 2
    assert facts["limits"]["files"] != [100, 100]


@pytest.mark.parametrize(
    ("limit", "error"), [("memory", "MemoryError"), ("files", "OSError: Too many open files"), ("file_size", "OSError: File too large")]
)
def test_reaching_a_limit_costs_that_request_and_no_neighbour_one(server: Server, limit: str, error: str) -> None:
    before = told(server, "/own")["pid"]
    with Load(server.connect, ["/neighbour"], clients=2) as load:
        for mount in ("/own", "/forked") * (10 if WHOLE else 1):
            assert told(server, f"{mount}/{limit}")["error"].startswith(error)

    assert load.failures == []
    assert told(server, "/own")["pid"] == before


@pytest.mark.parametrize(("limit", "said"), [("memory", '"192M"'), ("files", "100"), ("file_size", '"1M"')])
def test_the_log_names_the_limit_that_a_request_has_failed_of(server: Server, limit: str, said: str) -> None:
    assert server.get(f"/own/{limit}?uncaught").status_code == 500

    server.wait_for_log(rf"/own #1: limits\.{limit} = {said} is reached: \w+Error.* in GET /own/{limit}\?uncaught")


def test_more_connections_than_a_process_may_have_descriptors_cost_the_neighbour_nothing(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(110)]
        for client in clients:
            client.send("GET /own HTTP/1.1\r\nHost: x\r\n\r\n")
        assert server.get("/neighbour").status_code == 200

    def is_served() -> bool:
        try:
            return server.get("/own").status_code == 200
        except requests.ConnectionError:  # no descriptor yet
            return False

    eventually(is_served, "descriptors that are free again")


def test_a_new_generation_is_confined_as_well(server: Server) -> None:
    [answer] = client.ask(client.find(str(server.folder / "isowsgi.toml"), None), Reload(mount="/forked"), DEADLINE_S)
    assert isinstance(answer.answer, Outcome)

    assert told(server, "/forked")["limits"]["memory"] == [160 * 2**20] * 2
