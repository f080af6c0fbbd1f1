"""Where a mount may live: a process of its own, the main interpreter, an instance that it shares with others of its group."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from isowsgi.shared import interpreters
from tests.bystander import again_if_disturbed
from tests.conftest import DEADLINE_S, WHOLE, Server, StartServer, eventually, receive_all, running_server, whole_only
from tests.load import Load


def facts(server: Server, path: str, **options: object) -> dict[str, object]:
    answer = server.get(path, **options)
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


def children_of(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):  # the thread has just ended
            continue
    return found


def title_of(pid: int) -> str:
    """Return what `ps` shows of a process; "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b" \0").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# A process of its own.


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that leave its worker alone: a mount for each, whose process is started by its first request."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "touched").touch()
    mounts = {
        "/own": 'env = { PLACE = "own" }',
        "/prints": "",
        "/crash": "",
        "/leave": "",
        "/streams": "",
        "/ends-again": "",
        "/signals": "",
        "/replaced": 'touch = "touched"',
        "/many": "queue = 1000, threads = 2",
        "/begun": "queue = 1000, threads = 2",
    }
    lines = "".join(
        f'"{pattern}" = {{ app = "housed", isolation = "process", lazy = true{", " * bool(settings)}{settings} }}\n'
        for pattern, settings in mounts.items()
    )
    with running_server(folder, f'[mounts]\n"/" = "housed"\n{lines}') as server:
        yield server


def test_a_mount_in_a_process_of_its_own_is_served_like_any_other(shared: Server) -> None:
    [worker] = shared.workers()

    with requests.Session() as session:
        url = shared.url
        own = session.post(url + "/own/x", data="sent", timeout=DEADLINE_S).json()
        root = session.get(url + "/", timeout=DEADLINE_S).json()
        again = session.get(url + "/own", timeout=DEADLINE_S).json()

    assert (own["mount"], own["isolation"], own["script"], own["env"], own["body"]) == ("/own", "process", "/own", "own", "sent")
    assert own["parent"] == worker == root["pid"] != own["pid"]
    assert (again["pid"], again["seen"], root["env"]) == (own["pid"], 2, None)


def test_what_a_process_prints_is_in_the_log_with_its_mount(shared: Server) -> None:
    assert shared.get("/prints/raise").status_code == 500

    shared.wait_for_log(r"/prints #1: loaded as housed")
    shared.wait_for_log(r"/prints #1: Error handling request")


@pytest.mark.parametrize(("path", "said"), [("/crash", "was killed by SIGSEGV"), ("/leave", "exited with status 7")])
def test_a_process_that_ends_takes_only_its_own_requests_with_it(shared: Server, tmp_path: Path, path: str, said: str) -> None:
    server, mount, waits = shared, path, shared.log().count("/ #1: waits")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    workers = server.workers()
    first = facts(server, mount)
    with requests.Session() as idle:
        idle.get(server.url + mount, timeout=DEADLINE_S)
        waiting = server.ask(f"{mount}/wait?{fifo}")
        neighbour = server.ask(f"/wait?{fifo}")
        server.wait_for_log(rf"{mount} #1: waits")
        server.wait_for_log(r"/ #1: waits", waits + 1)

        assert server.get(mount + path).status_code == 502
        # A kept connection of the dead process is the acceptor's again, and serves on.
        second = idle.get(server.url + mount, timeout=DEADLINE_S)

    assert second.status_code == 200
    assert second.json()["pid"] != first["pid"]
    assert b"502 Bad Gateway" in receive_all(waiting)
    with open(fifo, "w"):
        pass  # its end is what the request waits for
    assert b"200 OK" in receive_all(neighbour)
    server.wait_for_log(rf"{mount} #1: ended unexpectedly: its process {said} while serving .*GET {mount}{path}")
    assert server.workers() == workers


def test_a_process_that_ends_in_a_stopping_worker_is_started_again_for_a_request_that_it_had_not_begun(
    serve: StartServer, tmp_path: Path
) -> None:
    """It was answered 503: what a worker has accepted is its to answer until it has ended."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    server = serve('[mounts]\n"/own" = { app = "housed", isolation = "process", threads = 1 }\n[control]\nfolder = "control"')
    pid = facts(server, "/own")["pid"]
    assert isinstance(pid, int)
    begun = server.ask(f"/own/wait?{fifo}")
    server.wait_for_log(r"/own #1: waits")
    waiting = server.ask("/own")

    server.send_signal(signal.SIGTERM)
    eventually(lambda: not list((server.folder / "control").glob("*.sock")), "the worker's taking note of that")
    os.kill(pid, signal.SIGKILL)

    assert b"502 Bad Gateway" in receive_all(begun)
    answer = receive_all(waiting)
    assert b"200 OK" in answer
    assert str(pid).encode() not in answer
    assert server.process.wait(DEADLINE_S) == 0


def test_a_response_that_had_begun_is_cut_off_when_its_process_ends(shared: Server) -> None:
    answer = receive_all(shared.ask("/streams/stream"))

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"a" * 100)
    assert b"502" not in answer


def test_a_process_that_keeps_ending_is_started_again_with_growing_pauses(shared: Server) -> None:
    assert shared.get("/ends-again/crash").status_code == 502
    facts(shared, "/ends-again")  # at once
    assert shared.get("/ends-again/crash").status_code == 502

    shared.wait_for_log(r"/ends-again: ended 2 times soon after its start; restarting in 1 s")
    assert shared.get("/ends-again").status_code == 503
    shared.wait_for_log(r"/ends-again #3: serving")
    facts(shared, "/ends-again")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGQUIT])
def test_a_process_ends_with_its_worker_whatever_ends_that(serve: StartServer, number: int) -> None:
    server = serve('[mounts]\n"/own" = { app = "housed", isolation = "process" }')
    child, [worker] = int(str(facts(server, "/own")["pid"])), server.workers()
    assert children_of(worker) == [child]

    os.kill(worker, number)

    eventually(lambda: not is_alive(child), "the end of the child")


def test_a_process_leaves_signals_to_its_worker(shared: Server) -> None:
    """systemd and a terminal signal every process; the children must answer what they have, and end when they are told."""
    pid = int(str(facts(shared, "/signals")["pid"]))

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        os.kill(pid, number)

    assert facts(shared, "/signals")["pid"] == pid


@again_if_disturbed
def test_a_request_without_progress_ends_in_a_process_as_in_an_interpreter_and_c_code_is_killed(serve: StartServer) -> None:
    server = serve(
        """
        [mounts]
        "/spin" = { app = "housed", isolation = "process", request_timeout = 0.5 }
        "/hold" = { app = "holds_gil", isolation = "process", request_timeout = 0.5, env = { GATE = "gate" } }
        """,
        "--graceful-timeout",
        "2",
        wait_for=2,
    )
    gate = server.folder / "gate"
    os.mkfifo(gate)

    assert server.get("/spin/spin").status_code == 504
    assert facts(server, "/spin")["generation"] == 1
    holding = server.ask("/hold")
    with open(gate, "w"):
        assert b"504 Gateway Timeout" in receive_all(holding)
        server.wait_for_log(r"/hold #1: C code holds")
        server.wait_for_log(r"/hold #2: serving")
        server.wait_for_log(r"/hold #1: ended")  # killed; an interpreter would be left behind


def test_a_process_is_replaced_without_losing_a_request(shared: Server, tmp_path: Path) -> None:
    server, fifo = shared, tmp_path / "fifo"
    os.mkfifo(fifo)
    first = facts(server, "/replaced")
    with requests.Session() as idle:
        idle.get(server.url + "/replaced", timeout=DEADLINE_S)
        waiting = server.ask(f"/replaced/wait?{fifo}")
        server.wait_for_log(r"/replaced #1: waits")

        os.utime(server.folder / "touched", (1, 1))
        server.wait_for_log(r"/replaced #2: serving")
        # What the old one has got already it may still answer.
        second = eventually(lambda: (found := idle.get(server.url + "/replaced", timeout=DEADLINE_S).json())["generation"] == 2 and found)

        assert second["pid"] != first["pid"]
    with open(fifo, "w"):
        pass
    assert b"200 OK" in receive_all(waiting)
    server.wait_for_log(r"/replaced #1: ended")
    eventually(lambda: not is_alive(int(str(first["pid"]))), "the end of the replaced process")


def test_more_connections_at_once_than_the_mail_has_room_for_are_all_served(shared: Server) -> None:
    """The socket to the child takes some 280 packets; the rest waits in the worker and must not be lost, nor turned away."""
    pid = int(str(facts(shared, "/many")["pid"]))
    os.kill(pid, signal.SIGSTOP)
    socks = [shared.ask("/many") for _ in range(600)]
    os.kill(pid, signal.SIGCONT)

    assert all(b"200 OK" in receive_all(sock) for sock in socks)


def test_requests_that_a_process_had_not_begun_when_it_died_are_served_by_the_next_one(shared: Server) -> None:
    """They were handed to the dead one again, as it was the one that served until its end was known: their clients waited for ever."""
    pid = int(str(facts(shared, "/begun")["pid"]))
    os.kill(pid, signal.SIGSTOP)
    # Each thread stops when it runs next, and one that does not yet may begin a request.
    tasks = Path(f"/proc/{pid}/task")
    eventually(lambda: all(b") T " in (task / "stat").read_bytes() for task in tasks.iterdir()), "all of it has stopped")
    socks = [shared.ask("/begun") for _ in range(600)]

    os.kill(pid, signal.SIGKILL)

    assert Counter(receive_all(sock).partition(b"\r\n")[0] for sock in socks) == {b"HTTP/1.1 200 OK": 600}


@pytest.mark.alone
@whole_only("a process that ends takes only its own requests with it")
@again_if_disturbed
def test_a_crash_under_load_costs_what_was_in_flight_and_nobody_else_anything(serve: StartServer) -> None:
    """`bench/chaos.py --only kills` does so twenty times."""
    server = serve(
        '[mounts]\n"/own" = { app = "housed:napping", isolation = "process", threads = 4, queue = 1000 }\n"/" = "hello"', wait_for=2
    )
    pid = int(str(facts(server, "/own")["pid"]))

    with Load(server.connect, ["/"], clients=2) as neighbour, Load(server.connect, ["/own"], clients=8) as load:
        os.kill(pid, signal.SIGSEGV)
        killed = time.monotonic()
        # Who asks may be in flight in it, too: it has not ended yet when the signal is sent.
        eventually(
            lambda: (answer := server.get("/own")).status_code == 200 and answer.json()["pid"] != pid, "an answer of the next process"
        )
        back_s = time.monotonic() - killed

    assert neighbour.failures == []
    # One whose answer was on its way is cut off; the four clients that waited for a thread waited a little longer.
    assert len(load.failures) <= 4, load.failures
    assert back_s < 10  # waits between tries begin at 1 s and double, so this is after three at most


def other_pythons() -> list[str]:
    """Return those that are here, or the oldest and the newest of them."""
    pyenv = Path(os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv")))
    folders = [*pyenv.glob("versions/*/bin"), Path("/usr/bin"), *Path("/opt").glob("*/usr/bin")]
    names = {f"python3.{minor}" for minor in range(10, 16)} - {f"python3.{sys.version_info[1]}"}
    found = sorted((str(folder / name) for folder in folders for name in names if (folder / name).exists()), key=release_of)
    return found if WHOLE or len(found) < 3 else [found[0], found[-1]]


def release_of(python: str) -> int:
    return int(python.rpartition(".")[2])


@pytest.mark.parametrize("python", other_pythons())
def test_a_process_may_run_another_python_than_gunicorns(serve: StartServer, python: str) -> None:
    server = serve(
        f'[mounts]\n"/" = "housed"\n"/other" = {{ app = "housed", isolation = "process", python = "{python}" }}',
        wait_for=2,
    )

    version = facts(server, "/other")["version"]

    assert f"python{version[0]}.{version[1]}" == Path(python).name  # type: ignore[index]
    assert facts(server, "/")["version"] == list(sys.version_info[:3])


def test_a_python_that_gunicorn_does_not_support_is_a_fault(serve: StartServer, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '[\"cpython\", 3, 9, 18]'\n")
    python.chmod(0o755)
    server = serve(f'[mounts]\n"/" = {{ app = "housed", python = "{python}" }}', wait_for=0)

    assert server.process.wait(DEADLINE_S) == 1
    assert "expected CPython 3.10 or newer, which gunicorn" in server.output()
    assert "got CPython 3.9.18" in server.output()


# The main interpreter.


def test_mounts_of_the_main_interpreter_share_it_with_each_other_and_the_worker(serve: StartServer) -> None:
    server = serve(
        """
        [mounts]
        "/a" = { app = "housed", isolation = "main" }
        "/b" = { app = "housed", isolation = "main" }
        "/c" = "housed"
        """,
        wait_for=2,
    )

    a, b, c = facts(server, "/a"), facts(server, "/b/x"), facts(server, "/c")

    assert (a["mount"], a["script"], b["mount"], b["script"]) == ("/a", "/a", "/b", "/b")
    assert (a["isolation"], b["isolation"]) == ("main", "main")
    assert (a["module"], a["seen"], b["seen"], c["seen"]) == (b["module"], 1, 2, 1)
    assert a["pid"] == c["pid"] == server.workers()[0]
    assert server.stop() == 0
    assert "Traceback" not in server.log() + server.output()


def test_what_lives_in_the_main_interpreter_is_loaded_anew_by_a_new_worker(serve: StartServer, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    touched.touch()
    server = serve(f'[mounts]\n"/" = {{ app = "housed", isolation = "main", touch = "{touched}" }}')
    before = facts(server, "/")["pid"]

    os.utime(touched, (1, 1))

    server.wait_for_log("runs in the main interpreter, which only a new worker can reload")
    server.wait_for_log("main #1: serving", 2)
    assert facts(server, "/")["pid"] != before


def test_exit_functions_of_the_main_interpreter_are_called_once(serve: StartServer) -> None:
    code = "import atexit, sys\nfrom hello import application\natexit.register(lambda: print('bye', file=sys.__stderr__))\n"
    server = serve(
        '[defaults]\npythonpath = [".", "{apps}"]\n[mounts]\n"/" = { app = "leaver", isolation = "main" }', files={"leaver.py": code}
    )

    assert server.stop() == 0
    assert (server.log() + server.output()).count("bye") == 1


# Groups.


@pytest.mark.parametrize("isolation", ["auto", "process"])
def test_mounts_of_a_group_share_one_instance(serve: StartServer, isolation: str) -> None:
    server = serve(
        f"""
        [mounts]
        "/a" = {{ app = "housed", group = "g", isolation = "{isolation}" }}
        "/b" = {{ app = "housed", group = "g", env = {{ PLACE = "g" }} }}
        "/a/c" = "housed"
        """,
        wait_for=2,
    )
    with requests.Session() as session:
        a, b, c, again = (session.get(server.url + path, timeout=DEADLINE_S).json() for path in ("/a", "/b", "/a/c", "/a/cd"))

    assert [found["mount"] for found in (a, b, c, again)] == ["/a", "/b", "/a/c", "/a"]
    assert [found["script"] for found in (a, b, c, again)] == ["/a", "/b", "/a/c", "/a"]
    assert (a["module"], a["env"], again["seen"]) == (b["module"], "g", 3)
    assert (c["seen"], c["env"]) == (1, None)
    assert re.findall(r"(\S+) #1: serving", server.log()).count("g") == 1


def test_the_log_names_the_member_of_a_group_that_cannot_be_loaded(serve: StartServer) -> None:
    server = serve(
        '[mounts]\n"/a" = { app = "housed", group = "g" }\n"/b" = { app = "crashes_on_import", group = "g" }\n"/" = "housed"',
    )

    server.wait_for_log(r"g #1: cannot load .*\(the app of /b\)")
    assert [server.get(path).status_code for path in ("/a", "/b", "/")] == [503, 503, 200]


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
def test_every_isolation_serves_over_a_unix_socket(serve: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = serve(
        '[mounts]\n"/p" = { app = "housed", isolation = "process" }\n"/m" = { app = "housed", isolation = "main" }\n"/" = "housed"',
        wait_for=3,
        bind=f"unix:{path}",
    )
    assert server.port == 0
    for mount, isolation in (("/p", "process"), ("/m", "main"), ("/", interpreters.best_isolation())):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(f"GET {mount} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert f'"isolation": "{isolation}"'.encode() in receive_all(sock)


# Crashes while an app is loaded.


@pytest.mark.parametrize("isolation", ["auto", "shared-gil"])
def test_an_app_that_ends_the_worker_when_it_is_loaded_does_so_once(serve: StartServer, isolation: str) -> None:
    """Else gunicorn would start workers for ever, each of which dies before it serves anybody."""
    code = "import os, time\nopen('loads', 'a').write('x')\nos._exit(7)\n"
    server = serve(
        f"""
        [defaults]
        pythonpath = [".", "{{apps}}"]
        [mounts]
        "/" = "housed"
        "/bad" = {{ app = "exits", isolation = "{isolation}" }}
        """,
        wait_for=0,
        files={"exits.py": code},
    )
    server.wait_for_log(r"died while loading .*/bad; it will be loaded in a trial process first")
    server.wait_for_log(r"/bad #0: cannot load 'exits:application': it ended the process with exit code 7 when it was loaded")
    server.wait_until_serving()

    assert server.get("/").status_code == 200
    assert server.get("/bad").status_code == 503
    assert server.log().count("died while loading") == 1
