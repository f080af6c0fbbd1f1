"""`isowsgi plan`: what would change if the config file on disk were taken up."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from isowsgi.cli.plan import lines, plain_lines
from isowsgi.configuration.costs import Cost
from isowsgi.configuration.differences import Difference, Setting
from tests.command import call
from tests.conftest import ROOT, Server, running_server

CONFIG = """
[control]
folder = "control"
[mounts]
"/" = "hello"
"/shop" = { app = "hello", threads = 2, env = { KEY = "hunter2" } }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("plan"), CONFIG, "--workers", "2", wait_for=4) as server:
        yield server


def plan(server: Server, changes: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(server, changes, "plan", *arguments)


def run(server: Server, changes: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command while the file is another one."""
    config: Path = server.folder / "isowsgi.toml"
    before = content = config.read_text()
    for old, new in changes.items():
        assert old in content
        content = content.replace(old, new)
    config.write_text(content)
    try:
        return call(server.folder, *arguments)
    finally:
        config.write_text(before)


def test_a_file_that_runs_has_no_difference(server: Server) -> None:
    shown = plan(server, {})

    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == "no difference: what runs is what the config file says\n"


def test_a_file_can_be_compared_before_it_is_in_its_place(server: Server) -> None:
    """Ansible's check mode may leave the config file alone, and must say what would change."""
    candidate = server.folder / "next.toml"
    candidate.write_text((server.folder / "isowsgi.toml").read_text())
    same = call(server.folder, "plan", "--instead", "next.toml")
    assert (same.returncode, same.stdout) == (0, "no difference: what runs is what the config file says\n")

    candidate.write_text(candidate.read_text().replace("threads = 2", "threads = 3"))
    other = call(server.folder, "plan", "--instead", "next.toml")
    assert other.returncode == 2
    assert "2 -> 3" in other.stdout
    assert "put it in place of the config file, then isowsgi apply" in other.stdout

    candidate.write_text("[mounts]\nblog = 'blog'\n")
    faulty = call(server.folder, "plan", "--instead", "next.toml")
    assert (faulty.returncode, "next.toml: mounts.blog: " in faulty.stderr) == (1, True)


def test_what_differs_is_told_once_for_all_workers_and_secrets_are_not(server: Server) -> None:
    shown = plan(server, {'"/" = "hello"': '"/new" = "hello"', "threads = 2": "threads = 5", "hunter2": "hunter3"})

    assert (shown.returncode, shown.stderr) == (2, "")
    assert shown.stdout == (
        "+ /new  loads it\n"
        '    app         "hello:application"\n'
        f'    pythonpath  ["{ROOT}/tests/apps"]\n'
        "~ /shop  loads a new generation\n"
        "    env.KEY  changed\n"
        "    threads  2 -> 5\n"
        "- /  ends when its requests are answered\n"
        "1 new, 1 changed, 1 gone\n"
        "To apply: isowsgi apply\n"
    )


def test_a_script_gets_json_without_secrets(server: Server) -> None:
    shown = plan(server, {"hunter2": "hunter3"}, "--json")

    assert shown.returncode == 2
    workers = json.loads(shown.stdout)["workers"]
    setting = {"name": "env.KEY", "old": "(not shown)", "new": "(not shown)"}
    difference = {"sign": "~", "name": "/shop", "settings": [setting], "cost": "load", "group": None}
    assert workers == [{"pid": pid, "differences": [difference]} for pid in server.workers()]


def test_faults_of_the_file_are_told_and_nothing_is_compared(server: Server) -> None:
    shown = plan(server, {"threads": "thread"})

    assert (shown.returncode, shown.stdout) == (1, "")
    assert "unknown key" in shown.stderr
    assert "did you mean 'threads'?" in shown.stderr


def test_without_a_server_it_says_so(server: Server, tmp_path: Path) -> None:
    (tmp_path / "isowsgi.toml").write_text(CONFIG)
    shown = plan(server, {}, "--config", str(tmp_path / "isowsgi.toml"))

    assert shown.returncode == 1
    assert "no running gunicorn serves" in shown.stderr


@pytest.mark.parametrize("command", [["status"], ["reload", "/"], ["start", "/"]])
def test_other_commands_say_that_the_file_was_not_applied(server: Server, command: list[str]) -> None:
    changes = {'"/shop" = ': '"/memo" = "hello"\n"/shop" = ', "threads = 2": "threads = 5"}

    shown = run(server, changes, *command)

    assert shown.returncode == 0
    assert shown.stderr == (
        "isowsgi: /memo: is in the config file, and not applied yet: isowsgi apply\n"
        "isowsgi: /shop: has other settings in the config file, not applied yet: isowsgi plan\n"
    )
    if command != ["status"]:
        shown = run(server, changes, command[0], "/memo")
        assert shown.returncode == 2
        assert "isowsgi: /memo: is in the config file, and not applied yet: isowsgi apply\n" in shown.stderr
        assert "no mount '/memo'" in shown.stderr
    assert run(server, {}, *command).stderr == ""
    assert run(server, {"threads": "thread"}, *command).stderr == "isowsgi: the config file has faults: isowsgi plan\n"


def folded(difference: Difference, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    return [line.plain for line in lines(difference, console)]


def test_what_is_longer_than_a_line_is_folded_below_its_own_beginning() -> None:
    """A terminal folded it to the left edge, where only signs and names of mounts belong."""
    path = f'"/srv/{"a" * 30}"'
    setting = Setting(name="pythonpath", old=f"[{path}]", new=f"[{path}, {path}]")
    shown = folded(Difference(sign="~", name="/shop", settings=(setting, Setting(name="threads", old="2", new="4")), cost=Cost.LOAD), 60)

    assert shown == [
        "~ /shop  loads a new generation",
        f"    pythonpath  [{path}]",
        f"                -> [{path},",
        f"                   {path}]",
        "    threads     2 -> 4",
    ]


def test_what_goes_to_no_terminal_says_the_same_and_is_not_folded() -> None:
    path = f'"/srv/{"a" * 300}"'
    settings = (Setting(name="pythonpath", old=None, new=f"[{path}]"), Setting(name="env.KEY", old="1", new="2"))
    difference = Difference(sign="~", name="/shop", settings=settings, cost=Cost.LOAD)
    short = Difference(sign="+", name="/b\x1b[2J", settings=settings[1:], cost=Cost.LOAD)

    assert [*plain_lines(difference)] == [
        "~ /shop  loads a new generation",
        f"    pythonpath  (default) -> [{path}]",
        "    env.KEY     changed",
    ]
    assert [*plain_lines(short)] == folded(short, 80)


@pytest.mark.parametrize("width", [1, 10, 20, 80])
def test_a_name_of_any_length_keeps_its_sign_in_front(width: int) -> None:
    setting = Setting(name="env." + "K" * 100, old=None, new="x")
    shown = folded(Difference(sign="+", name="/日本語" * 60, settings=(setting,), cost=Cost.LOAD), width)

    assert shown[0].startswith("+ /日本語")
    assert all(line.startswith("  ") for line in shown[1:])
    assert "".join(line.strip() for line in shown).count("日") == 60
