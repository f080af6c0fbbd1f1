"""Rounds: each deployment is looked at once between two ticks, whatever comes, goes and fails meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from isowsgi.shared.rows import INTERNAL_ERRORS
from isowsgi.worker import pieces
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.rounds import Rounds
from tests.test_livetable import NOW, Site, config, mount


class Walk:
    """The rounds of a table with fake instances. A look takes a whole step, unless the test says otherwise; the test turns the loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *patterns: str) -> None:
        monkeypatch.setattr(pieces, "STEP_S", 0.0)
        self.site = Site(*map(mount, patterns))
        self.common: list[str] = []  # what was done after the looks
        self.looks: list[str] = []  # the deployments looked at, in order
        self.breaks: set[str] = set()
        around = self.site.around
        queues: Any = SimpleNamespace(tick=lambda now: self._does("queues"), pass_on=lambda now: None)
        self.workshop = SimpleNamespace(
            boots=queues,
            turns=queues,
            departures=queues,
            is_stopping=False,
            copy_rows=lambda deployment: None,
            keep_fork_servers=lambda deployments: self._does("fork servers"),
        )
        workshop: Any = self.workshop
        meter: Any = SimpleNamespace(look=self._measures)
        memory: Any = SimpleNamespace(tick=lambda now: self._does("memory"))
        self.rounds = Rounds(self.site.live, workshop, meter, memory, around.containment)
        self.rounds.start(self._later)
        self._planned: list[Callable[[], object]] = []

    def _later(self, delay_s: float, callback: Callable[[], object], what: str = "") -> None:
        self._planned.append(callback)

    def _does(self, what: str) -> None:
        self.common.append(what)
        if what in self.breaks:
            raise ZeroDivisionError

    def _measures(self, now: float) -> Iterator[None]:
        self._does("measuring")
        yield
        self._does("measured")

    def watch(self, deployment: Deployment) -> None:
        """Note each look at a deployment from now on."""
        look, name = deployment.upkeep.tick, f"{deployment.name} #{deployment.generation}"

        def noted(now: float) -> None:
            self.looks.append(name)
            look(now)
            if name in self.breaks:
                raise ZeroDivisionError

        deployment.upkeep.tick = noted  # type: ignore[method-assign] # what it does is noted, and done

    def watch_all(self) -> None:
        for deployment in self.site.live.all():
            self.watch(deployment)

    def turn(self) -> bool:
        """Call what is planned; return whether anything was."""
        planned, self._planned = self._planned, []
        for callback in planned:
            callback()
        return bool(planned)

    def end_round(self) -> list[str]:
        """Go on to the end of the round; return at whom it looked since this was last called."""
        while self.turn():
            continue
        looks, self.looks = self.looks, []
        return looks

    def mistakes(self) -> int:
        return self.site.around.board.row(0).words[INTERNAL_ERRORS]


def test_each_step_of_a_round_looks_at_as_many_as_there_is_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at 200 mounts kept the acceptor, and a core, for 5 ms each second."""
    walk = Walk(monkeypatch, "/a", "/b", "/c")
    walk.watch_all()

    walk.rounds.tick()
    seen = [list(walk.looks)]
    for _ in range(2):
        walk.turn()
        seen.append(list(walk.looks))

    assert [len(each) for each in seen] == [1, 2, 3]
    walk.end_round()
    assert walk.common == ["queues", "queues", "fork servers", "measuring", "measured", "memory"]


def test_each_is_looked_at_once_between_two_ticks_also_if_the_round_is_not_over(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(monkeypatch, "/a", "/b", "/c")
    walk.watch_all()

    walk.rounds.tick()
    walk.rounds.tick()  # the machine is busy
    first, walk.looks = walk.looks, []

    assert first == ["/a #1", "/b #1", "/c #1"]
    assert walk.common.count("memory") == 1
    assert walk.end_round() == first
    assert walk.common.count("memory") == 2


def test_a_look_that_fails_costs_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(monkeypatch, "/a", "/b", "/c")
    walk.watch_all()
    walk.breaks = {"/b #1", "queues", "measuring"}

    for number in (1, 2):
        walk.rounds.tick()
        assert walk.end_round() == ["/a #1", "/b #1", "/c #1"]
        assert walk.common.count("memory") == number

    assert "measured" not in walk.common
    assert walk.mistakes() == 2 * 4


def test_one_that_comes_within_a_round_is_looked_at_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(monkeypatch, "/a", "/b")
    walk.watch_all()
    walk.rounds.tick()
    walk.site.apply(mount("/new"), mount("/a"), mount("/b"))
    walk.watch(walk.site.of("/new"))

    assert walk.end_round() == ["/a #1", "/b #1"]
    walk.rounds.tick()
    assert walk.end_round() == ["/new #1", "/a #1", "/b #1"]


def test_one_that_is_replaced_within_a_round_is_looked_at_until_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its drain has a limit, as its successor's boot has."""
    walk = Walk(monkeypatch, "/a", "/b")
    walk.watch_all()
    walk.rounds.tick()
    live = walk.site.live
    walk.site.prepare(config(mount("/a"), mount("/b", threads=2)))
    walk.site.all_load()
    live.switch(NOW)  # what was replaced drains
    walk.watch(walk.site.of("/b"))

    assert walk.end_round() == ["/a #1", "/b #1"]
    walk.rounds.tick()
    assert walk.end_round() == ["/a #1", "/b #2", "/b #1"]
    walk.site.all_end()
    walk.rounds.tick()
    assert walk.end_round() == ["/a #1", "/b #2"]


def test_one_that_has_ended_before_its_turn_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place on the scoreboard may be another's by then."""
    walk = Walk(monkeypatch, "/a", "/b", "/c")
    walk.watch_all()
    walk.rounds.tick()
    walk.site.apply(mount("/a"), mount("/c"))

    assert walk.end_round() == ["/a #1", "/c #1"]


def test_a_worker_that_stops_still_looks_at_what_serves_and_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(monkeypatch, "/a", "/b")
    walk.watch_all()
    walk.rounds.tick()
    walk.workshop.is_stopping = True

    assert walk.end_round() == ["/a #1", "/b #1"]
    assert walk.common == ["queues"]


def test_after_the_end_nobody_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(monkeypatch, "/a", "/b")
    walk.watch_all()
    walk.rounds.tick()
    walk.rounds.end()

    assert walk.end_round() == ["/a #1"]
    walk.rounds.tick()
    assert (walk.end_round(), walk.common) == ([], [])
