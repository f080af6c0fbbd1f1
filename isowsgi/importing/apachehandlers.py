"""What Apache runs instead of sending it: an Alias may lead to programs, and as files their source would be there for everybody."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from isowsgi.importing.account import Outcome
from isowsgi.importing.apacheconfig import Host, Told

WSGI = "wsgi-script"

# What Apache itself does with a file.
_FILES = frozenset(("none", "default-handler"))

# Debian and Fedora have these run everywhere, by a file that a site does not include.
_PHP = re.compile(r"\.(php\d?|phtml|phar)$", re.IGNORECASE)


def handler_of(where: str, path: str, hosts: Iterable[Host]) -> str:
    """Return what runs a file that an Alias leads to, or some file of the folder; "": all are sent as files.

    Args:
        where: the Alias' path.
        path: where it leads.
        hosts: whose directives hold for it.
    """
    names = _names_in(path) if os.path.isdir(path) else [os.path.basename(path)]
    found = ""
    for told in (told for host in hosts for told in host.told if told.name in ("sethandler", "addhandler") and told.words):
        if _holds_for_some(told, where, path) and told.words[0].lower() not in _FILES and any(_runs(told, name) for name in names):
            found = told.words[0]
            if found != WSGI:  # one that is no app is enough
                return found
    return found or ("PHP" if any(_PHP.search(name) for name in names) else "")


def verdict(told: Told, is_used: bool) -> tuple[Outcome, str]:
    """Return what becomes of a SetHandler or AddHandler.

    Args:
        is_used: whether it made an app of an Alias.
    """
    handler = told.words[0].lower() if told.words else ""
    if handler == WSGI:
        return (Outcome.TAKEN, "the script is a mount") if is_used else (Outcome.LEFT, "no Alias leads to such a script; write its mount")
    if handler in _FILES:
        return Outcome.TAKEN, "files are sent as they are"
    if handler.startswith("server-"):
        return Outcome.LEFT, "a status page: see isowsgi status and its metrics"
    return Outcome.LEFT, "not Python: it needs a server of its own"


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


def _holds_for_some(told: Told, where: str, path: str) -> bool:
    """Whether a directive holds for what an Alias leads to, or for a part of it."""
    if told.here is None or reach(told, where, path.rstrip("/")) is not None:
        return True
    kind, place = told.here
    return place.startswith({"directory": path, "location": where}.get(kind, "\0").rstrip("/") + "/")


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder) or [""]
    except OSError:  # its user may look into it, and we may not
        return [""]


def _runs(told: Told, name: str) -> bool:
    """Whether a directive is about a file of a name."""
    if told.name == "addhandler" and not any(f".{suffix.lstrip('.').lower()}" in name.lower() for suffix in told.words[1:]):
        return False
    try:
        return re.search(told.files, name) is not None
    except re.error:
        return True
