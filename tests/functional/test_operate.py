"""The operator's commands against a real gunicorn: they reach every worker, wait for the outcome, and say what came of it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from isowsgi.shared import sockets
from isowsgi.shared.frames import encode
from isowsgi.shared.interpreters import best_isolation, can_see_stacks
from isowsgi.worker.control.server import MAX_CLIENTS
from tests.command import call
from tests.conftest import DEADLINE_S, ROOT, Server, StartServer, eventually, examples, receive_all, shared_server

TWO = '[mounts]\n"/a" = "hello"\n"/b" = "code"\n[defaults]\npythonpath = [".", "{apps}"]\n[control]\nfolder = "control"'
GOOD = "from wsgiref.simple_server import demo_app as application\n"

needs_stacks = pytest.mark.skipif(not can_see_stacks(best_isolation()), reason="this CPython cannot read stacks safely")


# For what leaves it as it was.
site = shared_server(TWO, wait_for=2, files={"code.py": GOOD})


def isowsgi(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call the command in the server's folder."""
    return call(server.folder, *arguments, COLUMNS="200")


def status(server: Server) -> list[dict[str, Any]]:
    """Return the answers of all workers."""
    shown = isowsgi(server, "status", "--json")
    assert shown.returncode == 0, shown.stderr
    workers: list[dict[str, Any]] = json.loads(shown.stdout)["workers"]
    return workers


def mount(server: Server, pattern: str) -> dict[str, Any]:
    [worker] = status(server)
    return next(mount for mount in worker["mounts"] if mount["mount"] == pattern)


def control_socket(server: Server) -> Path:
    return next((server.folder / "control").glob("*.sock"))


def connect(path: Path) -> socket.socket:
    folder_fd = os.open(path.parent, os.O_RDONLY)
    try:
        return sockets.connect(folder_fd, path.name, DEADLINE_S)
    finally:
        os.close(folder_fd)


def told(path: Path, data: bytes) -> dict[str, Any]:
    """Send bytes as they are and return the answer."""
    with connect(path) as sock:
        try:
            sock.sendall(data)
        except BrokenPipeError:
            pass  # refused before it said anything; the answer is there
        answer = sock.makefile("rb")
        (length,) = struct.unpack("!I", answer.read(4))
        message: dict[str, Any] = json.loads(answer.read(length))
        return message


def test_status_shows_every_mount_of_every_worker(serve: StartServer) -> None:
    server = serve(TWO, "--workers", "2", files={"code.py": GOOD}, wait_for=4)

    workers = status(server)

    assert sorted(worker["pid"] for worker in workers) == sorted(server.workers())
    assert {worker["master"] for worker in workers} == {server.process.pid}
    for worker in workers:
        assert [(mount["mount"], mount["state"], mount["generation"]) for mount in worker["mounts"]] == [
            ("/a", "serving", 1),
            ("/b", "serving", 1),
        ]
    table = isowsgi(server, "status").stdout
    assert "2 of 2 workers" in table
    assert any("/a" in line and "serving" in line and best_isolation() in line for line in table.splitlines())


def test_status_is_watched_until_ctrl_c(site: Server) -> None:
    master, terminal = os.openpty()
    command = [sys.executable, "-m", "isowsgi", "status", "--watch"]
    watch = subprocess.Popen(command, cwd=site.folder, env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}, stdout=terminal)
    os.close(terminal)

    def read() -> bytes:
        assert select.select([master], [], [], DEADLINE_S)[0], "nothing is shown"
        try:
            return os.read(master, 65536)
        except OSError:  # its end of the terminal is closed
            return b""

    try:
        shown = b""
        while shown.count(b"1 of 1 workers") < 2:
            shown += read()
        assert b"\x1b[32mserving" in shown
        watch.send_signal(signal.SIGINT)
        assert watch.wait(DEADLINE_S) == 0
    finally:
        watch.kill()
        watch.wait()
        os.close(master)


def test_reload_waits_until_the_new_generation_serves_in_every_worker(serve: StartServer) -> None:
    server = serve(TWO, "--workers", "2", files={"code.py": "import time\ntime.sleep(0.5)\n" + GOOD}, wait_for=4)

    done = isowsgi(server, "reload", "/b")

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("/b #2: loaded in ") == 2
    assert server.log().count("/b #2: serving") == 2
    assert {(mount["mount"], mount["generation"]) for worker in status(server) for mount in worker["mounts"]} == {("/a", 1), ("/b", 2)}


def test_a_reload_that_fails_shows_the_error_and_the_old_generation_goes_on(serve: StartServer) -> None:
    server = serve(TWO, files={"code.py": GOOD}, wait_for=2)
    (server.folder / "code.py").write_text("import nowhere\n")

    failed = isowsgi(server, "reload", "/b")

    assert failed.returncode == 1
    assert "/b #2: ModuleNotFoundError: No module named 'nowhere'; generation 1 keeps serving" in failed.stderr
    assert "import nowhere" in failed.stderr
    assert server.get("/b").status_code == 200
    errors = isowsgi(server, "errors", "/b")
    assert "/b #2: could not be loaded: ModuleNotFoundError" in errors.stdout

    (server.folder / "code.py").write_text(GOOD)
    assert isowsgi(server, "reload", "/b").returncode == 0


def test_a_reload_whose_new_generation_is_not_loaded_in_time_fails(serve: StartServer) -> None:
    config = '[mounts]\n"/b" = { app = "code", pythonpath = ".", boot_timeout = 4 }\n[control]\nfolder = "control"'
    server = serve(config, files={"code.py": GOOD})
    (server.folder / "code.py").write_text("import time\ntime.sleep(60)\n")

    failed = isowsgi(server, "reload", "/b")

    assert failed.returncode == 1
    assert "was not loaded in time" in failed.stderr


def test_a_stopped_mount_answers_503_until_it_is_started(serve: StartServer) -> None:
    server = serve(TWO, files={"code.py": GOOD}, wait_for=2)

    assert isowsgi(server, "stop", "/b").returncode == 0
    assert "/b #1: ended" in server.log()
    assert server.get("/b").status_code == 503
    assert server.get("/a").status_code == 200
    assert mount(server, "/b")["state"] == "stopped"
    refused = isowsgi(server, "reload", "/b")
    assert (refused.returncode, "is stopped; start it" in refused.stderr) == (1, True)

    assert isowsgi(server, "start", "/b").returncode == 0
    assert server.get("/b").status_code == 200


def test_start_waits_for_a_mount_that_is_being_loaded_and_tries_one_that_failed_at_once(serve: StartServer) -> None:
    server = serve(TWO, files={"code.py": "import time\ntime.sleep(1.5)\nimport nowhere\n"})

    loading = isowsgi(server, "start", "/b")
    assert loading.returncode == 1
    fault = r"/b #\d+: ModuleNotFoundError: No module named 'nowhere'; it answers 503 until a retry succeeds"
    assert re.search(fault, loading.stderr)

    (server.folder / "code.py").write_text(GOOD)
    assert isowsgi(server, "start", "/b").returncode == 0
    assert server.get("/b").status_code == 200
    again = isowsgi(server, "start", "/b")
    assert (again.returncode, "already serving" in again.stdout) == (0, True)


def test_a_stopped_mount_stays_so_in_the_next_worker(serve: StartServer) -> None:
    """Who stops an app for its database's sake does not want it back because the worker had its max_requests."""
    server = serve(TWO, files={"code.py": GOOD}, wait_for=2)
    isowsgi(server, "stop", "/b")

    server.send_signal(signal.SIGHUP)
    server.wait_for_log(r"/a #1: serving", 2)

    assert mount(server, "/b")["state"] == "stopped"
    assert server.get("/b").status_code == 503
    assert isowsgi(server, "start", "/b").returncode == 0
    assert server.get("/b").status_code == 200
    assert not list((server.folder / "control").glob("*.stopped"))


@needs_stacks
@pytest.mark.parametrize(("path", "line"), [("/spin", "if has_gate()"), ("/sleep", "time.sleep(0.25)")])
def test_stacks_show_the_line_at_which_a_request_is_stuck(serve: StartServer, path: str, line: str) -> None:
    config = '[mounts]\n"/s" = { app = "operated", env = { GATE = "gate" } }\n[control]\nfolder = "control"'
    server = serve(config)
    with server.ask(f"/s{path}") as stuck:
        server.wait_for_log(f"{path[1:]}s")

        def seen() -> str | None:
            text = isowsgi(server, "stacks", "/s").stdout
            return text if line in text or "has_gate" in text else None

        text = str(eventually(seen))
        (server.folder / "gate").touch()
        assert receive_all(stuck).endswith(b"ok")

    assert f"GET /s{path} HTTP/1.1" in text
    assert "operated.py" in text
    assert "isowsgi/inside/serve.py" not in text, "what lies under the app's frames is the same for all"


@pytest.mark.skipif(best_isolation() == "shared-gil", reason="C code that holds the shared GIL stops the whole worker")
def test_stacks_and_status_say_so_when_c_code_holds_the_gil(serve: StartServer) -> None:
    config = """
        [mounts]
        "/s" = { app = "holds_gil", env = { GATE = "gate" }, request_timeout = 0 }
        "/b" = "hello"
        [control]
        folder = "control"
    """
    server = serve(config, wait_for=0)
    os.mkfifo(server.folder / "gate")
    server.wait_until_serving(2)
    with server.ask("/s") as stuck, open(server.folder / "gate", "wb", buffering=0) as gate:
        stacks = isowsgi(server, "stacks", "/s")

        assert "no answer within 1 s: C code holds the GIL" in stacks.stdout
        assert "in flight for" in stacks.stdout
        assert "GET /s HTTP/1.1" in stacks.stdout
        assert stacks.returncode == 0
        assert [request["request"] for request in mount(server, "/s")["instances"][0]["in_flight"]] == ["GET /s HTTP/1.1"]
        assert "waiting: isowsgi-0" in isowsgi(server, "stacks", "/b").stdout or not can_see_stacks(best_isolation())
        gate.write(b"x")
        assert receive_all(stuck).endswith(b"held")


def test_errors_show_the_exceptions_of_requests_and_no_terminal_obeys_them(serve: StartServer) -> None:
    server = serve('[mounts]\n"/s" = "operated"\n[control]\nfolder = "control"')
    assert isowsgi(server, "errors", "/s").stdout == "no errors so far\n"

    assert server.get("/s/raise").status_code == 500

    shown = eventually(lambda: (text := isowsgi(server, "errors", "/s").stdout) and "LookupError" in text and text)
    assert "/s: 1 error in 1 group" in str(shown)
    assert "       1  LookupError: no such thing \\x1b[31m" in str(shown)
    assert "operated.py:" in str(shown)
    assert ": GET /s/raise\n" in str(shown)
    assert "Traceback" in str(shown)
    assert "\x1b" not in str(shown)


BAD_INPUT = (
    (["reload", "/bb"], "isowsgi: no mount '/bb'; did you mean '/b'?\n"),
    (["status", "--config", "other.toml"], "no running gunicorn serves "),
    (["status", "--pidfile", "nowhere.pid"], "isowsgi: nowhere.pid: cannot read it: no such file or directory\n"),
    (["status", "--pidfile", "code.py"], "isowsgi: code.py: expected the process id of a gunicorn master\n"),
    (["reload"], "name a mount's pattern, or --all"),
    (["relaod", "/b"], "No such command 'relaod'"),
)


def test_bad_input_is_answered_by_one_line_and_exit_code_2(site: Server) -> None:

    for arguments, said in BAD_INPUT:
        refused = isowsgi(site, *arguments)
        assert (refused.returncode, refused.stdout) == (2, ""), arguments
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_pidfile_says_which_of_two_gunicorns_with_the_same_config_is_meant(serve: StartServer) -> None:
    first = serve(TWO, "--pid", "gunicorn.pid", files={"code.py": GOOD}, wait_for=2)
    folder = first.folder / "control"
    second = serve(TWO.replace('folder = "control"', f'folder = "{folder}"'), "--pid", "gunicorn.pid", files={"code.py": GOOD}, wait_for=2)
    (second.folder / "isowsgi.toml").write_text("this is no TOML any more")

    for server in (first, second):
        shown = isowsgi(first, "status", "--json", "--pidfile", str(server.folder / "gunicorn.pid"))
        assert [worker["master"] for worker in json.loads(shown.stdout)["workers"]] == [server.process.pid]


def test_without_a_folder_in_the_config_both_sides_find_the_same_place(serve: StartServer) -> None:
    server = serve('[mounts]\n"/a" = "hello"')

    assert [worker["pid"] for worker in status(server)] == server.workers()


def test_the_control_socket_can_be_switched_off(serve: StartServer) -> None:
    server = serve('[mounts]\n"/a" = "hello"\n[control]\nenabled = false')

    assert isowsgi(server, "status").returncode == 2


def test_only_the_owner_can_reach_the_socket(site: Server) -> None:
    path = control_socket(site)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.stat().st_uid == os.geteuid()


def test_a_worker_takes_no_folder_that_others_could_write_to(serve: StartServer, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")

    for name, problem in (("open", "has mode 0o777, expected 0o700"), ("link", "is a symbolic link")):
        server = serve(TWO.replace('"control"', f'"{tmp_path / name}"'), files={"code.py": GOOD}, wait_for=2)
        assert f"{tmp_path / name}: {problem}" in server.log()
        assert list((tmp_path / "open").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_refused_even_if_the_folder_lets_him_in(site: Server) -> None:
    path = control_socket(site)
    path.chmod(0o666)
    path.parent.chmod(0o755)
    source = f"""if True:
        import os, socket
        os.chdir({str(path.parent)!r})
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect({path.name!r})
        print(sock.recv(65536)[4:].decode())
    """
    try:
        refused = subprocess.run([sys.executable, "-c", source], capture_output=True, timeout=DEADLINE_S, check=False)
    finally:
        path.parent.chmod(0o700)
        path.chmod(0o600)

    assert json.loads(refused.stdout)["error"] == {
        "kind": "forbidden", "text": "only uid 0 and root may use this socket, got uid 65534",
    }  # fmt: skip


def test_sockets_of_workers_that_were_killed_are_removed(serve: StartServer) -> None:
    server = serve(TWO, files={"code.py": GOOD}, wait_for=2)
    left_over = control_socket(server)
    os.kill(server.workers()[0], signal.SIGKILL)
    server.wait_for_log("#1: serving", 4)

    assert [worker["pid"] for worker in status(server)] == server.workers()
    assert not left_over.exists()

    server.stop()
    assert list((server.folder / "control").iterdir()) == []


MALFORMED = {
    "another version": (encode({"v": 2, "do": "status"}), "version"),
    "no version": (encode({"do": "status"}), "version"),
    "an unknown command": (encode({"v": 1, "do": "dance"}), "command"),
    "no mount": (encode({"v": 1, "do": "reload"}), "mount"),
    "a number for a mount": (encode({"v": 1, "do": "stacks", "mount": 7}), "mount"),
    "an unknown mount": (encode({"v": 1, "do": "stop", "mount": "/nope"}), "unknown-mount"),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", "malformed"),
    "two requests": (encode({"v": 1, "do": "status"}) * 2, "malformed"),
}


def test_what_cannot_be_done_is_answered_by_one_error(site: Server) -> None:

    for data, kind in MALFORMED.values():
        answer = told(control_socket(site), data)
        assert (answer["v"], answer["ok"], answer["error"]["kind"]) == (1, False, kind), data
    assert site.get("/a").status_code == 200
    assert len(site.workers()) == 1


def test_garbage_never_hurts_the_worker(site: Server) -> None:
    path = control_socket(site)
    [worker] = site.workers()

    @given(data=st.binary(max_size=200) | st.binary(max_size=50).map(lambda body: struct.pack("!I", len(body)) + body))
    @examples(150, suppress_health_check=list(HealthCheck))
    def throw(data: bytes) -> None:
        with connect(path) as sock:
            try:
                sock.sendall(data)
            except BrokenPipeError:
                return  # so many at a time are refused

    throw()

    assert site.get("/a").status_code == 200
    assert [answer["pid"] for answer in status(site)] == [worker]
    assert "mistake" not in site.log()


def test_a_connection_waits_while_the_queue_is_full(tmp_path: Path) -> None:
    """A client that does not block would be refused at once, and take a busy worker for a missing one."""
    fd = os.open(tmp_path, os.O_RDONLY)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "full"))
    listener.listen(0)
    first = sockets.connect(fd, "full", DEADLINE_S)
    try:
        with pytest.raises(TimeoutError):
            sockets.connect(fd, "full", 0.1)
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(sockets.connect, fd, "full", DEADLINE_S)
            listener.accept()[0].close()
            second.result().close()
    finally:
        first.close()
        listener.close()
        os.close(fd)


def test_clients_that_say_nothing_are_bounded_and_closed(site: Server) -> None:
    path = control_socket(site)
    silent = [connect(path) for _ in range(MAX_CLIENTS)]
    try:
        assert told(path, encode({"v": 1, "do": "status"}))["error"]["kind"] == "busy"
        assert site.get("/a").status_code == 200
        assert b"expected a complete request within" in receive_all(silent[0])
        assert isowsgi(site, "status").returncode == 0
    finally:
        for sock in silent:
            sock.close()


def test_a_client_that_does_not_wait_for_its_reload_does_no_harm(serve: StartServer) -> None:
    server = serve(TWO, files={"code.py": "import time\ntime.sleep(0.5)\n" + GOOD}, wait_for=2)
    with connect(control_socket(server)) as sock:
        sock.sendall(encode({"v": 1, "do": "reload", "mount": "/b"}))
        server.wait_for_log("loading generation 2 ")

    server.wait_for_log("/b #2: serving")
    assert mount(server, "/b")["generation"] == 2


def test_names_of_sockets_are_told_apart_from_what_else_is_there(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    fd = sockets.open_folder(str(tmp_path))
    name = sockets.socket_name("/srv/isowsgi.toml", 10, 11)
    (tmp_path / "README").touch()
    (tmp_path / f"{'0' * 16}.1.2.sock").symlink_to("/run/somebody-elses.sock")
    listener = sockets.listen(fd, name)
    try:
        assert [(place.config, place.master, place.worker) for place in sockets.places(str(tmp_path), fd)] == [
            (sockets.config_hash("/srv/isowsgi.toml"), 10, 11)
        ]
        sockets.clean_up(str(tmp_path), fd)
        assert (tmp_path / name).exists()
        listener.close()
        sockets.clean_up(str(tmp_path), fd)
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"{'0' * 16}.1.2.sock", "README"]
    finally:
        listener.close()
        os.close(fd)
