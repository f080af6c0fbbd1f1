"""Other Pythons than gunicorn's own, for mounts that run in a process of their own: whether one will do, and which version it is."""

from __future__ import annotations

import functools
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

from isowsgi.shared import rootsown

# Where gunicorn's metadata does not say: what its release 27 asks for.
_OLDEST = (3, 10)

# A Python with a cold disk cache answers within a second; pyenv's shims search for one more.
_ANSWER_S = 10.0

# Longest answer: a name and three numbers.
_MOST_BYTES = 4096

_QUESTION = "import json, sys; print(json.dumps([sys.implementation.name, *sys.version_info[:3]]))"

HOST = sys.version_info[:2]

_NOBODY = 65534  # the kernel's overflowuid, and overflowgid

# What another user's executable learns of root's environment: how a script such as pyenv's finds the programs that it calls.
_TOLD = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH")


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
        implementation, *numbers = json.loads(_answer(path))
        major, minor, micro = map(int, numbers)
    except (OSError, ValueError, TypeError) as exc:
        raise UnusableError(f"expected a Python's executable, got {path!r}, which does not answer as one") from exc
    oldest = oldest_version()
    if implementation != "cpython" or (major, minor) < oldest:
        from importlib import metadata  # late, as below

        wanted = f"CPython {oldest[0]}.{oldest[1]} or newer, which gunicorn {metadata.version('gunicorn')} needs"
        name = "CPython" if implementation == "cpython" else implementation
        raise UnusableError(f"expected {wanted}, got {name} {major}.{minor}.{micro} ({path!r})")
    return Python(path, (major, minor, micro))


def is_script(path: str) -> bool:
    """Whether an executable is a script, such as pyenv's shims, which starts a Python that lies elsewhere."""
    try:
        # Without blocking: it may be another user's, who can put a FIFO there.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb", buffering=0) as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def _answer(path: str) -> bytes:
    """Return what an executable says to the question; whatever it is, in bounded time and memory.

    Raises:
        OSError: it does not run.
        ValueError: it is no Python, for it fails, says too much, or does not end.
    """
    # Without site-packages, whose .pth files are code.
    command = [path, "-I", "-S", "-c", _QUESTION]
    said, deadline = b"", time.monotonic() + _ANSWER_S
    # In its own session, so that what it starts itself, as a shell script does, ends with it, and another user's has not root's terminal.
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **streams, **_as_whom(path), start_new_session=True) as child:
        assert child.stdout is not None, "a pipe was asked for"
        try:
            while select.select([child.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                piece = os.read(child.stdout.fileno(), _MOST_BYTES)
                said += piece
                if not piece:
                    if child.wait(max(deadline - time.monotonic(), 0)) == 0:
                        return said
                    break
                if len(said) > _MOST_BYTES:
                    break
        except subprocess.TimeoutExpired:
            pass
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
    raise ValueError("no answer of a Python's")


def _as_whom(path: str) -> dict[str, Any]:
    """Return as whom an executable is asked, for `Popen`: root executes nothing that another user can have put there.

    It is the first user on the way who can change where the path leads. The owner of what is there may be somebody else, for whom that
    user could choose what is executed, by a link, or by another file once this has looked.
    """
    if os.geteuid() != 0:
        return {}
    try:
        os.close(rootsown.open_path(path))
        return {}
    except OSError as exc:
        uid = exc.uid if isinstance(exc, rootsown.NotRootsError) else None
    env = {name: os.environ[name] for name in _TOLD if name in os.environ}
    return {"user": _NOBODY if uid is None else uid, "group": _NOBODY, "extra_groups": [], "env": env}


@functools.cache
def oldest_version() -> tuple[int, int]:
    """Return the oldest Python that the installed gunicorn supports."""
    from importlib import metadata  # late: few mounts have a Python of their own, and it takes 12 of the 190 ms of a command

    said = re.search(r">=\s*(\d+)\.(\d+)", str(metadata.metadata("gunicorn")["Requires-Python"]))
    return max((int(said[1]), int(said[2])), _OLDEST) if said else _OLDEST
