"""Interpreters whose end does not come are told, and counted."""

from __future__ import annotations

from isowsgi.worker.departures import _LIMIT_S, _MOST_WAIT_S, _PAUSE_S, Departures
from isowsgi.worker.reloadqueue import Places
from tests.fakes import FakeInstance


class Log:
    def __init__(self) -> None:
        self.errors: list[str] = []

    def error(self, text: str, *args: object) -> None:
        self.errors.append(text % args)


def test_an_interpreter_that_is_not_freed_in_time_is_told_once_and_counts_until_it_is() -> None:
    log = Log()
    departures = Departures(log)
    quick, slow = FakeInstance(), FakeInstance(generation=2)
    for instance in (quick, slow):
        departures.add(instance, 100.0)
    quick.has_gone = True
    departures.tick(100.0 + _LIMIT_S)
    assert (departures.overdue(), log.errors) == (0, [])

    for later_s in (1, 2):
        departures.tick(100.0 + _LIMIT_S + later_s)
    assert departures.overdue() == 1
    assert [line.partition(": a ")[0] for line in log.errors] == ["/ #2: ended, but its interpreter was not freed within 10 s"]

    slow.has_gone = True
    departures.tick(200.0)
    assert departures.overdue() == 0


def test_the_time_that_one_waits_for_others_does_not_count() -> None:
    log = Log()
    departures = Departures(log)
    waits = FakeInstance()
    departures.add(waits, 100.0)
    waits.is_in_line = True
    for later_s in (_LIMIT_S, 2 * _LIMIT_S):
        departures.tick(101.0 + later_s)
    waits.is_in_line = False
    departures.tick(101.0 + 3 * _LIMIT_S)
    assert (departures.overdue(), log.errors) == (0, [])

    departures.tick(102.0 + 3 * _LIMIT_S)
    assert departures.overdue() == 1


class Place(Places):
    """The one place, as a worker sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_free, self.is_held = True, False

    def take(self) -> bool:
        self.is_held |= self.is_free
        return self.is_held

    def give_back(self) -> None:
        self.is_held = False


def test_interpreters_are_freed_a_moment_later_where_no_other_worker_frees_some() -> None:
    """Three workers that freed a Flask app at once kept two cores from all requests."""
    place = Place()
    looks: list[str] = []
    departures = Departures(Log(), place, lambda: looks.append(""))
    first, second = FakeInstance(), FakeInstance(generation=2)
    departures.put_off(first, 100.0)
    departures.put_off(second, 100.0)
    departures.pass_on(100.0 + _PAUSE_S / 2)
    assert (first.was_freed, place.is_held) == (None, False)
    assert departures.instances() == [first, second]

    place.is_free = False
    departures.pass_on(100.0 + _PAUSE_S)
    assert not any([first.was_freed, second.was_freed])

    place.is_free = True
    departures.pass_on(101.0)
    assert all([first.was_freed, second.was_freed, place.is_held])

    first.has_gone = second.has_gone = True
    del looks[:]
    departures.pass_on(101.1)
    assert [place.is_held, departures.instances(), looks] == [False, [], []]


def test_an_interpreter_is_freed_in_the_end_even_if_another_workers_hangs_in_that() -> None:
    place = Place()
    place.is_free = False
    departures = Departures(Log(), place)
    instance = FakeInstance()
    departures.put_off(instance, 100.0)
    departures.pass_on(99.0 + _MOST_WAIT_S)
    assert instance.was_freed is None

    departures.pass_on(100.0 + _MOST_WAIT_S)
    assert instance.was_freed is True


def test_one_that_is_left_behind_keeps_no_other_worker_waiting_and_is_looked_at_no_more() -> None:
    place = Place()
    looks: list[str] = []
    departures = Departures(Log(), place, lambda: looks.append(""))
    departures.put_off(FakeInstance(), 100.0)
    departures.pass_on(101.0)
    departures.tick(102.0 + _LIMIT_S)
    del looks[:]
    departures.pass_on(102.0 + _LIMIT_S)

    assert (departures.overdue(), place.is_held, looks) == (1, False, [])


def test_a_worker_that_stops_frees_nothing_more() -> None:
    departures = Departures(Log())
    instance = FakeInstance()
    departures.put_off(instance, 100.0)
    departures.end()

    assert (instance.was_freed, departures.instances()) == (False, [])
