"""Where a directive of Apache's holds: <Directory>, <Location>, <Files> and their kin, and which of several comes last and counts."""

from __future__ import annotations

import fnmatch
import os
import re
from functools import lru_cache
from typing import NamedTuple

from isowsgi.importing.apacheconfig import Told

# Groups of sections, in the order in which Apache merges them ("How the sections are merged" in its documentation of sections).
_HOST, _DIRECTORY, _DIRECTORY_MATCH, _FILES, _LOCATION, _FILES_OF_A_LOCATION = range(6)


class Spot(NamedTuple):
    """A file, or all that is and may come to be in a folder.

    Attributes:
        folder: absolute.
        url: the path under which it is asked for.
        name: of the file; "" for a folder.
    """

    folder: str
    url: str
    name: str = ""


def reach(told: Told, where: str, script: str) -> int | None:
    """Return how near a directive is to an app, or None if it does not hold for it."""
    if told.here is None:
        return 0
    kind, place = told.here
    place = place.rstrip("/")
    if kind == "directory" and (script + "/").startswith(place + "/"):
        return 10 + 2 * len(place)
    if kind == "location" and (f"/{where.strip('/')}/").startswith((place or "") + "/"):
        return 100_000 + 2 * len(place)
    if kind in ("directorymatch", "locationmatch"):
        try:
            found = re.search(place, os.path.dirname(script) + "/" if kind.startswith("d") else f"/{where.strip('/')}")
        except re.error:
            return None
        return None if found is None else 50_000
    return None


def rank(told: Told, is_of_host: bool) -> tuple[int, int, bool]:
    """Return a key by which directives sort as Apache merges them, those of the same key as they are written."""
    kind, place = told.here or ("", "")
    if kind.startswith("location"):
        return _FILES_OF_A_LOCATION if told.files else _LOCATION, 0, is_of_host
    parts = len(_parts(place)) if kind == "directory" else 0
    if told.files:
        return _FILES, parts, is_of_host
    return {"": _HOST, "directory": _DIRECTORY}.get(kind, _DIRECTORY_MATCH), parts, is_of_host


def may_hold(told: Told, spot: Spot) -> bool:
    """Whether a directive holds for a spot; also where that cannot be told."""
    if told.files and not (spot.name and _finds(told.files, spot.name)):
        return False
    if told.here is None:
        return True
    kind, place = told.here
    if _is_unknown(told.here):
        return True
    if kind in ("directorymatch", "locationmatch"):
        paths = {spot.folder, os.path.join(spot.folder, spot.name)} if kind == "directorymatch" else {spot.url}
        return any(_finds(place, path) or _finds(place, path + "/") for path in paths)
    wanted, given = _parts(place), _parts(spot.folder if kind == "directory" else spot.url)
    return len(wanted) <= len(given) and all(map(_fits, wanted, given))


def surely_holds(told: Told, spot: Spot) -> bool:
    """Whether a directive holds for a spot, and no expression or wildcard had to be judged for that."""
    if told.files or not may_hold(told, spot):
        return False
    if told.here is None:
        return True
    kind, place = told.here
    is_plain = kind in ("directory", "location") and not _is_unknown(told.here) and not set(place) & _WILD
    return is_plain and not (spot.name and kind == "location" and place == f"{spot.url}/")  # a file's path has no slash at its end


def spot_below(told: Told, top: Spot) -> Spot | None:
    """Return the place that a directive's section names, if that is below a folder; nothing need be there yet."""
    if told.here is None or _is_unknown(told.here):
        return None
    kind, place = told.here
    above = {"directory": top.folder, "location": top.url}.get(kind, "\0").rstrip("/") + "/"
    if not normal(place).startswith(above):
        return None
    below = normal(place)[len(above) :]
    return Spot(os.path.join(top.folder, below), f"{top.url.rstrip('/')}/{below}")


_WILD = frozenset("*?[\\")

# At the end of an expression, or before a bracket, a dollar is an anchor.
_VARIABLE = re.compile(r"[$%@][{\w]")


def _is_unknown(here: tuple[str, str]) -> bool:
    """Whether a section's place cannot be told: a variable is in it, or it is no path."""
    kind, place = here
    return has_variable(place) or (not kind.endswith("match") and not place.startswith("/"))


def has_variable(text: str) -> bool:
    """Whether a variable is in a text that is not known, or what may be a macro's parameter."""
    return _VARIABLE.search(text) is not None


def normal(path: str) -> str:
    """Return a path without what leads nowhere, two slashes at its beginning included."""
    return re.sub(r"^//", "/", os.path.normpath(path))


@lru_cache(maxsize=1024)
def _parts(path: str) -> list[str]:
    return [part for part in os.path.normpath(path).split("/") if part]


def _fits(wanted: str, given: str) -> bool:
    """Whether a part of a path fits; Apache's sets and escapes are not read, and fit all."""
    return bool(set(wanted) & {"[", "\\"}) or fnmatch.fnmatchcase(given, wanted)


def _finds(expression: str, text: str) -> bool:
    """Whether an expression is found; also if that cannot be told: Python does not know it, or reads it otherwise than Perl."""
    if "[[:" in expression or has_variable(expression):
        return True
    try:
        return re.search(expression, text) is not None
    except (re.error, OverflowError, RecursionError):
        return True
