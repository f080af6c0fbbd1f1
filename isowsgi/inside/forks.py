"""A copy of this process that the app has forked: it ends where the app's code does.

A fork copies the thread that calls it. A copy that came back from the app would keep serving: it would answer the same client once more,
take events of the set that it shares with the original, and outlive it. So it ends instead, as a child of `multiprocessing` does.
"""

from __future__ import annotations

import os
import sys
import traceback

is_copy = False


def watch() -> None:
    """Note from now on when this process is a copy; once for each process."""
    os.register_at_fork(after_in_child=_note)


def leave() -> None:
    """End this copy, with the status that the app has asked for, if it raised SystemExit."""
    status = 0
    try:
        exc = sys.exc_info()[1]
        if isinstance(exc, SystemExit):
            status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        elif exc is not None:
            status = 1
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _note() -> None:
    global is_copy
    is_copy = True
