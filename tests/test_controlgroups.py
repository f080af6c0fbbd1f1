"""Whether a worker takes the service's control group for its apps, and what it says where it cannot any more."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isowsgi.cli.answers import Told
from isowsgi.cli.comparison import late_limits
from isowsgi.configuration import App, Config, Mount
from isowsgi.instances.controlgroups import ControlGroups
from isowsgi.shared import cgroups
from isowsgi.shared.cgroups import Subtree
from isowsgi.shared.messages import BootOrder, Descriptors
from isowsgi.shared.sockets import Place
from tests.orders import any_orders

GUNICORN = SimpleNamespace(uid=33, gid=34)


def mount(**limits: float) -> Mount:
    return Mount(pattern="/a", prefix="/a", app=App(kind="module", target="a", call="application"), isolation="process", limits=limits)


def config(**limits: float) -> Config:
    return Config(path="/isowsgi.toml", mounts=(mount(**limits),))


def order(**limits: float) -> BootOrder:
    return any_orders([]).write([mount(**limits)], "process", 0, 1, 1).replace(fds=Descriptors(board=0, channel=0))


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int] | None]:
    """A service that root's gunicorn could take; who took it."""
    found: list[tuple[int, int] | None] = []

    class Tree(Subtree):
        def prepare(self, owner: tuple[int, int] | None) -> None:
            found.append(owner)

    monkeypatch.setattr(cgroups, "find", lambda: Tree(str(tmp_path), frozenset(("cpu",))))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return found


@pytest.mark.parametrize(
    ("limits", "expected"), [({}, []), ({"files": 99.0}, []), ({"cpu": 0.5}, [(33, 34)]), ({"memory": 2.0**30}, [(33, 34)])]
)
def test_the_services_group_is_taken_only_for_limits_that_need_it(
    prepared: list[tuple[int, int] | None], limits: dict[str, float], expected: list[Any]
) -> None:
    """All processes of the group are moved, and it is given to gunicorn's user."""
    ControlGroups(logging.getLogger()).prepare_early(config(**limits), GUNICORN)

    assert prepared == expected


def test_limits_that_come_when_root_is_given_up_are_told_once(
    prepared: list[tuple[int, int] | None], caplog: pytest.LogCaptureFixture
) -> None:
    groups = ControlGroups(logging.getLogger())
    groups.prepare_early(config(), GUNICORN)

    for _ in range(2):
        with groups.hold(order(cpu=0.5)) as (_, group):
            assert group is None

    assert prepared == []
    assert [record.message for record in caplog.records] == [
        "/a #1: limits.cpu has no effect and other limits are set by setrlimit(2) until gunicorn gets SIGHUP: "
        "this worker gave root's rights up when no mount had limits"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="the master is root's")
def test_the_plan_says_that_the_first_limits_need_sighup() -> None:
    def told(uid: int, **settings: str) -> Any:
        place = Place(folder="/run", owner=uid, name="w", config="", master=os.getpid(), worker=2)
        return Told(place, None, SimpleNamespace(mounts=[SimpleNamespace(settings=settings)]))

    said = ["limits get control groups at SIGHUP, not by apply: these workers gave root's rights up when no mount had limits"]
    assert late_limits([told(33), told(33)], config(cpu=0.5)) == said
    assert late_limits([told(33)], config(files=99.0)) == []
    assert late_limits([told(0)], config(cpu=0.5)) == []
    assert late_limits([told(33, **{"limits.memory": '"1G"'})], config(cpu=0.5)) == []
