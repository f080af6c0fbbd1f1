"""Who waits for a thread too long is turned away; who was served in between has not waited."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from isowsgi.inside.admission import Admission
from isowsgi.shared.messages import Limits


class FakeService:
    """Has connections by descriptor, each with the number of requests that were served on it."""

    def __init__(self) -> None:
        self.served: dict[int, int] = {}
        self.turned_away: list[int] = []

    def last_served(self, fd: int) -> tuple[int, object]:
        return fd, self.served.get(fd, 0)

    def turn_away(self, fd: int, answer: bytes) -> None:
        self.turned_away.append(fd)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("isowsgi.inside.admission.time.monotonic", lambda: now[0])
    return now


def test_a_connection_that_was_served_meanwhile_waits_anew(now: list[float]) -> None:
    """Time was kept by descriptor: on a busy mount, quick clients were answered 503 who had hardly waited."""
    service: Any = FakeService()
    judge = Admission(None, service, Limits(**{**dict.fromkeys(Limits.fields, 0), "queue": 10, "queue_timeout_s": 2.0}))  # type: ignore[arg-type] # the runner only calls it
    judge._judge(deque([7, 8]))

    now[0] += 1.5
    service.served[7] = 1
    judge._judge(deque([8, 7]))
    assert service.turned_away == []

    now[0] += 1
    waiting = deque([8, 7])
    judge._judge(waiting)

    assert service.turned_away == [8]
    assert list(waiting) == [7]
