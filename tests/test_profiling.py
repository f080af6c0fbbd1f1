"""Profiles in a worker: what instances tell is taken within bounds, and what cannot be had is told with its reason."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from isowsgi.instances.lifecycle import State
from isowsgi.shared import controlmessages, interpreters
from isowsgi.shared.controlmessages import InstanceProfile, MountProfile, Refusal
from isowsgi.shared.messages import Profiled
from isowsgi.shared.rows import OWN_GILS
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker.control import profiling
from isowsgi.worker.control.profiling import Profiling


class Copy:
    """An instance."""

    def __init__(self, **facts: Any) -> None:
        self.__dict__.update(facts)


class Mount:
    """A deployment, and the errand of a profile of it."""

    def __init__(self, room: Profiling | None = None, copies: int = 1) -> None:
        self.orders: list[Any] = []
        self.is_heard = True
        self.serving: list[Any] = []
        for number in range(copies):
            self.serve(number)
        slots = SimpleNamespace(serving=lambda: self.serving)
        self.board = Scoreboard()
        surroundings = SimpleNamespace(board=self.board)
        deployment: Any = SimpleNamespace(name="/a", slots=slots, mount=SimpleNamespace(pattern="/a"), surroundings=surroundings)
        self.profiling = room or Profiling()
        request = controlmessages.Profile(mount="/a", seconds=1.0)
        self.errand = self.profiling.profile(request, deployment, 0)

    def serve(self, number: int, isolation: str = "process") -> None:
        """Have another instance serve."""
        self.serving.append(Copy(tag=f"/a #{number}", generation=number, isolation=isolation, state=State.SERVING, tell=self._tell))

    def tell(self, text: str, copy: int = 0, is_last: bool = True) -> None:
        self.profiling.hear(self.serving[copy], Profiled(ask=self.orders[0].ask, text=text, is_last=is_last))

    def answer(self) -> list[InstanceProfile]:
        with pytest.raises(StopIteration) as done:
            self.errand.send(time.monotonic() + 100)
        answer = done.value.value
        assert isinstance(answer, MountProfile)
        return answer.instances

    def _tell(self, order: Any) -> bool:
        self.orders.append(order)
        return self.is_heard


@pytest.mark.parametrize("text", ["x" * 30_000, "\U0001f600" * 3_000, '"' * 15_000], ids=["ascii", "emoji", "quotes"])
def test_an_instance_that_tells_too_much_costs_neither_the_others_nor_the_worker(text: str) -> None:
    """Characters were counted, and an emoji is 12 bytes of JSON: 50 MB, in one step of the acceptor's thread."""
    mount = Mount(copies=2)
    next(mount.errand)
    for _ in range(200):
        mount.tell(text, copy=0, is_last=False)
    mount.tell("", copy=0)
    mount.tell("fine", copy=1)

    hostile, other = mount.answer()

    assert (hostile.profile, other.profile, other.problem) == ("", "fine", "")
    assert "more than is taken" in hostile.problem


def test_all_that_instances_are_told_to_tell_is_within_the_limit() -> None:
    mount = Mount(copies=4)
    next(mount.errand)
    for copy, order in enumerate(mount.orders):
        mount.tell("x" * order.most_chars, copy)

    answer = mount.answer()

    assert not any(each.problem for each in answer)
    assert len(json.dumps([each.profile for each in answer])) < profiling._MOST_BYTES


def test_what_took_no_order_or_could_not_sample_is_told() -> None:
    mount = Mount()
    mount.is_heard = False
    next(mount.errand)
    mount.is_heard = True
    mount.serve(1)
    mount.errand.send(time.monotonic())
    mount.tell("", copy=1)

    first, second = mount.answer()

    assert "took no order" in first.problem
    assert "could not sample" in second.problem


def test_an_instance_that_comes_later_is_asked_only_if_that_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Mount()
    next(mount.errand)
    monkeypatch.setattr(interpreters, "can_profile", lambda isolation, has_own_gils: isolation != "own-gil")
    mount.serve(1, "own-gil")
    mount.errand.send(time.monotonic())
    mount.tell("fine")

    assert len(mount.orders) == 1
    assert "may crash" in mount.answer()[1].problem


def test_beside_an_own_gil_a_shared_one_is_not_sampled_where_all_frames_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its neighbour with an own GIL ran on while all stacks were read: the worker crashed within a second (3.13.0)."""
    monkeypatch.setattr(interpreters, "VERSION", (3, 13, 0))
    mount = Mount(copies=0)
    mount.serve(0, "shared-gil")
    mount.board.row(0).words[OWN_GILS] = 1

    with pytest.raises(Refusal, match=r"where an app of the same worker has an own GIL; use Python 3\.13\.16"):
        next(mount.errand)


def test_a_worker_takes_few_profiles_at_a_time() -> None:
    room = Profiling()
    running = [Mount(room) for _ in range(profiling.MOST_SESSIONS)]
    for each in running:
        next(each.errand)

    with pytest.raises(Refusal, match="being profiled already"):
        next(Mount(room).errand)
