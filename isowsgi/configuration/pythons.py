"""Other Pythons than gunicorn's own, for mounts that run in a process of their own: whether one will do, and which version it is."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from typing import NamedTuple

# Where gunicorn's metadata does not say: what its release 27 asks for.
_OLDEST = (3, 10)

# A Python with a cold disk cache answers within a second; pyenv's shims search for one more.
_ANSWER_S = 10.0

_QUESTION = "import json, sys; print(json.dumps([sys.implementation.name, *sys.version_info[:3]]))"

HOST = sys.version_info[:2]


class UnusableError(Exception):
    """A Python that no app can be run on here; the text says what was expected and what was found."""


class Python(NamedTuple):
    """An interpreter's executable and its version."""

    path: str
    version: tuple[int, int, int]


def ask(path: str) -> Python:
    """Return what the executable at an absolute path is.

    Raises:
        UnusableError: it does not run, is no CPython, or is too old for gunicorn and isowsgi.
    """
    try:
        changed_at = os.stat(path).st_mtime_ns
    except OSError as exc:
        raise UnusableError(f"expected a Python's executable, got {path!r}: {(exc.strerror or str(exc)).lower()}") from exc
    return _ask(path, changed_at)


@functools.lru_cache(maxsize=64)
def _ask(path: str, changed_at: int) -> Python:
    try:
        answer = subprocess.run([path, "-I", "-c", _QUESTION], stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWER_S, check=True)
        implementation, *numbers = json.loads(answer.stdout)
        major, minor, micro = numbers
    except (OSError, subprocess.SubprocessError, ValueError) as exc:
        raise UnusableError(f"expected a Python's executable, got {path!r}, which does not answer as one") from exc
    oldest = oldest_version()
    if implementation != "cpython" or (major, minor) < oldest:
        wanted = f"CPython {oldest[0]}.{oldest[1]} or newer, which gunicorn {metadata.version('gunicorn')} needs"
        name = "CPython" if implementation == "cpython" else implementation
        raise UnusableError(f"expected {wanted}, got {name} {major}.{minor}.{micro} ({path!r})")
    return Python(path, (major, minor, micro))


@functools.cache
def oldest_version() -> tuple[int, int]:
    """Return the oldest Python that the installed gunicorn supports."""
    said = re.search(r">=\s*(\d+)\.(\d+)", str(metadata.metadata("gunicorn")["Requires-Python"]))
    return max((int(said[1]), int(said[2])), _OLDEST) if said else _OLDEST
