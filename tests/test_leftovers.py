"""What a generation leaves behind ends with it, if Python can end it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from isowsgi.inside import leftovers
from tests.conftest import DEADLINE_S, ROOT

HELPERS = """
import os
from multiprocessing import forkserver, resource_tracker
from isowsgi.inside import leftovers
leftovers.end_helpers()  # none yet
forkserver.ensure_running()
resource_tracker.ensure_running()
descriptors = len(os.listdir("/proc/self/fd"))
leftovers.end_helpers()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child,", descriptors - len(os.listdir("/proc/self/fd")), "descriptors less")
forkserver.ensure_running()  # whoever needs them again has them again
leftovers.end_helpers()
"""


def test_helper_processes_of_multiprocessing_end() -> None:
    command = [sys.executable, "-W", "error", "-c", HELPERS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    assert (done.stdout, done.stderr) == ("no child, 2 descriptors less\n", "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # threading itself ignores SystemExit
def test_threads_that_run_python_code_end_and_others_are_counted() -> None:
    others = {thread.ident for thread in threading.enumerate()}
    gate = threading.Lock()
    gate.acquire()

    def nap() -> None:
        while True:
            time.sleep(0.01)

    napping = threading.Thread(target=nap, daemon=True)
    waiting = threading.Thread(target=gate.acquire, daemon=True)
    for thread in (napping, waiting):
        thread.start()

    left = leftovers.end_threads(others, lambda: sum(thread.is_alive() for thread in (napping, waiting)))

    assert (left, napping.is_alive(), waiting.is_alive()) == (1, False, True)
    gate.release()
    waiting.join(DEADLINE_S)
