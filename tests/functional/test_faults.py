"""A sample of `make faults`: whatever fails in the worker, the neighbour loses nothing and the worker stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import WHOLE
from tests.faults import inject
from tests.faults.harness import NEEDED_BY_EACH_WORKER, Place, pairs

# Faults in the suite; all of them take an hour: `make faults`.
SAMPLE = 12 if WHOLE else 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("faults"))
    yield place
    place.close()


def test_points_are_found_in_every_part_of_the_worker(place: Place) -> None:
    """A list by hand would miss what is new."""
    for part in ("worker.loop", "worker.acceptor", "worker.control.server", "worker.deployment", "instances.base", "shared.scoreboard"):
        assert any(f"isowsgi.{part}" in point for point in place.points), part
    assert {"socket.accept", "os.eventfd", "Thread.start", "Popen.__init__"} <= set(place.points)
    assert {"epoll register of isowsgi.worker.loop", "report Ready out of place", "order BootOrder garbled"} <= set(place.points)
    assert any(point.startswith("master: isowsgi.shared.board.") for point in place.points)


def test_whatever_fails_the_neighbour_loses_nothing_and_the_worker_stays(place: Place) -> None:
    findings, met = [], []
    for point, mode in pairs(place.points_met(), count=SAMPLE):
        found, failed = place.try_point(point, mode)
        findings += found
        met += [point] if failed else []

    assert not findings, "\n".join(map(str, findings))
    assert len(met) >= SAMPLE / 4, f"only {met} failed at all"


def test_what_fails_in_the_master_costs_the_next_worker_at_most(place: Place) -> None:
    """All of gunicorn ended when a worker's share could not be made."""
    found, failed = place.try_point("master: isowsgi.master.workerplan.Share.__init__", "once")

    assert not found, "\n".join(map(str, found))
    assert failed == 1


def test_what_is_treated_otherwise_is_there(place: Place) -> None:
    """A name that has moved would leave out nothing, or what nobody meant."""
    for start in NEEDED_BY_EACH_WORKER:
        assert any(point.startswith(start) for point in place.points), start
    found = [inject.MASTER + label for label in inject.labels(inject.names_in_master())]
    found += inject.labels(inject.names_in_worker())
    for start in (*inject.NOT, *inject.NOT_IN_MASTER):
        assert any(label.startswith(start) for label in found), start
