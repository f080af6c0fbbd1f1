"""Boots take turns: as many at a time as there are cores, in order, and whoever waits for something else keeps nobody waiting."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from isowsgi.worker.bootqueue import _LONGEST_TURN_S, _TELL_S, Boots, boots_at_a_time, machine_times


class Mount:
    """A deployment that loads until the test says that it is done."""

    def __init__(self, line: Line, name: str, instances: int) -> None:
        self.name = name
        self._line = line
        self.slots = self
        self.instances = instances
        self.begun = self.up = 0
        self.fails: Exception | None = None

    def booting(self) -> int:
        return self.begun - self.up

    def start(self, now: float) -> None:
        if self.fails is not None:
            raise self.fails
        while self.begun < self.instances and self._line.boots.take(self, now):
            self.begun += 1
            self._line.begun.append(self)


class Line:
    """A line of mounts that all want to be loaded."""

    def __init__(self, mounts: int, most: int = 2, instances: int = 1) -> None:
        self.now = 100.0
        self.idle = self.total = 0
        self.mistakes: list[str] = []
        self.begun: list[Mount] = []
        self.boots = Boots(most, logging.getLogger("test"), self._call, lambda: (self.idle, self.total))
        self.mounts = [Mount(self, f"/{number}", instances) for number in range(mounts)]
        for mount in self.mounts:
            mount.start(self.now)

    def _call(self, what: str, function: Callable[[float], None], now: float) -> None:
        try:
            function(now)
        except ZeroDivisionError:
            self.mistakes.append(what)

    def names(self) -> str:
        return " ".join(mount.name for mount in self.begun)

    def is_up(self, number: int) -> None:
        self.mounts[number].up += 1
        self.boots.pass_on(self.now)

    def wait(self, seconds: int, idle: int = 0) -> None:
        """Let time pass, in which so many percent of the cores are idle."""
        for _ in range(seconds):
            self.now += 1
            self.idle += idle
            self.total += 100
            self.boots.tick(self.now)


def test_as_many_begin_as_there_are_cores_and_the_others_in_order() -> None:
    """Twenty apps side by side on two cores all timed out at their boot_timeout, and were retried together, for ever."""
    line = Line(5)
    assert line.names() == "/0 /1"

    line.wait(30)
    assert line.names() == "/0 /1"
    line.is_up(1)
    assert line.names() == "/0 /1 /2"
    line.is_up(0)
    line.is_up(2)
    assert line.names() == "/0 /1 /2 /3 /4"


def test_each_instance_of_a_mount_has_its_own_turn_behind_the_other_mounts() -> None:
    """All `instances` of a mount were loaded side by side: eight at once on two cores."""
    line = Line(3, instances=2)
    assert line.names() == "/0 /0"

    line.is_up(0)
    assert line.names() == "/0 /0 /1"
    line.is_up(0)
    assert line.names() == "/0 /0 /1 /2"
    line.is_up(1)
    line.is_up(2)

    assert line.names() == "/0 /0 /1 /2 /1 /2"


def test_one_that_a_request_waits_for_comes_first() -> None:
    line = Line(5)

    line.boots.hurry(line.mounts[4])
    line.is_up(0)

    assert line.names() == "/0 /1 /4"


def test_of_those_that_requests_wait_for_the_first_that_was_asked_for_comes_first() -> None:
    """The last came first: while sleeping neighbours were woken, a mount whose clients all waited was not loaded in 50 s."""
    line = Line(6)
    for number in (4, 5, 4, 3):
        line.boots.hurry(line.mounts[number])

    line.is_up(0)
    line.boots.hurry(line.mounts[4])  # it is being loaded: without effect
    line.boots.leave(line.mounts[5])
    line.is_up(1)
    line.is_up(4)

    assert line.names() == "/0 /1 /4 /3 /2"


def test_one_that_has_no_use_for_its_turn_any_more_is_left_out() -> None:
    line = Line(4)

    line.boots.leave(line.mounts[2])
    line.is_up(0)

    assert line.names() == "/0 /1 /3"


def test_apps_that_wait_for_something_keep_nobody_waiting() -> None:
    """A database that does not answer must not keep twenty apps from being loaded that need none."""
    line = Line(5)

    line.wait(3, idle=90)

    assert line.names() == "/0 /1 /2 /3"


def test_one_that_never_ends_keeps_others_waiting_for_a_limited_time() -> None:
    line = Line(4)

    line.wait(int(_LONGEST_TURN_S) + 1)

    assert line.names() == "/0 /1 /2 /3"


def test_one_whose_start_goes_wrong_keeps_nobody_waiting() -> None:
    line = Line(4)
    line.mounts[2].fails = ZeroDivisionError()

    line.is_up(0)

    assert line.names() == "/0 /1 /3"
    assert line.mistakes == ["/2: its turn to be loaded"]


def test_the_log_says_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    line = Line(5)
    line.is_up(0)

    line.wait(int(_TELL_S))

    assert caplog.messages == ["loading /1, /2; 2 mounts wait for their turn, 1 are done"]


def test_all_workers_together_begin_what_the_cores_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))

    assert [boots_at_a_time(workers) for workers in (0, 1, 3, 8, 20)] == [8, 8, 2, 1, 1]


def test_the_machines_times_only_grow() -> None:
    first = machine_times()
    second = machine_times()

    assert 0 <= first[0] <= second[0]
    assert first[1] <= second[1] > first[0]
