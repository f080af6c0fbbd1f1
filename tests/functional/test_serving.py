"""The main job: requests find their mount, and each app sees its own world."""

from __future__ import annotations

import signal

from tests.conftest import StartServer


def test_two_mounts_answer_from_one_process(serve: StartServer) -> None:
    server = serve(
        """
        [mounts]
        "/a" = "hello:environ"
        "/b" = "hello:environ"
        """,
        wait_for=2,
    )

    a = server.get("/a/x%20y?q=1").json()
    b = server.get("/b").json()

    assert (a["SCRIPT_NAME"], a["PATH_INFO"], a["QUERY_STRING"], a["isowsgi.mount"]) == ("/a", "/x y", "q=1", "/a")
    assert (b["SCRIPT_NAME"], b["PATH_INFO"], b["isowsgi.mount"]) == ("/b", "", "/b")
    assert a["pid"] == b["pid"] == server.workers()[0]


def test_it_ends_cleanly_on_an_interrupt(serve: StartServer) -> None:
    server = serve('[mounts]\n"/" = "hello"')
    assert server.get("/").status_code == 200

    assert server.stop(signal.SIGINT) == 0
    assert "Traceback" not in server.log() + server.output()
