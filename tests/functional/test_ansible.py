"""deploy/ansible: two hosts are brought up to date one after the other, and a host that fails is the last one.

The hosts are servers of this machine, reached without ssh; what only root of a whole machine can do (users, units) is left out. `make
ansible` runs it, as Ansible is not among the packages of the other tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.command import call
from tests.conftest import APPS, ROOT, Server, running_server

ANSIBLE = ROOT / "deploy" / "ansible"

pytestmark = [
    pytest.mark.skipif("ISOWSGI_ANSIBLE" not in os.environ, reason="takes minutes; `make ansible` runs it"),
    pytest.mark.skipif(shutil.which("ansible-playbook") is None, reason="no ansible-playbook; `make ansible` has one"),
]

# Seconds for one play; all of them take two minutes.
PLAY_S = 300

HEAD = f"[control]\nfolder = 'control'\n[defaults]\npythonpath = ['{APPS}']\n[mounts]\n'/' = 'hello'\n"
BLOG = "'/blog' = { app = 'blog', pythonpath = ['sites/blog/current'] }\n"

# What a balancer would be told.
NOTE = """
    ---
    - name: Note it
      ansible.builtin.shell:
        cmd: echo "{{ inventory_hostname }} WHAT" >>"{{ log }}"
      changed_when: true
    """


class Hosts:
    """Two servers, and how Ansible reaches them."""

    def __init__(self, folder: Path, servers: dict[str, Server]) -> None:
        self.folder = folder
        self.servers = servers
        self.log = folder / "log"
        for what in ("drain", "undrain"):
            (folder / f"{what}.yml").write_text(textwrap.dedent(NOTE).replace("WHAT", what).lstrip())
        (folder / "venv" / "bin").mkdir(parents=True)
        for name in ("isowsgi", "gunicorn"):
            script = folder / "venv" / "bin" / name
            script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m {name} "$@"\n')
            script.chmod(0o755)

    def play(self, config: str, *options: str, release: str | None = None) -> subprocess.CompletedProcess[str]:
        (self.folder / "isowsgi.toml").write_text(config)
        sites = [{"name": "blog", "source": f"{self.folder}/blog/", "release": release, "mounts": ["/blog"]}] if release else []
        places = {
            name: {"isowsgi_config_folder": str(server.folder), "isowsgi_sites_folder": str(server.folder / "sites")}
            for name, server in self.servers.items()
        }
        given: dict[str, Any] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            "isowsgi_config": str(self.folder / "isowsgi.toml"),
            "isowsgi_gunicorn_config": "",
            "isowsgi_service": "",
            "isowsgi_venv": str(self.folder / "venv"),
            "isowsgi_sites": sites,
            "isowsgi_drain": str(self.folder / "drain.yml"),
            "isowsgi_undrain": str(self.folder / "undrain.yml"),
            "log": str(self.log),
        }
        (self.folder / "hosts.json").write_text(json.dumps({"isowsgi": {"hosts": places, "vars": given}}))
        self.log.write_text("")
        command = ["ansible-playbook", "-i", str(self.folder / "hosts.json"), str(ANSIBLE / "site.yml"), *options]
        env = {
            **os.environ,
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_LOCALHOST_WARNING": "0",
        }
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PLAY_S, env=env)

    def write_blog(self, text: str) -> None:
        (self.folder / "blog").mkdir(exist_ok=True)
        code = f"""
            def application(environ, start_response):
                start_response("200 OK", [])
                return [{text.encode()!r}]
            """
        (self.folder / "blog" / "blog.py").write_text(textwrap.dedent(code))

    def mounts(self) -> list[list[str]]:
        told = [json.loads(call(server.folder, "status", "--json").stdout) for server in self.servers.values()]
        return [[mount["mount"] for mount in worker["mounts"]] for each in told for worker in each["workers"]]

    def answers(self, path: str) -> list[tuple[int, str]]:
        found = [server.get(path) for server in self.servers.values()]
        return [(answer.status_code, answer.text) for answer in found]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with ExitStack() as stack:
        servers = {name: stack.enter_context(running_server(tmp_path_factory.mktemp(name), HEAD, wait_for=0)) for name in ("web1", "web2")}
        for server in servers.values():
            server.wait_until_serving()
        yield Hosts(tmp_path_factory.mktemp("ansible"), servers)


NOTES = "web1 drain\nweb1 undrain\nweb2 drain\nweb2 undrain\n"


def test_hosts_are_brought_up_to_date_one_after_the_other(hosts: Hosts) -> None:
    shop = "'/shop' = 'hello'\n"

    checked = hosts.play(HEAD + shop, "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("+ /shop") == 2
    assert hosts.log.read_text() == ""
    assert hosts.mounts() == [["/"]] * 2
    for server in hosts.servers.values():
        assert sorted(path.name for path in server.folder.glob("*.toml*")) == ["isowsgi.toml"]
        assert "/shop" not in (server.folder / "isowsgi.toml").read_text()

    hosts.write_blog("one")
    applied = hosts.play(HEAD + shop + BLOG, release="1")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    assert hosts.log.read_text() == NOTES
    assert hosts.answers("/blog/") == [(200, "one")] * 2

    again = hosts.play(HEAD + shop + BLOG, release="1")
    assert again.returncode == 0, again.stdout + again.stderr
    assert hosts.log.read_text() == "", "nothing differs"

    hosts.write_blog("two")
    released = hosts.play(HEAD + shop + BLOG, release="2")
    assert released.returncode == 0, released.stdout + released.stderr
    assert hosts.log.read_text() == NOTES
    assert hosts.answers("/blog/") == [(200, "two")] * 2

    (hosts.folder / "blog" / "blog.py").write_text("raise RuntimeError('no database')\n")
    failed = hosts.play(HEAD + BLOG, release="3")
    assert failed.returncode != 0
    assert "no database" in failed.stdout
    assert hosts.log.read_text() == "web1 drain\nweb1 undrain\n"
    assert hosts.answers("/blog/") == [(200, "two")] * 2
    assert hosts.mounts() == [["/", "/shop", "/blog"]] * 2
    for server in hosts.servers.values():
        assert "/shop" in (server.folder / "isowsgi.toml").read_text()
        assert os.readlink(server.folder / "sites" / "blog" / "current") == "releases/2"
        assert not list(server.folder.glob("*.next.toml"))
