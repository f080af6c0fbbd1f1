"""Sessions of `isowsgi shell` in a worker: few at a time, none for ever, and each input is answered or refused."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any

import pytest

from isowsgi.instances.lifecycle import State
from isowsgi.shared.controlmessages import Refusal, Shell, ShellLine
from isowsgi.shared.messages import EndShell, ShellInput, ShellOutput
from isowsgi.worker.control import shells
from isowsgi.worker.control.shells import Shells


class Place:
    """Mounts with one instance each, and the shells of their worker."""

    def __init__(self) -> None:
        self.shells = Shells(lambda text: None)
        self.orders: list[Any] = []
        self.is_heard = True
        self._numbers = itertools.count(1)

    def open(self) -> tuple[Any, Any, str]:
        """Begin a session in another mount; return its errand, instance and name."""
        name = f"/{next(self._numbers)}"
        instance: Any = SimpleNamespace(tag=f"{name} #1", generation=1, state=State.SERVING, tell=self._tell)
        slots = SimpleNamespace(all=lambda: [instance], serving=lambda: [instance])
        deployment: Any = SimpleNamespace(name=name, slots=slots, mount=SimpleNamespace(pattern=name))
        errand = self.shells.open(Shell(mount=name, serial=name), deployment, 0, True)
        next(errand)
        return errand, instance, name

    def line(self, name: str) -> Any:
        """Send an input; return its errand."""
        errand = self.shells.line(ShellLine(serial=name, source="1"))
        next(errand)
        return errand

    def answer(self, instance: Any, outcome: str = "done", text: str = "1\n") -> None:
        order = next(each for each in reversed(self.orders) if isinstance(each, ShellInput))
        report = ShellOutput(ask=order.ask, number=order.number, text=text, is_more=False, outcome=outcome, is_last=True)
        self.shells.hear(instance, report)

    def _tell(self, order: Any) -> bool:
        self.orders.append(order)
        return self.is_heard


def refused(call: Any) -> Any:
    with pytest.raises(Refusal) as refusal:
        call()
    return refusal.value.error


def end_of(errand: Any, now: float) -> Any:
    with pytest.raises(StopIteration) as done:
        errand.send(now)
    return done.value.value


def test_a_worker_has_few_sessions_so_that_other_commands_reach_it() -> None:
    place = Place()
    sessions = [place.open() for _ in range(shells.MOST_SESSIONS)]

    assert refused(place.open).kind == "busy"

    sessions[0][0].close()
    place.open()


def test_a_session_without_an_input_ends() -> None:
    place = Place()
    errand, instance, name = place.open()
    now = time.monotonic()
    errand.send(now + shells.IDLE_S - 5)
    line = place.line(name)
    errand.send(now + shells.IDLE_S + 5)  # what is executed may take longer
    place.answer(instance)
    assert end_of(line, now).text == "1\n"

    assert end_of(errand, now + shells.IDLE_S + 60).text == "a session ends after 10 minutes without an input"
    assert isinstance(place.orders[-1], EndShell)


def test_a_second_input_waits_for_no_answer() -> None:
    place = Place()
    _errand, instance, name = place.open()
    line = place.line(name)

    assert "still executed" in refused(lambda: place.line(name)).text

    looks: list[int] = []
    place.shells.on_answer = lambda: looks.append(1)
    place.answer(instance, outcome="failed")
    assert looks == [1], "the answer waits for no timer"
    assert end_of(line, 0.0).outcome == "failed"


def test_an_instance_that_takes_no_order_has_no_session() -> None:
    place = Place()
    place.is_heard = False

    assert refused(place.open).kind == "busy"
    assert refused(lambda: place.line("/1")).kind == "no-session"


def test_an_input_that_no_console_takes_is_refused() -> None:
    """No thread could be started for the console: the command waited for an hour."""
    place = Place()
    _errand, instance, name = place.open()
    line = place.line(name)
    place.answer(instance, "lost", "there is no console")

    assert refused(lambda: line.send(0.0)).text == "there is no console"
