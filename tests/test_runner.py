"""The runner scheme: one thread polls at a time, every connection is served once, and a long request holds up nobody."""

import random
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import pytest

from isowsgi.inside import runner
from tests.conftest import EXAMPLES_FACTOR, eventually
from tests.fakes import Crew, FakePort, Gate


@pytest.fixture
def gates() -> Iterator[dict[int, Gate]]:
    """The long requests, by descriptor; all are let go at the end, so that a failed test ends too."""
    gates = {number: Gate() for number in range(1, 5)}
    yield gates
    for gate in gates.values():
        gate.let_go()


def test_one_thread_polls_and_serves_as_long_as_requests_are_short() -> None:
    """Threads awake in one interpreter fight for its GIL."""
    names = set()
    crew = Crew(4, lambda fd: names.add(threading.current_thread().name))

    for fd in range(50):
        crew.port.feed(fd)
        eventually(partial(_has_served, crew, fd))
    crew.stop()

    assert len(names) == 1


def test_a_long_request_loses_the_baton_and_a_standby_polls(gates: dict[int, Gate]) -> None:
    served = []

    def serve(fd: int) -> None:
        if fd in gates:
            gates[fd].pass_through()
        served.append(fd)

    crew = Crew(2, serve)
    crew.port.feed(1, 10)
    gates[1].wait_until_entered()
    assert crew.runner.in_request
    assert served == []

    assert crew.runner.retake() is True

    eventually(lambda: served == [10], "what came in the same batch is served meanwhile")
    crew.port.feed(11)
    eventually(lambda: served == [10, 11])
    gates[1].let_go()
    eventually(lambda: served == [10, 11, 1])
    crew.stop()


def test_there_is_nothing_to_retake_between_requests() -> None:
    crew = Crew(2, lambda fd: None)
    crew.port.feed(1)
    eventually(lambda: crew.port.polls == 2 and crew.port.polling)

    assert crew.runner.retake() is False
    assert not crew.runner.in_request

    crew.stop()
    assert crew.port.most_polling == 1


def test_a_baton_can_be_retaken_once_only(gates: dict[int, Gate]) -> None:
    """A second release would let two threads poll."""
    crew = Crew(1, lambda fd: gates[fd].pass_through())
    crew.port.feed(1)
    gates[1].wait_until_entered()

    assert crew.runner.retake() is True
    assert crew.runner.retake() is False

    gates[1].let_go()
    eventually(lambda: crew.port.polls == 2, "with no standby the same thread goes on polling")
    crew.stop()


def test_a_thread_that_ends_its_long_request_may_take_the_turn_of_one_that_is_in_another(gates: dict[int, Gate]) -> None:
    """The turn belongs to who pops it; the other one then stands by, and they never poll both."""
    crew = Crew(2, lambda fd: gates[fd].pass_through())
    crew.port.feed(1)
    gates[1].wait_until_entered()
    crew.runner.retake()
    crew.port.feed(2)
    gates[2].wait_until_entered()

    gates[1].let_go()
    eventually(lambda: crew.port.polling, "the first thread polls again")
    gates[2].let_go()
    crew.port.feed(3)
    gates[3].wait_until_entered()
    crew.port.feed(4)
    crew.runner.retake()
    gates[4].wait_until_entered()
    gates[3].let_go()
    gates[4].let_go()
    crew.stop()

    assert crew.port.most_polling == 1


def test_a_request_that_begins_while_the_monitor_rests_rouses_it() -> None:
    roused: list[bool] = []

    def rouse() -> None:
        roused.append(True)
        crew.runner.resting = False

    crew = Crew(1, lambda fd: None, rouse)
    assert crew.runner.resting

    crew.port.feed(1)
    eventually(lambda: crew.runner.served == 1 and crew.port.polling)
    assert len(roused) == 1
    crew.port.feed(2)
    eventually(lambda: crew.runner.served == 2 and crew.port.polling)
    assert len(roused) == 1

    crew.stop()


def test_those_who_wait_can_be_judged_while_every_thread_is_busy_and_only_then(gates: dict[int, Gate]) -> None:
    crew = Crew(1, lambda fd: gates[fd].pass_through())
    judged: list[list[int]] = []

    def judge(ready: deque[int]) -> None:
        judged.append(list(ready))
        ready.pop()

    crew.port.feed(1)
    gates[1].wait_until_entered()
    crew.runner.shed(crew.port, judge)
    assert judged == [], "the runner has the baton"

    crew.runner.retake()
    crew.port.feed(2, 3)
    crew.runner.shed(crew.port, judge)
    assert judged == [[2, 3]]
    gates[2].let_go()
    gates[1].let_go()
    crew.stop()
    assert 3 not in crew.port.settled


def test_what_is_ready_is_served_before_the_threads_end(gates: dict[int, Gate]) -> None:
    """A request that was handed over must be answered, also when the stop comes between the two."""
    served = []

    def serve(fd: int) -> None:
        if fd in gates:
            gates[fd].pass_through()
        served.append(fd)

    crew = Crew(3, serve)
    crew.port.feed(1)
    gates[1].wait_until_entered()
    crew.port.feed(*range(100, 150))
    crew.runner.stopping = True
    crew.port.poke()

    gates[1].let_go()
    crew.stop()

    assert sorted(served) == [1, *range(100, 150)]


def test_threads_stop_also_while_one_of_them_is_in_a_long_request(gates: dict[int, Gate]) -> None:
    crew = Crew(3, lambda fd: gates[fd].pass_through())
    crew.port.feed(1)
    gates[1].wait_until_entered()
    crew.runner.retake()
    crew.runner.stopping = True
    crew.port.poke()

    eventually(lambda: sum(thread.is_alive() for thread in crew.threads) == 1, "two threads end")
    gates[1].let_go()
    crew.stop()


@pytest.mark.parametrize("count", [1, 2, 8])
def test_under_stress_one_thread_polls_at_a_time_and_each_connection_is_served_once(count: int) -> None:
    """With a monitor that retakes at random moments, and requests that last long enough to lose the baton, or not."""
    chance = random.Random(count)
    served: Counter[int] = Counter()
    serving: set[int] = set()
    lasts = [chance.choice([0, 0, 0, 1e-5, 1e-4, 1e-3]) for _ in range(1000)]

    def serve(fd: int) -> None:
        assert fd not in serving
        serving.add(fd)
        if lasts[fd % len(lasts)]:
            time.sleep(lasts[fd % len(lasts)])  # the length of the request, not a wait for anything
        serving.remove(fd)
        with counting:
            served[fd] += 1

    counting = threading.Lock()
    retaken = 0
    ended = threading.Event()

    def monitor() -> None:
        nonlocal retaken
        while not ended.is_set():
            retaken += crew.runner.retake()
            time.sleep(chance.choice([0, 0, 1e-5, 1e-4]))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    total = 2000 * EXAMPLES_FACTOR
    crew = Crew(count, serve)
    watch = threading.Thread(target=monitor)
    watch.start()
    try:
        fed = 0
        while fed < total:
            batch = chance.randint(1, 30)
            crew.port.feed(*range(fed, min(fed + batch, total)))
            fed = min(fed + batch, total)
            if chance.random() < 0.1:
                time.sleep(1e-4)
        eventually(lambda: sum(served.values()) >= total, "all are served")
    finally:
        sys.setswitchinterval(interval)
        ended.set()
        watch.join()
        crew.stop()

    assert crew.port.most_polling == 1
    assert served == dict.fromkeys(range(total), 1)
    assert sorted(crew.port.settled + crew.port.settled_later) == list(range(total))
    assert retaken > 0
    assert crew.runner.served == total


def test_what_was_polled_for_a_judge_that_fails_is_found_again(gates: dict[int, Gate]) -> None:
    """It was in nobody's hand: the client waited until it gave up."""
    crew = Crew(1, lambda fd: gates[fd].pass_through())
    crew.port.feed(1)
    gates[1].wait_until_entered()
    crew.runner.retake()
    crew.port.feed(2)

    def judge(ready: deque[int]) -> None:
        ready.pop()
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        crew.runner.shed(crew.port, judge)

    assert crew.port.repairs == 1
    gates[1].let_go()
    crew.stop()


def test_what_waits_for_a_thread_is_in_service(gates: dict[int, Gate]) -> None:
    """A repair took it for idle: it fired again, and two threads served it."""
    crew = Crew(1, lambda fd: gates[fd].pass_through())
    crew.port.feed(1, 2, 3)
    gates[1].wait_until_entered()

    assert {1, 2, 3} <= crew.runner.in_service()

    for gate in gates.values():
        gate.let_go()
    crew.stop()


def test_a_thread_that_meets_one_exception_after_the_other_sleeps_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took a core, and wrote a line for each."""
    slept: list[int] = []
    noted: list[BaseException] = []
    monkeypatch.setattr(runner, "time", SimpleNamespace(sleep=lambda seconds: slept.append(len(noted)), monotonic=time.monotonic))
    subject: runner.Runner[int] = runner.Runner(lambda: None, noted.append)
    port = FakePort(lambda fd: None)

    def poll(wait: bool) -> list[int]:
        if len(noted) < 5:
            raise ValueError("a mistake")
        subject.stopping = True
        return []

    port.poll = poll  # type: ignore[method-assign]
    subject.work(port)

    assert len(noted) == 5
    assert slept == [2, 3, 4]


@pytest.mark.parametrize(
    ("exc", "is_so"),
    [(ValueError("x"), False), (AssertionError(), False), (ValueError(), True), (KeyboardInterrupt(), True), (SystemExit(1), True)],
)
def test_an_exception_of_another_thread_is_told_from_a_mistake(exc: BaseException, is_so: bool) -> None:
    assert runner.is_from_outside(exc) is is_so


def _has_served(crew: Crew, count: int) -> bool:
    return crew.runner.served > count
