"""`copies = "fork"`: the instances of a mount are forked from a process that has loaded its app, and nothing depends on that process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from isowsgi.cli.main import main
from tests.conftest import Server, eventually, running_server
from tests.functional.test_kinds_of_isolation import children_of, title_of

COPIES = """
[defaults]
copies = "fork"
isolation = "process"
instances = 2
threads = 1
[mounts]
"/app" = { app = "copied:create('x')", env = { PLACE = "here" }, umask = "077", post_fork = "copied:post_fork" }
"/thread" = { app = "copied:create()", env = { THREAD = "1" } }
"/open" = { app = "copied:create()", env = { PAIR = "1" } }
"/closing" = { app = "copied:create()", env = { PAIR = "1" }, post_fork = "copied:post_fork" }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("copies"), COPIES, wait_for=8) as made:
        yield made


def copies(server: Server, mount: str, count: int = 2) -> list[dict[str, Any]]:
    """Return what each copy of a mount says."""
    found: dict[int, dict[str, Any]] = {}

    def all_of_them() -> bool:
        facts: dict[str, Any] = server.get(mount).json()
        found[facts["pid"]] = facts
        return len(found) == count

    eventually(all_of_them, f"an answer of each of {count} copies")
    return list(found.values())


def originals(server: Server) -> list[int]:
    """Return the process ids of the originals: `ps` shows what they are."""
    [worker] = server.workers()
    return [child for child in children_of(worker) if "original of " in title_of(child)]


def test_an_app_is_loaded_once_and_its_factory_called_once_for_all_of_its_copies(server: Server) -> None:
    one, two = copies(server, "/app")
    [worker] = server.workers()

    assert one["loaded_by"] == two["loaded_by"] == one["made_by"] == two["made_by"] in originals(server)
    assert one["parent"] == two["parent"] == worker
    assert server.log().count("loaded with PLACE=here, umask 077") == 1
    assert {one["collects"], two["collects"]} == {True}


def test_each_copy_has_its_own_random_numbers_log_lines_and_post_fork(server: Server) -> None:
    one, two = copies(server, "/app")

    assert all(mine != yours for mine, yours in zip(one["secrets"], two["secrets"], strict=True))
    assert one["post_fork"] == two["post_fork"] == [True]
    assert one["forks"] == two["forks"] == ["isowsgi-0"]
    log = server.log()
    for letter in "ab":
        assert (
            log.count(f"/app #1{letter}: post_fork [('forked', True), ('generation', 1), ('isolation', 'process'), ('mount', '/app')") == 1
        )
        assert log.count(f"/app #1{letter}: INFO:root:asked for ") >= 1


def test_an_app_that_starts_a_thread_or_leaves_a_socket_open_is_loaded_by_each_process_and_a_line_says_why(server: Server) -> None:
    for mount in ("/thread", "/open"):
        one, two = copies(server, mount)
        assert [each["loaded_by"] for each in (one, two)] == [one["pid"], two["pid"]]
    why = "copies are not forked, so each loads the app by itself: its import"
    assert (
        len(server.wait_for_log(rf"/thread #1[ab]: {why} starts a thread \(poller\), which a fork would cut off; start it in post_fork"))
        == 1
    )
    assert len(server.wait_for_log(rf"/open #1[ab]: {why} leaves a socket open, which all copies would share")) == 1


def test_a_post_fork_may_close_what_the_import_has_opened(server: Server) -> None:
    one, two = copies(server, "/closing")

    assert one["loaded_by"] == two["loaded_by"] not in (one["pid"], two["pid"])


def test_a_crashed_copy_is_forked_again_and_a_reload_loads_the_app_again(server: Server) -> None:
    before = copies(server, "/app")

    assert server.get("/app/crash").status_code == 502
    server.wait_for_log(r"/app #2[ab]: serving")
    after = copies(server, "/app")
    assert {each["loaded_by"] for each in [*before, *after]} == {before[0]["loaded_by"]}
    assert server.log().count("loaded with PLACE=here") == 1

    result = CliRunner().invoke(main, ["reload", "/app", "--config", str(server.folder / "isowsgi.toml")])

    assert result.exit_code == 0, result.output
    reloaded = copies(server, "/app")
    assert {each["loaded_by"] for each in reloaded} != {before[0]["loaded_by"]}
    assert len({each["loaded_by"] for each in reloaded}) == 1
    assert {each["post_fork"][0] for each in reloaded} == {True}
    eventually(lambda: before[0]["loaded_by"] not in originals(server), "the end of the original of before")


def test_without_its_original_a_crashed_copy_loads_the_app_by_itself(server: Server) -> None:
    loaded_by = copies(server, "/closing")[0]["loaded_by"]

    os.kill(loaded_by, signal.SIGKILL)
    assert server.get("/closing/crash").status_code == 502

    server.wait_for_log(
        "/closing #2[ab]: new copies are not forked any more, so each loads the app by itself until the next reload: its original"
    )
    server.wait_for_log("/closing #2[ab]: serving")
    assert sum(each["loaded_by"] == each["pid"] for each in copies(server, "/closing")) == 1
    assert "Traceback" not in server.log() + server.output()
