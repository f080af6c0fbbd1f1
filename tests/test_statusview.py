"""The table of `isowsgi status`: what two answers of each worker come to."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from isowsgi.cli import statusview
from isowsgi.cli.answers import Told
from isowsgi.shared.controlmessages import InstanceStatus, MountCounts, MountStatus, WorkerStatus
from isowsgi.shared.rows import BUCKET_LIMITS_S
from isowsgi.shared.sockets import Place

BUCKETS = len(BUCKET_LIMITS_S) + 1


def counts(requests: int = 0, failed: int = 0, cpu_s: float = 0.0, bucket: int = 0) -> MountCounts:
    buckets = [0] * BUCKETS
    buckets[bucket] = requests
    nothing: dict[str, Any] = dict.fromkeys(("busy_s", "waiting_s", "sending_s"), 0.0)
    nothing |= dict.fromkeys(("bytes_in", "bytes_out", "exceptions", "timeouts", "turned_away"), 0)
    nothing |= {name: [] for name in ("app_buckets", "waiting_buckets", "sending_buckets")}
    return MountCounts(requests=requests, responses=[0, requests - failed, 0, 0, failed], cpu_s=cpu_s, buckets=buckets, **nothing)


def mount(pattern: str, counted: MountCounts | None, state: str = "serving") -> MountStatus:
    instance = InstanceStatus(
        tag=f"{pattern} #1", generation=1, state=state, isolation="own-gil", threads=4, boot_s=0.1, requests=0, in_flight=[], error=""
    )
    return MountStatus(
        mount=pattern, app="a", isolation="own-gil", reason="auto", group=None, state=state, generation=1, reloads=0, stuck=0,
        retry_in_s=None, instances=[instance], last_error=None, counts=counted,
    )  # fmt: skip


def told(at: float, *mounts: MountStatus, pid: int = 7) -> Told[WorkerStatus]:
    return Told(Place("", 0, "", "", 1, pid), None, WorkerStatus(python="3.14", up_s=1, rss_mib=50.0, mounts=list(mounts), at=at))


def drawn(*args: Any, width: int = 80) -> list[str]:
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(statusview.view(*args))
    return capture.get().splitlines()


def line(lines: list[str], pattern: str) -> list[str]:
    return next(line for line in lines if line.startswith(pattern)).split()


def test_rates_are_what_was_counted_between_two_answers_of_all_workers() -> None:
    before = [told(10, mount("/a", counts(100, cpu_s=5.0)), pid=pid) for pid in (7, 8)]
    after = [told(12, mount("/a", counts(140, 4, 5.5, 5)), pid=pid) for pid in (7, 8)]

    row = line(drawn(after, before), "/a")

    assert row[5] == "40", "20 a second in each of two workers"
    assert row[8] == "10%!"
    assert row[9] == "50%"
    assert row[6:8] == ["7.5ms", "10.0ms"]


def test_of_a_worker_that_answered_once_no_rate_is_shown() -> None:
    assert line(drawn([told(12, mount("/a", counts(140)))]), "/a")[5:] == ["-", "-", "-", "-", "-"]
    assert line(drawn([told(12, mount("/a", None))], [told(10, mount("/a", None))]), "/a")[5:] == ["-", "-", "-", "-", "-"]


def test_it_fits_80_columns_and_cuts_no_figure_off() -> None:
    pattern = "/customers/a-rather-long-name/v1"
    failing = counts(12_345, 12_345, 15.0, BUCKETS - 1)

    def mounts(counted: MountCounts, state: str) -> list[MountStatus]:
        large = {"memory_bytes": 12_345 << 20, "isolation": "shared-gil"}
        return [mount(pattern, counted, state).replace(**large), mount("/shop", counted, "serving").replace(**large)]

    before = [told(0, *mounts(counts(), "quarantined"), pid=7), told(0, *mounts(counts(), "serving"), pid=8)]
    after = [told(1, *mounts(failing, "quarantined"), pid=7), told(1, *mounts(failing, "serving"), pid=8)]

    lines = drawn(after, before)

    assert max(map(len, lines)) <= 80
    text = " ".join(lines)
    assert all(figure in text for figure in ("quarantined! 1/2", "24690", "60.0s!", "100%!", "3000%", "24690M"))
    assert line(lines, "/shop")[:2] == ["/shop", "serving"]
    assert line(lines, "mount")[:2] == ["mount", "state"], "the isolation yields first"
    assert "isolation" in " ".join(drawn(after, before, width=120))


@pytest.mark.parametrize(
    ("sort", "order"),
    [(None, ["/b", "/a", "/c"]), ("name", ["/a", "/b", "/c"]), ("cpu", ["/c", "/a", "/b"]), ("requests", ["/a", "/b", "/c"])],
)
def test_what_takes_most_comes_first(sort: str | None, order: list[str]) -> None:
    before = [told(0, *(mount(pattern, counts()) for pattern in ("/b", "/a", "/c")))]
    after = [told(1, mount("/b", counts(5)), mount("/a", counts(9, cpu_s=0.1)), mount("/c", counts(1, cpu_s=0.5)))]

    lines = drawn(after, before, sort)

    assert [line.split()[0] for line in lines if line.startswith("/")] == order
