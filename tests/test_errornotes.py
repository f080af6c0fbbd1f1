"""One request is one error at most, whatever its exception is and however often it was seen."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from isowsgi.inside import errornotes, errorsources
from isowsgi.inside.deadlines import RequestTimeout
from isowsgi.inside.errorbook import ErrorBook
from isowsgi.inside.http import ClientGone, ClientStalled
from isowsgi.shared.errorgroups import MAX_DETAILS_CHARS, MOST_GROUPS
from isowsgi.shared.messages import Erred
from isowsgi.shared.places import place_in, place_of


class Request:
    method, uri = "GET", "/a"


class Response:
    """What a request led to."""

    def __init__(self, status: str) -> None:
        self.status = status
        self.is_5xx, self.headers_sent = status.startswith("5"), True


class Desk:
    """A book, as its instance has it; the calling thread serves."""

    def __init__(self) -> None:
        self.book = ErrorBook()
        self.told: list[Erred] = []
        self.has_room = True
        self.is_serving = True

    def end(self, status: str = "500 Internal Server Error") -> None:
        self.book.settle(0, Request(), Response(status), None)

    def flush(self) -> bool:
        return self.book.flush(self._send)

    def _send(self, report: Erred) -> bool:
        if self.has_room:
            self.told.append(report)
        return self.has_room

    def counts(self) -> dict[tuple[str, str], int]:
        """Return the last count of each kind and type."""
        self.flush()
        return {(report.kind, report.type): report.count for report in self.told}


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    ident = threading.get_ident()
    desk.book.within(lambda: None, is_serving=lambda: desk.is_serving)
    errornotes.threads[ident] = desk.book._threads[0]
    yield desk
    errornotes.threads.pop(ident)
    errornotes.noted.clear()


def note(exc: BaseException, rank: int = errornotes.LOGGED_WITH) -> None:
    try:
        raise exc
    except BaseException as caught:
        errornotes.note(rank, caught)


def test_an_exception_that_is_seen_in_three_ways_is_one_error_with_its_traceback(desk: Desk) -> None:
    try:
        raise KeyError("sku")
    except KeyError as exc:
        errornotes.note(errornotes.PUBLISHED, exc)
        errornotes.note(errornotes.LOGGED_WITH, exc)
        errornotes.note_text("Traceback (most recent call last):\n ...\nKeyError: 'sku'\n")
    desk.end()

    assert desk.counts() == {("exception", "KeyError"): 1}
    [report] = desk.told
    assert (report.error, report.request) == ("KeyError: 'sku'", "GET /a")
    assert f"{__file__}:" in report.place
    assert "raise KeyError" in report.traceback
    assert not errornotes.noted


def test_the_last_request_is_the_one_that_failed_last_not_the_one_whose_thread_came_to_its_end_last(desk: Desk) -> None:
    """Its client had the answer and sent the next request before that; another thread served it."""

    def fail() -> None:
        try:
            raise KeyError("a")
        except KeyError as exc:
            errornotes.note(errornotes.LOGGED_WITH, exc)

    def fail_and_end() -> None:
        fail()
        desk.book.settle(0, SimpleNamespace(method="GET", uri="/last"), Response("500 Internal Server Error"), None)

    fail()
    other = threading.Thread(target=lambda: desk.book.within(fail_and_end, is_serving=lambda: True))
    other.start()
    other.join()
    desk.end()
    desk.flush()

    [report] = desk.told
    assert (report.count, report.request) == (2, "GET /last")


def test_the_exception_that_a_framework_publishes_is_what_the_request_failed_of(desk: Desk) -> None:
    note(ValueError("an attempt"))
    note(KeyError("sku"), errornotes.PUBLISHED)
    note(OSError("the log of it failed"))
    desk.end()

    assert desk.counts() == {("exception", "KeyError"): 1}


def test_a_request_keeps_few_notes_and_has_failed_of_the_last_of_those_with_the_highest_rank(desk: Desk) -> None:
    """All that were published were kept: without end, each with a traceback."""
    for number in range(100):
        note(type(f"E{number}", (Exception,), {})("x"), errornotes.PUBLISHED)
    note(OSError("the log of it failed"))
    assert len(desk.book._threads[0].notes) <= 16
    desk.end()
    assert desk.counts() == {("exception", f"{__name__}.E99"): 1}

    for _ in range(100):
        note(type("Logged", (Exception,), {})("x"))
    note(ValueError("late"), errornotes.RAISED)
    desk.end()
    assert desk.counts()["exception", "ValueError"] == 1


def test_what_was_logged_in_a_request_that_did_not_fail_is_apart(desk: Desk) -> None:
    note(ValueError("an attempt"))
    note(OSError("handled"), errornotes.HANDLED)
    desk.end("200 OK")
    desk.end("503 Service Unavailable")

    assert desk.counts() == {("logged", "ValueError"): 1, ("response", "503 Service Unavailable"): 1}


def test_what_comes_out_of_the_app_is_an_error_although_the_response_had_begun(desk: Desk) -> None:
    note(ValueError("late"), errornotes.RAISED)
    desk.end("200 OK")

    assert desk.counts() == {("exception", "ValueError"): 1}


class Unreadable(OSError):
    """What a framework makes of a client that goes away, as Django does."""


def comes_of(cause: BaseException) -> Unreadable:
    exc = Unreadable("body")
    exc.__cause__ = cause
    return exc


@pytest.mark.parametrize("exc", [ClientGone("gone"), comes_of(ClientGone("gone"))])
@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
def test_a_client_that_goes_away_is_no_error_whatever_the_app_answers(desk: Desk, exc: BaseException, status: str) -> None:
    note(exc)
    desk.end(status)
    assert desk.counts() == {}

    desk.end()
    assert desk.counts() == {("response", "500 Internal Server Error"): 1}, "of the next client"


def test_a_client_that_sends_too_slowly_is_no_exception_of_the_apps(desk: Desk) -> None:
    note(comes_of(ClientStalled("slow")))
    desk.end()

    assert desk.counts() == {("cut", "client too slow"): 1}


def test_what_the_app_makes_of_a_timeout_is_no_error_of_its_own(desk: Desk) -> None:
    note(RequestTimeout())
    note(ValueError("rollback failed"), errornotes.RAISED)
    desk.book.forget()
    assert not errornotes.noted

    desk.end("503 Service Unavailable")
    assert desk.counts() == {("response", "503 Service Unavailable"): 1}


def test_what_is_said_between_two_requests_belongs_to_neither(desk: Desk) -> None:
    """Finalisers run at any time, and log."""
    desk.is_serving = False
    note(ValueError("never retrieved"))
    errornotes.note_text("Traceback (most recent call last):\n ...\nKeyError: 'sku'\n")
    assert not errornotes.noted

    desk.is_serving = True
    desk.end("503 Service Unavailable")
    assert desk.counts() == {("response", "503 Service Unavailable"): 1}


def test_a_new_error_has_a_traceback_although_many_came_before(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1, 10_000, 2))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    for number in range(3 * MOST_GROUPS):
        note(type(f"E{number}", (Exception,), {})("x"))
        assert desk.book._threads[0].take()[0][0].details


def test_a_thread_that_serves_nothing_notes_nothing(desk: Desk) -> None:
    thread = threading.Thread(target=note, args=(ValueError("x"),))
    thread.start()
    thread.join()

    assert not errornotes.noted


def test_counts_are_exact_in_a_flood_and_reports_that_find_no_room_are_made_again(desk: Desk) -> None:
    for number in range(3000):
        note(ValueError(str(number)))
        desk.end()
        if number % 100 == 0:
            desk.has_room = number % 200 == 0
            assert desk.flush() is desk.has_room
    desk.has_room = True

    assert desk.counts() == {("exception", "ValueError"): 3000}
    assert desk.told[-1].first <= desk.told[-1].at
    assert len(desk.told) < 50


def test_an_app_that_makes_a_type_for_each_error_gets_fifty_groups_and_one_for_the_rest(desk: Desk) -> None:
    for number in range(200):
        note(type(f"E{number}" * 1000, (Exception,), {})("x"))
        desk.end()

    counts = desk.counts()
    assert len(counts) == MOST_GROUPS + 1
    assert sum(counts.values()) == 200
    assert counts["exception", "other"] == 150
    assert all(len(type_) <= 120 for _, type_ in counts)


def test_an_error_is_known_by_its_type_although_fifty_others_were_told_before(desk: Desk) -> None:
    """An app that served for weeks had new errors counted as "other", which is what an operator looks for."""
    for number in range(3 * MOST_GROUPS):
        note(type(f"E{number}", (Exception,), {})("x"))
        desk.end()
        desk.flush()
        note(KeyError("sku"))
        desk.end()

    counts = desk.counts()
    assert len(counts) == 3 * MOST_GROUPS + 1
    assert counts["exception", "KeyError"] == 3 * MOST_GROUPS
    assert len(desk.book._threads[0].all_groups()) <= MOST_GROUPS + 1


class Recursive(Exception):
    def __str__(self) -> str:
        return str(self)


class Exiting(Exception):
    def __str__(self) -> str:
        sys.exit(1)


class Changing(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise SystemExit


class Nameless(Exception, metaclass=Changing):
    pass


class Text(str):
    """A name whose methods are the app's code."""

    __slots__ = ()

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: object) -> str:
        raise SystemExit


Named = type("Named", (Exception,), {"__qualname__": Text("Named"), "__module__": "builtins"})


HOSTILE = [Recursive(), Exiting(), Nameless(), Named("x"), ValueError("x" * 10_000_000), ValueError("\ud800\0\x1b[31m")]


@pytest.mark.parametrize("exc", HOSTILE)
def test_no_exception_of_the_apps_does_anything_but_be_counted(desk: Desk, exc: BaseException) -> None:
    note(exc)
    desk.end()

    [(kind, name)] = desk.counts()
    assert kind == "exception"
    assert type(name) is str
    assert len(desk.told[-1].traceback) <= MAX_DETAILS_CHARS + 4
    assert len(desk.told[-1].error) <= 1000


def test_a_traceback_that_comes_as_text_alone_is_read(desk: Desk) -> None:
    frames = '  File "/srv/a.py", line 3, in f\n    x\n  File "/v/site-packages/b.py", line 9, in g\n'
    text = f"E: Traceback (most recent call last):\n{frames}b.E: no\n"
    errornotes.note_text(text)
    desk.end()

    assert desk.counts() == {("exception", "b.E"): 1}
    assert desk.told[0].place == "/srv/a.py:3 in f"


def test_a_place_is_the_innermost_line_of_the_apps_own_code() -> None:
    source = "def f(function):\n    function()\n"
    library: dict[str, Any] = {"__name__": "lib.core"}
    exec(compile(source, "/v/lib/python3/site-packages/lib/core.py", "exec"), library)
    try:
        library["f"](lambda: library["f"](lambda: 1 / 0))
    except ZeroDivisionError as exc:
        trace = exc.__traceback__
    try:
        library["f"](None)
    except TypeError as exc:
        of_library = exc.__traceback__

    assert place_of(trace).startswith(f"{__file__}:")
    assert place_of(of_library).startswith(f"{__file__}:")
    assert place_of(of_library, frozenset({"lib"})) == "/v/lib/python3/site-packages/lib/core.py:2 in f"
    assert place_of(None) == ""
    assert place_in("no frames") == ""


def test_a_log_record_is_heard_of_whatever_becomes_of_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    before = logging.getLogRecordFactory()
    monkeypatch.setattr(errorsources, "_connected", {"flask.signals", "django.core.signals", "pyramid.config"})
    logger = logging.getLogger("silent")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    desk.book.listen()
    try:
        try:
            raise KeyError("sku")
        except KeyError:
            logger.exception("failed")
    finally:
        logging.setLogRecordFactory(before)
    desk.end()

    assert desk.counts() == {("exception", "KeyError"): 1}
