"""How much memory each app has, told from the outside while it serves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from isowsgi.cli import client
from isowsgi.shared import controlmessages, interpreters
from tests.conftest import DEADLINE_S, Server, eventually, running_server

OWN = interpreters.OWN_GIL if interpreters.own_gil_error() is None else interpreters.SHARED_GIL

CONFIG = f"""
[mounts]
"/own" = {{ app = "leaks", isolation = "{OWN}" }}
"/shared" = {{ app = "leaks", isolation = "shared-gil" }}
"/process" = {{ app = "leaks", isolation = "process" }}
"/quiet" = {{ app = "leaks", isolation = "{OWN}" }}
"""

MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("memory"), CONFIG, wait_for=4) as started:
        yield started


def sizes(server: Server) -> dict[str, int | None]:
    places = client.find(str(server.folder / "isowsgi.toml"), None)
    (told,) = client.ask(places, controlmessages.Status(), DEADLINE_S)
    assert not isinstance(told.answer, controlmessages.Error)
    return {mount.mount: mount.memory_bytes for mount in told.answer.mounts}


CASES = [("/own", "/large"), ("/shared", "/large"), ("/process", "/large")]
if OWN == interpreters.OWN_GIL:  # else 100,000 objects are looked at, which takes longer than a test may
    CASES.append(("/own", "/small"))


@pytest.mark.parametrize(("pattern", "path"), CASES)
def test_the_app_that_leaks_is_told_with_what_it_leaked(server: Server, pattern: str, path: str) -> None:
    """By 15 %, in each home; and its neighbours have not grown."""
    eventually(lambda: None not in sizes(server).values(), "a figure for each mount")
    before = sizes(server)
    for _ in range(6):
        assert server.get(f"{pattern}{path}?5").status_code == 200

    def grown(pattern: str) -> float:
        return ((sizes(server)[pattern] or 0) - (before[pattern] or 0)) / MIB

    eventually(lambda: 0.85 * 30 < grown(pattern) < 1.15 * 30, f"30 MiB more of {pattern}")
    for other in {"/own", "/shared", "/process", "/quiet"} - {pattern}:
        assert grown(other) < 0.15 * 30
