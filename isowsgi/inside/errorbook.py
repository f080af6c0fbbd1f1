"""Counts what goes wrong in an instance's requests, by groups, and has the worker know: exactly, and seldom.

Each thread counts in groups of its own, so that no lock is taken. The control thread adds them up a few times a second and reports each
group that has grown with its count so far: a report that finds no room is made again, and none is counted twice.
"""

from __future__ import annotations

import time
from _thread import get_ident
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any

from isowsgi.inside import errornotes, errorsources
from isowsgi.inside.errornotes import CLIENT_STALLED, HANDLED, RAISED, Note, ThreadNotes
from isowsgi.shared.errorgroups import CUT, EXCEPTION, LOGGED, RESPONSE, Group, Groups
from isowsgi.shared.messages import Erred
from isowsgi.shared.places import place_in
from isowsgi.shared.rows import EXCEPTIONS, Row

# Groups of a mount that an instance sums up, of failures and of what was only logged. The worker drops old ones; here that would lose count
# of one that comes again, so there are more than an app fails at in a generation's life: 2 KiB each.
_MOST_SUMS = 200


class ErrorBook:
    """One instance's.

    Args:
        packages: top-level modules of its apps.
    """

    def __init__(self, packages: Iterable[str] = ()) -> None:
        self._packages = frozenset(packages)
        self._threads: list[ThreadNotes] = []
        self._sums: dict[int, Groups] = {}  # by the mount's number
        self._flushing = Lock()

    def within(
        self, function: Callable[..., object], *args: Any, line: Callable[[], str] = str, is_serving: Callable[[], bool] = bool
    ) -> None:
        """Call what one of the instance's threads does for as long as it lives: it serves, or watches.

        Args:
            line: returns the first line of the request that the thread serves, or "".
            is_serving: whether it serves one.
        """
        ident = get_ident()
        mine = errornotes.threads[ident] = ThreadNotes(self._packages, line, is_serving)
        self._threads.append(mine)
        try:
            function(*args)
        finally:  # another thread may get its number
            errornotes.threads.pop(ident, None)
            errornotes.noted.pop(ident, None)

    def listen(self) -> None:
        """Hear of exceptions that the app's frameworks catch; once it is loaded."""
        errorsources.connect()

    # By the thread that serves.

    def raised(self, exc: BaseException) -> None:
        """Note what came out of the app."""
        errornotes.note(RAISED, exc)

    def forget(self) -> None:
        """Forget what was noted in the calling thread: nothing that was said since its last request's end is of the next one."""
        mine = errornotes.threads.get(get_ident())
        if mine is not None:
            mine.take()

    def settle(self, mount: int, request: Any, response: Any, row: Row | None) -> None:
        """Make at most one error of all that was noted in a request, which has ended, and of its status.

        Args:
            request: gunicorn's or ours.
            response: None if it was not made.
        """
        mine = errornotes.threads.get(get_ident())
        if mine is None:
            return
        notes, client = mine.take()
        line = f"{request.method} {request.uri}" if request is not None else ""
        groups = mine.groups_of(mount)
        if client is not None:  # the app was told, and made of it what it likes; nobody has got that
            if client == CLIENT_STALLED:
                groups.of(CUT, "client too slow", "").add(1, time.time(), line, "the client sent too little of the body in time", "")
            return
        has_failed = response is not None and response.is_5xx and response.headers_sent and response.status.startswith("5")
        if not (has_failed or any(note.rank == RAISED for note in notes)):
            for note in notes:
                if note.rank != HANDLED:
                    _add(groups.of(LOGGED, note.type, note.place), line, note)
            return
        best = max(reversed(notes), key=lambda note: note.rank, default=None)
        if best is None:
            self._add_status(groups, line, response.status, row)
            errorsources.connect()  # a framework may have been loaded late
            return
        group = groups.of(EXCEPTION, best.type, best.place)
        _add(group, line, best)
        if best.rank != RAISED and row is not None:  # else that was done where it was caught
            row.words[EXCEPTIONS] += 1
            row.set_error(f"{row.line()}: {group.error or best.type}")

    def _add_status(self, groups: Groups, line: str, status: str, row: Row | None) -> None:
        error = f"answered {status[:100]} without a traceback"
        groups.of(RESPONSE, status, "").add(1, time.time(), line, error, "")
        if row is not None:
            row.set_error(f"{row.line()}: {error}")

    # By any thread of the instance.

    def add(self, mount: int, kind: str, type_: str, line: str, error: str, details: str = "") -> None:
        """Count what is no exception of the app's.

        Args:
            line: the request's first.
            details: the stack of its thread, if that is known.
        """
        mine = errornotes.threads.get(get_ident())
        if mine is not None:
            place = place_in(details) if details else ""
            group = mine.groups_of(mount).of(kind, type_, place)
            group.add(1, time.time(), line.removesuffix(" HTTP/1.1"), error, details)

    # By the control thread, and by whoever ends the instance.

    def flush(self, send: Callable[[Erred], bool | None]) -> bool:
        """Report what has come since the last time; return whether all of it could be sent.

        Args:
            send: returns False if it could not.
        """
        with self._flushing:
            return self._flush(send)

    def _flush(self, send: Callable[[Erred], bool | None]) -> bool:
        for mine in self._threads:
            for mount, group in mine.all_groups():
                if group.count != group.told:
                    self._take(mount, group)
        is_all = True
        for mount, groups in self._sums.items():
            for group in groups.table.values():
                if group.count == group.told:
                    continue
                if send(_report(mount, group)) is False:
                    is_all = False
                else:
                    group.told, group.details = group.count, ""
        return is_all

    def _take(self, mount: int, group: Group) -> None:
        """Add what a thread has counted since the last time. The thread still counts meanwhile: what it adds now is taken the next time."""
        count, details = group.count, group.details
        group.details = ""
        into = self._sums.setdefault(mount, Groups(_MOST_SUMS)).of(*group.key)
        if group.at >= into.at:
            into.add(count - group.told, group.at, group.request, group.error, details)
        else:
            into.add(count - group.told, group.at, "", "", "")
        into.first = min(into.first, group.first)
        group.told = count


def _add(group: Group, line: str, note: Note) -> None:
    group.add(1, note.at, line, note.error, note.details)


def _report(mount: int, group: Group) -> Erred:
    kind, type_, place = group.key
    return Erred(
        mount=mount, kind=kind, type=type_, place=place, count=group.count, first=group.first, at=group.at, request=group.request,
        error=group.error, traceback=group.details,
    )  # fmt: skip
