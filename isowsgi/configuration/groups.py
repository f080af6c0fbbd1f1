"""Groups: mounts that share one instance, and so all that is the instance's. Values only, no I/O.

What one member says holds for all; two that say different things contradict each other, which is a fault. Folders of `pythonpath` add up,
as do modules of `eager`, variables of the environment, words of the policy and limits; of the latter three each may be said once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# What stays each member's own: where it is, and what is asked for before it serves.
_OWN = frozenset(("app", "static", "hosts", "max_live", "exists", "warmup", "group"))

# Lists of which a group has all that its members name.
_ADDED = frozenset(("pythonpath", "eager"))

# Tables that are merged name by name.
_TABLES = frozenset(("env", "policy", "limits"))


class Contradiction(NamedTuple):
    """A member says something else than one before it."""

    member: int  # its place in the list
    key: str
    name: str | None  # of the variable or word, where the key's value is a table
    other: int  # who said it first
    theirs: Any


def agree(members: list[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Contradiction]]:
    """Return what each member of a group has, with what the others say; and where they contradict each other.

    Args:
        members: what each says itself, without defaults: values by key. "env" holds its env_file's variables too.
    """
    first: dict[str, int] = {}
    shared: dict[str, Any] = {}
    contradictions: list[Contradiction] = []
    first_named: dict[tuple[str, str], int] = {}
    for number, said in enumerate(members):
        for key, value in said.items():
            if key in _OWN:
                continue
            if key in _TABLES:
                table = shared.setdefault(key, {})
                for name, text in value.items():
                    if table.setdefault(name, text) != text:
                        contradictions.append(Contradiction(number, key, name, first_named[key, name], table[name]))
                    first_named.setdefault((key, name), number)
            elif key in _ADDED:
                shared[key] = tuple(dict.fromkeys([*shared.get(key, ()), *value]))
            elif key not in shared:
                shared[key], first[key] = value, number
            elif shared[key] != value:
                contradictions.append(Contradiction(number, key, None, first[key], shared[key]))
    return [{**said, **shared} for said in members], contradictions
