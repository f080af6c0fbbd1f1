"""`isowsgi run`: a command has the Python, variables, path and folder of a mount, and takes the place of the command that starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEADLINE_S, ROOT

CONFIG = """
[defaults]
env = { COMMON = "yes", COLOUR = "red" }
[mounts]
"/shop" = { app = "shop.app", pythonpath = ["project", "lib"], env = { COLOUR = "blue" }, env_file = "shop.env" }
"/venv" = { app = "shop.app", pythonpath = "project", venv = "venv" }
"/both" = { app = "shop.app", venv = "venv", python = '@python@', isolation = "process" }
"/moved" = { redirect = "https://example.com{path}" }
"/script" = { app = "script/app.wsgi" }
"/plain" = "plain"
"""

TELL = "import json, os, sys; json.dump([sys.executable, sys.prefix, sys.path, dict(os.environ), os.getcwd(), sys.argv[1:]], sys.stdout)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("run")
    for name in ("project", "lib", "script"):
        (folder / name).mkdir()
    (folder / "project/shop_code.py").write_text("")
    (folder / "script/app.wsgi").write_text("")
    (folder / "shop.env").write_text("SECRET='a b'\n")
    (folder / "isowsgi.toml").write_text(CONFIG.replace("@python@", sys.executable))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    return folder


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLOUR": "green"}
    command = [sys.executable, "-m", "isowsgi", "run", *arguments]
    return subprocess.run(command, cwd=site, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_a_command_has_the_path_variables_and_folder_of_its_mount(site: Path) -> None:
    done = run(site, "/shop", "--", "python", "-c", TELL, "--verbose", "-x")
    _, _, path, environ, folder, arguments = json.loads(done.stdout)

    assert (environ["COMMON"], environ["COLOUR"], environ["SECRET"]) == ("yes", "blue", "a b")
    assert path[1:3] == [str(site / "project"), str(site / "lib")]
    assert (folder, arguments) == (str(site / "project"), ["--verbose", "-x"])


def test_a_command_has_the_python_of_its_mount(site: Path) -> None:
    executable, prefix, _, environ, _, _ = json.loads(run(site, "/venv", "--", "python", "-c", TELL).stdout)
    assert (Path(executable).parent, prefix, environ["VIRTUAL_ENV"]) == (site / "venv/bin", str(site / "venv"), str(site / "venv"))

    executable, prefix, *_ = json.loads(run(site, "/plain", "--", "python3", "-c", TELL).stdout)
    assert (executable, prefix) == (sys.executable, sys.prefix)


def test_a_venv_beside_a_python_gives_its_packages(site: Path) -> None:
    """The mount's `python` itself finds none of them: VIRTUAL_ENV means nothing to it."""
    executable, prefix, *_ = json.loads(run(site, "/both", "python", "-c", TELL).stdout)

    assert (Path(executable).parent, prefix) == (site / "venv/bin", str(site / "venv"))


def test_options_behind_the_pattern_are_the_commands_own(site: Path) -> None:
    done = run(site, "/shop", "python", "-c", TELL, "--help", "--chdir", "lib", "--")
    _, _, _, environ, folder, arguments = json.loads(done.stdout)

    assert arguments == ["--help", "--chdir", "lib", "--"]
    assert folder == environ["PWD"] == str(site / "project")


def test_what_is_in_the_venvs_bin_is_found_first(site: Path) -> None:
    (site / "venv/bin/django-admin").write_text("#!/bin/sh\necho of the venv: $1\n")
    (site / "venv/bin/django-admin").chmod(0o755)

    assert run(site, "/venv", "--", "django-admin", "migrate").stdout == "of the venv: migrate\n"


@pytest.mark.parametrize(("arguments", "folder"), [(["/script"], ""), (["/plain"], ""), (["--chdir", "lib", "/shop"], "lib")])
def test_it_runs_where_the_apps_code_lies(site: Path, arguments: list[str], folder: str) -> None:
    assert run(site, *arguments, "--", "pwd").stdout.strip() == str(site / folder)


def test_the_exit_code_and_signals_are_the_commands_own(site: Path) -> None:
    assert run(site, "/shop", "--", "sh", "-c", "exit 7").returncode == 7
    assert run(site, "/shop", "--", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["/shp", "--", "true"], 2, "did you mean '/shop'?"),
        (["/shop"], 2, "Missing argument 'COMMAND...'"),
        (["/shop", "--"], 2, "Missing argument 'COMMAND...'"),
        (["/moved", "true"], 2, "/moved is a redirect: it has no app"),
        (["/shop", "--", "no-such-command"], 127, "no such command: 'no-such-command'; PATH is "),
        (["--chdir", "nowhere", "/shop", "--", "true"], 126, "nowhere: cannot run it there: no such file or directory"),
        (["-c", "nowhere.toml", "/shop", "--", "true"], 2, "nowhere.toml"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(site: Path, arguments: list[str], code: int, said: str) -> None:
    refused = run(site, *arguments)

    assert refused.returncode == code
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
