"""An import waits at an extension file that nobody knows, until it is told or not wanted any more."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from isowsgi.inside.extensions import Extensions, UnknownExtension, stamp_of
from isowsgi.inside.permission import Permission
from isowsgi.shared.messages import Known, Report, Unknown
from tests.conftest import DEADLINE_S, eventually


class Boot:
    """A boot that comes to a file, on a thread."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.path = str(path)
        self.record = Extensions({})
        self.reports: list[Report] = []
        self.permission = Permission(self.reports.append)
        self.permission.guard(self.record)
        self.outcome = ""
        self.thread = threading.Thread(target=self._import, daemon=True)

    def _import(self) -> None:
        try:
            self.record.before(self.path)
            self.outcome = "loaded"
        except UnknownExtension:
            self.outcome = "stopped"

    def begin(self) -> None:
        self.thread.start()
        eventually(lambda: self.reports, "its question")
        assert self.reports == [Unknown(path=self.path)]
        assert not self.outcome

    def end(self) -> str:
        self.thread.join(DEADLINE_S)
        return self.outcome


@pytest.fixture
def boot(tmp_path: Path) -> Boot:
    return Boot(tmp_path / "speedups.so")


def test_an_import_goes_on_once_its_file_may_be_loaded_and_the_answer_is_whole(boot: Boot) -> None:
    boot.begin()

    boot.permission.take(Known(extensions={boot.path: stamp_of(boot.path) or []}, is_last=False))
    assert not boot.outcome
    boot.permission.take(Known(extensions={}, is_last=True))

    assert boot.end() == "loaded"
    boot.record.before(boot.path)  # is not asked for again
    assert len(boot.reports) == 1


@pytest.mark.parametrize("stamp", [[], [1, 2]])
def test_a_file_of_which_nothing_or_another_content_is_known_stops_the_boot(boot: Boot, stamp: list[int]) -> None:
    boot.begin()

    boot.permission.take(Known(extensions={boot.path: stamp} if stamp else {}, is_last=True))

    assert boot.end() == "stopped"
    with pytest.raises(UnknownExtension):  # and what continues without it does not ask again
        boot.record.before(boot.path + "x")
    assert len(boot.reports) == 1


def test_nobody_waits_for_an_instance_that_is_not_wanted_any_more(boot: Boot) -> None:
    boot.begin()

    boot.permission.end()

    assert boot.end() == "stopped"


def test_an_end_that_came_first_counts_too(boot: Boot) -> None:
    boot.permission.end()

    boot.thread.start()

    assert boot.end() == "stopped"
