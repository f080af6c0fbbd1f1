"""Locks on files between mounts of one process: those of Python code keep mounts apart as they do processes; others are the process'."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import DEADLINE_S, Server, running_server

NEIGHBOURS = ("/b", "/shared", "/own")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = """
        [mounts]
        "/a" = "shell"
        "/b" = "shell"
        "/shared" = { app = "shell", isolation = "shared-gil" }
        "/own" = { app = "shell", isolation = "process" }
        """
    with running_server(tmp_path_factory.mktemp("locks"), config, wait_for=4) as server:
        yield server


def run(server: Server, mount: str, source: str) -> Any:
    response = requests.post(server.url + mount, data=source.encode(), timeout=DEADLINE_S)
    assert response.status_code == 200, server.log()
    return response.json()


def take(path: Path, call: str) -> str:
    """Return source that tries to take a lock, keeps the file if it has it, and answers whether it has."""
    return (
        "import fcntl, struct, sys\n"
        f"file = open({str(path)!r}, 'w')\n"
        f"try: {call}\n"
        "except OSError: answer = False\n"
        "else: answer, sys.kept = True, file\n"
    )


LOCKF = "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
FLOCK = "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"


@pytest.mark.parametrize("call", [LOCKF, FLOCK], ids=["lockf", "flock"])
@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_of_two_mounts_that_want_a_lock_one_gets_it(server: Server, tmp_path: Path, neighbour: str, call: str) -> None:
    """lockf, as fasteners and oslo.concurrency take it, was given to every mount of a process."""
    path = tmp_path / "lock"
    assert run(server, "/a", take(path, call)) is True
    assert run(server, neighbour, take(path, call)) is False

    # A POSIX lock would be lost when its process closes any descriptor of the file.
    run(server, "/a", f"open({str(path)!r}).close()")
    assert run(server, neighbour, take(path, call)) is False

    run(server, "/a", "import sys\nsys.kept.close()")
    assert run(server, neighbour, take(path, call)) is True
    run(server, neighbour, "import sys\nsys.kept.close()")


def test_lockf_keeps_other_programs_out_and_the_ranges_apart(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert run(server, "/a", take(path, "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)")) is True

    with open(path, "w") as mine:
        fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)
        with pytest.raises(BlockingIOError):
            fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 14)
        run(server, "/a", "import fcntl, sys\nfcntl.lockf(sys.kept, fcntl.LOCK_UN)")
        fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_lockf_says_what_the_real_one_says_of_a_wrong_argument(server: Server, tmp_path: Path) -> None:
    source = f"import fcntl\ntry: fcntl.lockf(open({str(tmp_path / 'lock')!r}, 'w'), 64)\nexcept ValueError as exc: answer = str(exc)"

    assert [run(server, mount, source) for mount in ("/a", "/own")] == ["unrecognized lockf argument"] * 2


def test_record_locks_taken_by_fcntl_itself_are_the_process(server: Server, tmp_path: Path) -> None:
    """What docs/explanation/isolation.md says of them: a process of its own keeps them apart, an interpreter does not."""
    call = "fcntl.fcntl(file, fcntl.F_SETLK, struct.pack('hhqqi0q', fcntl.F_WRLCK, 0, 0, 0, 0))"
    path = tmp_path / "lock"

    assert run(server, "/a", take(path, call)) is True
    assert [run(server, mount, take(path, call)) for mount in ("/b", "/own")] == [True, False]
