"""Tests that must be alone run when all others have ended, and those that share a server run in one process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import DEADLINE_S, ROOT

HOOKS = "from tests.conftest import pytest_collection_finish, pytest_collection_modifyitems, pytest_xdist_make_scheduler\n"

# Each test notes its begin and its end in a file, in one write each.
SUITE = """
import os
import pytest

def note(event, request):
    with open("notes", "a") as notes:
        notes.write(f"{event} {request.node.name.partition('[')[0]} {os.getpid()}\\n")

@pytest.fixture(autouse=True)
def noted(request):
    note("begin", request)
    yield
    note("end", request)

@pytest.fixture(scope="module")
def shared():
    return object()

@pytest.mark.alone
@pytest.mark.parametrize("number", range(3))
def test_alone(number, shared):
    pass

@pytest.mark.parametrize("number", range(8))
def test_shares(number, shared):
    pass

@pytest.mark.parametrize("number", range(8))
def test_any(number):
    pass
"""


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What the tests of a small suite noted, run by three processes."""
    pytest.importorskip("xdist")
    folder = tmp_path_factory.mktemp("suite")
    (folder / "tests" / "functional").mkdir(parents=True)
    (folder / "tests" / "conftest.py").write_text(HOOKS)
    (folder / "tests" / "functional" / "test_it.py").write_text(SUITE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "3",
        "-q",
        "-c",
        os.devnull,
        "--rootdir",
        ".",
        "-o",
        "markers=alone",
        "-p",
        "no:cacheprovider",
    ]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        environ.pop(name, None)
    done = subprocess.run(
        [*command, f"--basetemp={folder}/temporary", "tests"],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
        check=False,
    )
    assert "19 passed" in done.stdout, done.stdout + done.stderr
    return [line.split() for line in (folder / "notes").read_text().splitlines()]


def test_what_must_be_alone_is_last_and_alone(notes: list[list[str]]) -> None:
    names = [name for _, name, _ in notes]

    assert names[-6:] == ["test_alone"] * 6
    assert [event for event, name, _ in notes if name == "test_alone"] == ["begin", "end"] * 3


def test_what_shares_a_fixture_of_its_module_runs_in_one_process_and_all_else_where_there_is_room(notes: list[list[str]]) -> None:
    pids = {name: {pid for _, of, pid in notes if of == name} for _, name, _ in notes}

    assert len(pids["test_shares"]) == 1
    assert len(pids["test_any"]) > 1
