"""What a generation leaves behind ends with it, if Python can end it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

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


FAILED_BOOT = """
import os
import select
import sys
from pathlib import Path
from isowsgi.instances.subinterpreter import InterpreterInstance
from isowsgi.shared import interpreters
from isowsgi.shared.messages import Closed
from isowsgi.shared.scoreboard import Scoreboard
from tests.orders import order_for

CODE = '''
import threading
import time

def nap():
    while True:
        time.sleep(0.01)

threading.Thread(target=nap, daemon=True).start()
raise RuntimeError("not today")
'''
board = Scoreboard()
board.set_mounts(["/tried"])
order = order_for(Path(sys.argv[1]), CODE, first_row=board.allot(2, [0])).replace(isolation=interpreters.best_isolation())
fds = {name: os.eventfd(0) for name in ("returns", "lingering", "capacity")}
interpreters.preload()
instance = InterpreterInstance(order, {**fds, "board": board.fd}, board)
instance.start()
while not isinstance(report := instance.read(), Closed):
    if report is None:
        select.select([instance], [], [])
print(instance.state.value, instance.error, report.threads, flush=True)
os._exit(0)
"""


def test_a_thread_of_an_app_that_could_not_be_loaded_ends_too(tmp_path: Path) -> None:
    """Only the order to stop had it end, which a failed boot never gets: each try left an interpreter behind, and two ended the mount."""
    command = [sys.executable, "-c", FAILED_BOOT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    assert done.stdout == "failed RuntimeError: not today 0\n", done.stderr


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
