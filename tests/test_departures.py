"""Interpreters whose end does not come are told, and counted."""

from __future__ import annotations

from isowsgi.worker.departures import _LIMIT_S, Departures
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
