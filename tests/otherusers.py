"""What tests with other users need: root, ids that may be changed to, and a Python and a checkout that others may read."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

# Users and groups that tests change to; /etc/passwd does not know them.
FIRST_ID, LAST_ID = 20001, 20004


def can_be_read_by_others(path: str) -> bool:
    """Whether another user can read a file: a Python below /root cannot be run by one."""
    place = Path(path).resolve()
    return bool(place.stat().st_mode & 0o004) and all(parent.stat().st_mode & 0o001 for parent in place.parents)


def has_ids(path: str) -> bool:
    """Whether the tests' ids exist in this user namespace: a rootless container has few.

    Args:
        path: of a `uid_map` or `gid_map` (user_namespaces(7)).
    """
    try:
        lines = [tuple(map(int, line.split())) for line in Path(path).read_text().splitlines()]
    except FileNotFoundError:  # a kernel without user namespaces
        return True
    return all(any(first <= each < first + count for first, _, count in lines) for each in range(FIRST_ID, LAST_ID + 1))


IS_POSSIBLE = (
    os.geteuid() == 0
    and all(map(has_ids, ("/proc/self/uid_map", "/proc/self/gid_map")))
    and all(map(can_be_read_by_others, (sys.executable, os.__file__, pytest.__file__, __file__, tempfile.gettempdir())))
)

needs_users = pytest.mark.skipif(
    not IS_POSSIBLE,
    reason="not root, or it has few ids, or this Python, its venv, the checkout or the temporary folder lies where other users cannot read",
)
