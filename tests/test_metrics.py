"""The metrics: names and values for Prometheus, judged by its own linter."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from isowsgi.shared.board import Board
from isowsgi.shared.rows import BYTES_OUT, REQUESTS, RESPONSES
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.status import metrics
from tests.conftest import ROOT
from tests.test_snapshot import instance, mount, worker

REFERENCE = ROOT / "docs" / "reference" / "metrics.md"
PROMETHEUS = ROOT / "deploy" / "prometheus"

WORKER: dict[str, Any] = {
    "isowsgi": "0.1.0", "python": "3.14.10", "pid": 7, "updated": 2.0, "rss_bytes": 5, "cpu_s": 1.5, "connections": {"open": 3},
    "certificates": [{"hosts": [], "path": "/own.pem", "expires": 9.0}],
}  # fmt: skip


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    os.close(board.fd)


@pytest.fixture
def region(board: Board) -> Scoreboard:
    limited = {**instance(), "control_group": {"memory_bytes": 2**20, "cpu_s": 1.0, "throttled_s": 0.5, "processes": 4}}
    unclear = {**instance("stuck", generation=2), "control_group": {"memory_bytes": "much"}}
    return worker(board, mount("/a", instances=[limited, unclear], error_types={"KeyError": 3}), mount('/"b\\'), **WORKER)


def text(board: Board) -> str:
    return generate_latest(metrics.registry(board)).decode()


def value(board: Board, name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in text_string_to_metric_families(text(board))
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, f"{len(found)} samples of {name} {labels}"
    return found[0]


def test_requests_and_responses_are_counted_by_mount(board: Board, region: Scoreboard) -> None:
    words = region.row(region.allot(1, [0], "own-gil") + 1).words
    words[REQUESTS], words[RESPONSES + 2], words[BYTES_OUT] = 3, 2, 100

    assert value(board, "isowsgi_requests_total", mount="/a", isolation="own-gil") == 3
    assert value(board, "isowsgi_responses_total", mount="/a", code="2xx") == 2
    assert value(board, "isowsgi_response_body_bytes_total", mount="/a") == 100


def test_what_control_groups_use_is_told_for_each_mount_that_has_some(board: Board, region: Scoreboard) -> None:
    names = ("isowsgi_group_memory_bytes", "isowsgi_group_processes", "isowsgi_group_throttled_seconds")

    assert [value(board, name, mount="/a") for name in names] == [2**20, 4, 0.5]
    assert 'isowsgi_group_memory_bytes{mount="/\\"b' not in text(board)


def test_the_histogram_is_cumulative_and_ends_with_all(board: Board, region: Scoreboard) -> None:
    row = region.row(region.allot(1, [0], "own-gil") + 1)
    for milliseconds in (1, 3, 100_000):
        row.end(milliseconds * 1_000_000, 0, 0)

    name = "isowsgi_request_duration_seconds"
    assert [value(board, f"{name}_bucket", mount="/a", le=le) for le in ("0.0005", "0.001", "0.005", "60.0", "+Inf")] == [0, 1, 2, 2, 3]
    assert value(board, f"{name}_count", mount="/a") == 3
    assert value(board, f"{name}_sum", mount="/a") == pytest.approx(100.004)


def test_instances_are_told_by_generation_and_state(board: Board, region: Scoreboard) -> None:
    assert value(board, "isowsgi_instances", mount="/a", generation="1", state="serving") == 1
    assert value(board, "isowsgi_instances", mount="/a", generation="2", state="stuck") == 1
    assert value(board, "isowsgi_mount_ready", mount="/a") == 1


def test_errors_of_workers_that_ended_stay_counted(board: Board, region: Scoreboard) -> None:
    """A counter that falls is taken for one that began anew, and all of it for an increase."""
    board.retire(region, None, 0.0)
    worker(board, mount("/a", error_types={"KeyError": 1, "timeout": 2}), **WORKER)

    assert value(board, "isowsgi_errors_total", mount="/a", type="KeyError") == 4
    assert value(board, "isowsgi_errors_total", mount="/a", type="timeout") == 2


def test_a_pattern_may_hold_what_must_be_escaped(board: Board, region: Scoreboard) -> None:
    assert value(board, "isowsgi_mount_info", mount='/"b\\', isolation="own-gil") == 1


def test_a_worker_is_told_by_a_label_that_is_used_again(board: Board, region: Scoreboard) -> None:
    """A process id would make a new series with each restart."""
    assert value(board, "isowsgi_worker_resident_memory_bytes", worker="0") == 5
    assert value(board, "isowsgi_worker_info", worker="0", pid="7", python="3.14.10") == 1


def test_a_certificate_expires_when_the_first_of_its_workers_says(board: Board) -> None:
    """One of them may serve with the one before it. What a worker says may be malformed."""
    both = [{"path": "/a.pem", "expires": 7.5}, {"path": "/b.pem", "expires": None}]
    for told in ([{"path": "/a.pem", "expires": 9.0}], both, [4, {}], 5):
        worker(board, mount("/a"), **{**WORKER, "certificates": told})

    assert value(board, "isowsgi_certificate_expiry_timestamp_seconds", certificate="/a.pem") == 7.5
    assert "/b.pem" not in text(board)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
def test_promtool_finds_no_fault_in_the_metrics(board: Board, region: Scoreboard) -> None:
    region.row(region.allot(1, [0], "own-gil") + 1).words[REQUESTS] = 3

    linted = subprocess.run(["promtool", "check", "metrics"], input=text(board), text=True, capture_output=True)

    assert (linted.returncode, linted.stdout + linted.stderr) == (0, "")


def families(board: Board) -> dict[str, tuple[str, str, set[str]]]:
    """Return kind, help and labels of each metric."""
    found = {}
    for family in metrics.registry(board).collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, family.documentation, labels)
    return found


def test_the_reference_lists_every_metric_with_its_kind_labels_and_meaning(board: Board, region: Scoreboard) -> None:
    region.allot(1, [0], "own-gil")
    rows = re.findall(r"^\| `(isowsgi_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", REFERENCE.read_text(), re.MULTILINE)

    documented = {name: (kind, meaning, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, meaning in rows}

    assert documented == families(board)


def test_rules_and_dashboard_ask_for_metrics_that_exist(board: Board, region: Scoreboard) -> None:
    known = set(families(board))
    known |= {f"{name}_{suffix}" for name in known for suffix in ("bucket", "count", "sum")}

    for path in (PROMETHEUS / name for name in ("alerts.yml", "alerts_test.yml", "dashboard.json")):
        asked = set(re.findall(r"\bisowsgi_\w+", path.read_text()))
        assert asked, path
        assert asked <= known, path


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
def test_promtool_finds_no_fault_in_the_alert_rules(tmp_path: Path) -> None:
    subprocess.run(["promtool", "check", "rules", PROMETHEUS / "alerts.yml"], check=True)
    subprocess.run(["promtool", "test", "rules", PROMETHEUS / "alerts_test.yml"], check=True)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
def test_prometheus_finds_the_hosts_by_their_names() -> None:
    config = PROMETHEUS / "prometheus.yml"
    subprocess.run(["promtool", "check", "config", config], check=True)

    told = subprocess.run(["promtool", "check", "service-discovery", "--timeout=1s", config, "isowsgi"], check=True, capture_output=True)

    found = {target["labels"]["instance"]: target["labels"]["__address__"] for target in json.loads(told.stdout)}
    servers = (ROOT / "deploy/haproxy/isowsgi.cfg").read_text()
    assert found == dict(re.findall(r"(?m)^    server (\S+) (\S+)$", servers))
    assert "/-/isowsgi" in (ROOT / "deploy/hosts/isowsgi.toml").read_text()


def test_the_dashboard_shows_hosts_and_mounts() -> None:
    panels = json.loads((PROMETHEUS / "dashboard.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", [])]

    assert len({panel["id"] for panel in panels}) == len(panels)
    for labels in ("mount", "instance", "instance, mount"):
        assert any(f"by ({labels})" in expression for expression in asked), labels
