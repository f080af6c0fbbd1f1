"""A command or a worker that is killed at each moment of an `apply`: afterwards the table is whole, old or new, the same in all workers."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isowsgi import configuration
from isowsgi.cli import client
from isowsgi.configuration import stored
from isowsgi.shared import controlmessages
from isowsgi.shared.controlmessages import Error
from isowsgi.shared.sockets import Place
from tests.conftest import DEADLINE_S, ROOT, Server, eventually, running_server, whole_only

WORKERS = 3

APP = """
import os, time

def make(version):
    mark = f"loading-{version}-{os.getpid()}"
    while os.path.exists(f"hold-{version}"):
        open(mark, "w").close()
        time.sleep(0.01)
    def application(environ, start_response):
        start_response("200 OK", [])
        return [str(version).encode()]
    return application
"""
CONFIG = """
[defaults]
pythonpath = ["."]
[control]
folder = "control"
[mounts]
"/stays" = "versions:make(0)"
"/changes" = "versions:make(VERSION)"
"/comes/VERSION" = "versions:make(VERSION)"
"""


class Site:
    """A server, and the version of the table that its file has."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.version = 1

    def edit(self) -> int:
        self.version += 1
        (self.server.folder / "isowsgi.toml").write_text(CONFIG.replace("VERSION", str(self.version)))
        return self.version

    def places(self) -> list[Place]:
        return client.find(str(self.server.folder / "isowsgi.toml"), None)

    def hold(self, version: int) -> Path:
        """Have the apps of a version wait in their import until the file is gone."""
        path = self.server.folder / f"hold-{version}"
        path.touch()
        return path

    def loading(self, version: int) -> list[int]:
        """Return the workers that load a version's apps, which wait for `hold`."""
        return [pid for pid in self.server.workers() if (self.server.folder / f"loading-{version}-{pid}").exists()]

    def start_command(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "isowsgi", "apply"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=self.server.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def ask(self, request: controlmessages.Request[controlmessages.TableOutcome], places: list[Place]) -> list[str]:
        answers = client.ask(places, request, DEADLINE_S)
        return [each.answer.kind if isinstance(each.answer, Error) else each.answer.outcome for each in answers]

    def prepare(self, places: list[Place], hold_s: float = 3600.0) -> str:
        """Do as the command does up to the switch; return the table's serial."""
        serial = secrets.token_hex(8)
        config = stored.plain(configuration.load(self.server.folder / "isowsgi.toml"))
        request = controlmessages.Prepare(serial=serial, config=config, hold_s=hold_s)
        assert self.ask(request, places) == ["prepared"] * len(places)
        return serial

    def switch(self, serial: str, places: list[Place]) -> list[str]:
        return self.ask(controlmessages.Switch(serial=serial), places)

    def wait_until_whole(self, version: int) -> None:
        """Wait until all workers, those that came meanwhile too, have one table and serve it."""
        expected = {"/stays": "versions:make(0)", "/changes": f"versions:make({version})", f"/comes/{version}": f"versions:make({version})"}

        def is_whole() -> bool:
            try:
                answers = client.ask(self.places(), controlmessages.Status(), DEADLINE_S)
            except client.NobodyServes:
                return False
            tables = [each.answer.mounts for each in answers if not isinstance(each.answer, Error)]
            is_up = all(mount.state == "serving" for table in tables for mount in table)
            return len(tables) == WORKERS and is_up and all({mount.mount: mount.app for mount in table} == expected for table in tables)

        began = time.monotonic()
        eventually(is_whole, f"version {version} in {WORKERS} workers")
        print(f"whole after {time.monotonic() - began:.2f} s")
        assert self.server.get("/changes").text == self.server.get(f"/comes/{version}").text == str(version)
        self.version = version


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, config = tmp_path_factory.mktemp("kills"), CONFIG.replace("VERSION", "1")
    with running_server(folder, config, "--workers", str(WORKERS), files={"versions.py": APP}, wait_for=3 * WORKERS) as server:
        yield Site(server)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_the_command_is_killed_while_the_first_worker_loads(site: Site) -> None:
    old, new = site.version, site.edit()
    held = site.hold(new)
    with site.start_command() as command:
        eventually(lambda: site.loading(new))
        command.kill()
    held.unlink()

    site.wait_until_whole(old)


@whole_only("a table that is dropped is shown by test_apply")
def test_the_command_is_killed_when_all_is_loaded(site: Site) -> None:
    old = site.version
    site.edit()
    site.prepare(site.places(), hold_s=0.1)

    site.server.wait_for_log("dropped the table that was prepared: the command to switch did not come in time", WORKERS)
    site.wait_until_whole(old)


def test_the_command_is_killed_when_it_has_told_one_worker_to_switch(site: Site) -> None:
    new, places = site.edit(), site.places()
    serial = site.prepare(places)

    assert site.switch(serial, places[:1]) == ["applied"]

    site.wait_until_whole(new)


@whole_only("the command is killed while one loads, and a worker when it has loaded")
def test_a_worker_is_killed_while_it_loads(site: Site) -> None:
    old, new = site.version, site.edit()
    held = site.hold(new)
    with site.start_command() as command:
        [newest] = eventually(lambda: site.loading(new))
        kill(newest)
        said, _ = command.communicate(timeout=DEADLINE_S)
    held.unlink()

    assert command.returncode == 1
    assert "nothing was changed" in said
    site.wait_until_whole(old)


def test_a_worker_is_killed_between_load_and_switch(site: Site) -> None:
    new, places = site.edit(), site.places()
    serial = site.prepare(places)

    kill(places[-1].worker)
    eventually(lambda: places[-1].worker not in site.server.workers())

    assert site.switch(serial, places)[:2] == ["applied", "applied"]
    site.wait_until_whole(new)


@whole_only("shows little more than the one before")
def test_the_worker_that_has_decided_is_killed_before_the_others_are_told(site: Site) -> None:
    new, places = site.edit(), site.places()
    serial = site.prepare(places)
    assert site.switch(serial, places[:1]) == ["applied"]

    kill(places[0].worker)

    site.wait_until_whole(new)


@whole_only("shows little more than the one before")
def test_all_workers_are_killed_between_load_and_switch(site: Site) -> None:
    old = site.version
    site.edit()
    serial = site.prepare(places := site.places())

    for place in places:
        kill(place.worker)

    assert set(site.switch(serial, places)) == {"gone"}
    site.wait_until_whole(old)
