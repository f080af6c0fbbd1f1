"""Which of its walls an app has met, by the errors that it fails with: the kernel says so itself only of memory in a control group.

Texts only, no I/O. They are the app's, and untrusted; what is made of them is a line of the log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from isowsgi.configuration import sizes

# How an error begins that a limit of `setrlimit(2)` leads to, by limit.
_SIGNS = {
    "memory": re.compile(r"MemoryError\b"),
    "files": re.compile(r"(?:\w+\.)*\w*Error: \[Errno 24\]"),
    "file_size": re.compile(r"(?:\w+\.)*\w*Error: \[Errno 27\]"),
    "processes": re.compile(r"(?:\w+\.)*\w*Error: (?:\[Errno 11\]|can't start new thread)"),
}

# How the kernel refuses what a sandbox does not allow: with the path of a file, or without for a socket; and what SQLite makes of it.
_FORBIDDEN_FILE = re.compile(r"(?:\w+\.)*\w*Error: \[Errno 13\] [^:]*: '")
_FORBIDDEN = re.compile(r"(?:\w+\.)*\w*Error: \[Errno 13\] ")
_SQLITE = re.compile(
    r"(?:\w+\.)*OperationalError: (?:\(sqlite3\.OperationalError\) )?(?:unable to open|attempt to write a readonly) database"
)

# How C code ends that does not look whether it got memory.
_ENDS_OF_C = re.compile(r"process was killed by SIG(?:SEGV|ABRT|BUS)")


def reached(error: str, limits: Mapping[str, float], grouped: frozenset[str]) -> str:
    """Return the limit that an error comes of, as the config file says it; "" if none does, or another one may.

    Args:
        error: its line, `Type: text`.
        limits: of the mount.
        grouped: those that its control group has: what is too much memory there ends the process.
    """
    for word, sign in _SIGNS.items():
        if word in limits and sign.match(error) and not (word == "memory" and word in grouped):
            return spelt(word, limits[word])
    return ""


def may_be_memory(how_it_ended: str, limits: Mapping[str, float], grouped: frozenset[str]) -> str:
    """Return the limit of memory that the end of a process may come of; "" if there is no sign of that."""
    if "memory" in limits and "memory" not in grouped and _ENDS_OF_C.match(how_it_ended):
        return spelt("memory", limits["memory"])
    return ""


def refused(error: str, has_sandbox: bool) -> str:
    """Return what to do about an error that the mount's sandbox may be the reason of; "" if it is not."""
    if not has_sandbox:
        return ""
    if _FORBIDDEN_FILE.match(error):
        return "add it to sandbox.read, or its folder to sandbox.write, if the app needs it"
    if _FORBIDDEN.match(error):
        return "add the port to sandbox.connect, or to sandbox.listen, if the app needs it"
    return "name the folder of the database in sandbox.write, for its journal is made there" if _SQLITE.match(error) else ""


def spelt(word: str, value: float) -> str:
    size = f'"{sizes.text(int(value))}"' if word in ("memory", "file_size") else f"{value:g}"
    return f"limits.{word} = {size}"
