"""What tests with other users need: root, and a Python and a checkout that others may read."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


def can_be_read_by_others(path: str) -> bool:
    """Whether another user can read a file: a Python below /root cannot be run by one."""
    place = Path(path).resolve()
    return bool(place.stat().st_mode & 0o004) and all(parent.stat().st_mode & 0o001 for parent in place.parents)


IS_POSSIBLE = os.geteuid() == 0 and all(map(can_be_read_by_others, (sys.executable, os.__file__, pytest.__file__, __file__)))

needs_users = pytest.mark.skipif(
    not IS_POSSIBLE, reason="not root, or this Python, its venv or the checkout lies where other users cannot read"
)
