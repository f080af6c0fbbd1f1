"""The probe: how long a thread waits for the main interpreter's GIL."""

import sys
import threading

import pytest

from isowsgi.shared.containment import Containment
from isowsgi.shared.rows import BUCKET_LIMITS_S
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.worker.gilprobe import GilProbe
from tests.conftest import eventually
from tests.test_serve import QuietLog


class Place:
    def __init__(self) -> None:
        self.board = Scoreboard()
        self.probe = GilProbe(self.board.acceptor_row(), Containment(QuietLog(), self.board.row(0).words))

    def buckets(self) -> tuple[int, ...]:
        return self.board.totals()["", ""].buckets()


@pytest.fixture
def place() -> Place:
    return Place()


def test_each_look_is_counted(place: Place) -> None:
    for _ in range(3):
        place.probe.look()

    assert sum(place.buckets()) == 3


def test_it_rests_while_no_mount_shares_the_gil(place: Place) -> None:
    place.probe.start()
    assert sum(place.buckets()) == 0

    place.probe.want(True)
    assert eventually(lambda: sum(place.buckets()) > 0)
    place.probe.want(False)


def test_it_sees_that_another_thread_keeps_the_gil(place: Place) -> None:
    """Who wants the GIL gets it a switch interval later, and not before."""
    interval = sys.getswitchinterval()
    is_over = threading.Event()
    thread = threading.Thread(target=keep_busy, args=(is_over,))
    sys.setswitchinterval(0.05)
    thread.start()
    try:
        for _ in range(20):  # the other thread may not have it just then
            place.probe.look()
            if long_waits(place):
                break
    finally:
        sys.setswitchinterval(interval)
        is_over.set()
        thread.join()

    assert long_waits(place)


def long_waits(place: Place) -> int:
    return sum(place.buckets()[BUCKET_LIMITS_S.index(0.025) + 1 :])


def keep_busy(is_over: threading.Event) -> None:
    while not is_over.is_set():
        sum(range(1000))
