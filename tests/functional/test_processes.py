"""Child processes under the checks that interpreters pass: one connection through several isolations, limits, signals, and no descriptor
lost.

All of test_wsgi.py, test_trouble.py, ... can be run against them too, see `conftest.ISOLATION`.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import requests

from isowsgi.cli import client
from isowsgi.shared.controlmessages import Outcome, Reload
from tests.conftest import DEADLINE_S, WHOLE, StartServer, eventually, receive_all
from tests.functional.test_kinds_of_isolation import children_of, facts
from tests.load import Load
from tests.load_process import run_load
from tests.pressure import Footprint, churn, count_open
from tests.raw import Client

FOUR_MOUNTS = """
[mounts]
"/a" = { app = "housed", isolation = "process" }
"/b" = { app = "housed", threads = 2 }
"/c" = { app = "housed", isolation = "main" }
"/d" = { app = "housed", isolation = "process", threads = 1 }
"""
TWO_PROCESSES = '[defaults]\nisolation = "process"\n[mounts]\n"/a" = "hello"\n"/b" = "hello"\n'


def test_requests_pipelined_to_mounts_of_different_isolations_are_answered_in_order(serve: StartServer) -> None:
    """Each request's end is the next one's start, which is another process' to read: not a byte too much may be taken."""
    server = serve(FOUR_MOUNTS, wait_for=4)
    mounts = [f"/{name}" for name in "abcdabdcbadacbdd"]
    framings = ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nA: b\r\n\r\n"]

    with Client(server) as client:
        client.send("".join(f"POST {mount}/x HTTP/1.1\r\nHost: x\r\n{framings[n % 2]}" for n, mount in enumerate(mounts)))
        answers = [json.loads(client.answer().body) for _ in mounts]

    assert [answer["mount"] for answer in answers] == mounts
    assert {answer["body"] for answer in answers} == {"hello"}


def test_big_bodies_pass_both_ways_between_processes_and_interpreters(serve: StartServer) -> None:
    server = serve('[mounts]\n"/p" = { app = "bodies", isolation = "process" }\n"/i" = "bodies"', wait_for=2)
    body = "x" * 5_000_000
    with requests.Session() as session:
        for mount in "pipipp":
            answer = session.post(f"{server.url}/{mount}/whole", data=body, timeout=DEADLINE_S)
            assert (answer.status_code, answer.json() == body) == (200, True)


@pytest.mark.slow
def test_descriptors_are_flat_in_worker_and_child_over_thousands_of_connections(serve: StartServer) -> None:
    """Kept, closed, reset, half-closed, refused: the worker's number of a connection that has gone is soon another's."""
    limit = 30
    server = serve(TWO_PROCESSES + '"/big" = "big"\n', "--worker-connections", str(limit), wait_for=3)
    [worker] = server.workers()
    processes = [worker, *children_of(worker)]
    assert len(processes) == 4
    churn(server, 200)
    eventually(lambda: count_open(server) == 0, "all connections closed")
    before = [Footprint.of(pid) for pid in processes]

    churn(server, 4000 if WHOLE else 1000)
    [closed] = run_load(f"{server.url}/a", connections=4, seconds=3 if WHOLE else 1, close=True)
    kept = run_load(f"{server.url}/a", f"{server.url}/b", connections=8, seconds=1)

    assert closed.errors == sum(result.errors for result in kept) == 0
    assert closed.statuses.keys() == {"200"}
    eventually(lambda: count_open(server) == 0, "all connections closed")
    eventually(
        lambda: all(Footprint.of(pid).descriptors <= was.descriptors for pid, was in zip(processes, before, strict=True)),
        "flat descriptors",
    )
    # The thread that draws the table of mounts may have been there before.
    eventually(lambda: all(Footprint.of(pid).threads <= was.threads for pid, was in zip(processes, before, strict=True)), "flat threads")
    [full] = run_load(f"{server.url}/a", connections=limit - 1, seconds=0.2)
    assert (full.errors, set(full.statuses)) == (0, {"200"})
    assert "Traceback" not in server.log() + server.output()


def test_a_replaced_process_leaves_no_descriptor_in_the_worker(serve: StartServer) -> None:
    """One socket of each was closed only when the garbage collector came by: hundreds of reloads later, or never."""
    server = serve(TWO_PROCESSES, wait_for=2)
    [worker] = server.workers()
    places = client.find(str(server.folder / "isowsgi.toml"), None)
    before = Footprint.of(worker).descriptors

    for generation in range(2, 5):
        [answer] = client.ask(places, Reload(mount="/a"), DEADLINE_S)
        assert isinstance(answer.answer, Outcome)
        assert answer.answer.generation == generation

    server.wait_for_log(r"/a #\d: ended", 3)
    eventually(lambda: Footprint.of(worker).descriptors == before, f"the {before} descriptors of before")


def test_the_limit_of_connections_counts_those_in_processes(serve: StartServer) -> None:
    server = serve(TWO_PROCESSES, "--worker-connections", "2", "--keep-alive", "60", wait_for=2)
    with Client(server) as first:
        assert first.ask("/a").fields["connection"] == "keep-alive"
        with Client(server) as second:
            assert second.ask("/a").fields["connection"] == "close"
        eventually(lambda: count_open(server) == 1, "the end of the second")
        third = server.ask("/b")

        assert b"200 OK" in receive_all(third)
        assert first.ask("/b").status == 200


def test_an_idle_connection_in_a_process_is_closed_after_its_time(serve: StartServer) -> None:
    server = serve(TWO_PROCESSES, "--keep-alive", "1", wait_for=2)
    with Client(server) as client:
        assert client.ask("/a").status == 200
        assert client.is_closed()
    eventually(lambda: count_open(server) == 0, "the end of the connection in all processes")


def test_hup_ttin_and_term_under_load_fail_no_request_of_a_process(serve: StartServer) -> None:
    server = serve(TWO_PROCESSES, wait_for=2)
    with Load(server.connect, ["/a", "/b"], clients=3) as kept:
        # Not until the end: who connects between a last worker's last look at its queue and its end of listening is reset.
        with Load(server.connect, ["/a", "/b"], clients=2, keep_alive=False) as fresh:
            server.send_signal(signal.SIGHUP)
            server.wait_for_log("#1: serving", 4)
            eventually(lambda: len(server.workers()) == 1, "the end of the worker before")
            server.send_signal(signal.SIGTTIN)
            server.wait_for_log("#1: serving", 6)
            server.send_signal(signal.SIGTTOU)
            eventually(lambda: len(server.workers()) == 1, "the end of one worker")
            answered = kept.answered + fresh.answered
            eventually(lambda: kept.answered + fresh.answered > answered + 100, "100 more answers")
        [worker] = server.workers()
        children = children_of(worker)
        assert server.stop() == 0

    assert kept.failures == fresh.failures == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert "Traceback" not in server.log() + server.output()


def test_a_full_queue_of_a_process_turns_away_and_its_neighbour_serves(serve: StartServer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    server = serve(
        f"""
        [mounts]
        "/s" = {{ app = "sleeps", isolation = "process", threads = 1, queue = 2, queue_timeout = 0, env = {{ GATE = "{gate}" }} }}
        "/b" = "housed"
        """,
        wait_for=2,
    )
    first = server.ask("/s")
    server.wait_for_log("/s #1: asleep")
    waiting = [server.ask("/s") for _ in range(7)]

    assert facts(server, "/b")["mount"] == "/b"
    eventually(lambda: count_open(server) <= 3, "the end of those that were turned away")
    gate.touch()
    answers = [receive_all(sock) for sock in (first, *waiting)]

    assert sum(answer.startswith(b"HTTP/1.1 200") for answer in answers) == 3
    assert sum(answer.startswith(b"HTTP/1.1 503") and b"Retry-After" in answer for answer in answers) == 5
