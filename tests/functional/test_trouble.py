"""One app's trouble stays its own: the deadline ladder, admission, boots that fail or hang, crashes."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from isowsgi.shared import interpreters
from tests.bystander import again_if_disturbed
from tests.conftest import APPS, DEADLINE_S, Server, StartServer, eventually, receive_all, running_server

OWN_GIL = interpreters.best_isolation() == interpreters.OWN_GIL

TROUBLED = """
    [defaults]
    request_timeout = 1
    threads = 2
    [mounts]
    "/t" = "troubles"
    "/h" = "hello"
    """


# Troubles that cost the server nothing once they are over: each has a mount of its own in one server, loaded by its first request.
SMALL = ("loop", "swallow", "sleep", "lock", "body", "late", "recursion", "gigabyte", "chdir")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests after which the worker is as it was."""
    folder = tmp_path_factory.mktemp("troubles")
    mounts = {
        "/h": 'app = "hello"',
        **{f"/{name}": 'app = "troubles", lazy = true' for name in SMALL},
        "/deaf": 'app = "big", threads = 1, lazy = true',
        "/big": 'app = "big", lazy = true',
        "/drips": 'app = "drips", lazy = true',
        "/endless": 'app = "naps", request_timeout = 0, lazy = true',
        "/full": f'app = "sleeps", threads = 1, queue = 2, queue_timeout = 0, request_timeout = 60, env = {{ GATE = "{folder}/full" }}',
        "/late-turn": f'app = "sleeps", threads = 1, queue_timeout = 0.5, request_timeout = 60, env = {{ GATE = "{folder}/turn" }}',
        "/interrupts": 'app = "code", isolation = "shared-gil", request_timeout = 60',
    }
    for name in ("recursion", "gigabyte", "chdir"):
        mounts[f"/{name}"] += ", request_timeout = 20"
    lines = "".join(f'"{pattern}" = {{ {settings} }}\n' for pattern, settings in mounts.items())
    config = f"[defaults]\npythonpath = ['{APPS}', '.']\nrequest_timeout = 1\nthreads = 2\n[worker]\nmax_stuck = 100\n[mounts]\n{lines}"
    with running_server(folder, config, files={"code.py": HAS_CTYPES}, wait_for=4) as server:
        yield server


HAS_CTYPES = """
    import sys
    def application(environ, start_response):
        start_response("200 OK", [])
        return [repr("ctypes" in sys.modules).encode()]
"""


def start(serve: StartServer, config: str = TROUBLED, *arguments: str) -> Server:
    return serve(config, *arguments, wait_for=2)


def assert_unharmed(server: Server, worker: int) -> None:
    """The neighbour answers, and the worker is still the same."""
    eventually(lambda: server.get("/h/").text == "Hello, world\n", "an answer of the neighbour")
    assert server.workers() == [worker]


def generation(server: Server, pattern: str = "/t") -> int:
    """Return the generation that answers, or 0; on a busy machine any request may take longer than the second it has here."""
    answer = server.get(f"{pattern}/")
    return int(answer.text.split()[1]) if answer.status_code == 200 else 0


@pytest.mark.parametrize("trouble", ["loop", "swallow"])
def test_python_code_that_does_not_end_is_interrupted(shared: Server, trouble: str) -> None:
    (worker,) = shared.workers()

    assert shared.get(f"/{trouble}/{trouble}").status_code == 504
    shared.wait_for_log(f"/{trouble} #1: no progress for")

    assert_unharmed(shared, worker)
    assert eventually(lambda: generation(shared, f"/{trouble}")) == 1, "the instance was replaced although its thread came back"
    assert "troubles.py" in shared.log(), "the stack of the thread is in the log"


def test_a_request_whose_client_reads_nothing_is_given_up_and_its_thread_is_free(shared: Server) -> None:
    """Its thread came out of the send first, got the exception just when it had taken a lock, and then waited for itself for ever."""
    deaf = shared.ask("/deaf")
    shared.wait_for_log("/deaf #1: no progress for")
    deaf.close()

    assert len(shared.get("/deaf").content) == 10 * 1024 * 1024


@pytest.mark.parametrize("trouble", ["sleep", "lock"])
def test_a_thread_that_cannot_be_interrupted_has_its_instance_replaced(shared: Server, trouble: str) -> None:
    assert_is_replaced(shared, f"/{trouble}", trouble)


def test_so_has_one_in_c_code_that_has_released_the_gil(serve: StartServer) -> None:
    """Which takes a core as long as its server lives."""
    assert_is_replaced(start(serve), "/t", "release_the_gil")


def assert_is_replaced(server: Server, pattern: str, trouble: str) -> None:
    (worker,) = server.workers()

    assert server.get(f"{pattern}/{trouble}").status_code == 504
    server.wait_for_log(f"{pattern} #1: a thread is stuck in its request")
    server.wait_for_log(f"{pattern} #2: serving")

    eventually(lambda: generation(server, pattern) == 2)
    assert_unharmed(server, worker)


@pytest.mark.skipif(not OWN_GIL, reason="needs a GIL of its own: under a shared one C code that holds it stops everybody")
def test_c_code_that_holds_its_own_gil_is_answered_and_replaced_from_outside(serve: StartServer) -> None:
    server = start(serve)
    (worker,) = server.workers()

    assert server.get("/t/hold_the_gil").status_code == 504
    server.wait_for_log("C code holds the interpreter's GIL")

    eventually(lambda: generation(server) == 2)
    assert_unharmed(server, worker)


def test_a_client_that_stops_sending_its_body_is_told_408(shared: Server) -> None:
    answer = shared.exchange(b"POST /body/body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert eventually(lambda: generation(shared, "/body")) == 1


def test_a_client_that_stops_reading_frees_its_thread(shared: Server) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((shared.host, shared.port))
        sock.sendall(b"GET /big/ HTTP/1.1\r\nHost: x\r\n\r\n")

        shared.wait_for_log("/big #1: no progress for")
    eventually(lambda: shared.get("/big/", stream=True).status_code == 200)


@again_if_disturbed
def test_a_slow_response_that_goes_on_is_no_trouble(shared: Server) -> None:
    """The limit is for progress: a stream may last as long as it moves."""
    assert shared.get("/drips/").text == "drip\n" * 8


def test_0_switches_the_time_limit_off(shared: Server) -> None:
    assert requests.get(f"{shared.url}/endless/?seconds=2.5", timeout=DEADLINE_S).status_code == 200


def test_a_worker_with_too_many_stuck_instances_is_replaced(serve: StartServer) -> None:
    server = serve(TROUBLED + '"/u" = "troubles"\n[worker]\nmax_stuck = 1\n', wait_for=3)
    (worker,) = server.workers()

    sleeping = [server.ask(f"{mount}/sleep") for mount in ("/t", "/u")]
    assert [receive_all(sock)[9:12] for sock in sleeping] == [b"504"] * 2
    server.wait_for_log("replacing this worker: 2 instances are stuck")

    eventually(lambda: server.workers() and worker not in server.workers())
    eventually(lambda: generation(server) == 1)


def test_requests_behind_a_full_queue_are_turned_away_and_the_neighbour_is_not(shared: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(shared.get, "/full/") for _ in range(8)]
        eventually(lambda: [answer.done() for answer in answers].count(True) == 5, "five that are turned away")
        assert shared.get("/h/").status_code == 200
        (shared.folder / "full").touch()
        statuses = [answer.result().status_code for answer in answers]
        retry_after = {answer.result().headers.get("Retry-After") for answer in answers if answer.result().status_code == 503}

    assert statuses.count(200) == 3, statuses
    assert statuses.count(503) == 5, statuses
    assert None not in retry_after


def test_requests_that_wait_too_long_for_a_thread_are_turned_away(shared: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(shared.get, "/late-turn/")
        shared.wait_for_log("/late-turn #1: asleep")

        assert shared.get("/late-turn/").status_code == 503
        (shared.folder / "turn").touch()
        assert slow.result().status_code == 200


def test_a_mount_that_cannot_be_loaded_is_tried_again_and_heals(serve: StartServer) -> None:
    server = serve(
        '[defaults]\npythonpath = ["code"]\n[mounts]\n"/m" = "made"\n"/h" = { app = "hello", pythonpath = "{apps}" }',
        wait_for=1,
        files={"code/empty": ""},
    )
    assert server.get("/m/").status_code == 503
    assert server.get("/h/").status_code == 200

    (server.folder / "code" / "made.py").write_text("from wsgiref.simple_server import demo_app as application\n")

    eventually(lambda: server.get("/m/").status_code == 200)


def test_a_boot_that_hangs_is_left_behind_and_harms_nobody(serve: StartServer) -> None:
    server = serve('[mounts]\n"/g" = { app = "gated", boot_timeout = 1, env = { GATE = "/nowhere" } }\n"/h" = "hello"', wait_for=1)

    assert server.get("/g/").status_code == 503
    assert "was not loaded within 1 s" in server.log()
    assert server.get("/h/").status_code == 200


@pytest.mark.parametrize("how", ["crash", "exit"])
def test_a_crash_is_attributed_to_the_mount_that_caused_it(serve: StartServer, how: str) -> None:
    server = start(serve, TROUBLED + "[worker]\ncrashes = 2\n")

    for _ in range(2):
        eventually(lambda: generation(server) == 1)
        with pytest.raises(requests.ConnectionError):
            server.get(f"/t/{how}")
    # Beside it may stand the request before, which had its answer and was not yet counted.
    server.wait_for_log(rf"worker \d+ died while serving .*/t: GET /t/{how} HTTP/1.1", 2)
    server.wait_for_log("/t: crashed 2 workers; quarantined")

    eventually(lambda: server.get("/h/").status_code == 200)
    assert server.get("/t/").status_code == 503


def test_an_app_that_crashes_the_worker_again_and_again_may_move_to_a_process_of_its_own(serve: StartServer) -> None:
    server = start(serve, TROUBLED.replace('"troubles"', '{ app = "troubles", on_crash = "process" }') + "[worker]\ncrashes = 2\n")
    for _ in range(2):
        eventually(lambda: server.get("/t/").status_code == 200)
        with pytest.raises(requests.ConnectionError):
            server.get("/t/crash")
    server.wait_for_log("/t: crashed 2 workers; it runs in its own process")
    server.wait_for_log(r"/t #\d+: serving, .*\(process: it kept crashing the worker\)")
    workers = server.workers()

    assert server.get("/t/crash").status_code == 502
    assert server.get("/h/").status_code == 200
    assert server.workers() == workers


def test_a_crash_among_several_mounts_in_flight_blames_nobody(serve: StartServer) -> None:
    server = start(serve, TROUBLED.replace('"hello"', '"naps"') + "[worker]\ncrashes = 1\n")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(lambda: requests.get(f"{server.url}/h/?seconds=20", timeout=DEADLINE_S))
        server.wait_for_log("/h #1: nap 20")
        with pytest.raises(requests.ConnectionError):
            server.get("/t/crash")
        with pytest.raises(requests.ConnectionError):
            slow.result()

    server.wait_for_log("died with requests of 2 mounts in flight; the crash is attributed to none of them")
    eventually(lambda: generation(server) == 1)


@pytest.mark.parametrize(("trouble", "status"), [("recursion", 500), ("gigabyte", 200), ("chdir", 200)])
def test_other_troubles_leave_the_neighbour_alone(shared: Server, trouble: str, status: int) -> None:
    (worker,) = shared.workers()

    assert shared.get(f"/{trouble}/{trouble}").status_code == status

    assert_unharmed(shared, worker)
    assert re.search(rf"/{trouble} #1: (?:.*\n)+?.*Traceback", shared.log()) is not None or status == 200


def test_so_do_a_thousand_threads(serve: StartServer) -> None:
    """Each start waits for its thread to run: on a busy machine all of them took more than 20 s."""
    server = start(serve, TROUBLED.replace("request_timeout = 1", "request_timeout = 0"))
    (worker,) = server.workers()

    assert server.get("/t/leak_threads").status_code == 200

    assert_unharmed(server, worker)


def test_the_408_reaches_a_client_that_sent_the_rest_too_late(shared: Server) -> None:
    with shared.connect() as sock:
        sock.sendall(b"POST /late/body HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 50_000)
        shared.wait_for_log("/late #1: no progress for")
        try:
            sock.sendall(b"x" * 50_000)
        except OSError:
            pass

        assert receive_all(sock).startswith(b"HTTP/1.1 408 ")


def test_what_interrupting_takes_is_there_before_it_is_needed_where_the_gil_is_shared(shared: Server) -> None:
    """Imported only then, beside a loop and an app that was being loaded, it took 20 s until the loop was interrupted (3.11)."""
    assert shared.get("/interrupts").text == "True"
