"""Errors of one mount, grouped: what happened at which place, how often, and what it looked like the last time. Values only, no I/O.

An app decides what its exceptions are called and how many kinds of them there are. So texts are cut, and what comes after the first
`MOST_GROUPS` groups is counted in one more for each kind.
"""

from __future__ import annotations

from typing import NamedTuple

# Kinds of errors. An exception that was logged in a request which was then answered with less than 500 is no failure; it is shown apart.
EXCEPTION = "exception"  # an exception of the app's, answered 5xx or after its response had begun
RESPONSE = "response"  # a 5xx of the app's without a known exception
TIMEOUT = "timeout"  # no progress for `request_timeout`
QUEUE = "queue"  # turned away by the mount's queue
REFUSED = "refused"  # answered 503 before any instance had it
CUT = "cut"  # the response is not whole, or the client was too slow
STUCK = "stuck"  # a thread does not come out of its request
LOGGED = "logged"
KINDS = (EXCEPTION, RESPONSE, TIMEOUT, QUEUE, REFUSED, CUT, STUCK, LOGGED)

# Groups of a mount; more than a person reads, and 0.4 MiB with their tracebacks.
MOST_GROUPS = 50
OTHER = "other"

_MAX_NAME_CHARS = 120
_MAX_PLACE_CHARS = 250
_MAX_REQUEST_CHARS = 500
_MAX_ERROR_CHARS = 1000

# Of a traceback its end is kept: there is the error.
MAX_DETAILS_CHARS = 8 * 1024


class Key(NamedTuple):
    """What is counted together.

    Attributes:
        kind: one of `KINDS`.
        type: the exception's class, or what stands for it.
        place: "file:line in function", the innermost frame of the app's own code; "" if there is none.
    """

    kind: str
    type: str
    place: str


class Group:
    """What is counted together.

    Attributes:
        first, at: when it happened first and last, in seconds since the epoch.
        request: the last one's method and target.
        error: the last one in a line.
        details: a traceback or stack, of the last time or a little earlier.
        told: how many of `count` were passed on; for who does that.
        shown_at: monotonic seconds when `details` was made last; for who makes it.
    """

    __slots__ = ("at", "count", "details", "error", "first", "generation", "key", "request", "shown_at", "told")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.count = self.told = self.generation = 0
        self.first = self.at = 0.0
        self.request = self.error = self.details = ""
        self.shown_at = -1.0

    def add(self, count: int, at: float, request: str, error: str, details: str) -> None:
        """Count errors; what is empty leaves what was known before."""
        self.count += count
        self.first = self.first or at
        self.at = max(self.at, at)
        if request:
            self.request = request[:_MAX_REQUEST_CHARS]
        if error:
            self.error = error[:_MAX_ERROR_CHARS]
        if details:
            self.details = details if len(details) <= MAX_DETAILS_CHARS else "...\n" + details[-MAX_DETAILS_CHARS:]


class Groups:
    """A table of them; one thread changes it."""

    def __init__(self) -> None:
        self.table: dict[Key, Group] = {}

    def of(self, kind: str, type_: str, place: str) -> Group:
        """Return the group in which an error belongs."""
        key = Key(kind if kind in KINDS else EXCEPTION, type_[:_MAX_NAME_CHARS], place[-_MAX_PLACE_CHARS:])
        group = self.table.get(key)
        if group is None:
            if len(self.table) >= MOST_GROUPS:
                key = Key(key.kind, OTHER, "")
                if key in self.table:
                    return self.table[key]
            group = self.table[key] = Group(key)
        return group

    def failures(self) -> int:
        """Return how many errors there were; what was only logged is none."""
        return sum(group.count for group in self.table.values() if group.key.kind != LOGGED)

    def by_type(self) -> dict[str, int]:
        """Return how many there were of each type, of exceptions, and of each kind of what has no exception; not what was only logged."""
        counts: dict[str, int] = {}
        for key, group in self.table.copy().items():
            if key.kind != LOGGED:
                name = key.type if key.kind == EXCEPTION else key.kind
                counts[name] = counts.get(name, 0) + group.count
        return counts
