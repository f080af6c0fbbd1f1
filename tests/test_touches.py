"""What an app touches when it is tried, and what to add to its sandbox."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# One process for all of it: each hook stays for the whole of it.
SCRIPT = """
import json, os, sys
from isowsgi.isolation.touches import Watch
from isowsgi.shared.messages import Sandbox
from tests.orders import any_order

root, acts, lines = os.getcwd(), json.load(sys.stdin), []
for number, act in enumerate(acts):
    here = os.path.join(root, str(number))
    for name in ("site", "read", "media", "tmp", "other"):
        os.makedirs(os.path.join(here, name))
        with open(os.path.join(here, name, "a"), "w") as file:
            file.write("a")
    os.chdir(here)
    watch = Watch(
        any_order("process"),
        Sandbox(code=["site"], read=["read"], write=["media"], connect=[5432], sockets=[], listen=[8000], tmp="tmp"),
    )
    watch.start()
    try:
        exec(act, {"os": os, "sys": sys})
    except (OSError, TypeError, ValueError):
        pass
    lines.append([line.replace(here, "") for line in watch.lines()])
print(json.dumps(lines))
"""

ALLOWED = [
    "open('read/a').close(); open('site/a').close(); os.listdir('media')",
    "open('media/new', 'w').close(); os.mkdir('media/folder'); os.rename('media/new', 'media/folder/new')",
    "open('tmp/a', 'a').close(); os.remove('tmp/a')",
    "import json, sqlite3, decimal, subprocess; subprocess.run(['true'])",
    "import sqlite3; sqlite3.connect(':memory:'); sqlite3.connect('media/db')",
    "import socket; socket.create_connection(('127.0.0.1', 5432))",
    "import socket; socket.socket().bind(('127.0.0.1', 0))",
    "open('other/no such file')",
    "open('/dev/null', 'w').close(); os.urandom(1)",
    "open(b'read/a').close()",
    # Python would keep bytecode beside the code, and does without.
    "os.mkdir('site/__pycache__'); open('site/__pycache__/a.pyc.1', 'wb').close()",
    "open(3.5)",
    "os.mkdir('a\\0b')",
    "os.remove(None)",
]

REFUSED = {
    "open('other/a').close()": ["reads /other/a: add it to read"],
    "open('other/a', 'r+').close()": ["writes /other/a: add it to write"],
    "open('other/new', 'w').close()": ["writes /other/new: add '/other' to write"],
    "open('read/new', 'w').close()": ["writes /read/new: add '/read' to write"],
    "os.listdir('other')": ["lists /other: add it to read"],
    "os.mkdir('other/b'); os.rmdir('other/b')": [
        "makes /other/b: add '/other' to write", "removes /other/b: add '/other' to write",
    ],
    "os.rename('media/a', 'other/b')": ["makes /other/b: add '/other' to write"],
    "os.symlink('a', 'site/b')": ["makes /site/b: add '/site' to write"],
    "os.remove('../other/a', dir_fd=os.open('media', 0))": ["removes /other/a: add '/other' to write"],
    "import sqlite3; sqlite3.connect('other/db')": ["keeps a database in /other/db: add '/other' to write"],
    "for n in range(5): open(f'other/{n}', 'w').close()": ["writes 5 files in /other: add that to write"],
    "os.symlink('../other/a', 'media/b'); open('media/b').close()": ["reads /other/a: add it to read"],
    "os.chmod('other/a', 0o755); import subprocess; subprocess.run([os.path.abspath('other/a')])": ["runs /other/a: add it to read"],
    "import socket; socket.create_connection(('127.0.0.1', 1))": ["connects to 127.0.0.1:1: add it to connect"],
    "import socket; socket.socket(socket.AF_UNIX).connect('/run/no')": ["connects to unix:/run/no: add it to connect"],
    "import socket; socket.socket().bind(('127.0.0.1', 1))": ["listens on 127.0.0.1:1: add it to listen"],
}  # fmt: skip


def has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6).close()
    except OSError:  # EAFNOSUPPORT: the kernel was started with ipv6.disable=1
        return False
    return True


if has_ipv6():
    REFUSED["import socket; socket.socket(socket.AF_INET6).connect(('::1', 1))"] = ["connects to [::1]:1: add it to connect"]


@pytest.fixture(scope="module")
def touched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    acts = [*ALLOWED, *REFUSED]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path_factory.mktemp("touches").resolve(), input=json.dumps(acts),
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(acts, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("act", ALLOWED)
def test_what_the_rules_allow_is_not_told(touched: dict[str, list[str]], act: str) -> None:
    assert touched[act] == []


@pytest.mark.parametrize("act", REFUSED)
def test_what_they_refuse_is_told_with_what_to_add(touched: dict[str, list[str]], act: str) -> None:
    assert touched[act] == REFUSED[act]
