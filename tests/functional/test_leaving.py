"""How a server, or one mount of it, leaves while a balancer still sends it clients."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.command import call
from tests.conftest import ROOT, Server, StartServer, eventually

STATUS = '"/-" = { app = "isowsgi.status:application", isolation = "main" }\n'

# Longer than any test: who waits for its end does not get by.
LONG = "[worker]\nlame_duck = 600\n"
PATIENT = ("--graceful-timeout", "900")

GOOD = "from wsgiref.simple_server import demo_app as application\n"


def ready(server: Server, query: str = "") -> int:
    return server.get(f"/-/ready{query}").status_code


def state(server: Server, pattern: str) -> str:
    [worker] = json.loads(call(server.folder, "status", "--json").stdout)["workers"]
    return next(str(mount["state"]) for mount in worker["mounts"] if mount["mount"] == pattern)


@contextmanager
def command(server: Server, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command beside the test, until it ends by itself."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "isowsgi", *arguments], cwd=server.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        process.communicate()


def end_workers(server: Server) -> None:
    """End the workers at once; the master, which was told to stop, ends with them."""
    for pid in server.workers():
        os.kill(pid, signal.SIGQUIT)


def test_a_server_that_was_told_to_stop_serves_on_while_it_is_not_ready(serve: StartServer) -> None:
    server = serve('[mounts]\n"/" = "hello"\n' + STATUS + LONG, "--workers", "2", *PATIENT, wait_for=4)
    eventually(lambda: ready(server) == 200, "ready, before anything leaves")
    server.tell_to_stop()

    eventually(lambda: ready(server) == 503, "the server says that it is not ready")
    answers = [server.get("/") for _ in range(20)]
    assert [(answer.status_code, answer.headers["Connection"]) for answer in answers] == [(200, "close")] * 20
    assert ready(server, "?mount=/") == 503
    assert "stopping" in server.get("/-/ready").text
    server.wait_for_log(r"stopping in [\d.]+ s \(lame_duck\)", 2)
    end_workers(server)
    assert server.stop() == 0


def test_one_of_several_workers_leaves_at_once_and_nobody_is_sent_elsewhere(serve: StartServer) -> None:
    """SIGHUP starts other workers."""
    server = serve('[mounts]\n"/" = "hello"\n' + STATUS + LONG, *PATIENT, wait_for=2)
    (before,) = server.workers()
    eventually(lambda: ready(server) == 200, "ready, before anything leaves")
    texts = set()

    server.send_signal(signal.SIGHUP)

    def has_left() -> bool:
        texts.add(server.get("/-/ready").text)
        return before not in server.workers()

    eventually(has_left, "the old worker left")
    assert not [text for text in texts if "stopping" in text]
    assert "lame_duck" not in server.log()
    server.tell_to_stop()
    eventually(lambda: ready(server) == 503, "not ready")
    end_workers(server)


def test_a_lame_duck_ends_in_time(serve: StartServer) -> None:
    server = serve('[mounts]\n"/" = "hello"\n[worker]\nlame_duck = 0.2\n')

    assert server.stop() == 0

    assert "stopping in 0.2 s (lame_duck)" in server.log()


def test_a_mount_that_leaves_is_served_until_its_time_is_over(serve: StartServer) -> None:
    server = serve('[mounts]\n"/a" = "hello"\n"/b" = "hello"\n' + STATUS, wait_for=3)
    eventually(lambda: ready(server) == 200, "ready, before anything leaves")

    with command(server, "stop", "/a", "--drain", "600") as draining:
        eventually(lambda: ready(server, "?mount=/a") == 503, "/a says that it is not ready")
        assert [server.get("/a/").status_code, ready(server, "?mount=/b"), state(server, "/a")] == [200, 200, "leaving"]
        draining.send_signal(signal.SIGINT)
    eventually(lambda: ready(server, "?mount=/a") == 200, "/a is back")

    with command(server, "stop", "/a", "--drain", "600") as draining:
        eventually(lambda: ready(server, "?mount=/a") == 503, "/a says that it is not ready")
        assert "keeps serving" in call(server.folder, "start", "/a").stdout
        assert "was started meanwhile" in draining.communicate()[1]
    assert ready(server, "?mount=/a") == 200

    assert "stopped" in call(server.folder, "stop", "/a", "--drain", "0.1").stdout
    assert server.get("/a/").status_code == 503


def test_all_apps_are_reloaded_one_after_the_other(serve: StartServer) -> None:
    config = """
        [mounts]
        "/a" = "hello"
        "/b" = { app = "hello", group = "g", isolation = "process" }
        "/c" = { app = "hello", group = "g", isolation = "process" }
        "/lazy" = { app = "hello", lazy = true }
        "/old" = { redirect = "https://example.com/" }
        """
    server = serve(config + STATUS, "--workers", "2", wait_for=6)

    told = call(server.folder, "reload", "--all", "--one-at-a-time")

    assert told.returncode == 0, told.stderr
    lines = [line.split(" of gunicorn ")[0].split() + line.split(": ")[1:2] for line in told.stdout.splitlines()]
    assert [number for number, *_ in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert [what for *_, what in lines] == ["/a #2", "/b #2", "/a #2", "/b #2"]
    assert [lines[0][2] == lines[1][2], lines[1][2] == lines[2][2], lines[2][2] == lines[3][2]] == [True, False, True]


def test_an_app_that_cannot_be_reloaded_keeps_none_of_the_others_from_it(serve: StartServer) -> None:
    server = serve(
        '[defaults]\npythonpath = [".", "{apps}"]\n[mounts]\n"/a" = "code"\n"/b" = "hello"\n', wait_for=2, files={"code.py": GOOD}
    )
    (server.folder / "code.py").write_text("1 / 0\n")

    told = call(server.folder, "reload", "--all", "isowsgi.toml")

    assert told.returncode == 1
    assert "/b #2: loaded in" in told.stdout
    assert "ZeroDivisionError" in told.stderr
    assert "1 of these failed" in told.stderr
    assert server.get("/a/").status_code == 200
