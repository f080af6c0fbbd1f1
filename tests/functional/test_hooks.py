"""A mount's hooks run in its interpreter, at the right moments, and their mistakes are theirs alone."""

from __future__ import annotations

import pytest

from isowsgi.configuration import HOOKS
from isowsgi.shared.interpreters import best_isolation
from tests.conftest import Server, StartServer, receive_all, shared_server


def hooks(*names: str, function: str = "") -> str:
    """Return settings: each hook's own function, or one for all."""
    return ", ".join(f'{name} = "hooked:{function or name}"' for name in names)


ALL = hooks(*HOOKS)

# What is wrong with a mount's on_boot, and what is said of it.
BAD_BOOTS = {
    "hooked:fails": "LookupError: a hook's own mistake",
    "hooked:missing": "AttributeError: module 'hooked' has no attribute 'missing'",
    "nowhere:function": "ModuleNotFoundError: No module named 'nowhere'",
    "hooked:state": "TypeError: on_boot = 'hooked:state': expected a function",
}

AROUND_REQUESTS = ("on_request_start", "on_request_end", "on_drain")

# One server; mounts whose app is not loaded at the start are loaded by their first request.
server = shared_server(
    f"""
    [mounts]
    "/all" = {{ app = "hooked", {ALL} }}
    "/none" = "hooked"
    "/fails" = {{ app = "hooked", touch = "fails", {hooks(*AROUND_REQUESTS, function="fails")} }}
    "/exits" = {{ app = "hooked", touch = "exits", {hooks(*AROUND_REQUESTS, function="exits")} }}
    "/hangs" = {{ app = "hooked", request_timeout = 1, on_request_start = "hooked:sleeps" }}
    """
    + "".join(f'"/boot-{number}" = {{ app = "hooked", lazy = true, on_boot = "{hook}" }}\n' for number, hook in enumerate(BAD_BOOTS)),
    wait_for=5,
)


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
def test_the_end_of_a_request_comes_with_the_status_that_the_client_gets(server: Server, path: str, status: str) -> None:
    assert str(server.get(f"/all{path}").status_code) == status[:3]

    server.wait_for_log(f"/all #1: on_request_end {path} {status} a note float True")


@pytest.mark.parametrize("hook", ["fails", "exits"])
def test_a_hook_that_fails_is_logged_and_breaks_no_request(server: Server, hook: str) -> None:
    assert server.get(f"/{hook}/x").text == "no None"
    assert server.get(f"/{hook}/x").status_code == 200
    (server.folder / hook).touch()
    server.wait_for_log(f"/{hook} #1: ended")

    for name in ("on_request_start", "on_request_end"):
        assert server.log().count(f"/{hook} #1: {name} failed") == 2
    assert server.log().count(f"/{hook} #1: on_drain failed") == 1
    assert "hooked.py" in server.log()


@pytest.mark.parametrize("number", range(len(BAD_BOOTS)), ids=list(BAD_BOOTS))
def test_an_app_whose_on_boot_fails_is_not_served(server: Server, number: int) -> None:
    error = list(BAD_BOOTS.values())[number]

    assert server.get(f"/boot-{number}/x").status_code == 503

    server.wait_for_log(rf"/boot-{number} #\d+: cannot load 'hooked:application': " + error.replace("'", "."))
    assert server.get("/none/x").status_code == 200


def test_a_hook_that_hangs_times_out_as_its_request(server: Server) -> None:
    with server.ask("/hangs/x") as client:
        assert receive_all(client).startswith(b"HTTP/1.1 504 ")

    server.wait_for_log("/hangs #1: .*the timed-out request has returned")
    assert "/hangs #2" not in server.log(), "it was interrupted, so its instance is sound"
