"""Landlock as the kernel has it: in processes to throw away, for nothing gets out of it again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from isowsgi.shared import landlock
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")

CODE = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from isowsgi.shared import landlock
folder = sys.argv[2]

def fails(function, *args):
    try:
        function(*args)
    except PermissionError:
        return True
    return False
"""


def run(code: str, folder: Path) -> str:
    process = subprocess.run(
        [sys.executable, "-c", CODE + code, str(ROOT), str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_what_is_allowed_beneath_a_path_is_possible_and_nothing_else(tmp_path: Path) -> None:
    for name in ("read", "write", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "single").write_text("x")
    code = """
read, write = landlock.READ, landlock.WRITE
named = dict(read=read, write=write, single=write, none=read)
landlock.restrict([(f"{folder}/{name}", access) for name, access in named.items()], None, None)
open(f"{folder}/read/file").close()
open(f"{folder}/write/new", "w").close()
os.rename(f"{folder}/write/new", f"{folder}/write/old")
open(f"{folder}/single", "a").close()
print(fails(open, f"{folder}/read/file", "a"), fails(open, f"{folder}/other/file"), fails(os.listdir, folder))
print(fails(os.remove, f"{folder}/single"))
"""
    assert run(code, tmp_path) == "True True True\nTrue"


def test_tcp_ports_are_restricted_only_where_that_is_asked_for(tmp_path: Path) -> None:
    if landlock.abi() < 4:
        pytest.skip("this kernel's Landlock does not know of TCP")
    code = """
server, other = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
one, two = (("127.0.0.1", each.getsockname()[1]) for each in (server, other))
"x".encode("idna")  # names of hosts need it, and its file can be read now
landlock.restrict([], [one[1]], None)
socket.create_connection(one).close()
socket.create_server(("127.0.0.1", 0)).close()
landlock.restrict([], None, [])
print(fails(socket.create_connection, two), fails(socket.create_server, ("127.0.0.1", 0)))
"""
    assert run(code, tmp_path) == "True True"


def test_a_kernel_that_refuses_is_an_error_and_no_sandbox_less(tmp_path: Path) -> None:
    """The kernel stacks 16 rulesets at most (LANDLOCK_MAX_NUM_LAYERS)."""
    code = """
for _ in range(16):
    landlock.restrict([], None, None)
try:
    landlock.restrict([], None, None)
except OSError as exc:
    print(exc.strerror)
"""
    assert run(code, tmp_path) == "landlock: Argument list too long (E2BIG)"
