"""What a request leads to when the app or the request itself is wrong: an answer, a line in the log, and no harm to anybody else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from isowsgi.inside import errornotes, forks
from isowsgi.inside.http import ClientStalled
from isowsgi.inside.wsgi import Gateway
from isowsgi.shared.rows import EXCEPTIONS
from tests import test_serve
from tests.test_serve import CFG, REQUEST, Place


class NotedLog(test_serve.QuietLog):
    """Keeps what it is told."""

    access_enabled = True

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.accesses: list[tuple[Any, ...]] = []

    def exception(self, message: str, *args: Any) -> None:
        self.errors.append(message % args)

    def warning(self, message: str, *args: Any) -> None:
        self.errors.append(message % args)

    def access(self, *args: Any) -> None:
        self.accesses.append(args)


class Failing(Place):
    """A service whose app raises."""

    def __init__(self) -> None:
        super().__init__()
        self.log = NotedLog()
        self.failure: BaseException | None = None
        gateway = Gateway(0, self._app, CFG, self.log, "/a", {}, lambda: None)
        self.service._gateways[0] = self.service._holdings._gateway = gateway  # type: ignore[index]

    def _app(self, environ: Any, start_response: Any) -> list[bytes]:
        if self.failure is not None:
            raise self.failure
        return super()._app(environ, start_response)


@pytest.fixture
def place() -> Iterator[Failing]:
    place = Failing()
    yield place
    place.close()


class Unprintable(Exception):
    def __str__(self) -> str:
        return f"error {self.code}"  # type: ignore[attr-defined] # a usual mistake: nobody set it


def test_an_exception_that_cannot_be_printed_is_answered_500_as_any_other(place: Failing) -> None:
    """Its text was asked for while the error was noted, and the client got nothing at all."""
    place.failure = Unprintable()

    assert place.answer().startswith(b"HTTP/1.1 500 ")

    row = place.board.row(2)
    assert row.words[EXCEPTIONS] == 1
    assert row.error() == "GET /a HTTP/1.1: Unprintable: <exception str() failed>"


def test_the_access_log_has_a_failed_requests_fields(place: Failing) -> None:
    place.failure = ValueError("x")
    place.answer(REQUEST.replace(b"\r\n\r\n", b"\r\nUser-Agent: a browser\r\n\r\n"))

    [(response, _, environ, _)] = place.log.accesses
    assert environ["HTTP_USER_AGENT"] == "a browser"
    assert response.status_code == 500


def test_a_logger_finds_gunicorns_names_in_a_response(place: Failing) -> None:
    place.answer()

    [(response, request, _, elapsed)] = place.log.accesses
    assert (response.status, response.status_code, response.sent) == ("200 OK", 200, 2)
    assert (request.method, request.uri) == ("GET", "/a")
    assert elapsed.microseconds


def test_a_body_with_a_status_that_has_none_is_told_in_the_instances_log(place: Failing) -> None:
    """The logger that it went to has no handlers in an instance."""
    place.service._gateways[0]._app = no_content

    assert place.answer().startswith(b"HTTP/1.1 204 ")

    assert place.log.errors == [
        "GET /a: the app returned a body of 5 bytes with status 204 No Content, which must not have one; the body is not sent"
    ]


def test_a_5xx_that_the_app_gives_in_another_thread_is_an_error_of_the_request(place: Failing) -> None:
    """Only what was given in the request's own thread was noted."""
    gateway = place.service._gateways[0]

    def fails_elsewhere(environ: Any, start_response: Any) -> list[bytes]:
        thread = threading.Thread(target=start_response, args=("503 Busy", [("Content-Length", "0")]))
        thread.start()
        thread.join()
        return []

    gateway._app = fails_elsewhere
    gateway.errors.within(place.answer, is_serving=lambda: True)
    told: list[Any] = []
    gateway.errors.flush(told.append)

    assert [(report.kind, report.type, report.count) for report in told] == [("response", "503 Busy", 1)]
    assert not errornotes.noted


@pytest.mark.parametrize(("is_timed_out", "count"), [(False, 1), (True, 0)])
def test_a_client_that_stalls_is_counted_once_whoever_saw_it(place: Failing, is_timed_out: bool, count: int) -> None:
    """By the app's framework, which logs what it is told and passes it on, and by the watcher, which counts what it ends."""
    gateway = place.service._gateways[0]

    def fails(environ: Any, start_response: Any) -> list[bytes]:
        try:
            raise ClientStalled("slow")
        except ClientStalled as exc:
            errornotes.note(errornotes.LOGGED_WITH, exc)
            place.service.jobs[0].ending.is_timed_out = is_timed_out
            raise

    gateway._app = fails
    gateway.errors.within(lambda: place.answer(REQUEST), is_serving=lambda: True)
    told: list[Any] = []
    gateway.errors.flush(told.append)

    assert [(erred.type, erred.count) for erred in told] == [("client too slow", 1)] * count


def no_content(environ: Any, start_response: Any) -> list[bytes]:
    start_response("204 No Content", [])
    return [b"hello"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the copy does nothing with other threads
@pytest.mark.parametrize("ends_by", ["a chunk", "an exception"])
def test_a_copy_that_is_forked_while_the_body_is_read_writes_nothing_to_the_client(place: Failing, ends_by: str) -> None:
    def body() -> Iterator[bytes]:
        pid = os.fork()
        if not pid:
            forks.is_copy = True  # as `forks.watch` has it noted
            if ends_by == "an exception":
                raise SystemExit(0)
            yield b"copy"
        os.waitpid(pid, 0)
        yield b"ok"

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        return body()

    place.service._gateways[0]._app = app

    answer = place.answer()

    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"\r\n\r\nok")
