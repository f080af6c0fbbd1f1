"""`isowsgi memory` in a worker: what instances tell is taken within bounds, of all of them together."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from isowsgi.instances.lifecycle import State
from isowsgi.shared import controlmessages
from isowsgi.shared.controlmessages import MountMemory
from isowsgi.shared.messages import Census, Counted
from isowsgi.worker.control.growth import Growths

# A part of a census, as one packet has it.
PART = 32 * 1024


class Copy:
    """An instance that tells as much as it is asked for, and more."""

    isolation, state, generation = "process", State.SERVING, 1

    def __init__(self, number: int, growths: Growths, parts: int) -> None:
        self.tag = f"/a #1.{number}"
        self._growths = growths
        self._parts = parts

    def tell(self, order: Any) -> bool:
        if isinstance(order, Census):
            for part in range(self._parts):
                report = Counted(ask=order.ask, text="x" * PART, is_last=part == self._parts - 1)
                self._growths.hear(self, report)  # type: ignore[arg-type] # an instance, for all that matters here
        return True


def told(copies: int, parts: int) -> MountMemory:
    """Return the answer about some copies, each of which tells so many parts of each census."""
    growths = Growths()
    serving = [Copy(number, growths, parts) for number in range(copies)]
    deployment: Any = SimpleNamespace(name="/a", mount=SimpleNamespace(pattern="/a"), slots=SimpleNamespace(serving=lambda: serving))
    errand = growths.grow(controlmessages.Memory(mount="/a", seconds=0.001), deployment)
    now = time.monotonic()
    next(errand)
    while True:
        now += 1.0
        try:
            errand.send(now)
        except StopIteration as done:
            answer: MountMemory = done.value
            return answer


def test_what_copies_tell_is_handed_on() -> None:
    assert [(len(each.before), len(each.after), each.problem) for each in told(3, 2).instances] == [(2 * PART, 2 * PART, "")] * 3


def test_an_instance_that_tells_without_end_and_many_that_tell_much_are_cut() -> None:
    """The answer was as long as all copies together wished: the worker makes it in one step, for which all mounts wait."""
    (endless,) = told(1, 200).instances
    many = told(16, 20).instances

    assert (endless.before, endless.problem) == ("", "it told more than is taken")
    assert sum(len(each.before) + len(each.after) for each in many) <= 8 * 1024 * 1024
    assert {each.problem for each in many} == {"", "it told more than is taken"}
