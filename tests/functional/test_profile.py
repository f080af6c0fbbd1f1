"""`isowsgi profile` on a real server: it names the slow lines of a page in each isolation, and leaves nothing running."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from isowsgi.shared import interpreters
from isowsgi.shared.interpreters import OWN_GIL, PROCESS, SHARED_GIL
from tests.command import call
from tests.conftest import APPS, DEADLINE_S, ROOT, Server, eventually, shared_server
from tests.load import asked

ISOLATIONS = [isolation for isolation in (OWN_GIL, SHARED_GIL, PROCESS) if isolation != OWN_GIL or interpreters.own_gil_error() is None]
CAN_PROFILE = [isolation for isolation in ISOLATIONS if interpreters.can_profile(isolation, OWN_GIL in ISOLATIONS)]

QUERY_LINE = (APPS / "slow_page.py").read_text().partition("cursor.execute")[0].count("\n") + 1

CONFIG = "[defaults]\nthreads = 2\npythonpath = ['{apps}']\n[control]\nfolder = 'control'\n[mounts]\n" + "".join(
    f'"/{isolation}" = {{ app = "slow_page", isolation = "{isolation}" }}\n' for isolation in ISOLATIONS
)


server = shared_server(CONFIG, wait_for=len(ISOLATIONS))


def begin(server: Server, *arguments: str) -> subprocess.Popen[str]:
    """Start the command in the server's folder; it is sampling once this returns."""
    command = subprocess.Popen(
        [sys.executable, "-m", "isowsgi", "profile", *arguments],
        cwd=server.folder, env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert command.stderr is not None
    assert command.stderr.readline().startswith(("sampling", "isowsgi", "Usage"))
    return command


def ended(command: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = command.communicate(timeout=DEADLINE_S)
    return command.returncode, out, err


@pytest.mark.parametrize("isolation", CAN_PROFILE)
def test_the_slow_query_and_the_slow_template_are_named(server: Server, isolation: str) -> None:
    file = server.folder / f"{isolation}.html"
    with asked(server, f"/{isolation}/page", f"/{isolation}/quick"):
        status, out, err = ended(begin(server, f"/{isolation}", "--seconds", "1", "--by", "request", "-o", file.name))

    assert (status, err) == (0, f"wrote {file.name}\n"), out
    _, requests, lines, _ = re.split(r"\n\n(?=requests|lines)", out)
    assert re.search(rf"^ *[\d.]+ +[\d.]+ +[\d.]+ +GET /{isolation}/page *$", requests.splitlines()[2]), requests
    top = lines.splitlines()[2:8]
    assert any("total (" in line and f"slow_page.py:{QUERY_LINE})" in line for line in top), lines
    assert any("{% for item in items %} (" in line and "slow_page.html:2)" in line for line in top), lines
    page = file.read_text()
    assert "{% for item in items %}" in page
    assert "flamegraph()" in page


@pytest.mark.parametrize("isolation", sorted({*ISOLATIONS} - {*CAN_PROFILE}))
def test_where_stacks_cannot_be_read_safely_it_says_what_to_do(server: Server, isolation: str) -> None:
    status, out, err = ended(begin(server, f"/{isolation}", "--seconds", "1"))

    assert (status, out) == (1, "")
    assert re.search(r"reading stacks may crash Python [\d.]+ where .*; use Python [\d.]+ or newer, or isolation = 'process'", err)


def test_each_format_is_written_and_another_is_refused_before_anything_is_sampled(server: Server) -> None:
    with asked(server, f"/{PROCESS}/quick"):
        eventually(lambda: _sampled_cpu(server), "a sample of a request on a processor")
        assert ended(begin(server, f"/{PROCESS}", "--seconds", "0.3", "-o", "wall.txt"))[0] == 0
        assert ended(begin(server, f"/{PROCESS}", "--seconds", "0.3", "-o", "wall.svg"))[0] == 0
    no_folder = ended(begin(server, f"/{PROCESS}", "--seconds", "600", "-o", "nowhere/shop.html"))
    assert no_folder == (1, "", ""), "its first line, which `begin` reads, is the last one"
    refused = call(server.folder, "profile", f"/{PROCESS}", "-o", "graph.png")

    speedscope = json.loads((server.folder / "cpu.json").read_text())
    assert speedscope["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert all(re.fullmatch(r".+ \d+", line) for line in (server.folder / "wall.txt").read_text().splitlines())
    assert f"isowsgi profile /{PROCESS}</title>" in (server.folder / "wall.svg").read_text()
    assert refused.returncode == 2
    assert "expected a file that ends in .html, .svg, .json, .txt, got 'graph.png'" in refused.stderr


def _sampled_cpu(server: Server) -> bool:
    """Whether a request used a processor in three tenths of a second; on a busy machine none may have come to it."""
    assert ended(begin(server, f"/{PROCESS}", "--seconds", "0.3", "--cpu", "-o", "cpu.json"))[0] == 0
    return bool(json.loads((server.folder / "cpu.json").read_text())["profiles"][0]["weights"])


def test_one_command_samples_a_mount_at_a_time_and_its_end_ends_the_sampling(server: Server) -> None:
    first = begin(server, f"/{PROCESS}", "--seconds", "600")
    try:

        def second(said: str) -> bool:
            return said in ended(begin(server, f"/{PROCESS}", "--seconds", "0.1"))[2]

        eventually(lambda: second("is being profiled by another command, for "), "the first to begin")
    finally:
        first.kill()
        first.communicate()

    eventually(lambda: ended(begin(server, f"/{PROCESS}", "--seconds", "0.1"))[0] == 0, "the end of the first")


def test_a_reload_in_the_middle_is_told_and_both_generations_are_sampled(server: Server) -> None:
    with asked(server, f"/{PROCESS}/quick"):
        for seconds in (2, 4, 8, 16):  # on a busy machine a reload takes longer
            command = begin(server, f"/{PROCESS}", "--seconds", str(seconds))
            reloaded = call(server.folder, "reload", f"/{PROCESS}")
            status, out, err = ended(command)
            assert (reloaded.returncode, status) == (0, 0), err
            if len(re.findall(rf"/{PROCESS} #\d+ in worker", out)) == 2:
                break

    assert re.search(rf"/{PROCESS} was reloaded meanwhile; the profile is of the generations \d+, \d+", err)
    assert len(re.findall(rf"/{PROCESS} #\d+ in worker", out)) == 2


def test_a_mount_that_does_not_serve_is_told(server: Server) -> None:
    status, _, err = ended(begin(server, "/nowhere"))

    assert status == 2
    assert "no mount '/nowhere'" in err
