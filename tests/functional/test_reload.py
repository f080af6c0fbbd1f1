"""One mount is replaced, put to sleep and woken without losing a request."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from isowsgi.shared import interpreters
from tests.command import call
from tests.conftest import Server, StartServer, eventually
from tests.load import Load


def replaced(server: Server, generation: int) -> bool:
    return f"#{generation}: serving" in server.log()


def test_no_request_is_lost_while_a_mount_is_replaced_over_and_over(serve: StartServer) -> None:
    server = serve('[mounts]\n"/a" = { app = "hello", touch = "touched" }\n"/b" = "hello"', wait_for=2)
    with Load(server.connect, ["/a/", "/b/"], clients=4) as load:
        for generation in range(2, 6):
            (server.folder / "touched").write_text(str(generation))
            server.wait_for_log(rf"/a #{generation}: serving")
            server.wait_for_log(rf"/a #{generation - 1}: ended")

    assert load.failures == []


def test_mounts_that_are_touched_at_once_are_replaced_one_after_the_other(serve: StartServer) -> None:
    mounts = "".join(f'"/{name}" = {{ app = "hello", touch = "touched" }}\n' for name in "abcd")
    server = serve("[mounts]\n" + mounts, wait_for=4)

    (server.folder / "touched").write_text("")
    server.wait_for_log(r"#2: serving", 4)

    steps = re.findall(r"/(\w)(?:: loading generation 2 | #2: (serving))", server.log())
    assert [bool(is_serving) for _, is_serving in steps] == [False, True] * 4
    names = [name for name, _ in steps]
    assert names[::2] == names[1::2]
    assert sorted(names[::2]) == list("abcd")


def test_a_changed_module_replaces_a_watched_mount(serve: StartServer) -> None:
    source = "from wsgiref.simple_server import demo_app as application\n"
    server = serve('[mounts]\n"/" = { app = "code", watch = true, pythonpath = "." }', files={"code.py": source})
    assert server.get("/").status_code == 200

    def edit() -> bool:
        os.utime(server.folder / "code.py")
        return replaced(server, 2)

    eventually(edit)


def test_a_new_generation_that_fails_its_warm_up_leaves_the_old_one_serving(serve: StartServer) -> None:
    good = "def application(environ, start):\n    start('200 OK', [('Content-Length', '4')])\n    return [b'good']\n"
    server = serve('[mounts]\n"/" = { app = "code", touch = "code.py", warmup = "/health", pythonpath = "." }', files={"code.py": good})

    # Of another length: Python would take its cached code for the current one, if the size and the second of the change were the same.
    (server.folder / "code.py").write_text(good.replace("200 OK", "500 Oh").replace("good", "evil") + "\n")
    server.wait_for_log(": generation 1 keeps serving")

    assert server.get("/").text == "good"
    assert "the warm-up request '/health' was answered '500 Oh'" in server.log()


def test_a_lazy_mount_is_loaded_by_its_first_request_and_sleeps_when_nobody_asks(serve: StartServer) -> None:
    server = serve('[mounts]\n"/l" = { app = "hello", lazy = true, idle_timeout = 1 }\n"/b" = "hello"')
    assert "/l #1" not in server.log()

    assert server.get("/l/").status_code == 200
    server.wait_for_log("/l: no request for 1 s; it sleeps until the next one")
    server.wait_for_log("/l #1: ended")

    assert server.get("/l/").status_code == 200
    assert replaced(server, 2)


def test_an_instance_is_replaced_after_its_number_of_requests(serve: StartServer) -> None:
    server = serve('[mounts]\n"/" = { app = "hello", max_requests = 20 }')

    with Load(server.connect, ["/"], clients=2) as load:
        server.wait_for_log("#2: serving")

    assert load.failures == []
    assert server.log().count("Booting worker") == 1


def test_over_the_memory_limit_the_mount_that_grew_most_is_replaced(serve: StartServer) -> None:
    server = serve('[mounts]\n"/a" = "hoards"\n"/b" = "hello"\n[worker]\nmax_rss = 250', wait_for=2)
    (worker,) = server.workers()

    def grow() -> bool:
        if "/a: loading generation 2 " not in server.log() and rss_mib(worker) < 330:
            server.get("/a/more")
        return "/a #2: serving" in server.log()

    eventually(grow, "a replacement of /a", deadline_s=120)
    assert re.search(r"max_rss is 250, and (this mount grew most|of the mounts whose memory could not be measured)", server.log())
    assert "/b #2" not in server.log()


@pytest.mark.skipif(not (3, 13) <= interpreters.VERSION < (3, 14), reason="only 3.13 keeps the memory of interpreters that ended")
def test_where_ended_interpreters_keep_their_memory_the_worker_is_replaced_after_some(serve: StartServer) -> None:
    server = serve(
        '[mounts]\n"/a" = { app = "hello", isolation = "own-gil", touch = "touched" }\n"/b" = "hello"\n[worker]\nmax_leaked = 2', wait_for=2
    )
    with Load(server.connect, ["/a/", "/b/"], clients=2) as load:
        for generation in range(2, 5):
            (server.folder / "touched").write_text(str(generation))
            server.wait_for_log(rf"/a #{generation}: serving")
            server.wait_for_log(rf"/a #{generation - 1}: ended")
        server.wait_for_log("this Python has not freed the memory of 3 ended interpreters, max_leaked is 2")
        server.wait_for_log("Booting worker", 2)
        server.wait_for_log("/b #1: serving", 2)

    assert load.failures == []


@pytest.mark.skipif(
    interpreters.keeps_memory(interpreters.best_isolation()), reason="3.13 keeps the memory of interpreters with their own GIL"
)
def test_replaced_generations_leave_no_memory_behind(serve: StartServer) -> None:
    """All that had served one hung on the import system, which CPython ends after its last garbage collection: 4.4 MiB each."""
    server = serve('[mounts]\n"/" = "hello"')
    (worker,) = server.workers()

    def replace(generations: range) -> None:
        for generation in generations:
            assert call(server.folder, "reload", "/").returncode == 0
            server.wait_for_log(rf"/ #{generation - 1}: ended")

    replace(range(2, 4))
    before = rss_mib(worker)
    replace(range(4, 9))

    # The interpreter is freed after the line of its end, a little later.
    eventually(lambda: rss_mib(worker) < before + 10, "the end of the memory of 5 generations")


def rss_mib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
