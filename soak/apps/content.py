"""What the soak's apps answer, in whatever framework, and so what their clients expect.

    GET  small                       a line of JSON
    GET  give?seed=S&length=N        N bytes with their length
    GET  stream?seed=S&length=N&pause_ms=P    the same in chunks, with pauses
    POST take                        length and SHA-256 of the request's body, as JSON
    POST echo                        the request's body, while it comes

Every answer says which mount, generation and worker it comes from, and for which request it is.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Bodies are cut from this. Its length is no multiple of any buffer's, so bytes that are out of place never look right.
_BLOCK = hashlib.shake_128(b"soak").digest(1_000_003)

# Bytes at a time, of a body that is written or read.
PIECE = 64 * 1024

try:
    _interpreters: Any = importlib.import_module("_interpreters")
except ImportError:  # before 3.13
    _interpreters = None
_INTERPRETER = str(_interpreters.get_current()[0]) if _interpreters else "unknown"

_BORN_NS = time.monotonic_ns()  # of this copy of the module, so of this instance


def pieces(seed: int, length: int, size: int = PIECE) -> Iterator[bytes]:
    """Yield a body of so many bytes; bodies of two seeds differ at almost every byte."""
    at = seed * 7919 % len(_BLOCK)
    while length:
        piece = _BLOCK[at : at + min(size, length)]
        yield piece
        length -= len(piece)
        at = (at + len(piece)) % len(_BLOCK)


def slow_pieces(seed: int, length: int, pause_ms: int) -> Iterator[bytes]:
    for piece in pieces(seed, length):
        time.sleep(pause_ms / 1000)
        yield piece


def identity(mount: str, environ: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the fields that say where an answer comes from.

    Args:
        mount: what the app was told when it was loaded; its clients compare it with what they asked for.
    """
    worker = os.getppid() if environ["isowsgi.isolation"] == "process" else os.getpid()
    return [
        ("Soak-Mount", mount),
        ("Soak-Path", environ["SCRIPT_NAME"]),
        ("Soak-Generation", str(environ["isowsgi.generation"])),
        ("Soak-Worker", str(worker)),
        ("Soak-Born", str(_BORN_NS)),
        ("Soak-Interpreter", _INTERPRETER),
        ("Soak-Token", environ.get("HTTP_SOAK_TOKEN", "")),
    ]


def interpreters() -> int:
    """Return how many interpreters this process has; 0 where that cannot be told."""
    return len(_interpreters.list_all()) if _interpreters else 0


def small(mount: str, token: str) -> bytes:
    return json.dumps({"mount": mount, "token": token}).encode()


def digest(read: Callable[[int], bytes]) -> bytes:
    """Read a body to its end and return what is answered for it."""
    digested, length = hashlib.sha256(), 0
    while piece := read(PIECE):
        digested.update(piece)
        length += len(piece)
    return digest_text(length, digested.hexdigest())


def digest_text(length: int, sha256: str) -> bytes:
    return json.dumps({"length": length, "sha256": sha256}).encode()


def echo(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while piece := read(PIECE):
        yield piece
