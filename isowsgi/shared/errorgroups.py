"""Errors of one mount, grouped: what happened at which place, how often, and what it looked like the last time. Values only, no I/O.

An app decides what its exceptions are called and how many kinds of them there are. So texts are cut, and there are `MOST_GROUPS` groups
of failures and as many of what was only logged. One more takes the place of the one that was not seen for longest, or is counted in one
group of others for each kind.
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

# Groups of a mount's failures, and of what it only logged; more than a person reads, and 0.4 MiB each with their tracebacks.
MOST_GROUPS = 50

# Types of a mount that are counted apart for as long as the worker lives: each is a time series in a monitoring system.
_MOST_TYPES = 100
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
    """A table of them; one thread changes it.

    Args:
        most: groups of failures, and as many of what was only logged.
        drops_told: whether one of which all was passed on gives up its place to a new one, and is counted nowhere.

    Attributes:
        by_type: how many errors there were of each type, of exceptions, and of each kind of what has no exception; not what was only
            logged. Of those that `count` counted; no group that gives up its place makes it less.
    """

    def __init__(self, most: int = MOST_GROUPS, drops_told: bool = False) -> None:
        self._most = most
        self._drops_told = drops_told
        self.table: dict[Key, Group] = {}
        self.by_type: dict[str, int] = {}

    def of(self, kind: str, type_: str, place: str, older_than: float = 0.0) -> Group:
        """Return the group in which an error belongs.

        Args:
            older_than: a group that was seen last before then may give up its place to a new one.
        """
        key = Key(kind if kind in KINDS else EXCEPTION, type_[:_MAX_NAME_CHARS], place[-_MAX_PLACE_CHARS:])
        group = self.table.get(key)
        if group is None:
            if not self._has_place(key.kind == LOGGED, older_than):
                key = Key(key.kind, OTHER, "")
            group = self.table.setdefault(key, Group(key))
        return group

    def count(self, key: tuple[str, str, str], count: int, at: float) -> Group:
        """Count errors that happened just now, whose group is the latest seen; return it."""
        group = self.of(*key, older_than=at)
        if group.key.kind != LOGGED:
            name = key[1][:_MAX_NAME_CHARS] if group.key.kind == EXCEPTION else group.key.kind
            if name not in self.by_type and len(self.by_type) >= _MOST_TYPES:
                name = OTHER
            self.by_type[name] = self.by_type.get(name, 0) + count
        return group

    def _has_place(self, is_logged: bool, older_than: float) -> bool:
        """Whether one more group may be made of those that are logged, or of the failures; drops one, if need be."""
        same = [group for key, group in self.table.items() if (key.kind == LOGGED) is is_logged and (key.type, key.place) != (OTHER, "")]
        if len(same) < self._most:
            return True
        if self._drops_told:
            told = [group for group in same if group.count == group.told]
            if told:
                del self.table[min(told, key=lambda group: group.at).key]
            return bool(told)
        oldest = min(same, key=lambda group: group.at)
        if oldest.at >= older_than:
            return False
        del self.table[oldest.key]
        other = Key(oldest.key.kind, OTHER, "")
        self.table.setdefault(other, Group(other)).add(oldest.count, oldest.at, "", "", "")
        return True
