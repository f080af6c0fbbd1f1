"""Which extension modules of an app share state between the interpreters of a process, and which of those do no harm.

An app with one that does would be worse off with a shared GIL than in a process: what a neighbour registers counts for it (psycopg2's
adapters, with a secret among them), classes are another interpreter's, and what one leaves behind at its end crashes the next.

What `inside.survey` finds in the two copies of a trial, and in the trial's main interpreter, is compared here. The rule errs on the safe
side; the list of what was tried and found harmless corrects it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from isowsgi.inside import survey

TRIED = "November 2026"  # with the newest releases then, on CPython 3.11 to 3.15

# What was found, in words: the beginning of each says what kind of sharing it is.
SINGLE_PHASE = "has one state for the whole process (single-phase init)"
SAME_OBJECT = "gives all interpreters the same"
HELD = "keeps an interpreter's objects in C variables"


class Sharing(NamedTuple):
    """One way in which a module shares state."""

    module: str
    path: str
    what: str


class Harmless(NamedTuple):
    """A package whose sharing was looked at and tried: two copies, each used, ended and loaded again in every order.

    Attributes:
        package: its top-level module.
        ways: what was looked at, exactly; anything else that is found in it counts.
        tried: its release.
        why: what is shared, and why nobody notices.
    """

    package: str
    ways: tuple[str, ...]
    tried: str
    why: str


HARMLESS = (
    Harmless(
        "psutil",
        (SINGLE_PHASE, f"{SAME_OBJECT} class ZombieProcessError", f"{HELD}: class ZombieProcessError"),
        "7.2.2",
        "functions without a state, and one exception class that its Python code catches by the same name",
    ),
    Harmless("bitarray", (SINGLE_PHASE,), "3.12.3", "static types; nothing of an interpreter's is kept"),
    Harmless("ciso8601", (SINGLE_PHASE,), "2.4.1", "functions, and one static type"),
    Harmless("lz4", (SINGLE_PHASE,), "4.4.5", "functions without a state"),
    Harmless("mmh3", (SINGLE_PHASE,), "5.3.1", "functions, and static types"),
)


class Fallback(NamedTuple):
    """A package that does without its extension module, by code in Python that gives the same results; tried too."""

    module: str  # the extension module; or its package, for all of them
    tried: str


FALLBACKS = (
    Fallback("aiohttp", "3.14.5"),
    Fallback("markupsafe", "3.0.4"),
    Fallback("simplejson", "4.3.0"),
    Fallback("wrapt", "2.5.2"),
    Fallback("multidict", "7.2.1"),
    Fallback("yarl", "1.25.1"),
    Fallback("frozenlist", "1.8.0"),
    Fallback("google._upb", "7.36.2"),  # protobuf
    Fallback("propcache", "0.5.4"),
    Fallback("msgpack", "1.2.4"),
    Fallback("tornado", "6.6.1"),
    Fallback("zope.interface", "8.7"),
    Fallback("yaml", "6.0.4"),  # only CLoader and its kin are missing, which fall back in the app or fail at its import
)


# Parts of the standard library for terminals, which no worker has: who does without them at import (tornado.log, cmd) misses nothing.
FOR_TERMINALS = ("_curses", "_curses_panel", "readline")


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Sharing]:
    """Return what the extension modules share, one way each, from what two copies of an app in one process have told.

    Args:
        first: what `survey.tell` wrote for the one,
        second: and for the other.
    """
    before = {module["name"]: module for module in first["modules"]}
    found: list[Sharing] = []
    for module in second["modules"]:
        other = before.get(module["name"], {"objects": [], "held": []})
        in_main = survey.held_in_c(module["path"])
        for what in _ways(module, other, in_main):
            found.append(Sharing(module["name"], module["path"], what))
    return found


def _ways(module: Mapping[str, Any], other: Mapping[str, Any], in_main: Sequence[str]) -> Iterator[str]:
    addresses = {address for _, _, address in other["objects"]}
    shared = [f"{kind} {place}" for place, kind, address in module["objects"] if address in addresses]
    shared.sort(key=lambda text: text.startswith("class "))  # registries say more
    if shared:
        yield f"{SAME_OBJECT} {shared[0]}" + (f" and {len(shared) - 1} more" if len(shared) > 1 else "")
    held = list(dict.fromkeys([*other["held"], *module["held"], *in_main]))
    if held:
        yield f"{HELD}: {held[0]}" + (f" and {len(held) - 1} more" if len(held) > 1 else "")
    if module["is_single_phase"]:
        yield SINGLE_PHASE


def harmful(found: Iterable[Sharing]) -> list[Sharing]:
    """Leave out what is known to do no harm."""
    known = {(each.package, what) for each in HARMLESS for what in each.ways}
    return [sharing for sharing in found if (sharing.module.partition(".")[0], sharing.what) not in known]


def has_fallback(module: str) -> bool:
    """Whether an app that goes without an extension module has the same by its package's code in Python."""
    return any(module == each.module or module.startswith(each.module + ".") for each in FALLBACKS)


def is_missed(module: str, lost: Container[str]) -> bool:
    """Whether an app that was loaded without an extension module, which refused, would be better off with it.

    Args:
        lost: those whose package is not there at all.
    """
    return module not in FOR_TERMINALS and (module in lost or not has_fallback(module))
