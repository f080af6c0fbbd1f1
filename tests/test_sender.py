"""Files that clients take slowly: sent whole, by one thread, and nobody waits for it."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isowsgi.inside.sender import Sender
from isowsgi.inside.wsgi import Fate
from isowsgi.shared.errorgroups import CUT, TIMEOUT
from isowsgi.shared.messages import Limits
from isowsgi.shared.rows import BUSY, BYTES_OUT, SENDING_NS, SENDS, TIMEOUTS
from tests.conftest import DEADLINE_S, eventually
from tests.test_serve import REQUEST, Place

CONTENT = bytes(range(256)) * 16384  # 4 MiB: more than a socket's buffer
PATIENT = Limits(
    request_timeout_s=60.0, body_timeout_s=60.0, send_timeout_s=60.0, min_rate=0, slow_request_s=0.0, queue=100, queue_timeout_s=30.0
)


class FilesPlace(Place):
    """A service of files with one client, whose runner is the test."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.log = Log()
        self.gateway._app = self._files
        self.gateway._log = self.log
        self.errors: list[tuple[Any, ...]] = []
        rows = self.board.control_rows(1, [0])
        note = lambda *facts: self.errors.append(facts)  # noqa: E731
        self.sender = Sender(self.service, self.log, PATIENT, rows, self.contained, note, lambda run: run())
        self.service.sender = self.sender
        self.sender.start([self.gateway])

    def _files(self, environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(os.path.getsize(self.path)))])
        return environ["wsgi.file_wrapper"](open(self.path, "rb", buffering=0))

    def ask_for_file(self, request: bytes = REQUEST) -> Fate:
        """Have a request served; return what has become of its connection then."""
        self.client.sendall(request)
        [fd] = self.service.poll(True)
        connection = self.service.serve(fd)
        fate = connection.fate
        self.service.settle(connection)
        return fate

    def take(self) -> bytes:
        """Take a response, while the test is the runner as well."""
        data = b""
        while not data.endswith(CONTENT):
            if not (more := self.client.recv(1 << 20)):
                break
            data += more
        return data

    def settle(self, until: Callable[[], object]) -> None:
        """Poll until something is so."""
        eventually(lambda: self.service.poll(False) is None or until(), "the runner has settled it")

    def sends(self) -> int:
        return int(self.board.row(1).words[SENDS])

    def close(self) -> None:
        self.client.close()
        if self.service.sender is not None:
            self.sender.finish()
        while self.service.open_connections():
            for fd in self.service.poll(True):
                self.serve(fd)
        super().close()


class Log:
    """Keeps what is logged."""

    access_enabled = True

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.accesses: list[int] = []

    def debug(self, text: str, *args: Any) -> None:
        return

    def info(self, text: str, *args: Any) -> None:
        self.lines.append(text % args)

    error = warning = exception = info

    def access(self, response: Any, request: Any, environ: Any, elapsed: Any) -> None:
        self.accesses.append(response.sent)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[FilesPlace]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    place = FilesPlace(path)
    yield place
    place.close()
    assert place.contained._said == {}


def test_what_a_client_does_not_take_at_once_is_sent_without_a_thread(place: FilesPlace) -> None:
    assert place.ask_for_file() is Fate.SEND
    assert (place.sends(), place.board.row(2).words[BUSY], place.log.accesses) == (1, 0, [])

    assert place.take().endswith(CONTENT)
    place.settle(lambda: place.sends() == 0)

    words = place.board.row(2).words
    assert (words[BYTES_OUT], sum(place.counters().buckets()), place.log.accesses) == (len(CONTENT), 1, [len(CONTENT)])
    assert words[SENDING_NS] > 0
    assert place.ask_for_file() is Fate.SEND, "the connection was kept"
    assert len(place.take()) > len(CONTENT)


def test_a_file_that_the_client_takes_at_once_needs_no_sender(place: FilesPlace) -> None:
    place.path.write_bytes(b"short")

    assert place.ask_for_file() is Fate.KEEP
    assert place.client.recv(1000).endswith(b"short")
    assert os.get_blocking(place.fd)


def test_requests_that_come_meanwhile_are_served_afterwards(place: FilesPlace) -> None:
    place.ask_for_file(REQUEST + REQUEST)
    assert place.service.poll(False) == [], "it is not idle"
    place.take()

    ready: list[int] = []

    def poll() -> bool:
        ready.extend(place.service.poll(False))
        return bool(ready)

    eventually(poll, "the second request")

    assert ready == [place.fd]
    place.serve(place.fd)
    assert place.take().endswith(CONTENT)


def test_a_client_that_leaves_costs_both_descriptors_only_as_long_as_it_was_there(place: FilesPlace) -> None:
    def open_files() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(place.path) for fd in os.listdir("/proc/self/fd"))

    place.ask_for_file()
    assert open_files() == 1
    place.client.close()
    place.settle(lambda: place.service.open_connections() == 0)

    assert open_files() == 0
    assert not os.path.exists(f"/proc/self/fd/{place.fd}")
    assert place.log.accesses[0] < len(CONTENT)


@pytest.mark.parametrize(
    ("limits", "error", "timeouts"),
    [
        ({"send_timeout_s": 0.3}, (CUT, "client too slow"), 0),
        ({"send_timeout_s": 0.1, "min_rate": 1 << 40}, (CUT, "client too slow"), 0),
        ({"send_timeout_s": 0.0, "request_timeout_s": 0.3}, (TIMEOUT, "response cut"), 1),
    ],
)
def test_a_client_that_takes_too_little_in_time_is_parted_from(
    place: FilesPlace, limits: dict[str, Any], error: tuple[str, str], timeouts: int
) -> None:
    place.sender.set_limits(PATIENT.replace(**limits))
    place.ask_for_file()
    place.settle(lambda: place.service.open_connections() == 0)

    assert [facts[1:3] for facts in place.errors] == [error]
    assert place.board.row(2).words[TIMEOUTS] == timeouts
    assert sum(place.counters().buckets()) == 1


def test_a_file_that_shrinks_meanwhile_ends_its_connection(place: FilesPlace) -> None:
    place.ask_for_file()
    os.truncate(place.path, 0)
    taken: list[bytes] = []
    taking = threading.Thread(target=lambda: taken.append(place.take()))
    taking.start()
    place.settle(lambda: place.service.open_connections() == 0)
    taking.join(DEADLINE_S)

    assert len(taken[0]) < len(CONTENT)
    assert re.search(r"the app sent \d+ bytes of the 4194304 that its Content-Length promised", place.log.lines[-1])


def test_a_client_that_the_kernel_has_no_memory_for_is_parted_from(place: FilesPlace) -> None:
    place.service.poll(False)  # takes the connection over
    place.sender._epoll.register(place.fd, 0)  # so the sender's own attempt fails
    place.ask_for_file()
    place.settle(lambda: place.service.open_connections() == 0)

    assert place.sends() == 0
    assert place.log.lines[0].startswith("cannot send the rest of a file; closing the connection: GET /a: ")
    assert sum(place.counters().buckets()) == 1


def test_the_end_of_an_instance_waits_for_what_is_on_its_way(place: FilesPlace) -> None:
    place.ask_for_file()
    place.service.draining = True
    taken: list[bytes] = []
    taking = threading.Thread(target=lambda: taken.append(place.take()))
    taking.start()
    place.sender.finish()
    taking.join(DEADLINE_S)

    place.service.sender = None  # it has ended
    assert taken[0].endswith(CONTENT)
    assert (place.service.open_connections(), os.get_blocking(place.fd)) == (0, True), "it was given back"


def test_without_room_the_thread_sends_it(place: FilesPlace) -> None:
    place.sender._most = 0
    place.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    taken: list[bytes] = []
    taking = threading.Thread(target=lambda: taken.append(place.take()))
    taking.start()
    assert place.ask_for_file() is Fate.KEEP
    taking.join(DEADLINE_S)
    assert taken[0].endswith(CONTENT)
