"""Errors by mount and type, as workers report them, summed over workers: also over those that have ended. Values only, no I/O.

A report is what any process with the board could have written. So what does not fit is left out, and there is a bound to the types of a
mount and to all of them: each is a time series of its own in a monitoring system.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from isowsgi.shared.errorgroups import OTHER

# Types of a mount that are told apart: those of one worker's groups, and of others that met other errors first.
_MOST_TYPES = 100

# All of them together; a thousand mounts have a few each.
_MOST = 5000

_MAX_TYPE_CHARS = 120
_MOST_COUNT = 2**53

ErrorTotals = dict[tuple[str, str], int]  # by pattern and type


def reported(report: Mapping[str, Any] | None) -> ErrorTotals:
    """Return what one worker has counted."""
    found: ErrorTotals = {}
    mounts = report.get("mounts") if report else None
    for mount in mounts if isinstance(mounts, list) else ():
        if not isinstance(mount, dict) or not isinstance(pattern := mount.get("pattern"), str):
            continue
        by_type = mount.get("error_types")
        for name, count in by_type.items() if isinstance(by_type, dict) else ():
            if type(count) is int and 0 < count < _MOST_COUNT:
                found[pattern, str(name)[:_MAX_TYPE_CHARS]] = count
    return found


def add(totals: ErrorTotals, more: Mapping[tuple[str, str], int], patterns: Iterable[str] | None = None) -> None:
    """Add counts to others, in place.

    Args:
        patterns: of which only they are taken; None: all.
    """
    known = None if patterns is None else frozenset(patterns)
    types: dict[str, int] = {}
    for pattern, _ in totals:
        types[pattern] = types.get(pattern, 0) + 1
    for (pattern, name), count in more.items():
        if known is not None and pattern not in known:
            continue
        key = (pattern, name)
        if key not in totals and (types.get(pattern, 0) >= _MOST_TYPES or len(totals) >= _MOST):
            key = (pattern, OTHER)
        if key not in totals:
            types[pattern] = types.get(pattern, 0) + 1
        totals[key] = min(totals.get(key, 0) + count, _MOST_COUNT)


def rows(totals: ErrorTotals) -> list[list[Any]]:
    """Return them as JSON has them."""
    return [[*key, count] for key, count in totals.items()]


def from_rows(facts: Any) -> ErrorTotals:
    """Return what `rows` made.

    Raises:
        ValueError, TypeError: it did not make that.
    """
    totals: ErrorTotals = {}
    for pattern, name, count in facts:
        if type(count) is not int:  # JSON has 1e999 too
            raise TypeError(f"no count: {count!r}")
        totals[str(pattern), str(name)] = count
    return totals
