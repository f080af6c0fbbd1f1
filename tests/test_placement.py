"""Trials are shared: what one tells, no other mount is tried for."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isowsgi.configuration import App, Mount
from isowsgi.inside.extensions import stamp_of
from isowsgi.isolation import decision
from isowsgi.isolation.decision import Stamp, Verdict
from isowsgi.shared import interpreters
from isowsgi.shared.containment import Containment
from isowsgi.shared.messages import BootOrder
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker.trials import Placement
from tests.conftest import DEADLINE_S, eventually
from tests.orders import any_orders


class Waiting:
    """A mount whose boot waits for a verdict."""

    def __init__(self, app: str, pattern: str) -> None:
        self.name = pattern
        self.members = [Mount(pattern=pattern, prefix=pattern, app=App(kind="module", target=app, call="application"))]
        self.mount = self.members[0]
        self.verdicts: list[Verdict] = []
        self.began = 0
        self.siting: Any = SimpleNamespace(
            is_auto=True,
            late_imports=[],
            isolation="own-gil",
            on_verdict=lambda verdict, now: self.verdicts.append(verdict),
            tell_of_trial=self._begin,
        )
        self.slots: Any = SimpleNamespace(asking=[object()])

    def _begin(self) -> None:
        self.began += 1


class Place:
    """Trials that end when the test says so."""

    def __init__(self, folder: Path) -> None:
        self.board = Scoreboard()
        log = logging.getLogger("test")
        self.placement = Placement(any_orders([]), Containment(log, self.board.row(0).words))
        self.folder = folder
        self.tried: list[str] = []
        self.found: dict[str, Verdict] = {}  # by app
        self.may_end = threading.Event()

    def file(self, name: str) -> tuple[str, Stamp]:
        path = self.folder / name
        path.touch()
        size, mtime = stamp_of(str(path)) or (0, 0)
        return str(path), (size, mtime)

    def decide(self, order: BootOrder, **_: Any) -> Verdict:
        app = order.members[0].app.target
        self.tried.append(app)
        assert self.may_end.wait(DEADLINE_S)
        return self.found[app]

    def end_trials(self, *mounts: Waiting) -> None:
        """Let them end, and wait until mounts have a verdict."""
        self.may_end.set()

        def have_all() -> bool:
            self.read()
            return all(mount.verdicts for mount in mounts)

        eventually(have_all, "a verdict for each")

    def read(self) -> None:
        os.eventfd_write(self.placement.fileno(), 1)
        self.placement.read_verdicts()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("ISOWSGI_CACHE_DIR", str(tmp_path / "verdicts"))
    monkeypatch.setattr(interpreters, "best_isolation", lambda: "own-gil")
    made = Place(tmp_path)
    monkeypatch.setattr(decision, "decide", made.decide)
    yield made
    made.may_end.set()
    os.close(made.placement.fileno())
    os.close(made.board.fd)


def test_mounts_that_come_to_a_file_while_it_is_tried_wait_for_that_trial(place: Place) -> None:
    path, stamp = place.file("speedups.so")
    place.found["a"] = Verdict(isolation="own-gil", reason="it loads", extensions={path: stamp}, own_gil={path: stamp})
    mounts = [Waiting(app, f"/{app}") for app in "abc"]

    began = [place.placement.try_out(mount, path) for mount in mounts]  # type: ignore[arg-type]
    place.end_trials(*mounts)

    assert (began, place.tried) == ([True, False, False], ["a"])
    assert [(mount.verdicts[0].isolation, mount.verdicts[0].is_shared) for mount in mounts] == [
        ("own-gil", False),
        ("own-gil", True),
        ("own-gil", True),
    ]
    assert place.placement.vouched() == {path: stamp}


def test_a_file_is_vouched_for_though_the_app_that_loaded_it_is_refused_for_another(place: Place) -> None:
    """Flask with numpy said nothing of Flask's markupsafe, so each other Flask was tried as well."""
    (path, stamp), (other, its) = place.file("speedups.so"), place.file("once.so")
    place.found["a"] = Verdict(
        isolation="process", reason="once loads once", extensions={other: its}, own_gil={path: stamp}, unfit={other: its}
    )
    first, second, third = (Waiting(app, f"/{app}") for app in "abc")

    assert place.placement.try_out(first, path)  # type: ignore[arg-type]
    assert not place.placement.try_out(second, path)  # type: ignore[arg-type]
    place.end_trials(first, second)
    assert not place.placement.try_out(third, other)  # type: ignore[arg-type]
    place.end_trials(third)

    assert place.tried == ["a"]
    assert [each.verdicts[0].isolation for each in (first, second, third)] == ["process", "own-gil", "process"]
    assert third.verdicts[0].reason == "once loads once"


def test_another_mount_of_the_same_app_has_its_verdict(place: Place) -> None:
    """Nineteen apps, each mounted twice, were tried twice."""
    path, _ = place.file("odd.so")
    place.found["a"] = Verdict(isolation="shared-gil", reason="odd refuses an own GIL")
    one, two = Waiting("a", "/one"), Waiting("a", "/two")

    assert [place.placement.try_out(mount, path) for mount in (one, two)] == [True, False]  # type: ignore[arg-type]
    place.end_trials(one, two)

    assert (place.tried, two.verdicts) == (["a"], one.verdicts)


def test_mounts_that_waited_for_two_trials_which_tell_them_nothing_are_tried_themselves_all_at_once(place: Place) -> None:
    path, _ = place.file("odd.so")
    place.found = {app: Verdict(isolation="shared-gil", reason="odd refuses an own GIL") for app in "abcd"}
    mounts = [Waiting(app, f"/{app}") for app in "abcd"]

    for mount in mounts:
        place.placement.try_out(mount, path)  # type: ignore[arg-type]
    place.end_trials(*mounts)

    assert place.tried[:2] == ["a", "b"]
    assert sorted(place.tried) == ["a", "b", "c", "d"]
    assert [mount.began for mount in mounts] == [0, 1, 1, 1]
    assert not place.placement.vouched()


def test_what_is_known_of_a_file_does_not_count_for_another_content_of_it(place: Place) -> None:
    path, stamp = place.file("once.so")
    place.found["a"] = Verdict(isolation="process", reason="once loads once", unfit={path: stamp})
    place.found["b"] = Verdict(isolation="own-gil", reason="it loads")
    first, second = Waiting("a", "/a"), Waiting("b", "/b")
    place.placement.try_out(first, path)  # type: ignore[arg-type]
    place.end_trials(first)

    Path(path).write_text("another release")

    assert place.placement.try_out(second, path)  # type: ignore[arg-type]
    place.end_trials(second)
    assert second.verdicts[0].isolation == "own-gil"


def test_a_verdict_that_others_have_found_is_remembered_for_each_app(place: Place) -> None:
    path, stamp = place.file("once.so")
    place.found["a"] = Verdict(isolation="process", reason="once loads once", extensions={path: stamp}, unfit={path: stamp})
    first, second = Waiting("a", "/a"), Waiting("b", "/b")
    place.placement.try_out(first, path)  # type: ignore[arg-type]
    place.end_trials(first)
    place.placement.try_out(second, path)  # type: ignore[arg-type]
    place.end_trials(second)

    again = Placement(any_orders([]), Containment(logging.getLogger("test"), place.board.row(0).words))

    verdict = again.recall(second.members)
    assert verdict is not None
    assert (verdict.isolation, verdict.unfit) == ("process", {path: stamp})
    os.close(again.fileno())
