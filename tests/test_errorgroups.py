"""Groups of errors: failures are not hidden by what was only logged, nor new ones by old ones, and the sums by type never fall."""

from __future__ import annotations

import time

import pytest

from isowsgi.shared.errorgroups import EXCEPTION, LOGGED, MOST_GROUPS, OTHER, Groups
from isowsgi.shared.places import place_in
from isowsgi.worker.incidents import Incidents


def count(incidents: Incidents, kind: str, type_: str, times: int = 1, pattern: str = "/a") -> None:
    incidents.count(pattern, 1, (kind, type_, f"/srv/{type_}.py:1 in f"), "GET /", f"{type_}: x", count=times)


def test_failures_come_before_what_was_only_logged_more_often() -> None:
    incidents = Incidents()
    for number in range(5):
        count(incidents, LOGGED, f"L{number}", 1000)
    count(incidents, EXCEPTION, "KeyError", 900)

    assert next(group.type for group in incidents.groups_of("/a")) == "KeyError"


def test_what_was_logged_takes_no_place_of_a_failure() -> None:
    incidents = Incidents()
    for number in range(MOST_GROUPS + 5):
        count(incidents, LOGGED, f"L{number}")
    for _ in range(3):
        count(incidents, EXCEPTION, "KeyError", 300)

    assert incidents.of("/a").by_type == {"KeyError": 900}
    assert next((group.type, group.count) for group in incidents.groups_of("/a")) == ("KeyError", 900)


def test_a_new_failure_takes_the_place_of_the_one_that_was_not_seen_for_longest_and_no_sum_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1, 1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    incidents = Incidents()
    for number in range(MOST_GROUPS):
        count(incidents, EXCEPTION, f"E{number}", 2)
    count(incidents, EXCEPTION, "E0")
    count(incidents, EXCEPTION, "New")

    groups = {group.type: group.count for group in incidents.groups_of("/a")}
    assert (groups["New"], groups["E0"], groups[OTHER]) == (1, 3, 2)
    assert "E1" not in groups
    assert sum(groups.values()) == sum(incidents.of("/a").by_type.values()) == 2 * MOST_GROUPS + 2
    assert incidents.of("/a").by_type["E1"] == 2


def test_types_that_an_app_makes_up_are_bounded() -> None:
    groups = Groups()
    for number in range(1000):
        groups.count((EXCEPTION, f"E{number}", ""), 1, number + 1.0).add(1, number + 1.0, "", "", "")

    assert len(groups.table) == MOST_GROUPS + 1
    assert len(groups.by_type) < 200
    assert sum(groups.by_type.values()) == 1000


def test_the_last_error_is_a_failure_of_the_mount_itself() -> None:
    incidents = Incidents()
    count(incidents, EXCEPTION, "KeyError")
    count(incidents, LOGGED, "ValueError")
    count(incidents, EXCEPTION, "OSError", pattern="/b")
    latest = incidents.latest("/a")

    assert latest is not None
    assert latest.error == "KeyError: x"


def test_a_deployment_takes_over_the_errors_of_its_own_mounts_alone() -> None:
    before, after = Incidents(), Incidents()
    count(before, EXCEPTION, "KeyError")
    count(before, EXCEPTION, "OSError", pattern="/b")
    after.take_over(before, ["/a", "/c"])

    assert list(after.groups) == ["/a"]


@pytest.mark.parametrize("text", ["\n" * 250_000, " " * 250_000, "\t \n" * 80_000, 'File "' * 40_000])
def test_reading_a_stack_that_is_none_takes_no_time(text: str) -> None:
    began = time.process_time()
    assert place_in(text) == ""
    assert time.process_time() - began < 1.0  # it was minutes
