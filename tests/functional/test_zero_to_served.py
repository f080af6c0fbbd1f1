"""docs/howto/zero-to-served.md, from its first line to its last: commands are run, files are written, and the server is asked.

Replaced are `python3.14`, by the Python of the tests, and what `pip install` would fetch, by the packages of the tests' environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.conftest import DEADLINE_S, ROOT, running_server, whole_only
from tests.test_docs import Block, blocks_of

PAGE = ROOT / "docs/howto/zero-to-served.md"
BLOCKS = list(blocks_of(PAGE))


def run(line: str, folder: Path) -> None:
    """Run a command of the page."""
    if "/pip install" in line:
        venv = folder / line.partition("/bin/")[0]
        packages = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(venv)}))
        (packages / "tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
        return
    line = line.replace("python3.14 -m venv", f"{sys.executable} -m venv --without-pip")
    line = line.replace("server/bin/isowsgi", "server/bin/python -m isowsgi")
    result = subprocess.run(
        ["sh", "-ec", line], cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S, env={**os.environ, "PYTHONWARNINGS": ""}
    )
    assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"


def follow(block: Block, folder: Path) -> None:
    """Do what a block says; those that ask the server come later."""
    kind, _, name = block.mark.partition(" ")
    if kind == "write":
        (folder / name).write_text(block.text)
    elif kind == "append":
        with open(folder / name, "a") as file:
            file.write(block.text)
    elif block.language == "sh":
        for line in block.text.splitlines():
            if not line.startswith(("curl", "server/bin/gunicorn")):
                run(line, folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("zero")
    for block in BLOCKS:
        follow(block, folder)
    with running_server(folder / "sites", (folder / "sites/isowsgi.toml").read_text(), wait_for=2) as server:
        yield server.url


@whole_only("takes 16 s of CPU time")
def test_both_apps_are_served_as_the_page_says(served: str) -> None:
    page = PAGE.read_text()

    for line in re.findall(r"^curl .*$", page, re.MULTILINE):
        fields = dict(field.split(": ") for field in re.findall(r"-H '([^']*)'", line))
        answer = requests.get(served + line.rpartition(":8000")[2], headers=fields, timeout=DEADLINE_S)
        assert answer.status_code == 200, line
        if "/blog/" in line:
            said = answer.text.strip().replace(served, "http://127.0.0.1:8000")
            assert f"`{said}`" in " ".join(page.split()), said
    assert requests.get(f"{served}/blog/size", timeout=DEADLINE_S).text.endswith(" characters\n")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_the_units_of_the_page_are_valid(tmp_path: Path) -> None:
    for block in BLOCKS:
        if block.mark.startswith("unit "):
            text = re.sub(r"/srv/sites/shop/.venv/bin/python", sys.executable, block.text)
            (tmp_path / block.mark.split()[1]).write_text(text)
    paths = sorted(str(path) for path in tmp_path.iterdir())
    checked = subprocess.run(["systemd-analyze", "verify", "--man=no", *paths], capture_output=True, text=True, timeout=DEADLINE_S)
    ours = [line for line in checked.stderr.splitlines() if "shop-nightly" in line]

    assert len(paths) == 2
    assert ours == []


@pytest.mark.skipif(shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="no nginx")
def test_the_lines_for_nginx_are_valid(tmp_path: Path) -> None:
    [lines] = [block.text for block in BLOCKS if block.mark == "nginx"]
    conf = tmp_path / "nginx.conf"
    conf.write_text(
        f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{ access_log off; server {{ listen 127.0.0.1:8001; {lines} }} }}\n"
    )
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or ""
    checked = subprocess.run([program, "-t", "-c", str(conf), "-p", str(tmp_path)], capture_output=True, text=True, timeout=DEADLINE_S)

    assert checked.returncode == 0, checked.stderr
