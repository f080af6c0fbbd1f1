"""`isowsgi check` foretells where a worker puts each app, whatever its extension modules do; and requests find there what a process has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isowsgi.shared.interpreters import OWN_GIL, PROCESS, SHARED_GIL, VERSION, best_isolation
from tests.conftest import DEADLINE_S, ROOT, Server, StartServer, eventually, sample
from tests.orders import REFUSES_OWN_GIL, copy_extension

pytestmark = pytest.mark.skipif(best_isolation() != OWN_GIL, reason="without an own GIL there is less to choose from")

WSGI = """
def application(environ, start_response):
    body = environ["isowsgi.isolation"].encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

# What each app's import does, and the isolation that it gets.
KINDS = {
    "opted_in": ("import xxlimited", OWN_GIL),
    "swallowed": (f"try:\n    import {REFUSES_OWN_GIL}\nexcept ImportError:\n    pass", SHARED_GIL),
    "swallowed_library": ("try:\n    import faulthandler\nexcept ImportError:\n    pass", SHARED_GIL),
    "shares": ("import xxlimited_35", PROCESS),
    "forks": ("import os\nif (child := os.fork()) == 0:\n    os._exit(0)\nos.waitpid(child, 0)", PROCESS),
}
if VERSION >= (3, 14):
    KINDS["once"] = ("import _curses", PROCESS)
# Each has trials of its own, twice, which take 3 s of CPU time. The sample begins with the last one, the newest: one that gets a process,
# and one that gets a shared GIL. The other kinds are in whole runs only; test_decision and test_check have their like, without a worker.
KINDS = {kind: KINDS[kind] for kind in sample([*KINDS][::-1], 3)}
EXTENSIONS = ("xxlimited", "xxlimited_35", REFUSES_OWN_GIL, "_curses")


def check(server: Server, cache: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "isowsgi", "check", "isowsgi.toml", "--json"],
        cwd=server.folder, env={**os.environ, "PYTHONPATH": str(ROOT), "ISOWSGI_CACHE_DIR": str(cache)}, capture_output=True, text=True,
        timeout=4 * DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {mount["pattern"]: mount["isolation"] for mount in json.loads(done.stdout)["mounts"]}


@pytest.mark.slow
def test_check_and_worker_agree_about_every_kind_of_extension_module(serve: StartServer, tmp_path: Path) -> None:
    for name in EXTENSIONS:
        copy_extension(name, tmp_path)
    mounts = "".join(f'"/{kind}" = {{ app = "{kind}", pythonpath = [".", "{tmp_path}"] }}\n' for kind in KINDS)
    files = {f"{kind}.py": code + WSGI for kind, (code, _) in KINDS.items()}
    server = serve(f"[mounts]\n{mounts}", files=files, env={"ISOWSGI_CACHE_DIR": str(tmp_path / "worker")}, wait_for=1)
    isolations = {f"/{kind}": isolation for kind, (_, isolation) in KINDS.items()}

    def answers() -> dict[str, str]:
        return {pattern: server.get(pattern).text for pattern in isolations}

    eventually(lambda: answers() == isolations, "each app lives where it should", 4 * DEADLINE_S)
    assert check(server, tmp_path / "check") == isolations


LATE = """
def application(environ, start_response):
    if environ["PATH_INFO"] == "/late":
        import faulthandler
    body = environ["isowsgi.isolation"].encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def test_what_a_request_imports_of_the_standard_library_moves_the_mount_and_check_knows(serve: StartServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server = serve('[mounts]\n"/" = "late"\n', files={"late.py": LATE}, env={"ISOWSGI_CACHE_DIR": str(cache)})
    assert server.get("/").text == OWN_GIL

    assert server.get("/late").status_code == 500

    eventually(lambda: server.get("/late").text == SHARED_GIL, "the mount has moved", 4 * DEADLINE_S)
    assert check(server, cache) == {"/": SHARED_GIL}
