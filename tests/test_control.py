"""The control thread: it obeys the supervisor, keeps long requests from blocking short ones, and costs nothing when idle."""

import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isowsgi.inside.controlthread import Control
from isowsgi.inside.runner import Runner
from isowsgi.inside.telling import MAX_TRACEBACK_CHARS
from isowsgi.shared import messages
from isowsgi.shared.containment import Containment
from isowsgi.shared.messages import Closed, Drain, Failed, Measure, Measured, Order, Stop
from isowsgi.shared.rows import INTERNAL_ERRORS
from tests.conftest import DEADLINE_S, eventually
from tests.fakes import Crew, Gate

MEASURED = Measured(is_whole=True, took_s=0.001, objects=5, small=0, large=0, weight=0)


class Sampling:
    """Notes when it is called, and is due again a hundredth of a second later, a few times."""

    def __init__(self) -> None:
        self.next_at = math.inf
        self.taken: list[float] = []

    def take(self, now: float) -> None:
        self.taken.append(now)
        self.next_at = now + 0.01 if len(self.taken) < 5 else math.inf


class Desk:
    """A control thread with the supervisor's end of its channel.

    Attributes:
        obeyed: the orders carried out.
    """

    def __init__(self, runner: Runner[Any] | None = None, needs_ticker: bool = False) -> None:
        self.runner = runner or Runner(lambda: None)
        self.supervisor, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.supervisor.settimeout(DEADLINE_S)
        self.rouse_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.obeyed: list[str] = []
        self.duties = 0
        self.logged: list[str] = []
        self.words = memoryview(bytearray(64 * 8)).cast("q")
        self.has_duty = False
        self.sampling = Sampling()
        self.control = Control(
            channel=inner,
            runner=self.runner,
            rouse_fd=self.rouse_fd,
            needs_ticker=needs_ticker,
            orders=dict.fromkeys((Drain, Stop, Measure), self._obey),
            on_lost=lambda: None,
            duty=self._do_duty,
            sampling=self.sampling,
            containment=Containment(self, self.words),
        )
        self._inner = inner
        self.thread = threading.Thread(target=self.control.run, daemon=True)
        self.thread.start()

    def _obey(self, order: Order) -> None:
        if isinstance(order, Measure):
            raise ZeroDivisionError
        self.obeyed.append(type(order).__name__)

    def error(self, message: str, *args: Any) -> None:
        self.logged.append(message % args)

    def _do_duty(self, now: float) -> bool:
        self.duties += 1
        return self.has_duty

    def say(self, order: Order | bytes) -> None:
        self.supervisor.send(order if isinstance(order, bytes) else messages.encode(order))

    def heard(self) -> Any:
        return messages.decode_report(self.supervisor.recv(256 * 1024))

    def wakeups(self) -> int:
        """How often the thread has gone to sleep of its own accord so far."""
        status = Path(f"/proc/self/task/{self.thread.native_id}/status").read_text()
        return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    def end(self) -> None:
        self.control.end()
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()
        self.supervisor.close()
        self._inner.close()
        os.close(self.rouse_fd)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.end()


def test_orders_are_carried_out_one_after_the_other(desk: Desk) -> None:
    for order in (Drain(), Stop(frees=True), Drain()):
        desk.say(order)

    eventually(lambda: desk.obeyed == ["Drain", "Stop", "Drain"])


@pytest.mark.parametrize("packet", [b"{", b"[]", b'{"is": "Fly"}', messages.encode(Measure())])
def test_an_order_that_cannot_be_carried_out_does_not_end_the_thread(desk: Desk, packet: bytes) -> None:
    """The last one raises. Without its control thread an instance would serve, and never drain, stop or give a request up."""
    desk.say(packet)
    desk.say(Stop(frees=True))

    eventually(lambda: desk.obeyed == ["Stop"])
    assert desk.words[INTERNAL_ERRORS] == 1
    assert "an order: internal error, contained" in desk.logged[0]


def test_a_report_is_one_packet(desk: Desk) -> None:
    for report in (MEASURED, Closed(threads=0)):
        desk.control.report(report)

    assert desk.heard() == MEASURED
    assert desk.heard() == Closed(threads=0)


@pytest.mark.parametrize("letter", ["a", "\n", "é", "日", "😀", "\udc80", "\x01"])
def test_a_traceback_of_the_greatest_length_arrives_in_whatever_letters(desk: Desk, letter: str) -> None:
    """Written as JSON's escapes, one in emoji did not fit into a packet, and the log said nothing of why the app could not be loaded."""
    text = letter * MAX_TRACEBACK_CHARS

    desk.control.report(Failed(error="x", traceback=text))

    assert desk.heard().traceback == text


def test_a_report_that_does_not_fit_into_a_packet_comes_without_its_longest_parts(desk: Desk) -> None:
    """It was dropped without a word, and an app with many extension modules in a deep folder never served."""
    desk.control.report(Failed(error="x", traceback="", extensions=[("name", "/path" * 1000)] * 100))

    assert desk.heard() == Failed(error="x", traceback="")


def test_a_report_to_a_supervisor_that_is_gone_is_dropped(desk: Desk) -> None:
    """The worker is on its way out then; the app's threads still end in order."""
    desk.supervisor.close()

    desk.control.report(Closed(threads=0))


def sleeps_on(desk: Desk) -> bool:
    """Whether the thread did not wake within a tenth of a second: the one thing here that takes time to be seen."""
    before = desk.wakeups()
    time.sleep(0.1)
    return desk.wakeups() == before


def test_the_monitor_rests_when_there_are_no_requests_and_is_roused_by_one(desk: Desk) -> None:
    eventually(lambda: desk.runner.resting and sleeps_on(desk))
    before = desk.wakeups()

    desk.control.rouse()

    eventually(lambda: desk.wakeups() > before + 10, "it ticks again")
    eventually(lambda: desk.runner.resting, "and rests again")


def test_an_idle_instance_costs_no_cpu_time(desk: Desk) -> None:
    """A thousand mounts with a tick of 2 ms would be half a million wake-ups a second."""
    eventually(lambda: desk.runner.resting)

    assert eventually(lambda: sleeps_on(desk))


def test_a_supervisor_that_is_gone_does_not_make_the_thread_spin(desk: Desk) -> None:
    """The end of its channel stays readable for ever."""
    desk.supervisor.close()

    assert eventually(lambda: sleeps_on(desk))
    assert desk.thread.is_alive()


def test_it_looks_after_its_duty_as_long_as_there_is_something_to_look_after(desk: Desk) -> None:
    desk.has_duty = True
    desk.control.rouse()
    eventually(lambda: desk.runner.resting)
    before = desk.duties

    eventually(lambda: desk.duties > before + 2, "it is called while the monitor rests")
    desk.has_duty = False
    eventually(lambda: sleeps_on(desk))


def test_where_interpreters_starve_each_other_the_thread_never_sleeps_for_long() -> None:
    """3.11 and 3.12: each of its wake-ups makes a busy app let go of the GIL."""
    desk = Desk(needs_ticker=True)
    before = desk.wakeups()

    eventually(lambda: desk.wakeups() >= before + 20)
    desk.end()


def test_a_long_request_does_not_keep_the_next_one_waiting() -> None:
    gate = Gate()
    served = []

    def serve(fd: int) -> None:
        if fd == 1:
            gate.pass_through()
        served.append(fd)

    crew = Crew(2, serve, lambda: own.control.rouse())
    own = Desk(crew.runner)
    crew.port.feed(1, 2)

    eventually(lambda: served == [2], "the standby serves it")
    gate.let_go()
    eventually(lambda: served == [2, 1])
    crew.stop()
    own.end()


def test_what_is_sampled_has_its_times_even_if_no_request_is_served(desk: Desk) -> None:
    """The thread sleeps until it is roused, an order comes, or a sample is due; then it sleeps again."""
    desk.say(Drain())
    eventually(lambda: desk.obeyed)
    desk.sampling.next_at = time.monotonic()
    desk.say(Drain())  # as the order that begins it does

    eventually(lambda: len(desk.sampling.taken) == 5)
    assert all(later - earlier >= 0.009 for earlier, later in zip(desk.sampling.taken, desk.sampling.taken[1:], strict=False))
