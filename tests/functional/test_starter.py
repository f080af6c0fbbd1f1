"""How the tests start gunicorns: those that are forked have all of their own that a new process has."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.conftest import COLD_OF, StartServer
from tests.starter import Started

pytestmark = pytest.mark.skipif(COLD_OF > 0, reason="gunicorns are started as a user does")

# What gunicorn takes as defaults when its config module is imported, and what Python has at its start.
APP = """
import os, sys
from gunicorn import config

def application(environ, start_response):
    start_response("200 OK", [])
    facts = config.Chdir.default, config.Workers.default, os.getcwd(), os.environ.get("ONLY_HERE"), sys.argv[1:3]
    return [repr(facts).encode()]
"""


def test_a_gunicorn_that_is_forked_has_its_own_folder_environment_arguments_and_output(serve: StartServer) -> None:
    config = '[mounts]\n"/" = { app = "tells", isolation = "main", pythonpath = "." }'
    env = {"WEB_CONCURRENCY": "2", "ONLY_HERE": "yes"}
    servers = [serve(config, "--threads", "1", env=env if number else {}, files={"tells.py": APP}, wait_for=0) for number in (0, 1)]
    for number, server in enumerate(servers):
        server.wait_until_serving(1 + number)
        folder = str(server.folder)
        assert isinstance(server.process, Started)
        assert eval(server.get("/").text)[:4] == (folder, 1 + number, folder, "yes" if number else None)
        assert len(server.workers()) == 1 + number
        assert os.readlink(f"/proc/{server.process.pid}/fd/1") == str(server.folder / "stdout")


def test_it_is_waited_for_and_ended_as_a_child(serve: StartServer) -> None:
    server = serve('[mounts]\n"/" = "hello"')
    process = server.process

    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    process.send_signal(signal.SIGTERM)  # without effect, and without an error
    assert process.poll() == 0
