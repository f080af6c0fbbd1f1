"""A mount's hooks run in its interpreter, at the right moments, and their mistakes are theirs alone."""

from __future__ import annotations

import pytest

from isowsgi.configuration import HOOKS
from isowsgi.shared.interpreters import best_isolation
from tests.conftest import StartServer, receive_all

ALL = ", ".join(f'{name} = "hooked:{name}"' for name in HOOKS)


def test_hooks_see_an_instances_whole_life(serve: StartServer) -> None:
    server = serve(f'[mounts]\n"/a" = {{ app = "hooked", touch = "touched", warmup = "/warm", {ALL} }}\n"/b" = "hooked"', wait_for=2)

    assert server.get("/a/x").text == "yes a note"
    assert server.get("/b/x").text == "no None"
    (server.folder / "touched").touch()
    server.wait_for_log("/a #1: ended")
    server.stop()

    log = server.log()
    for generation in (1, 2):
        info = f"[('generation', {generation}), ('isolation', '{best_isolation()}'), ('mount', '/a'), ('threads', 4)]"
        assert log.count(f"/a #{generation}: post_fork [('forked', False), {info[1:]} isowsgi-0") == 1
        assert log.count(f"/a #{generation}: on_boot {info} isowsgi-0") == 1
        assert log.count(f"/a #{generation}: on_drain {info} isowsgi-drain") == 1
    assert log.index("/a #1: on_boot") < log.index("/a #1: serving") < log.index("on_request_start /x") < log.index("/a #1: on_drain")
    assert "/warm" not in log, "the warm-up is no client's request"
    assert "/b #1: on" not in log


@pytest.mark.parametrize(
    ("path", "status"), [("/x", "200 OK"), ("/raise", "500 Internal Server Error"), ("/late", "500 Internal Server Error")]
)
def test_the_end_of_a_request_comes_with_the_status_that_the_client_gets(serve: StartServer, path: str, status: str) -> None:
    server = serve(f'[mounts]\n"/a" = {{ app = "hooked", {ALL} }}')

    assert str(server.get(f"/a{path}").status_code) == status[:3]

    server.wait_for_log(f"/a #1: on_request_end {path} {status} a note float True")


@pytest.mark.parametrize("hook", ["fails", "exits"])
def test_a_hook_that_fails_is_logged_and_breaks_no_request(serve: StartServer, hook: str) -> None:
    hooks = ", ".join(f'{name} = "hooked:{hook}"' for name in ("on_request_start", "on_request_end", "on_drain"))
    server = serve(f'[mounts]\n"/a" = {{ app = "hooked", {hooks} }}')

    assert server.get("/a/x").text == "no None"
    assert server.get("/a/x").status_code == 200
    assert server.stop() == 0

    for name in ("on_request_start", "on_request_end"):
        assert server.log().count(f"/a #1: {name} failed") == 2
    assert server.log().count("/a #1: on_drain failed") == 1
    assert "hooked.py" in server.log()


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        ("hooked:fails", "LookupError: a hook's own mistake"),
        ("hooked:missing", "AttributeError: module 'hooked' has no attribute 'missing'"),
        ("nowhere:function", "ModuleNotFoundError: No module named 'nowhere'"),
        ("hooked:state", "TypeError: on_boot = 'hooked:state': expected a function"),
    ],
)
def test_an_app_whose_on_boot_fails_is_not_served(serve: StartServer, hook: str, error: str) -> None:
    server = serve(f'[mounts]\n"/a" = {{ app = "hooked", on_boot = "{hook}" }}\n"/b" = "hooked"')

    server.wait_for_log("/a #1: cannot load 'hooked:application': " + error.replace("'", "."))
    server.wait_until_serving()
    assert server.get("/a/x").status_code == 503
    assert server.get("/b/x").status_code == 200


def test_a_hook_that_hangs_times_out_as_its_request(serve: StartServer) -> None:
    server = serve('[mounts]\n"/a" = { app = "hooked", request_timeout = 1, on_request_start = "hooked:sleeps" }')
    with server.ask("/a/x") as client:
        assert receive_all(client).startswith(b"HTTP/1.1 504 ")

    server.wait_for_log("the timed-out request has returned")
    assert "#2" not in server.log(), "it was interrupted, so its instance is sound"
