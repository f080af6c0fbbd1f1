"""Releases by a link, `current -> releases/42`: an app is of the release to which the path as written leads when the app is loaded."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isowsgi.shared import workdir
from tests.command import call
from tests.conftest import Server, eventually, running_server

APP = """
import json, os, sys
from number import NUMBER
from dep import DEP
def application(environ, start_response):
    import late  # for the first time when a request asks for it
    start_response("200 OK", [])
    facts = [NUMBER, DEP, late.LATE, *(os.path.basename(os.path.dirname(os.path.realpath(path))) for path in (__file__, sys.prefix))]
    return [json.dumps({"numbers": facts, "cwd": os.getcwd()}).encode()]
"""
CONFIG = """
[defaults]
pythonpath = "."
venv = "venv"
[mounts]
"/a" = "app"
"/own" = { app = "app", isolation = "process" }
"/script" = "./script.wsgi"
"/late" = "app"
[control]
folder = "{folder}/control"
"""
MOUNTS = ("/a", "/own", "/script")


class Site:
    """A site of several releases, of which `current` leads to one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.current = folder / "current"
        for number in range(1, 5):
            self._make_release(number)
        self.switch(1)

    def _make_release(self, number: int) -> None:
        release = self.folder / "releases" / str(number)
        packages = release / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        packages.mkdir(parents=True)
        (release / "venv" / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\nversion = {sys.version.split()[0]}\n")
        (packages / "dep.py").write_text(f"DEP = {number}\n")
        (release / "number.py").write_text(f"NUMBER = {number}\n")
        (release / "late.py").write_text(f"LATE = {number}\n")
        (release / "app.py").write_text(APP)
        (release / "script.wsgi").write_text(APP)
        (release / "isowsgi.toml").write_text(CONFIG.replace("{folder}", str(self.folder)))

    def switch(self, number: int) -> None:
        new = self.folder / "new"
        new.symlink_to(f"releases/{number}")
        new.rename(self.current)

    def isowsgi(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command in a shell that stands in current/."""
        return call(self.current, *arguments)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def server(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), "", "--chdir", str(site.current), wait_for=4) as server:
        yield server


def seen(server: Server, mount: str) -> Any:
    return server.get(mount).json()


def numbers(server: Server, mount: str) -> set[Any]:
    """Return which releases a mount's code, packages and late imports are of."""
    return {str(number) for number in seen(server, mount)["numbers"]}


def test_one_link_leads_through_all_that_a_release_can_see(site: Site, server: Server) -> None:
    """In this order, with one server: a reload by the command from current/, a SIGHUP, and the end of the old releases."""
    assert [numbers(server, mount) for mount in MOUNTS] == [{"1"}] * 3

    site.switch(2)
    # Its late import comes now, and from the release that it was loaded from.
    assert numbers(server, "/late") == {"1"}
    for mount in MOUNTS:
        reloaded = site.isowsgi("reload", mount)
        assert reloaded.returncode == 0, reloaded.stderr
    assert [numbers(server, mount) for mount in MOUNTS] == [{"2"}] * 3
    assert seen(server, "/own")["cwd"] == str(site.folder / "releases" / "2")

    site.switch(3)
    before = server.workers()
    server.send_signal(signal.SIGHUP)
    eventually(lambda: server.workers() and not set(before) & set(server.workers()), "the new worker")
    server.wait_for_log(r"#1: serving", 8)
    assert [numbers(server, mount) for mount in MOUNTS] == [{"3"}] * 3


def test_a_watched_mount_follows_the_link(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    for number in (1, 2):
        (site.folder / "releases" / str(number) / "isowsgi.toml").write_text(
            '[mounts]\n"/a" = { app = "app", venv = "venv", watch = true }\n'
        )
    with running_server(tmp_path, "", app=str(site.current / "isowsgi.toml")) as server:
        assert numbers(server, "/a") == {"1"}
        site.switch(2)
        server.wait_for_log("/a #2: serving")
        assert numbers(server, "/a") == {"2"}


def test_the_shells_path_counts_while_it_leads_to_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path)
    monkeypatch.chdir(site.current)
    monkeypatch.setenv("PWD", str(site.current))
    assert workdir.absolute("isowsgi.toml") == str(site.current / "isowsgi.toml")

    site.switch(2)  # we stand in the first release still, and the shell's path leads to the second
    assert workdir.absolute("isowsgi.toml") == str(tmp_path / "releases" / "1" / "isowsgi.toml")

    for wrong in ("", "current", "/nowhere", "\udc80"):
        monkeypatch.setenv("PWD", wrong)
        assert workdir.absolute("a") == str(tmp_path / "releases" / "1" / "a")
