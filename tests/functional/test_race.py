"""The race of tests/race.py, for seconds; `make race` runs it for as long as wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.race import ISOLATIONS, race


@pytest.mark.parametrize("isolation", [ISOLATIONS[0], ISOLATIONS[-1]])
def test_a_request_that_ends_when_it_times_out_harms_nobody(isolation: str, tmp_path: Path) -> None:
    """In a minute seven requests of others were interrupted, and one client in a hundred got a body without a head."""
    found = race(tmp_path, isolation, seconds=3, seed=1)

    assert found.wrong == []
    assert found.counts["short: 200"]
    assert found.counts["long: 504"] or found.counts["long: none (RemoteDisconnected)"]
