"""Tenants of a real server: each has an instance of its own, few live at a time, and nobody who asks notices who comes and goes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.command import call
from tests.conftest import DEADLINE_S, ROOT, Server, eventually, running_server
from tests.raw import Client

TELLS = """
import os
from where import PLACE
def application(environ, start_response):
    body = " ".join((os.environ["TENANT"], PLACE, environ["isowsgi.mount"], environ["HTTP_HOST"])).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
CONFIG = """
[control]
folder = "control"
[defaults]
threads = 1
[mounts]
"/" = { app = "hello", pythonpath = "{apps}" }
"*.test/" = { app = "tells", pythonpath = [".", "tenants/t1"], env = { TENANT = "{1}" }, max_live = 2, isolation = "process" }
[mounts."*.example/"]
app = "tells"
pythonpath = [".", "tenants/{1}"]
env = { TENANT = "{1}" }
max_live = 3
exists = "tenants/{1}"
idle_timeout = 900
"""
COUNT = 5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tenants")
    for number in range(COUNT):
        (folder / "tenants" / f"t{number}").mkdir(parents=True)
        (folder / "tenants" / f"t{number}" / "where.py").write_text(f"PLACE = 'place-{number}'\n")
    with running_server(folder, CONFIG, wait_for=1, files={"tells.py": TELLS}) as server:
        yield server


def ask(client: Client, host: str) -> tuple[int, str]:
    client.send(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")
    answer = client.answer()
    return answer.status, answer.body.decode()


def test_all_tenants_are_served_though_few_live_at_a_time_and_a_connection_may_go_from_one_to_the_other(server: Server) -> None:
    with Client(server) as client:
        for number in [*range(COUNT), 0, COUNT - 1]:
            host = f"T{number}.example"
            assert ask(client, host) == (200, f"t{number} place-{number} t{number}.example/ {host}")
    status = json.loads(call(server.folder, "status", "--json").stdout)["workers"][0]
    names = [mount["mount"] for mount in status["mounts"]]

    assert next(name for name in names if name.endswith(".example/")) == "*.example/"
    assert f"t{COUNT - 1}.example/" in names
    assert sum(name.endswith(".example/") for name in names) <= 1 + 3 + 4, "the template, those that live, and those that leave"
    assert f"t{COUNT - 1}.example/ #1: serving" in server.log()


@pytest.mark.parametrize("host", ["none.example", "..example", "t_1.example", "t1.t1.example", ".example", "*.example", "-t1.example"])
def test_a_stranger_reaches_no_tenant_and_no_path(server: Server, host: str) -> None:
    with Client(server) as client:
        status, body = ask(client, host)

    # One that no pattern takes is the root's.
    assert (status, body) == (200, "Hello, world\n") if host in ("..example", "t1.t1.example", ".example", "*.example") else status == 404


def test_a_process_for_each_tenant(server: Server) -> None:
    for number in (1, 2, 3):
        with Client(server) as client:
            assert ask(client, f"p{number}.test") == (200, f"p{number} place-1 p{number}.test/ p{number}.test")


def test_commands_address_a_tenant_by_its_host(server: Server) -> None:
    with Client(server) as client:
        ask(client, "t2.example")

    reloaded = call(server.folder, "reload", "T2.Example")
    stopped = call(server.folder, "stop", "t3.example/")
    unknown = call(server.folder, "reload", "none.example/")
    of_all = subprocess.run(  # a process: the command changes a signal's handler
        [sys.executable, "-m", "isowsgi", "profile", "*.example/"],
        cwd=server.folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    births = server.log().count("#1: serving")
    questions = [call(server.folder, name, "t4.example/") for name in ("errors", "start")]

    assert [each.returncode for each in questions] == [0] * 2, [each.stderr for each in questions]
    assert "does not exist" in unknown.stderr
    assert "name one of its tenants" in of_all.stderr
    assert server.log().count("#1: serving") == births, "a question loads nothing"

    assert (reloaded.returncode, stopped.returncode, unknown.returncode) == (0, 0, 2), reloaded.stderr + stopped.stderr
    server.wait_for_log(r"t2.example/ #2: serving")
    with Client(server) as client:
        assert ask(client, "t3.example")[0] == 503
    assert call(server.folder, "start", "t3.example/").returncode == 0
    with Client(server) as client:
        assert ask(client, "t3.example")[0] == 200


def test_a_template_is_one_mount_for_a_plan(server: Server) -> None:
    config = server.folder / "isowsgi.toml"
    config.write_text(config.read_text().replace("max_live = 3", "max_live = 4"))

    plan, applied = call(server.folder, "plan"), call(server.folder, "apply")

    assert (plan.returncode, applied.returncode) == (2, 0), plan.stderr + applied.stderr
    assert "max_live" in plan.stdout
    assert "in place" in plan.stdout
    with Client(server) as client:
        assert [ask(client, f"t{number}.example")[0] for number in range(COUNT)] == [200] * COUNT


def test_more_clients_than_may_be_loaded_at_a_time_are_all_answered(server: Server) -> None:
    """The template's own idle_timeout ended all its tenants each second; a place that had to wait was lost to who came later."""
    statuses: list[int] = []

    def asks(first: int) -> None:
        for number in range(COUNT):
            with Client(server) as client:
                statuses.append(ask(client, f"t{(first + number) % COUNT}.example")[0])

    threads = [threading.Thread(target=asks, args=(first,)) for first in range(COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert statuses == [200] * COUNT * COUNT
    assert "it sleeps until the next one" not in server.log()


# How many tenants are asked one after the other; `make tenants` asks 500.
TENANTS = int(os.environ.get("ISOWSGI_TENANTS", "100"))


@pytest.mark.skipif(
    not {"ISOWSGI_WHOLE", "ISOWSGI_TENANTS"} & set(os.environ), reason="takes half a minute; ISOWSGI_WHOLE=1, or `make tenants`"
)
def test_many_tenants_in_turn_are_all_answered_and_memory_stays_flat(tmp_path: Path) -> None:
    config = '[mounts]\n"/" = "hello"\n"*.example/" = { app = "hello:environ", env = { TENANT = "{1}" }, max_live = 20, threads = 1 }\n'
    with running_server(tmp_path, config, wait_for=1) as server:
        (worker,) = server.workers()
        sizes, failed, stop = [], [], threading.Event()

        def regulars() -> None:
            rng = random.Random(1)
            with Client(server) as client:
                while not stop.is_set():
                    host = f"regular{rng.randrange(4)}.example"
                    if (answer := ask(client, host))[0] != 200:
                        failed.append(answer)

        thread = threading.Thread(target=regulars)
        thread.start()
        try:
            for number in range(TENANTS):
                with Client(server) as client:
                    status, body = ask(client, f"t{number}.example")
                assert (status, json.loads(body)["isowsgi.mount"]) == (200, f"t{number}.example/")
                sizes.append(int(Path(f"/proc/{worker}/statm").read_text().split()[1]) * 4 // 1024)
        finally:
            stop.set()
            thread.join(DEADLINE_S)
        assert failed == []
        assert max(sizes[TENANTS // 2 :]) < max(sizes[40:60]) * 1.15
        eventually(lambda: server.log().count(": ended") > TENANTS - 25, "the ends of those that left")
