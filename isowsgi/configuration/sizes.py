"""Sizes of memory as a config file writes them: "300M"."""

from __future__ import annotations

import re
from typing import Any

from isowsgi.configuration.faults import Fault, spelt, wrong_type

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}  # as systemd's MemoryMax= and nginx have them
_SIZE = re.compile(r"([0-9]{1,9})([KMG])")

# More is a slip of the keyboard, or no limit at all.
_MOST = 2**40


def size(value: Any) -> int:
    """Return the bytes that a value says; 0 is no limit."""
    if value == 0 and type(value) is int:
        return 0
    if not isinstance(value, str):
        raise wrong_type("a size with its unit, such as '300M'", value)
    found = _SIZE.fullmatch(value)
    if found is None or not 0 < (size := int(found[1]) * _UNITS[found[2]]) <= _MOST:
        raise Fault(f"expected a whole number with K, M or G (of 1024), such as '300M', and 1024G at most; got {spelt(value)}")
    return size


def text(size: int) -> str:
    """Return a size as the config file may write it."""
    unit = next((unit for unit in ("G", "M", "K") if size % _UNITS[unit] == 0), None)
    return f"{size // _UNITS[unit]}{unit}" if unit else str(size)
