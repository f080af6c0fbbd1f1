"""What a process has one of and no interpreter can have its own, as docs/explanation/isolation.md says; what helps is shown, too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from isowsgi.shared import interpreters
from isowsgi.shared.interpreters import OWN_GIL, SHARED_GIL
from tests.conftest import DEADLINE_S, Server, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = '[mounts]\n"/a" = "shell"\n"/b" = "shell"\n"/own" = { app = "shell", isolation = "process" }'
    with running_server(tmp_path_factory.mktemp("one"), config, wait_for=3) as server:
        yield server


def run(server: Server, mount: str, source: str) -> Any:
    response = requests.post(server.url + mount, data=source.encode(), timeout=DEADLINE_S)
    assert response.status_code == 200, server.log()
    return response.json()


def test_a_file_for_each_process_is_one_for_all_its_mounts_and_the_recipe_gives_each_its_own(server: Server) -> None:
    """prometheus_client's multiprocess mode names its files so; the recipe is the one of docs/howto/monitor.md."""
    by_process = [run(server, mount, "import os\nanswer = f'counter_{os.getpid()}.db'") for mount in ("/a", "/b", "/own")]
    recipe = "import os\nanswer = f'counter_{os.getpid()}-{os.urandom(4).hex()}.db'"
    by_instance = [run(server, mount, recipe) for mount in ("/a", "/b", "/own")]

    assert by_process[0] == by_process[1] != by_process[2]
    assert len(set(by_instance)) == 3


# A thread that a C library starts, as librdkafka or an audio library does, and that calls back.
CALLBACK = """
import ctypes, os
try:
    import _interpreters
except ImportError:
    import _xxsubinterpreters as _interpreters
libc = ctypes.CDLL(None)
libc.pthread_join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]

def number():
    current = _interpreters.get_current()
    return int(current[0] if isinstance(current, tuple) else current)

@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
def callback(argument):
    os.write(1, f"callback {number()}\\n".encode())
    return 0

os.write(1, f"app {number()}\\n".encode())
thread = ctypes.c_ulong()
libc.pthread_create(ctypes.byref(thread), None, callback, None)
libc.pthread_join(thread, None)
"""
HOST = """
import os, sys
from isowsgi.shared import interpreters
interpreters.preload()
app = f"import threading\\nthread = threading.Thread(target=exec, args=({sys.argv[2]!r}, {{}}))\\nthread.start()\\nthread.join()\\n"
failure = interpreters.run(interpreters.create(sys.argv[1]), app)
print(failure or "", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("isolation", [OWN_GIL, SHARED_GIL])
def test_a_callback_from_a_thread_of_a_c_library_runs_in_the_main_interpreter(isolation: str) -> None:
    """CPython's PyGILState functions know no other one for a thread that they have not seen: such an app wants a process."""
    if isolation == OWN_GIL and interpreters.own_gil_error() is not None:
        pytest.skip("no own GIL on this release")
    ended = subprocess.run(
        [sys.executable, "-c", HOST, isolation, CALLBACK], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )

    assert ended.stdout.split("\n")[:2] != ["app 0", "callback 0"], ended.stderr
    assert ended.stdout.split("\n")[1] == "callback 0", ended.stdout + ended.stderr
