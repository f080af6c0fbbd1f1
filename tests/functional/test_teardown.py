"""Ending an interpreter: whatever the app left in it, the worker and the neighbours go on."""

from __future__ import annotations

import signal

import pytest

from isowsgi.shared import interpreters
from tests.conftest import StartServer, eventually
from tests.functional.test_homes import children_of

ISOLATIONS = [interpreters.SHARED_GIL] if interpreters.own_gil_error() else [interpreters.OWN_GIL, interpreters.SHARED_GIL]

# What an app may leave, and whether its interpreter can be ended all the same: one with a thread in it never may, on any release.
LEFT = {
    "nothing": True,
    "pool": True,
    "loop": True,
    "database": True,
    "helpers": True,
    "napping daemon": True,
    "busy daemon": True,
    "sleeping daemon": False,
    "thread": False,
}


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(("left", "can_end"), LEFT.items(), ids=LEFT)
def test_a_replaced_app_harms_nobody_whatever_it_leaves(serve: StartServer, left: str, can_end: bool, isolation: str) -> None:
    """Destroying an interpreter with a busy daemon thread crashed 47 of 64 times (CPython 3.14.10, 3.15.2); 3.13 and older abort."""
    server = serve(
        f"""
        [mounts]
        "/l" = {{ app = "leaves", touch = "touched", isolation = "{isolation}", env = {{ LEAVES = "{left}" }} }}
        "/h" = "hello"
        """,
        wait_for=2,
    )
    (worker,) = server.workers()

    for generation in (2, 3):
        (server.folder / "touched").write_text(str(generation))
        server.wait_for_log(rf"/l #{generation}: serving")
        outcome = "ended\n" if can_end else r"ended, but \d+ of the app's threads are still running|did not end within"
        server.wait_for_log(rf"/l #{generation - 1}: {outcome}")
        server.wait_for_log(rf"/l #{generation - 1}: exit function of {left} in {worker}")
        assert server.get("/l/").status_code == server.get("/h/").status_code == 200

    assert server.workers() == [worker]
    # Generation after generation left two, with their pipes: nobody knew them any more.
    eventually(lambda: len(children_of(worker)) <= (2 if left == "helpers" else 0))
    assert server.stop(signal.SIGTERM) == 0
    for word in ("Fatal", "SIGSEGV", "SIGABRT", "core dumped"):
        assert word not in server.log() + server.output()


def test_a_thread_that_ends_later_lets_its_interpreter_be_forgotten(serve: StartServer) -> None:
    """A stuck request that comes back after its instance was replaced ends the instance after all."""
    server = serve(
        """
        [mounts]
        "/t" = { app = "naps", request_timeout = 1, threads = 1 }
        """,
    )

    assert server.get("/t/?seconds=5").status_code == 504
    server.wait_for_log("/t #1: a thread is stuck in its request")
    server.wait_for_log("/t #2: serving")

    eventually(lambda: "/t #1: ended" in server.log())
