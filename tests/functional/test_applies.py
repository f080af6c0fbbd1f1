"""A short form of `make applies`: changes of the table of a real server under load, each judged by what it did to the others."""

from __future__ import annotations

from typing import Any

import pytest

from soak.applies import Rounds, Same, Watched, grown
from soak.farm import Farm
from tests.conftest import whole_only


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Farm(tmp_path_factory.mktemp("farm"), small=4, flask=3, workers=2) as farm:
        yield farm


@pytest.fixture
def watched(farm: Farm) -> Any:
    watched = Watched(farm, seed=1)
    yield watched
    watched.kill()


def test_a_change_costs_nobody_a_request_and_no_other_mount_its_interpreter_generation_or_counters(farm: Farm, watched: Watched) -> None:
    rounds = Rounds(farm, watched, quiet_s=0)
    rounds.run(1)

    assert watched.stop() + rounds.faults == []
    assert watched.counts()["answered"] > 0
    assert {what: len(took) for what, took in rounds.took.items()} == {"add": 1, "change env": 1, "rename": 1, "remove": 1}


@whole_only("takes 5 s of CPU time for what `make applies` shows with more changes")
def test_a_mount_that_is_changed_over_and_over_leaves_nothing_behind(farm: Farm, watched: Watched) -> None:
    """Whether memory is flat needs a hundred changes and more: `make applies ARGS="--flat 1000"`."""
    same = Same(farm, watched)
    same.run(2)

    assert watched.stop() == []
    kinds = ("epoll", "interpreters", "rows")
    assert [fault for fault in same.faults if any(kind in fault for kind in kinds)] == []
    assert len(same.samples) == 3


def test_what_grows_is_told() -> None:
    steady = [(number, {"threads": 10.0, "memory": 100.0 + number / 100}) for number in range(0, 310, 10)]

    assert grown(steady) == []
    assert grown([(number, {**sizes, "threads": 10.0 + number / 100}) for number, sizes in steady]) == ["threads: 11.1 became 12.9"]
