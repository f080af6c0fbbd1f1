"""`replace = "stop-first"`: an app that locks its data is replaced, as it cannot be loaded beside itself; its requests wait meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

from isowsgi.cli.main import main
from tests.conftest import DEADLINE_S, Server, eventually, running_server
from tests.load import PAUSE_S

# As Zope's FileStorage does it. The lock goes with the opened file, so with the interpreter or the process.
LOCKS = """
import fcntl, json, os
DATA = open(os.environ["DATA"], "w")
fcntl.flock(DATA, fcntl.LOCK_EX | fcntl.LOCK_NB)
if os.path.exists(os.environ["DATA"] + ".broken"):
    raise RuntimeError("broken")
def application(environ, start_response):
    start_response("200 OK", [])
    return [json.dumps(environ["isowsgi.generation"]).encode()]
"""
CONFIG = """
[defaults]
pythonpath = "."
[control]
folder = "control"
[mounts]
"/process" = { app = "locks", isolation = "process", replace = "stop-first", touch = "process.touch", env = { DATA = "process.lock" } }
"/own" = { app = "locks", isolation = "shared-gil", replace = "stop-first", touch = "own.touch", env = { DATA = "own.lock" } }
"/beside" = { app = "locks", isolation = "process", touch = "beside.touch", env = { DATA = "beside.lock" } }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("replace"), CONFIG, files={"locks.py": LOCKS}, wait_for=3) as server:
        yield server


def touch(server: Server, mount: str, number: int) -> None:
    path = server.folder / f"{mount[1:]}.touch"
    path.touch()
    os.utime(path, (number, number))


def answers_until(server: Server, mount: str, change: Callable[[], object], generation: str) -> set[tuple[int, str]]:
    """Make a change while three clients ask a mount, until a generation answers; return all statuses and texts."""
    answers: list[requests.Response] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(PAUSE_S):
            answers.append(server.get(mount))

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    try:
        change()
        eventually(lambda: any(answer.text == generation for answer in answers), f"an answer of generation {generation}")
    finally:
        is_over.set()
        for thread in asking:
            thread.join(DEADLINE_S)

    return {(answer.status_code, answer.text) for answer in answers}


@pytest.mark.parametrize("mount", ["/process", "/own"])
def test_the_old_one_ends_then_the_new_one_is_loaded_and_no_request_is_lost(server: Server, mount: str) -> None:
    answers = answers_until(server, mount, lambda: touch(server, mount, 1), "2")

    assert answers == {(200, "1"), (200, "2")}
    assert f"{mount} #2: cannot load" not in server.log()
    log = server.log()
    assert log.index(f"{mount} #1: ended") < log.index(f"{mount} #2: serving")

    def apply() -> None:
        file = server.folder / "isowsgi.toml"
        file.write_text(file.read_text().replace(f'touch = "{mount[1:]}.touch"', f'touch = "{mount[1:]}.touch", threads = 3'))
        shown = CliRunner().invoke(main, ["apply", "--config", str(file)])
        assert shown.exit_code == 0, shown.output
        assert f"~ {mount}  ends, then loads a new generation; requests wait" in shown.output

    # With other settings it is another deployment, which takes the place of the one before it in the same way.
    assert answers_until(server, mount, apply, "3") == {(200, "2"), (200, "3")}
    assert f"{mount} #3: cannot load" not in server.log()


def test_beside_the_old_one_such_an_app_cannot_be_loaded(server: Server) -> None:
    """What `stop-first` is for; the old one goes on."""
    touch(server, "/beside", 1)

    server.wait_for_log("/beside #2: cannot load 'locks:application': BlockingIOError")
    assert server.get("/beside").text == "1"


def test_a_new_one_that_cannot_be_loaded_is_tried_again(tmp_path: Path) -> None:
    config = """
        [mounts]
        "/" = { app = "locks", pythonpath = ".", replace = "stop-first", isolation = "process", touch = "touch", env = { DATA = "data" } }
        """
    with running_server(tmp_path, config, files={"locks.py": LOCKS}) as server:
        (tmp_path / "data.broken").touch()
        (tmp_path / "touch").touch()
        server.wait_for_log("/ #2: cannot load 'locks:application': RuntimeError: broken")
        assert server.get("/").status_code == 503
        (tmp_path / "data.broken").unlink()
        server.wait_for_log(r"/ #\d: serving", 2)
        assert server.get("/").status_code == 200
