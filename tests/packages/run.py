"""Uses one package in two mounts of a real server, beside each other, while one of the two is reloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, eventually, running_server
from tests.packages.uses import USES

APP = """
import os
ME = os.environ["ME"]
{setup}
def application(environ, start_response):
    exec(WORK, globals())
    body = environ["isowsgi.isolation"].encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
WORK = {work!r}
"""

RELOADS = 3
REQUESTS = 10  # for each mount after each reload, to meet more than one thread

# Loading pandas twice on a busy machine, trials included.
LOAD_S = 180.0


def use(name: str, venv: str | None, folder: Path) -> tuple[set[str], int]:
    """Use one package; return where its mounts live and how many requests were answered.

    Raises:
        AssertionError: something went wrong.
    """
    mounts = "".join(f'"/{me}" = {{ app = "used", env = {{ ME = "{me}" }} }}\n' for me in "ab")
    defaults = f'[defaults]\npythonpath = ["."]\nthreads = 2\nboot_timeout = {LOAD_S:g}\n' + (f'venv = "{venv}"\n' if venv else "")
    config = f'{defaults}[control]\nfolder = "control"\n[mounts]\n{mounts}'
    files = {"used.py": APP.format(setup=USES[name].setup, work=USES[name].work)}
    with running_server(folder, config, files=files, env={"ISOWSGI_CACHE_DIR": str(folder / "cache")}, wait_for=0) as server:
        eventually(lambda: "Listening at" in server.log(), "the server listens", LOAD_S)
        server.learn_port()
        eventually(lambda: all(server.get(f"/{me}").status_code != 503 for me in "ab"), "both mounts serve", LOAD_S)
        [worker] = server.workers()
        found, answered = set(), 0
        for _ in range(1 + RELOADS):
            for me in "ab" * REQUESTS:
                answer = server.get(f"/{me}")
                assert answer.status_code == 200, f"{name}: /{me}: {answer.status_code}\n{server.log()[-3000:]}"
                found.add(answer.text)
                answered += 1
            done = subprocess.run(
                [sys.executable, "-m", "isowsgi", "reload", "/a"],
                cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=LOAD_S, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{name}: reload: {done.stdout}{done.stderr}"
        assert server.workers() == [worker], f"{name}: the worker was replaced\n{server.log()[-3000:]}"
    return found, answered
