"""Whether threads of this process may change their slices of a processor's time, see `shared.slices`."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import isowsgi
from isowsgi.shared import slices

# How long the process that tries it may take: Python's start, and some for a busy machine.
_PROBE_S = 10.0


@functools.cache
def may_change() -> bool:
    """Return whether they may. A filter of system calls may end a process for trying, so under one a process of its own tries."""
    return not slices.is_filtered() or _another_may()


def _another_may() -> bool:
    folder = os.path.dirname(os.path.dirname(os.path.abspath(isowsgi.__file__)))
    code = f"import sys; sys.path.append({folder!r}); from isowsgi.shared import slices; slices.lengthen()"
    command = [sys.executable, "-I", "-c", code]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
