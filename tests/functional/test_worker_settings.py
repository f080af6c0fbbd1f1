"""gunicorn's contract: its settings, its sockets, its heartbeat and its log files."""

from __future__ import annotations

import ast
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.bystander import again_if_disturbed
from tests.conftest import APPS, DEADLINE_S, Server, StartServer, eventually, receive_all
from tests.load import Load

# Modules in the server's own folder come first; a test may write them anew.
DEFAULTS = f"[defaults]\npythonpath = ['.', '{APPS}']\n"

HELLO = DEFAULTS + '[mounts]\n"/" = "hello"\n'

# A module is rewritten faster than the clock of bytecode caches ticks.
NO_CACHE = {"PYTHONDONTWRITEBYTECODE": "1"}

# Puts listening sockets where systemd does, then becomes its arguments: a stand-in for systemd-socket-activate, which cannot be told to
# take any free port.
ACTIVATE = """
import fcntl, os, socket, sys
tcp = socket.create_server(("127.0.0.1", 0))
unix = socket.socket(socket.AF_UNIX)
unix.bind("activated.sock")
unix.listen()
abstract = socket.socket(socket.AF_UNIX)
abstract.bind(f"\\0isowsgi-test-{os.getpid()}")
abstract.listen()
copies = [fcntl.fcntl(sock, fcntl.F_DUPFD, 10) for sock in (tcp, unix, abstract)]
for number, copy in enumerate(copies, 3):
    os.dup2(copy, number)
    os.close(copy)
os.environ.update(LISTEN_FDS="3", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
"""


def fetch(sock: socket.socket, fields: str = "Host: localhost\r\n", path: str = "/") -> Any:
    """Ask on a connection for a page of JSON."""
    with sock:
        sock.settimeout(DEADLINE_S)
        sock.sendall(f"GET {path} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n".encode())
        with HTTPResponse(sock, method="GET") as response:
            response.begin()
            return json.loads(response.read())


def read_answer(sock: socket.socket) -> bytes:
    """Return one answer of the app `hello` and leave the connection open."""
    answer = b""
    while not answer.endswith(b"Hello, world\n"):
        data = sock.recv(65536)
        assert data, answer
        answer += data
    return answer


def listeners(server: Server) -> list[str]:
    """Return the addresses of the server's listeners as gunicorn logs them."""
    return str(server.wait_for_log(r"Listening at: (.*) \(\d+\)")[0]).split(",")


def connect(server: Server, address: str) -> socket.socket:
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        name = address.removeprefix("unix:")
        sock.connect(ast.literal_eval(name) if name.startswith("b'") else str(server.folder / name))
        return sock
    host, _, port = address.removeprefix("http://").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), DEADLINE_S)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def sockets_of(pid: int) -> int:
    """Return how many sockets a process has."""
    count = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += os.readlink(fd).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# Sockets.


def test_an_app_sees_the_addresses_that_gunicorns_own_worker_shows_it(serve: StartServer) -> None:
    binds = ["127.0.0.1:0", "127.0.0.2:0", *(["[::1]:0"] if has_ipv6() else []), "unix:sock"]
    arguments = [argument for bind in binds for argument in ("--bind", bind)]
    ours = serve('[mounts]\n"/" = "hello:environ"', *arguments, bind=None)
    theirs = serve(
        "[mounts]", *arguments, "-k", "gthread", "--pythonpath", str(APPS), bind=None, app="hello:environ", wait_for=0
    )  # fmt: skip
    names = ["SERVER_NAME", "REMOTE_ADDR", "HTTP_HOST", "wsgi.url_scheme", "wsgi.multiprocess", "RAW_URI", "SERVER_PROTOCOL"]

    assert len(listeners(ours)) == len(listeners(theirs)) == len(binds)
    for our_address, their_address in zip(listeners(ours), listeners(theirs), strict=True):
        for fields in ("Host: localhost:99\r\n", ""):
            our, their = fetch(connect(ours, our_address), fields), fetch(connect(theirs, their_address), fields)

            assert {name: our.get(name) for name in names} == {name: their.get(name) for name in names}
            assert ("REMOTE_PORT" in our) == ("REMOTE_PORT" in their)
            port = our_address.rpartition(":")[2] if our_address.startswith("http") else their["SERVER_PORT"]
            assert our["SERVER_PORT"] == port


def test_with_reuse_port_each_worker_serves_and_waits_for_no_other_mount(serve: StartServer) -> None:
    """No worker can take what the kernel has put into another one's queue."""
    port = free_port()
    server = serve(
        DEFAULTS + '[mounts]\n"/" = "place"\n"/never" = { app = "gated", env = { GATE = "never" } }\n',
        "--reuse-port",
        "--workers",
        "2",
        bind=f"127.0.0.1:{port}",
        wait_for=2,
    )
    server.port = port

    for worker in server.workers():
        eventually(lambda worker=worker: server.get("/").json()["pid"] == worker, "an answer of each worker")  # type: ignore[misc]


def test_workers_share_connections_and_one_that_is_killed_is_replaced(serve: StartServer) -> None:
    """Of 60 connections kept alive, one of three workers had 59: the kernel goes on waking the one that it woke before."""
    server = serve(DEFAULTS + '[mounts]\n"/" = "place"\n', "--workers", "3", wait_for=3)

    pids: Counter[int] = Counter()
    for _ in range(30):
        with HTTPResponse(server.ask("/", "keep-alive"), method="GET") as response:
            response.begin()
            pids[json.loads(response.read())["pid"]] += 1
    assert set(pids) == set(server.workers())
    assert min(pids.values()) >= 5, pids
    server.close_connections()

    killed = server.workers()[0]
    with Load(server.connect, ["/"], clients=3, keep_alive=False) as load:
        os.kill(killed, signal.SIGKILL)
        server.wait_for_log("#1: serving", 4)
        eventually(lambda: len(server.workers()) == 3, "three workers")
        after = load.answered
        eventually(lambda: load.answered > after + 50, "50 more answers")
    assert len(load.failures) <= 3  # those that the dead worker had
    assert killed not in server.workers()


def test_sockets_from_systemd_are_served_and_left_alone_at_the_end(serve: StartServer) -> None:
    """One has a name in the abstract namespace, which Python gives as bytes, and JSON has no word for those."""
    server = serve(DEFAULTS + '[mounts]\n"/" = "hello:environ"\n', bind=None, launcher=[sys.executable, "-c", ACTIVATE])

    tcp, unix, abstract = listeners(server)
    assert unix == "unix:activated.sock"
    for address in (tcp, unix, abstract):
        environ = fetch(connect(server, address), "Host: example.com:99\r\n")
        assert environ["SERVER_NAME"] == ("127.0.0.1" if address == tcp else "example.com"), address
    assert server.stop() == 0
    assert (server.folder / "activated.sock").exists()


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not installed")
def test_systemd_socket_activate_starts_it_and_the_first_connection_is_answered(serve: StartServer) -> None:
    port = free_port()
    launcher = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "-E", "PYTHONPATH"]
    server = serve(HELLO, bind=None, launcher=launcher, wait_for=0)
    server.port = port
    eventually(lambda: b"Listening on" in (server.folder / "stdout").read_bytes(), "the activator")

    assert server.get("/").status_code == 200


# Limits.


def test_worker_connections_is_a_limit_and_tells_clients_to_close_at_it(serve: StartServer) -> None:
    server = serve(HELLO, "--worker-connections", "5", "--keep-alive", "60")
    kept = [server.ask("/", "keep-alive") for _ in range(4)]
    assert all(b"Connection: keep-alive" in read_answer(sock) for sock in kept)
    silent = server.connect()

    sixth, seventh = server.ask("/"), server.ask("/")
    sixth.settimeout(0.3)
    with pytest.raises(TimeoutError):
        sixth.recv(1)
    sixth.settimeout(DEADLINE_S)

    kept[0].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"Connection: close" in receive_all(kept[0])
    assert b"200 OK" in receive_all(sixth)
    silent.close()
    assert b"200 OK" in receive_all(seventh)


@again_if_disturbed
def test_room_below_worker_connections_is_used_at_once(serve: StartServer) -> None:
    """A connection that the acceptor itself had closed was noticed at the next look only, up to a second later."""
    server = serve(HELLO, "--worker-connections", "1")

    waits = []
    for _ in range(21):
        began = time.monotonic()
        silent = server.connect()
        waiting = server.ask("/")
        silent.close()
        assert b"200 OK" in receive_all(waiting)
        waits.append(time.monotonic() - began)
    # One look after the other, each of them would have taken a second; on a busy machine a part of them takes long whatever is done.
    assert sorted(waits)[5] < 0.25, waits


def test_max_requests_restarts_the_worker_without_losing_a_request(serve: StartServer) -> None:
    server = serve(HELLO, "--max-requests", "100", "--max-requests-jitter", "20")
    first = server.workers()

    with (
        Load(server.connect, ["/"], clients=3) as kept_alive,
        Load(server.connect, ["/"], clients=2, keep_alive=False) as fresh,
    ):
        server.wait_for_log("Autorestarting worker after", 2)
        server.wait_for_log("#1: serving", 3)

    assert kept_alive.failures == []
    assert fresh.failures == []
    assert kept_alive.refused == fresh.refused == 0
    assert server.workers() != first


def test_a_client_that_never_closes_its_side_is_closed_all_the_same(serve: StartServer) -> None:
    """The acceptor learns by an event that a connection came back to it, and a silent client made none."""
    server = serve(HELLO)
    (worker,) = server.workers()
    assert server.get("/").status_code == 200
    before = sockets_of(worker)

    sock = server.connect()
    sock.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\nConnection: close\r\n\r\nonly this")
    assert b"200 OK" in receive_all(sock)

    eventually(lambda: sockets_of(worker) == before, "the end of the connection")


# Heartbeat.


@again_if_disturbed
def test_a_busy_app_does_not_stop_the_heartbeat(serve: StartServer) -> None:
    server = serve(DEFAULTS + '[mounts]\n"/" = "hello"\n"/busy" = "slow"\n', "--timeout", "2", wait_for=2)
    (worker,) = server.workers()

    busy = server.ask("/busy?burn=4")
    server.wait_for_log("begun")
    while not select.select([busy], [], [], 0.1)[0]:
        assert server.get("/").status_code == 200

    assert receive_all(busy).endswith(b"done\n")
    assert server.workers() == [worker]
    assert "TIMEOUT" not in server.log()


@again_if_disturbed
def test_a_boot_may_outlast_timeout_and_requests_wait_for_it(serve: StartServer) -> None:
    server = serve(
        DEFAULTS + '[mounts]\n"/" = "hello"\n"/gated" = { app = "gated", env = { GATE = "open" } }\n', "--timeout", "1"
    )  # fmt: skip
    server.wait_for_log("waiting at the gate")
    early = server.ask("/gated")

    until = time.monotonic() + 3  # gunicorn's master looks once a second
    while time.monotonic() < until:
        assert server.get("/").status_code == 200
        time.sleep(0.05)
    assert not _readable(early)
    (server.folder / "open").touch()

    assert b"200 OK" in receive_all(early)
    assert "TIMEOUT" not in server.log()


@again_if_disturbed
def test_a_worker_that_stands_still_is_replaced(serve: StartServer) -> None:
    """So the heartbeat says something."""
    server = serve(HELLO, "--timeout", "1")
    (worker,) = server.workers()

    os.kill(worker, signal.SIGSTOP)
    server.wait_for_log("#1: serving", 2)

    assert "WORKER TIMEOUT" in server.log()
    assert worker not in server.workers()
    assert server.get("/").status_code == 200


def _readable(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        sock.settimeout(DEADLINE_S)


# Settings.


def test_environment_folders_and_threads_reach_the_apps(serve: StartServer, tmp_path: Path) -> None:
    server = serve(
        DEFAULTS + '[mounts]\n"/" = "place"\n"/own" = { app = "place", threads = 1, env = { COLOUR = "mine" } }\n',
        *("--env", "COLOUR=red", "--env", "SIZE=big", "--threads", "3"),
        *("--pythonpath", f"{tmp_path}/one,two", "--chdir", "sub"),
        app="../isowsgi.toml",
        files={"sub/empty": ""},
        wait_for=2,
    )

    place = server.get("/").json()
    own = server.get("/own").json()

    assert (place["env"]["COLOUR"], place["env"]["SIZE"], place["threads"]) == ("red", "big", 3)
    assert (own["env"]["COLOUR"], own["env"]["SIZE"], own["threads"]) == ("mine", "big", 1)
    assert place["cwd"] == str(server.folder / "sub")
    found = [place["path"].index(folder) for folder in (str(APPS), f"{tmp_path}/one", f"{server.folder}/sub/two")]
    assert found == sorted(found)
    assert str(server.folder / "sub") in place["path"]


def test_a_refused_setting_stops_the_start_and_an_ignored_one_warns(serve: StartServer) -> None:
    refused = serve(
        HELLO, wait_for=0, files={"gunicorn.conf.py": "protocol = 'uwsgi'\ndef pre_request(worker, req): pass\n"}
    )  # fmt: skip
    assert refused.process.wait(DEADLINE_S) == 1
    assert "gunicorn setting protocol: refused, got " in refused.output()
    assert "gunicorn setting pre_request: refused, got pre_request(): " in refused.output()
    assert "Traceback" not in refused.output()
    assert "Booting worker" not in refused.log()

    warned = serve(HELLO, "--preload", "--root-path", "/x")
    assert "[WARNING] gunicorn setting preload_app: ignored, got True: " in warned.log()
    assert "[WARNING] gunicorn setting root_path: ignored, got '/x': " in warned.log()
    assert warned.get("/").status_code == 200


def test_hooks_are_called_as_by_gunicorns_own_workers(serve: StartServer) -> None:
    """The worker leaves by os._exit, and neither the hooks nor the conf file's own exit functions may suffer from it."""
    names = "on_starting when_ready pre_fork post_fork post_worker_init worker_int worker_abort worker_exit child_exit on_exit"
    conf = "import atexit, os\ndef note(word):\n    with open('hooks', 'a') as file:\n        file.write(f'{word}\\n')\n"
    for name in names.split():
        arguments = "server, worker" if name in ("pre_fork", "post_fork", "worker_exit", "child_exit") else "self"
        conf += f"def {name}({arguments}):\n    note('{name}')\n"
    conf += "atexit.register(lambda: note('atexit'))\n"
    server = serve(HELLO, files={"gunicorn.conf.py": conf})
    (worker,) = server.workers()
    os.kill(worker, signal.SIGABRT)
    server.wait_for_log("#1: serving", 2)
    assert "exited with code 1" in server.log()

    assert server.stop(signal.SIGINT) == 0

    called = (server.folder / "hooks").read_text().split()
    first = "on_starting when_ready pre_fork post_fork post_worker_init worker_abort worker_exit atexit child_exit"
    second = "pre_fork post_fork post_worker_init worker_int worker_exit atexit child_exit on_exit atexit"
    assert called == [*first.split(), *second.split()]


def test_reload_restarts_the_worker_when_a_module_or_the_config_file_changes(serve: StartServer) -> None:
    """Also when an app that broke is mended, for its file is in no `sys.modules`."""
    server = serve(DEFAULTS + '[mounts]\n"/" = "version"\n', "--reload", env=NO_CACHE, files={"version.py": "oops(\n"}, wait_for=0)
    server.wait_for_log("cannot load 'version:application': SyntaxError")

    def change(name: str, text: str) -> None:
        """Write a file until that is seen: the reloader cannot tell what was changed before its first look."""
        before = server.log().count(f"{name} modified")

        def is_seen() -> bool:
            (server.folder / name).write_text(text)
            return server.log().count(f"{name} modified") > before

        eventually(is_seen, f"the reloader's look at {name}")

    for number, answer in enumerate((b"first", b"second"), 1):
        change("version.py", f"def application(environ, start_response):\n    start_response('200 OK', [])\n    return [{answer!r}]\n")
        server.wait_until_serving(number)
        assert server.get("/").content == answer
    change("isowsgi.toml", DEFAULTS + '[mounts]\n"/moved" = "version"\n')
    eventually(lambda: server.get("/moved").text == "second", "the mount's new place")
    change("isowsgi.toml", "[mounts\n")
    server.wait_for_log("keeping the previous mounts")
    assert server.get("/moved").text == "second"


# Log files.


def test_usr1_opens_every_log_file_anew_in_every_interpreter(serve: StartServer) -> None:
    server = serve(
        DEFAULTS
        + '[mounts]\n"/a" = { app = "own_log", env = { OWN_LOG = "a.log" } }\n"/b" = { app = "own_log", env = { OWN_LOG = "b.log" } }\n',
        "--access-logfile",
        "access.log",
        wait_for=2,
    )
    files = [server.folder / name for name in ("error.log", "access.log", "a.log", "b.log")]

    def say(word: str) -> list[bool]:
        """Have a line written to each file by each who writes there: an app's interpreter, and the main one for what it refuses."""
        for path in (f"/a?{word}", f"/b?{word}", f"/nowhere?{word}"):
            server.get(path)
        server.exchange(f"{word} / HTTP/1.1\r\n\r\n".encode())
        error, access, *own = (file.read_text() if file.exists() else "" for file in files)
        said = [f"/{mount} #1: printed for {word}" in error for mount in "ab"]
        said += [f"GET /{mount}?{word} " in access for mount in ("a", "b", "nowhere")]
        said += [f"Invalid HTTP method: '{word}'" in error]
        said += [f"logged for {word}" in text for text in own]
        return said

    assert all(say("before")), server.log()
    old = [file.rename(file.with_suffix(".old")) for file in files]
    server.send_signal(signal.SIGUSR1)
    eventually(lambda: all(say("meanwhile")), "lines in all new files")

    sizes = [file.stat().st_size for file in old]
    assert all(say("after")), server.log()
    assert [file.stat().st_size for file in old] == sizes
    assert "after" not in "".join(file.read_text() for file in old)
