"""What an app finds as it would in a Python of its own: hooks of `sitecustomize`, PYTHONPATH and TZ among its variables."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.conftest import APPS, DEADLINE_S, ROOT, Server, running_server

# As opentelemetry-instrument, ddtrace-run and newrelic-admin have it: a folder in front of PYTHONPATH, whose code wraps things and stays.
HOOKS = """
import importlib.abc, os, sys
sys.instrumented = getattr(sys, "instrumented", 0) + 1
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "this": sys.saw = True
        return None
sys.meta_path.insert(0, Finder())
sys.path = [folder for folder in sys.path if folder != os.path.dirname(__file__)]
"""
MOUNTS = ("/auto", "/shared", "/process", "/venv", "/own-venv")
CONFIG = """
[defaults]
pythonpath = ["{apps}"]
env = {{ TZ = "EAST-5", PYTHONPATH = "{more}:late" }}
[mounts]
"/auto" = "shell"
"/shared" = {{ app = "shell", isolation = "shared-gil" }}
"/process" = {{ app = "shell", isolation = "process" }}
"/venv" = {{ app = "shell", venv = "venv" }}
"/own-venv" = {{ app = "shell", venv = "venv", isolation = "process" }}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("starts")
    for name, text in {"hooks/sitecustomize.py": HOOKS, "more/named_in_env.py": "", "late/relative.py": ""}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages").mkdir(parents=True)
    (folder / "venv" / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\nversion = {sys.version.split()[0]}\n")
    config = CONFIG.format(apps=APPS, more=folder / "more")
    with running_server(folder, config, env={"PYTHONPATH": f"{folder}/hooks:{ROOT}", "TZ": "UTC"}, wait_for=len(MOUNTS)) as server:
        yield server


def answer(server: Server, mount: str, source: str) -> Any:
    response = requests.post(server.url + mount, data=source.encode(), timeout=DEADLINE_S)
    assert response.status_code == 200, server.log()
    return response.json()


@pytest.mark.parametrize("mount", MOUNTS)
def test_hooks_of_sitecustomize_stay(server: Server, mount: str) -> None:
    """A mount with a venv lost its import hooks without a word, for those of the host's packages are not meant for it."""
    assert answer(server, mount, "import sys\nsys.modules.pop('this', None)\nimport this\nanswer = [sys.instrumented, sys.saw]") == [
        1,
        True,
    ]


@pytest.mark.parametrize("mount", MOUNTS)
def test_folders_of_pythonpath_in_env_are_on_the_path(server: Server, mount: str) -> None:
    """CPython reads it at its start, and that was before."""
    assert answer(server, mount, "import named_in_env, relative\nanswer = True") is True


def test_a_time_zone_in_env_is_that_of_a_process_and_told_of_elsewhere(server: Server) -> None:
    source = "import time\nanswer = time.localtime(0).tm_hour"

    assert [answer(server, mount, source) for mount in ("/process", "/own-venv", "/auto")] == [5, 5, 0]
    told = server.wait_for_log(r"(\S+) #1: env TZ = 'EAST-5' has no effect on local times", 3)
    assert sorted(told) == ["/auto", "/shared", "/venv"]
