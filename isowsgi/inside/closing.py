"""The end of what an app has in an instance: its exit functions, and the count of the threads that it leaves behind."""

from __future__ import annotations

import _thread
import atexit
import threading
import time
import traceback
from typing import Any

from isowsgi.inside import leftovers
from isowsgi.inside.private import theirs
from isowsgi.inside.threads import introduce

_app_threading = theirs("threading")  # the app's, see `private`

# How long exit functions of the app may take before the instance counts as ended all the same.
_EXIT_FUNCTIONS_S = 5.0

# How long a thread that was joined may still be counted: its state goes away a little later (3.11, 3.12).
_THREAD_GONE_S = 0.5


def run_exit_functions(must_free: bool, log: Any) -> None:
    """Call the app's exit functions, and wait for their end for a while.

    Args:
        must_free: whether the process lives on, so that all that the app leaves behind must end too.
    """
    closing = threading.Thread(target=_run_exit_functions, args=(must_free,), name="isowsgi-exit", daemon=True)
    try:
        closing.start()
    except RuntimeError:
        log.error("cannot start a thread for the app's exit functions; they are not called")
    else:
        closing.join(_EXIT_FUNCTIONS_S)


def _run_exit_functions(must_free: bool) -> None:
    """Do what the end of the interpreter would: end thread pools, then call the app's `atexit` functions; and what it would not.

    Here and not in destroy(), since at a worker's exit nothing is destroyed, and a pool's idle threads must go before it may be.
    """
    introduce("isowsgi-exit")
    for function in reversed(getattr(_app_threading, "_threading_atexits", [])):
        try:
            function()
        except Exception:
            traceback.print_exc()
    atexit._run_exitfuncs()
    if must_free:
        leftovers.end_helpers()


def threads_left() -> int:
    """Count the threads that the app leaves behind: all but the control thread."""
    deadline = time.monotonic() + _THREAD_GONE_S
    while _thread._count() > 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    return _thread._count() - 1
