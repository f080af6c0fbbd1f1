"""Exceptions that were seen in the requests that are being served: what each thread's request will be told to have failed of.

Frameworks catch what an app raises and answer 500 themselves. So it is noted wherever an exception shows on its way: a framework publishes
it (`errorsources`), it is logged, its traceback is written to `wsgi.errors`, or it is handed to `start_response`. At the request's end
`errorbook` knows what the client has got, and makes one error of all notes.

Notes are made within calls of the app's, so each is one of the app's exceptions in the hands of its own code: its class, its text and its
frames are untrusted, and nothing that they do comes out of here. Of an exception nothing is kept but texts.
"""

from __future__ import annotations

import sys
import time
from _thread import get_ident
from collections.abc import Callable
from typing import Any, NamedTuple

from isowsgi.inside.deadlines import RequestTimeout
from isowsgi.shared.containment import one_line, traceback_of
from isowsgi.shared.errorgroups import LOGGED, MAX_DETAILS_CHARS, Group, Groups
from isowsgi.shared.places import exact, place_in, place_of

# How an exception came to be known. Of several in one request the one with the highest rank is what it failed of, the last one if they are
# equals.
HANDLED = 0  # it was being handled when something else was said; that means little unless the request fails
WRITTEN = 1  # a traceback in `wsgi.errors`
LOGGED_WITH = 2  # a log record's `exc_info`
GIVEN = 3  # to `start_response`
PUBLISHED = 4  # by a framework's signal
RAISED = 5  # out of the app

# How long after a group's last traceback the next one is made in the same thread: that of a deep stack takes longer than a hello.
_PAUSE_S = 1.0

# Notes of one request that are kept; a request may log, and publish, as many exceptions as it likes.
_MOST_NOTES = 16

_TRACEBACK = "Traceback (most recent call last)"

# Our exceptions that are none of the app's: what became of the client, and that the request has timed out.
_CLIENT_GONE, CLIENT_STALLED = ("isowsgi.inside.http", "ClientGone"), ("isowsgi.inside.http", "ClientStalled")
_TIMED_OUT = ("isowsgi.inside.deadlines", "RequestTimeout")

# How far it is looked for them among the causes of an exception: a framework makes an exception of its own of one.
_MOST_CAUSES = 8


class Note(NamedTuple):
    """An exception that was seen.

    Attributes:
        at: seconds since the epoch when it was seen last. The request's end is no measure of that: its thread may come to it after the next
            request has ended in another one.
        error, details: its line and its traceback; "" if those of its group are new enough.
    """

    rank: int
    at: float
    type: str
    place: str
    error: str
    details: str


class ThreadNotes:
    """What is known of a thread's errors. Its owner alone writes here, but for `Group.details`, which `errorbook` takes.

    Attributes:
        notes: of the current request.
        client: what became of its client, if the app was told: one of our exceptions.
    """

    __slots__ = ("_groups", "_shown", "client", "is_serving", "line", "notes", "packages")

    def __init__(self, packages: frozenset[str], line: Callable[[], str], is_serving: Callable[[], bool]) -> None:
        self.line = line  # of the request
        self.is_serving = is_serving  # else nothing is noted: finalisers of the app's run at any time, and the next request is another
        self.client: tuple[str, str] | None = None
        self.packages = packages  # those that are the app's, wherever they lie
        self.notes: list[Note] = []
        self._groups: dict[int, Groups] = {}
        self._shown = Groups()  # when tracebacks were made last

    def note(self, rank: int, exc: BaseException, trace: Any) -> None:
        ours = _ours_in(exc)
        if ours is not None:
            if ours != _TIMED_OUT:
                self.client = ours
            return
        type_, place = _name_of(exc), place_of(trace, self.packages)
        if self._is_due(type_, place):
            self.keep(Note(rank, time.time(), type_, place, one_line(exc), traceback_of(exc)[-2 * MAX_DETAILS_CHARS :]))
        else:
            self.keep(Note(rank, time.time(), type_, place, "", ""))

    def _is_due(self, type_: str, place: str) -> bool:
        now = time.monotonic()
        group = self._shown.of(LOGGED, type_, place, older_than=now - _PAUSE_S)
        if group.shown_at >= 0 and now - group.shown_at < _PAUSE_S:
            return False
        group.shown_at = group.at = now
        return True

    def groups_of(self, mount: int) -> Groups:
        """Return the thread's groups of a mount; its owner alone adds to them."""
        return self._groups.setdefault(mount, Groups(drops_told=True))

    def all_groups(self) -> list[tuple[int, Group]]:
        """Return them all, with the mount's number; for the control thread."""
        return [(mount, group) for mount, groups in self._groups.copy().items() for group in groups.table.copy().values()]

    def take(self) -> tuple[list[Note], tuple[str, str] | None]:
        """Return what was noted, and what became of the client; the next request begins with nothing."""
        noted.pop(get_ident(), None)
        notes, client = self.notes, self.client
        self.notes, self.client = [], None
        return notes, client

    def keep(self, note: Note) -> None:
        for place, other in enumerate(self.notes):
            if other.type == note.type and other.place == note.place:  # the same exception, most likely, seen in another way
                rank, error, details = max(note.rank, other.rank), note.error or other.error, note.details or other.details
                del self.notes[place]
                self.notes.append(Note(rank, note.at, note.type, note.place, error, details))
                return
        if len(self.notes) < _MOST_NOTES:
            self.notes.append(note)
        elif note.rank >= max(PUBLISHED, self.notes[-1].rank):  # the request failed of the last of these
            self.notes[-1] = note


# By thread: those that serve, and the control thread. One interpreter may have several instances: the main one.
threads: dict[int, ThreadNotes] = {}

# Those of them that have notes, or have given a 5xx: empty nearly always, so that a request's end costs a look at it.
noted: dict[int, ThreadNotes] = {}


def note(rank: int, exc: Any, trace: Any = None) -> None:
    """Note an exception, if the calling thread serves a request; raises nothing but what is raised in it from outside."""
    ident = get_ident()
    mine = threads.get(ident)
    if mine is None or not isinstance(exc, BaseException) or not mine.is_serving():
        return
    try:
        mine.note(rank, exc, exc.__traceback__ if trace is None else trace)
    except RequestTimeout:
        raise
    except BaseException:  # of the exception's class, which is the app's code
        mine.keep(Note(rank, time.time(), "exception", "", "", ""))
    if mine.notes or mine.client:
        noted[ident] = mine


def note_handled(rank: int = HANDLED) -> None:
    """Note the exception that is being handled, if there is one."""
    note(rank, sys.exc_info()[1])


def note_failed(ident: int) -> None:
    """Note that the app gives a 5xx, and the exception that is being handled, if there is one.

    Args:
        ident: of the thread that serves the request; an app may call `start_response` in another one.
    """
    note_handled()
    if (mine := threads.get(ident)) is not None:
        noted[ident] = mine


def note_given(exc_info: Any) -> None:
    """Note what is given to `start_response`."""
    if isinstance(exc_info, tuple) and len(exc_info) == 3:
        note(GIVEN, exc_info[1], exc_info[2])


def note_text(text: str) -> None:
    """Note an exception whose traceback is written to `wsgi.errors`, or that is being handled while something else is written there."""
    mine = threads.get(get_ident())
    if mine is None or not mine.is_serving():
        return
    exc = sys.exc_info()[1]
    if _TRACEBACK not in text:
        if exc is not None:
            note(HANDLED, exc)
    elif exc is not None:
        note(WRITTEN, exc)
    elif (read := _read_text(text)) is not None:
        mine.keep(read)
        noted[get_ident()] = mine


def line_of_request() -> str:
    """Return the first line of the request that the calling thread serves, or ""."""
    mine = threads.get(get_ident())
    return mine.line() if mine is not None else ""


def _ours_in(exc: BaseException) -> tuple[str, str] | None:
    """Return which of our exceptions an exception is, or comes of."""
    cause: BaseException | None = exc
    for _ in range(_MOST_CAUSES):
        if cause is None:
            break
        kind = type(cause)
        name = type.__getattribute__(kind, "__module__"), type.__getattribute__(kind, "__qualname__")
        if name in (_CLIENT_GONE, CLIENT_STALLED, _TIMED_OUT):
            return name
        cause = cause.__cause__ or cause.__context__
    return None


def _name_of(exc: BaseException) -> str:
    kind = type(exc)
    module, name = type.__getattribute__(kind, "__module__"), exact(type.__getattribute__(kind, "__qualname__"))
    module = exact(module) if isinstance(module, str) else ""  # it is whatever the class says
    return name if module in ("builtins", "__main__", "") else f"{module}.{name}"


def _read_text(text: str) -> Note | None:
    """Return what a traceback says as a text."""
    start = text.rfind(_TRACEBACK)
    tail = text[start:][-2 * MAX_DETAILS_CHARS :]
    lines = [line for line in tail.splitlines()[1:] if line and not line[0].isspace()]
    if not lines:
        return None
    name = lines[0].partition(":")[0]
    return Note(WRITTEN, time.time(), name[:200], place_in(tail), lines[0], text[-2 * MAX_DETAILS_CHARS :])
