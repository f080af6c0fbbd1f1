"""Apps that load the same extension modules: under `isolation = "auto"` one trial tells for all."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from isowsgi.cli.main import main
from isowsgi.shared.interpreters import OWN_GIL, best_isolation
from tests.conftest import DEADLINE_S, StartServer

APPS = 5

ON_TRIAL = "testing which isolation it supports"

# markupsafe comes with werkzeug, and its extension module can do with an own GIL.
APP = """
import markupsafe._speedups

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"app %d"]
"""

pytestmark = [
    pytest.mark.skipif(best_isolation() != OWN_GIL, reason="without an own GIL each app is tried for itself"),
    pytest.mark.skipif(importlib.util.find_spec("markupsafe._speedups") is None, reason="needs markupsafe's extension module"),
]


def test_an_extension_module_that_one_app_has_loaded_is_not_tried_for_each_other(serve: StartServer, tmp_path: Path) -> None:
    """At a first start twenty Flask apps were tried one after the other: 8.4 s until all served, of which 1.5 s were their imports."""
    config = "[mounts]\n" + "".join(f'"/app{number}" = "app{number}"\n' for number in range(APPS))
    files = {f"app{number}.py": APP % number for number in range(APPS)}
    cache = tmp_path / "verdicts"

    # On one core two trials could run at a time.
    one_core = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]
    server = serve(config, files=files, env={"ISOWSGI_CACHE_DIR": str(cache)}, wait_for=APPS, launcher=one_core)

    assert {server.get(f"/app{number}").text for number in range(APPS)} == {f"app {number}" for number in range(APPS)}
    trials = server.log().count(ON_TRIAL)
    assert trials == 1
    assert len(list(cache.glob("*.verdict"))) == 1
    assert "#2" not in server.log(), "the boots that waited for the verdict went on"

    server.send_signal(signal.SIGHUP)

    server.wait_for_log(r"#\d+: serving", 2 * APPS)
    assert server.log().count(ON_TRIAL) == trials, "the next worker knows it from the start"
    assert {server.get(f"/app{number}").text for number in range(APPS)} == {f"app {number}" for number in range(APPS)}


def test_a_worker_stops_and_a_mount_is_stopped_while_their_boots_wait_for_a_verdict(serve: StartServer) -> None:
    app = "import os, time\nif 'ISOWSGI_TRIAL' in os.environ:\n    time.sleep(600)\n" + APP
    server = serve('[mounts]\n"/waits" = "waits"\n"/other" = "waits"\n"/plain" = "hello"', files={"waits.py": app % 1}, wait_for=1)
    server.wait_for_log(ON_TRIAL)
    assert server.get("/plain").status_code == 200, "a mount that needs no trial is served meanwhile"

    result = CliRunner().invoke(main, ["stop", "/other", "--config", str(server.folder / "isowsgi.toml")])

    assert result.exit_code == 0, result.output
    server.wait_for_log("/other #1: ended")
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < DEADLINE_S / 2
    assert "Traceback" not in server.log()
