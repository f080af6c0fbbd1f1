"""Faults of a config file: what was expected, what is there, and the place of it in TOML's own spelling."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator

import attrs
from cattrs import AttributeValidationNote, ForbiddenExtraKeysError, IterableValidationNote

from isowsgi.configuration import foreign
from isowsgi.configuration.values import LONG_INT_BITS

Place = tuple[str | int, ...]  # of a value in the file: keys, and indexes of lists


class ConfigError(Exception):
    """The config file is wrong.

    Attributes:
        faults: one full line each, `file: place: what was expected, got 'x'`, in the order of the file.
    """

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__(faults)
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(self.faults)


class Fault(ValueError):
    """A value of the file is wrong; the text says what was expected and what is there.

    Attributes:
        place: where, below the place that cattrs notes for what it finds itself.
    """

    place: Place = ()


def at(place: Place, fault: Fault) -> Fault:
    fault.place = place
    return fault


KINDS: dict[type, str] = {str: "a string", bool: "a boolean", int: "a whole number", float: "a float", list: "a list", dict: "a table"}


def wrong_type(expected: str, value: object) -> Fault:
    kind = KINDS.get(type(value), "a date or time")
    return Fault(f"expected {expected}, got " + (kind if isinstance(value, (list, dict)) else f"{spelt(value)} ({kind})"))


def spelt(value: object) -> str:
    """Return a plain value as TOML spells it, but strings by repr()."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > LONG_INT_BITS:
        return f"{hex(value)[:20]}..."
    return repr(value) if isinstance(value, str) else str(value)


def quoted(text: str) -> str:
    """Return a string as TOML writes it, on one line."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def walk(group: ExceptionGroup[Exception], place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Walk what cattrs raised: groups, with the key or index of each member in a note."""
    suggested: set[str] = set()
    for member in group.exceptions:
        if isinstance(member, ForbiddenExtraKeysError):
            valid = sorted(field.name for field in attrs.fields(member.cl))
            for key in member.extra_fields:
                meant = foreign.meaning(key) if "threads" in valid else None  # a mount's key
                near = difflib.get_close_matches(key.lower(), valid, n=1) if meant is None else []
                suggested.update(near or (["app"] if meant is not None and meant.startswith("'app'") else []))
                yield (*place, key), _unknown_key(key, near, valid, meant)
    for member in group.exceptions:
        notes = [note for note in getattr(member, "__notes__", ()) if isinstance(note, (AttributeValidationNote, IterableValidationNote))]
        step = [note.name if isinstance(note, AttributeValidationNote) else note.index for note in notes]
        if isinstance(member, ExceptionGroup):
            yield from walk(member, (*place, *step))
        elif isinstance(member, KeyError):
            if step[0] not in suggested:  # else it is there, misspelt, and that has been said
                yield (*place, *step), f"missing; {_MISSING[step[0]]}"
        elif isinstance(member, Fault):
            yield (*place, *step, *member.place), str(member)
        elif not isinstance(member, ForbiddenExtraKeysError):
            raise member  # a mistake in a check, not in the file


SOME_MOUNT = 'expected at least one mount, as in "/" = "shop.wsgi:application"'
_MISSING: dict[str | int, str] = {
    "mounts": SOME_MOUNT,
    "app": 'expected an app, as in app = "shop.wsgi:application"',
    "hosts": 'expected hosts, as in hosts = ["shop.example.com", "*.example.com"]',
    "certificate": "expected the path of a certificate in PEM, with its chain",
}


def _unknown_key(key: str, near: list[str], valid: list[str], meant: str | None) -> str:
    if meant is not None:
        return f"unknown key; here it is {meant}" if meant.startswith("'") else f"unknown key; {meant}"
    if near:
        return f"unknown key; did you mean {near[0]!r}?"
    if key == "app":
        return "unknown key; each mount names its own app"
    return f"unknown key; expected one of {', '.join(valid)}"


def place_text(place: Place) -> str:
    """Return a place in TOML's own spelling: `mounts."/blog".pythonpath[0]`."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            text += "." * bool(text) + (part if bare else quoted(part))
    return text
