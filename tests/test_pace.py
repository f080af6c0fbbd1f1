"""A replacement's boot lets others go first, where there are others, and within limits."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from isowsgi.inside import pace
from isowsgi.inside.pace import Pacer
from tests.conftest import ROOT


class Clock:
    """Stands in for the module `time`: work and waiting are what the test says."""

    def __init__(self) -> None:
        self.now = self.ran = 100.0
        self.slept: list[float] = []

    def thread_time(self) -> float:
        return self.ran

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds

    def passes(self, ran: float, waited: float) -> None:
        self.ran += ran
        self.now += ran + waited


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def imports(pacer: Pacer) -> None:
    found: object = pacer.find_spec("x")  # type: ignore[func-returns-value]
    assert found is None


def test_who_had_to_wait_pauses_and_who_had_not_does_not(clock: Clock) -> None:
    pacer = Pacer()
    pacer.left_s = 1
    imports(pacer)

    clock.passes(ran=0.002, waited=0)
    imports(pacer)
    assert clock.slept == []

    clock.passes(ran=0.002, waited=0.001)
    imports(pacer)
    assert clock.slept == [0.007]

    clock.passes(ran=0.002, waited=0)
    imports(pacer)
    assert clock.slept == [0.007]


def test_who_waits_for_long_anyway_does_not_pause_beside(clock: Clock) -> None:
    """On two cores that were used up a load took 5 s that takes 0.5: its pauses came on top of its waiting."""
    pacer = Pacer()
    pacer.left_s = 1
    imports(pacer)

    clock.passes(ran=0.002, waited=0.02)
    imports(pacer)

    assert clock.slept == []


def test_short_stretches_add_up(clock: Clock) -> None:
    pacer = Pacer()
    pacer.left_s = 1
    for _ in range(8):
        imports(pacer)
        clock.passes(ran=0.0004, waited=0.0004)

    assert clock.slept == [0.0036, 0.0036]


def test_all_pauses_together_have_a_limit(clock: Clock) -> None:
    pacer = Pacer()
    pacer.left_s = 0.02
    for _ in range(5):
        imports(pacer)
        clock.passes(ran=0.003, waited=0.003)

    assert clock.slept == [0.009, 0.009, 0.002]


def test_the_time_of_one_thread_is_not_taken_for_that_of_another(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    pacer = Pacer()
    pacer.left_s = 1
    for thread in (1, 2, 1, 2):
        monkeypatch.setattr(pace, "threading", SimpleNamespace(get_ident=lambda thread=thread: thread))
        imports(pacer)
        clock.passes(ran=0.003, waited=0.003)

    assert clock.slept == []


# Each import asks the pacer with a clock by which it ran for 2 ms since the last one, and waited for 1 ms: as on a crowded processor.
IMPORTS = """
import sys
from isowsgi.inside import pace

class Clock:
    ran = now = slept = 0.0

    def thread_time(self):
        self.ran += 0.002
        self.now += 0.003
        return self.ran

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.slept += seconds

pace.time = clock = Clock()
pace.slow_down(5.0)
import asyncio, email.message, http.client, json, sqlite3, unittest.mock, xml.dom.minidom
paused = 5.0 - pace._pacer.left_s
pace.speed_up()
print(paused, clock.slept, pace._pacer in sys.meta_path)
"""


def test_on_a_crowded_processor_real_imports_pause() -> None:
    """A clock that is the test's own: with a real one, and a neighbour that is always busy, a machine at its limit failed it once."""
    output = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, check=True, capture_output=True, text=True).stdout

    paused, slept, is_there = output.split()
    assert float(paused) == pytest.approx(float(slept))
    assert float(paused) > 0.1
    assert is_there == "False"
