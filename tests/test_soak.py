"""soak/: what its account blames a kill for, and what not; no server is started here, but for the clients' own side of the wire."""

from __future__ import annotations

import math
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from soak import report, site, verdict
from soak.apps import content, hostile
from soak.clients import Arrivals, Body
from soak.logwatch import LogWatch
from soak.samples import Figures, Sample
from soak.site import THREADS
from soak.trouble import Journal, Kill, Plan
from soak.verdict import UNEXPLAINED, explain
from soak.wire import Broken, Connection

WORKER = Kill(what="worker", at=100.0, pid=7, worker=7, tag="", ports=[5001, 5002])
CHILD = Kill(what="child", at=100.0, pid=8, worker=7, tag="/django #3", ports=[5001])


def event(event: str = "failed", **changes: Any) -> dict[str, Any]:
    return {
        "event": event,
        "mount": "/django",
        "port": 5001,
        "opened_at": 90.0,
        "at": 100.1,
        "how": "closed",
        "got": 0,
        "idle_s": 0.1,
        **changes,
    }


def test_a_killed_workers_connections_may_break() -> None:
    assert explain(event(), [WORKER]) == verdict.KILLED_WORKER
    assert explain(event("retried"), [WORKER]) == verdict.IDLE_KILLED


def test_a_killed_childs_requests_may_be_answered_502_and_nothing_else() -> None:
    assert explain(event(how="status", status=502), [CHILD]) == verdict.KILLED_CHILD
    assert explain(event(how="reset", got=100), [CHILD]) == verdict.CUT_CHILD
    assert explain(event(how="status", status=503), [CHILD]) == UNEXPLAINED
    assert explain(event(how="status", status=502), [WORKER]) == UNEXPLAINED
    assert explain(event(how="wrong"), [CHILD, WORKER]) == UNEXPLAINED


@pytest.mark.parametrize(
    "elsewhere",
    [{"port": 5003}, {"port": 0}, {"opened_at": 100.05}, {"at": 99.9}, {"at": 200.0}],
    ids=["another connection", "none", "opened later", "failed before", "failed long after"],
)
def test_a_kill_explains_nothing_about_connections_that_the_process_did_not_have(elsewhere: dict[str, Any]) -> None:
    assert explain(event(**elsewhere), [WORKER, CHILD]) == UNEXPLAINED


def test_a_request_for_another_mount_than_the_killed_childs_must_be_answered() -> None:
    assert explain(event(mount="/flask", how="status", status=502), [CHILD]) == UNEXPLAINED


def test_an_idle_connection_may_be_closed_only_after_a_while() -> None:
    assert explain(event("retried", idle_s=2.1), []) == verdict.IDLE_LONG
    assert explain(event("closed-idle", idle_s=0.3), []) == UNEXPLAINED


def test_an_idle_connection_may_be_closed_while_an_app_has_all_descriptors() -> None:
    assert explain(event("closed-idle", idle_s=0.3, at=101.0), [], [[99.0, 100.0, 0]]) == verdict.IDLE_SCARCE
    assert explain(event("closed-idle", idle_s=0.3, at=110.0), [], [[99.0, 100.0, 0]]) == UNEXPLAINED
    assert explain(event(at=101.0), [], [[99.0, 100.0, 0]]) == UNEXPLAINED


def test_an_app_that_has_all_descriptors_of_a_worker_explains_nothing_of_another_one() -> None:
    assert explain(event("closed-idle", idle_s=0.3, at=101.0, worker=7), [], [[99.0, 100.0, 7]]) == verdict.IDLE_SCARCE
    assert explain(event("closed-idle", idle_s=0.3, at=101.0, worker=8), [], [[99.0, 100.0, 7]]) == UNEXPLAINED


def test_an_app_that_never_answers_explains_closed_connections_no_longer_than_one_that_does() -> None:
    """A play that was under way when the run ended excused all that followed."""
    assert explain(event("closed-idle", idle_s=0.3, at=104.0), [], [[99.0, math.inf, 0]]) == verdict.IDLE_SCARCE
    assert explain(event("closed-idle", idle_s=0.3, at=130.0), [], [[99.0, math.inf, 0]]) == UNEXPLAINED


def test_a_hostile_apps_lines_are_its_own_but_for_mistakes_of_isowsgis(tmp_path: Path) -> None:
    lines = [
        "[ERROR] /hostile/hangs #1: a thread is stuck in its request; replacing the instance",
        "[WARNING] replacing this worker: 6 instances are stuck or left behind, max_stuck is 5",
        "[ERROR] /hostile/lies #2: a report: internal error, contained; please report it",
        "[ERROR] /flask #2: a thread is stuck in its request; replacing the instance",
        "[ERROR] fork server of /srv/bin/python: [Errno 24] Too many open files; processes start without it, next attempt in 10 s",
    ]
    (tmp_path / "log").write_text("".join(f"[2026-01-02 03:04:05 +0000] [7] {line}\n" for line in lines))
    log = LogWatch(tmp_path / "log", has_hostile=True)

    log.read()

    assert [line.partition(" ")[0] for line in log.unexpected([], keeps_memory=False)] == ["/hostile/lies", "/flask"]
    assert (log.replaced, log.left_behind) == (1, 0)


def test_each_seed_has_all_tricks_in_an_order_of_its_own() -> None:
    first, again, second = (site.draw_hostile(random.Random(seed), "own-gil") for seed in (1, 1, 2))

    assert first == again
    assert list(first) != list(second)
    assert first.keys() == second.keys() == {f"/hostile/{trick}" for trick in hostile.TRICKS}
    assert first["/hostile/crashes"] == "process"


def test_a_child_can_lose_no_more_requests_than_it_has_threads() -> None:
    failures = [{**event(how="status", status=502), "why": verdict.KILLED_CHILD}] * (THREADS + 1)

    [cost] = verdict.cost_of_kills(failures, [CHILD])
    [fair] = verdict.cost_of_kills(failures[1:], [CHILD])

    assert (cost["lost"], cost["is_too_many"]) == (THREADS + 1, True)
    assert not fair["is_too_many"]


def test_a_reload_may_fail_with_its_worker_or_its_child_only() -> None:
    reload = {"at": 99.5, "took_s": 1.0, "mount": "/django"}
    journal = Journal(kills=[WORKER, CHILD], hups=[200.0])

    def why(mount: str = "/django", at: float = 99.5, **answer: Any) -> str:
        return verdict.explain_reload(reload | {"mount": mount, "at": at}, answer, journal)

    assert why(worker=7, outcome="gone") != UNEXPLAINED
    assert why(worker=6, outcome="gone") == UNEXPLAINED
    assert why(worker=6, outcome="stopping", at=199.5) != UNEXPLAINED
    assert why(worker=7, outcome="failed") != UNEXPLAINED
    assert why(worker=7, outcome="failed", mount="/flask") == UNEXPLAINED
    assert why(worker=7, outcome="mistake") == UNEXPLAINED


def figures(pid: int, age_s: float, rss_mib: float, threads: int = 20) -> Figures:
    return Figures(pid=pid, started=0, age_s=age_s, descriptors=50, threads=threads, rss_mib=rss_mib)


def test_growth_is_that_of_workers_of_the_same_age() -> None:
    """Each worker lives for a minute and takes 20 MiB in its first 20 s; each has 10 MiB more than the one before."""
    samples = [
        Sample(
            at=float(at),
            master=figures(1, at, 30.0),
            workers=[figures(at // 60, at % 60, 100.0 + min(at % 60, 20) + 10 * (at // 60))],
            children=[],
            orphans=0,
        )
        for at in range(0, 6 * 60, 5)
    ]

    assert verdict.growth(samples) == {"master": 0.0, "workers": 40.0, "life": 0.0}


def test_what_a_worker_has_before_its_mounts_are_loaded_is_no_beginning_of_a_growth() -> None:
    """On a busy machine they were loaded for 50 s of a worker's 60, and each run was said to grow by as much as they need."""
    lives = [figures(1, age, 80.0 + min(age, 40), threads=age // 10) for age in range(100)]
    samples = [
        Sample(at=float(at), master=figures(2, at, 30.0), workers=[worker], children=[], orphans=0) for at, worker in enumerate(lives)
    ]

    assert verdict.growth(samples, 4)["life"] == 0.0
    assert verdict.growth(samples)["life"] > 5.0


def test_a_worker_that_never_has_all_its_threads_is_a_fault() -> None:
    """Its growth was judged only if it had them, and nothing was said if none ever had."""
    nothing = {"mistakes": [], "requests": {}, "unexplained": [], "kills": [], "reloads": {"unexplained": []}, "log": {"unexpected": []}}
    found = {**nothing, "orphans": 0, "instances left behind": 0, "rest": {}, "is growth judged": True}

    [fault] = report._faults({**found, "growth": {"master": 0.0, "workers": 0.0}})

    assert fault.startswith("resident memory (life) cannot be judged")
    assert report._faults({**found, "growth": {"master": 0.0, "workers": 0.0, "life": 0.0}}) == []
    assert report._faults({**found, "growth": {}, "is growth judged": False}) == []


def test_a_short_run_has_restarts_and_kills_too() -> None:
    long, short = Plan.of(30), Plan.of(2)

    assert (long.hup_s, long.kill_s) == (60, 20)
    assert short.run_s / short.hup_s >= 3
    assert short.run_s / short.kill_s >= 12


def test_the_log_may_tell_of_kills_and_of_nothing_else(tmp_path: Path) -> None:
    log = tmp_path / "error.log"
    line = "[2026-11-25 10:00:00 +0000] [7] [{}] {}\n".format
    texts = [
        line("INFO", "/a #1: ended"),
        line("ERROR", "/django #3: ended unexpectedly: its process was killed by SIGKILL while serving GET /django/small HTTP/1.1"),
        line("ERROR", "/django #4: ended unexpectedly: its process was killed by SIGKILL"),
        line("ERROR", "Worker (pid:7) was sent SIGKILL! Perhaps out of memory?"),
        line("ERROR", "worker 7 died while serving /a: GET /a HTTP/1.1; /b: GET /b HTTP/1.1"),
        line("ERROR", "Error handling request /a"),
        "Traceback (most recent call last):\n",
    ]
    log.write_text("".join(texts)[:-9])
    watch = LogWatch(log)
    watch.read()
    log.write_text("".join(texts))
    watch.read()

    assert watch.unexpected([WORKER, CHILD], keeps_memory=False) == [
        "/django #4: ended unexpectedly: its process was killed by SIGKILL",
        "Error handling request /a\nTraceback (most recent call last):",
    ]
    assert watch.levels == {"INFO": 1, "ERROR": 5}


# The clients' side.


def test_a_body_is_right_in_every_byte_or_not_at_all() -> None:
    right = b"".join(content.pieces(5, 200_000))

    def fault(data: bytes) -> str:
        body = Body(content.pieces(5, 200_000, 70_001))
        for at in range(0, len(data), 999):
            body.take(data[at : at + 999])
        return body.end()

    assert fault(right) == ""
    assert "differs" in fault(right[:150_000] + b"?" + right[150_001:])
    assert "differs" in fault(b"".join(content.pieces(6, 200_000)))
    assert "ends after 199999" in fault(right[:-1])
    assert "continues after its 200000" in fault(right + b"x")


def test_an_answer_may_be_of_the_generation_before_for_a_while() -> None:
    arrivals = Arrivals()
    arrivals.add("/a", 7, 2, 100.0)
    arrivals.add("/a", 7, 3, 110.0)

    assert arrivals.oldest_allowed("/a", 7, sent_at=100.5, born_at=90.0) == 0
    assert arrivals.oldest_allowed("/a", 7, sent_at=110.5, born_at=90.0) == 2
    assert arrivals.oldest_allowed("/a", 7, sent_at=130.0, born_at=99.5) == 3
    assert arrivals.oldest_allowed("/a", 8, sent_at=130.0, born_at=99.5) == 0


def test_a_new_worker_may_have_the_number_of_an_old_one() -> None:
    arrivals = Arrivals()
    arrivals.add("/a", 7, 30, 100.0)

    assert arrivals.oldest_allowed("/a", 7, sent_at=200.0, born_at=150.0) == 0


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], Connection]]:
    """Connect to a server that says some bytes and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def connect(data: bytes) -> Connection:
            def answer() -> None:
                with listener.accept()[0] as sock:
                    sock.sendall(data)

            thread = threading.Thread(target=answer)
            thread.start()
            connection = Connection(listener.getsockname())
            thread.join()
            return connection

        yield connect


@pytest.mark.parametrize(
    ("data", "how"),
    [
        (b"", "closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", "closed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "closed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", "malformed"),
        (b"HELLO\r\n\r\n", "malformed"),
    ],
)
def test_an_answer_that_is_not_whole_says_how_much_of_it_came(answering: Callable[[bytes], Connection], data: bytes, how: str) -> None:
    connection = answering(data)

    with pytest.raises(Broken) as broken:
        connection.body(connection.head(), lambda piece: None)

    assert (broken.value.how, broken.value.got) == (how, len(data))
    assert connection.answers == 0
    connection.close()


def test_two_answers_in_one_piece_are_told_apart(answering: Callable[[bytes], Connection]) -> None:
    first = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    second = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nfg"
    connection = answering(first + second)
    bodies = []
    for _ in range(2):
        body = bytearray()
        connection.begin_answer()
        head = connection.head()
        connection.body(head, body.extend)
        bodies.append((bytes(body), head.says_close))

    assert bodies == [(b"abcde", False), (b"fg", True)]
    connection.close()
