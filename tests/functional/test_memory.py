"""How much memory each app has, told from the outside while it serves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from isowsgi.cli import client
from isowsgi.shared import controlmessages, interpreters
from tests.conftest import APPS, DEADLINE_S, ROOT, Server, eventually, shared_server
from tests.load import Load, asked

# An own-GIL interpreter with this app has 10 MiB when it is loaded.
LIMIT_MIB = 30

# Where no interpreter has a GIL of its own, each more would be looked at in turn, for seconds.
HAS_OWN = interpreters.own_gil_error() is None
OWN_MOUNTS = f"""
"/own" = {{ app = "leaks", isolation = "own-gil" }}
"/quiet" = {{ app = "leaks", isolation = "own-gil" }}
"/limited" = {{ app = "leaks", isolation = "own-gil", max_memory = "{LIMIT_MIB}M" }}
"""

CONFIG = f"""
[control]
folder = "control"
[mounts]
"/shared" = {{ app = "leaks", isolation = "shared-gil" }}
"/process" = {{ app = "leaks", isolation = "process" }}
"/-/isowsgi" = {{ app = "isowsgi.status:application", isolation = "process" }}
{OWN_MOUNTS if HAS_OWN else ""}
"""

MIB = 2**20

KEEPING_LINE = (APPS / "leaks.py").read_text().partition("KEPT.append")[0].count("\n") + 1


server = shared_server(CONFIG, wait_for=6 if HAS_OWN else 3)


def sizes(server: Server) -> dict[str, int | None]:
    places = client.find(str(server.folder / "isowsgi.toml"), None)
    (told,) = client.ask(places, controlmessages.Status(), DEADLINE_S)
    assert not isinstance(told.answer, controlmessages.Error)
    return {mount.mount: mount.memory_bytes for mount in told.answer.mounts}


def told(server: Server) -> dict[str, dict[str, int]]:
    """Return the bytes of each mount by each that tells them."""
    page = server.get("/-/isowsgi/status.json").json()["mounts"]
    metrics = re.findall(r'isowsgi_memory_bytes\{[^}]*mount="([^"]*)"[^}]*\} (\S+)', server.get("/-/isowsgi/metrics").text)
    return {
        "status": {pattern: size or 0 for pattern, size in sizes(server).items()},
        "page": {mount["pattern"]: mount["memory_bytes"] or 0 for mount in page},
        "metrics": {pattern: int(float(size)) for pattern, size in metrics},
    }


PLACES = ("status", "page", "metrics")
CASES = [("/shared", "/large"), ("/process", "/large")]
if HAS_OWN:  # else 100,000 objects are looked at, which takes longer than a test may
    CASES += [("/own", "/small"), ("/own", "/large")]  # what a look finds of small blocks is exact: the next one begins with that


@pytest.mark.parametrize(("pattern", "path"), CASES)
def test_the_app_that_leaks_is_told_with_what_it_leaked_wherever_it_is_told(server: Server, pattern: str, path: str) -> None:
    """By 15 % of what it was asked to keep, in each home, also while it grows; and its neighbours have not grown."""
    eventually(lambda: all(len(each) == len(sizes(server)) and all(each.values()) for each in told(server).values()), "all figures")
    before = told(server)
    neighbour = "/quiet" if HAS_OWN else "/shared" if pattern == "/process" else "/process"

    def grown(place: str, pattern: str) -> float:
        return (told(server)[place][pattern] - before[place][pattern]) / MIB

    with asked(server, f"{neighbour}/", pause_s=0.05):
        for step, kept in ((6, 30), (2, 40), (2, 50)):
            for _ in range(step):
                assert server.get(f"{pattern}{path}?5").status_code == 200
            for place in PLACES:

                def is_right(place: str = place, kept: int = kept) -> bool:
                    return 0.85 * kept < grown(place, pattern) < 1.15 * kept

                eventually(is_right, f"{kept} MiB more of {pattern} by {place}")
    for other in before["status"].keys() - {pattern}:
        assert grown("status", other) < 0.15 * 50


@pytest.mark.parametrize("pattern", ["/quiet", "/process"] if HAS_OWN else ["/process"])
def test_the_command_names_what_grows_and_in_a_process_the_line(server: Server, pattern: str) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "isowsgi", "memory", pattern, "--seconds", "1", "--top", "3", "--json"],
        cwd=server.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert command.stderr is not None
    assert "twice, 1 s apart" in command.stderr.readline()
    assert "cost: " in command.stderr.readline()
    while command.poll() is None:
        assert server.get(f"{pattern}/large?1").status_code == 200
        try:
            command.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    out, err = command.communicate(timeout=DEADLINE_S)
    assert command.returncode == 0, err
    found = json.loads(out)

    (kept,) = (each for each in found["containers"] if each["what"] == "leaks.KEPT")
    assert kept["more"] >= 1
    assert kept["where"].endswith(f"leaks.py:{KEEPING_LINE}, {KEEPING_LINE + 3}")
    if pattern == "/process":
        assert found["types"][0]["what"] == "bytes"
        assert found["lines"][0]["what"].endswith(f"leaks.py:{KEEPING_LINE}")
        assert found["notes"] == []
    else:
        assert found["lines"] == []
        assert "by type and container only" in found["notes"][0]


@pytest.mark.skipif(not HAS_OWN, reason="no interpreter has a GIL of its own: measuring takes longer than a test may")
def test_an_app_over_its_max_memory_is_replaced_and_its_neighbour_loses_nothing(server: Server) -> None:
    with Load(server.connect, ["/quiet/", "/limited/"], clients=1) as load:
        for _ in range(LIMIT_MIB // 5 + 1):
            assert server.get("/limited/large?5").status_code == 200
        server.wait_for_log(rf"/limited: loading generation 2 \(uses \d+ MiB, max_memory is {LIMIT_MIB}M\)")
        server.wait_for_log("/limited #1: ended")

    assert load.failures == []
