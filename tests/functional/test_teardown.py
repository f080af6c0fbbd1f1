"""Ending an interpreter: whatever the app left in it, the worker and the neighbours go on."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from isowsgi.shared import interpreters
from tests.conftest import WHOLE, Server, StartServer, eventually, running_server
from tests.functional.test_kinds_of_isolation import children_of

ISOLATIONS = [interpreters.SHARED_GIL] if interpreters.own_gil_error() else [interpreters.OWN_GIL, interpreters.SHARED_GIL]

# What an app may leave, and whether its interpreter can be ended all the same: one with a thread in it never may, on any release.
# A busy thread takes a shared GIL from the neighbours, so it has a server to itself.
LEFT = {
    "nothing": True,
    "pool": True,
    "loop": True,
    "database": True,
    "helpers": True,
    "napping daemon": True,
    "sleeping daemon": False,
    "thread": False,
}
BUSY = "busy daemon"


# In whole runs each is replaced twice.
GENERATIONS = 3 if WHOLE else 2


def mount_of(left: str) -> str:
    return f"/{left.replace(' ', '-')}"


def config_of(isolation: str, *lefts: str) -> str:
    mounts = "".join(
        f'"{mount_of(left)}" = {{ app = "leaves", touch = "touched", isolation = "{isolation}", env = {{ LEAVES = "{left}" }} }}\n'
        for left in lefts
    )
    # The worker must not be replaced because of those that are left behind.
    return f'[worker]\nmax_stuck = 100\n[mounts]\n"/h" = "hello"\n{mounts}'


def replace_all(server: Server, mounts: int) -> None:
    for generation in range(2, GENERATIONS + 1):
        (server.folder / "touched").write_text(str(generation))
        server.wait_for_log(rf"#{generation}: serving", mounts)


def assert_was_replaced(server: Server, left: str, can_end: bool) -> None:
    (worker,) = server.workers()
    outcome = "ended\n" if can_end else r"ended, but \d+ of the app's threads are still running|did not end within"
    for generation in range(1, GENERATIONS):
        server.wait_for_log(rf"{mount_of(left)} #{generation}: {outcome}")
        server.wait_for_log(rf"{mount_of(left)} #{generation}: exit function of {left} in {worker}")
    assert server.get(f"{mount_of(left)}/").status_code == server.get("/h/").status_code == 200


def assert_ends_well(server: Server) -> None:
    assert len(re.findall("Booting worker", server.log())) == 1
    assert server.stop(signal.SIGTERM) == 0
    for word in ("Fatal", "SIGSEGV", "SIGABRT", "core dumped"):
        assert word not in server.log() + server.output()


@pytest.fixture(scope="module", params=ISOLATIONS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a mount for each thing that is left, all of them replaced."""
    config = config_of(request.param, *LEFT)
    with running_server(tmp_path_factory.mktemp("server"), config, wait_for=1 + len(LEFT)) as server:
        replace_all(server, len(LEFT))
        yield server


@pytest.mark.parametrize(("left", "can_end"), LEFT.items(), ids=LEFT)
def test_a_replaced_app_harms_nobody_whatever_it_leaves(server: Server, left: str, can_end: bool) -> None:
    assert_was_replaced(server, left, can_end)


def test_after_all_of_it_one_generations_children_are_there_and_the_worker_stops(server: Server) -> None:
    """Generation after generation left two, with their pipes: nobody knew them any more."""
    (worker,) = server.workers()

    eventually(lambda: len(children_of(worker)) <= 2, "the end of older generations' children")
    assert_ends_well(server)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_so_does_one_that_leaves_a_busy_thread(serve: StartServer, isolation: str) -> None:
    """Destroying an interpreter with a busy daemon thread crashed 47 of 64 times (CPython 3.14.10, 3.15.2); 3.13 and older abort."""
    server = serve(config_of(isolation, BUSY), wait_for=2)
    replace_all(server, 1)

    assert_was_replaced(server, BUSY, True)
    assert_ends_well(server)


def test_a_thread_that_ends_later_lets_its_interpreter_be_forgotten(serve: StartServer) -> None:
    """A stuck request that comes back after its instance was replaced ends the instance after all."""
    server = serve(
        """
        [mounts]
        "/t" = { app = "holds_gil", request_timeout = 1, threads = 1, env = { GATE = "gate" } }
        """,
    )
    gate = server.folder / "gate"
    os.mkfifo(gate)

    assert server.get("/t").status_code == 504  # without the GIL, it waits for who opens the gate
    server.wait_for_log("/t #1: a thread is stuck in its request")
    server.wait_for_log("/t #2: serving")
    with open(gate, "wb"):
        pass

    eventually(lambda: "/t #1: ended" in server.log())
