"""The acceptor by itself: real sockets, and instances that only note what they were given."""

import contextlib
import errno
import gc
import itertools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import InvalidRequestLine, LimitRequestHeaders

from isowsgi.configuration import App, Mount
from isowsgi.configuration.crossing import snapshot
from isowsgi.inside.settings import Settings
from isowsgi.shared.containment import Containment
from isowsgi.shared.handover import ARM_RETURN, Port
from isowsgi.shared.peek import PEEK_MAX_BYTES, Peeker
from isowsgi.shared.routing import Route, Router
from isowsgi.shared.rows import AT_CAPACITY, CLOSED
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.shared.sockettimeouts import STANDARD, has_limits, limits_of, set_limits
from isowsgi.worker import acceptor as acceptor_module
from isowsgi.worker import clients as clients_module
from isowsgi.worker import listeners as listeners_module
from isowsgi.worker import shares as shares_module
from isowsgi.worker.acceptor import Acceptor, Statistics
from isowsgi.worker.dispatcher import NotServing
from isowsgi.worker.loop import Loop
from tests.bystander import again_if_disturbed
from tests.conftest import DEADLINE_S, receive_all

A = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"  # for the only mount that there is
B = b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"  # for none
POST_B = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n" + b"x" * 50_000
REFUSAL = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"


class FakeInstance:
    """Takes connections, and closes them with the test."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self.is_hung = False
        self.progressed = 0
        self.error: Exception | None = None  # raised when it is given one

    def progress(self) -> int:
        return self.progressed

    def is_at_leisure(self) -> bool:
        return True

    def has_ended(self) -> bool:
        return False

    def give(self, fd: int) -> None:
        if self.error is not None:
            raise self.error
        self.given.append(fd)
        self.progressed += not self.is_hung

    def take(self) -> socket.socket:
        """Become the owner of the connection that was given first."""
        return socket.socket(fileno=self.given.pop(0))

    def close(self) -> None:
        while self.given:
            os.close(self.given.pop())


class FakeLog:
    """Notes what is logged."""

    access_log_enabled = True

    def __init__(self) -> None:
        self.accesses: list[tuple[str, str]] = []
        self.errors: list[str] = []

    def access(self, response: Any, request: Any, environ: dict[str, Any], duration: Any) -> None:
        self.accesses.append((f"{environ['REMOTE_ADDR']} {request.method} {request.uri}", response.status))

    def error(self, message: str, *args: object) -> None:
        self.errors.append(message % args)


class ScarceListener(socket.socket):
    """Fails to accept as often as there are errors left."""

    errors: list[int]

    def _accept(self) -> Any:
        if self.errors:
            raise OSError(self.errors[0], os.strerror(self.errors.pop(0)))
        return super()._accept()  # type: ignore[misc] # as `socket.socket.accept` calls it


class Place:
    """An acceptor for one mount at "/a", whose instance is `instance`."""

    def __init__(
        self,
        *,
        unix_path: Path | None = None,
        accepting: bool = True,
        errors: list[int] | None = None,
        others: Sequence[socket.socket] = (),
        **changed: Any,
    ) -> None:
        self.instance: FakeInstance | NotServing = FakeInstance()
        self.board = Scoreboard()
        self.board.allot(0, [0])
        self.log = FakeLog()
        self.refusals: list[Exception] = []
        server = socket.create_server(("127.0.0.1", 0)) if unix_path is None else socket.socket(socket.AF_UNIX)
        if unix_path is not None:
            server.bind(str(unix_path))
            server.listen()
        self._listener = ScarceListener(fileno=server.detach())
        self._listener.errors = errors or []
        self._listener.setblocking(False)
        self._address = self._listener.getsockname()
        options: dict[str, Any] = {"head_timeout_s": 20, "keepalive_s": 20, "max_connections": 100, "shared": False, **changed}
        self.loop = Loop(Containment(self.log, self.board.row(0).words))
        self.acceptor = Acceptor(
            loop=self.loop,
            listeners=[self._listener, *others],
            peeker=Peeker(Router([Route(0, "", "/a")]), Settings(snapshot(Config()))),
            choose=lambda mount: self.instance,
            board=self.board,
            log=self.log,
            refuse_by_gunicorn=self._refuse,
            **options,
        )
        self.returns = Port.open(self.acceptor.returns_fd, ARM_RETURN)
        self.lingering = Port.open(self.acceptor.lingering_fd, ARM_RETURN)
        if accepting:
            self.acceptor.start_accepting()

    def _refuse(self, sock: socket.socket, peer: Any, exc: Exception) -> None:
        self.refusals.append(exc)
        try:
            sock.sendall(REFUSAL)
        except OSError:  # as gunicorn's own does
            return

    @property
    def given(self) -> list[int]:
        assert isinstance(self.instance, FakeInstance)
        return self.instance.given

    @property
    def seen(self) -> Statistics:
        return self.acceptor.statistics()

    def connect(self, data: bytes = b"") -> socket.socket:
        client = socket.socket(self._listener.family)
        client.settimeout(DEADLINE_S)
        try:
            client.connect(self._address)
        except OSError:
            client.close()
            raise
        client.sendall(data)
        return client

    def turn_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"it did not come true: {self.acceptor.statistics()}"
            self.loop.turn(0.02)

    def turn_until_quiet(self) -> None:
        """Turn until a few polls in a row had no event."""
        quiet = 0
        while quiet < 3:
            before = self.seen.wakeups
            self.loop.turn(0.01)
            quiet = quiet + 1 if self.seen.wakeups == before else 0

    def take(self) -> socket.socket:
        """Turn until a connection was handed over, and be its instance."""
        self.turn_until(lambda: self.given)
        assert isinstance(self.instance, FakeInstance)
        return self.instance.take()

    def conversation(self, client: socket.socket) -> bytes:
        """Turn until the client has read all to the connection's end, and return that."""
        answers: list[bytes | OSError] = []

        def read() -> None:
            try:
                answers.append(receive_all(client))
            except OSError as exc:
                answers.append(exc)

        reading = threading.Thread(target=read)
        reading.start()
        self.turn_until(lambda: answers)
        reading.join()
        (answer,) = answers
        if isinstance(answer, OSError):
            raise answer
        return answer

    def close(self) -> None:
        """End all connections, whose clients have gone with their test."""
        self.acceptor.stop()
        if isinstance(self.instance, FakeInstance):
            self.instance.close()
        self.instance = NotServing.FAILED
        self.acceptor.release(0)
        self.turn_until(lambda: self.seen.peeking == self.seen.parked == self.seen.lingering == 0)


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


@pytest.fixture
def make_place() -> Iterator[Callable[..., Place]]:
    places = []

    def make(**options: Any) -> Place:
        places.append(Place(**options))
        return places[-1]

    yield make
    for place in places:
        place.close()


MakePlace = Callable[..., Place]


@pytest.fixture
def fast_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines are looked at more often than once a second."""
    monkeypatch.setattr(acceptor_module, "_SWEEP_S", 0.01)


def reset(client: socket.socket) -> None:
    """Close a connection by a reset, as a client that dies does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# New connections.


def limits_of_next(place: Place) -> tuple[bool, bool]:
    """Return whether a connection that is handed over has the standard time limits, and whether the next one inherits them."""
    with place.take() as sock:
        [listener] = place.acceptor._listeners._listeners.values()
        return has_limits(sock, STANDARD), listener.gives_limits


def test_connections_have_their_time_limits_whether_they_came_before_the_worker_or_after(make_place: MakePlace) -> None:
    """The kernel copies a listener's options when a connection is made: one that waits in the queue when they are set has none."""
    place = make_place(accepting=False)
    with place.connect(A), place.connect(A):
        place.acceptor.start_accepting()
        assert limits_of_next(place) == (True, False)
        assert limits_of_next(place) == (True, False)
        place.turn_until_quiet()
    with place.connect(A):
        assert limits_of_next(place) == (True, True)
    with place.connect(A):
        assert limits_of_next(place) == (True, True)


def test_connections_inherit_their_time_limits_also_where_workers_accept_one_at_a_time(make_place: MakePlace) -> None:
    place = make_place(shared=True)
    inherits = []
    for _ in range(3):
        with place.connect(A):
            inherits.append(limits_of_next(place))

    assert inherits[-1] == (True, True)


def test_a_connection_that_a_child_process_returns_has_the_standard_time_limits_again(place: Place) -> None:
    with place.connect(A), place.take() as sock:
        set_limits(sock, limits_of(1.0, 1.0))
        place.acceptor.take_back(sock.detach())

        assert limits_of_next(place)[0]


def test_connections_that_come_one_by_one_are_accepted_without_asking_for_a_second(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = itertools.count()

    def accept(listener: ScarceListener) -> Any:
        next(asked)
        return socket.socket._accept(listener)  # type: ignore[attr-defined] # see the class

    monkeypatch.setattr(ScarceListener, "_accept", accept)
    for _ in range(40):
        with place.connect(A):
            place.take().close()

    assert next(asked) < 50


def test_connections_that_come_together_are_all_accepted_after_many_that_came_alone(place: Place) -> None:
    for _ in range(10):
        with place.connect(A):
            place.take().close()

    clients = [place.connect(A) for _ in range(10)]
    place.turn_until(lambda: len(place.given) == 10)
    for client in clients:
        client.close()


def test_at_the_end_all_that_has_reached_any_listener_is_accepted(make_place: MakePlace) -> None:
    """One connection at the first had the second take one only, and the kernel reset the others."""
    second = socket.create_server(("127.0.0.1", 0))
    second.setblocking(False)
    address = second.getsockname()
    place = make_place(accepting=False, others=[second])
    with contextlib.ExitStack() as stack:
        stack.enter_context(place.connect(A))
        for _ in range(3):
            stack.enter_context(socket.create_connection(address))

        place.acceptor.stop()

        assert place.seen.accepted == 4


# Heads.


def test_half_a_request_line_wakes_the_acceptor_once(place: Place) -> None:
    """Peeked bytes stay in the buffer; a level-triggered set would fire on them for ever."""
    with place.connect() as client:
        place.turn_until(lambda: place.seen.peeking == 1)
        place.turn_until_quiet()
        before = place.seen.wakeups

        client.sendall(b"GET /a")
        place.turn_until(lambda: place.seen.wakeups > before)
        place.turn_until_quiet()

        assert place.seen.wakeups == before + 1


def test_a_request_is_handed_over_whole_and_not_a_byte_of_it_was_taken(place: Place) -> None:
    with place.connect(A + b"body"), place.take() as connection:
        assert connection.recv(1000) == A + b"body"
        assert place.seen == Statistics(accepted=1, open=1, peeking=0, parked=0, lingering=0, wakeups=place.seen.wakeups)


def test_a_head_that_comes_in_pieces_costs_no_thread_until_it_is_complete(place: Place) -> None:
    head = b"GET /a HTTP/1.1\r\nHost: x\r\nX: y\r\n\r\n"
    with place.connect() as client:
        for start in range(0, len(head) - 3, 3):
            client.sendall(head[start : start + 3])
            place.turn_until_quiet()
            assert place.given == []
        client.sendall(head[start + 3 :])

        with place.take() as connection:
            assert connection.recv(1000) == head


def test_a_head_as_large_as_can_be_peeked_at_is_handed_over(place: Place) -> None:
    """All of it has to fit into the kernel's buffer, as nothing is taken from there."""
    start = b"GET /a HTTP/1.1\r\n"
    head = start + b"X: " + b"y" * 5000 + b"\r\n" + b"Z: z\r\n" * ((PEEK_MAX_BYTES - 5100) // 6) + b"\r\n"
    assert PEEK_MAX_BYTES - 200 < len(head) <= PEEK_MAX_BYTES

    with place.connect() as client:
        sending = threading.Thread(target=client.sendall, args=(head,))
        sending.start()
        with place.take() as connection:
            assert len(connection.recv(len(head), socket.MSG_WAITALL | socket.MSG_PEEK)) == len(head)
        sending.join()


def test_a_head_too_large_to_be_peeked_at_is_refused(place: Place) -> None:
    with place.connect(b"GET /a HTTP/1.1\r\nX: ") as client:
        sending = threading.Thread(target=client.sendall, args=(b"y" * PEEK_MAX_BYTES,))
        sending.start()
        assert place.conversation(client) == REFUSAL
        sending.join()

    assert isinstance(place.refusals[0], LimitRequestHeaders)


def test_what_gunicorn_refuses_is_answered_by_gunicorn(place: Place) -> None:
    with place.connect(b"NONSENSE\r\n") as client:
        assert place.conversation(client) == REFUSAL

    assert isinstance(place.refusals[0], InvalidRequestLine)
    place.turn_until(lambda: place.seen.open == 0)


def test_what_isowsgi_refuses_is_answered_with_its_reason(place: Place) -> None:
    with place.connect(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n") as client:
        answer = place.conversation(client)

    assert answer.startswith(b"HTTP/1.1 501 Not Implemented\r\n")
    assert b"CONNECT is not served here" in answer


def test_a_path_without_a_mount_is_a_404_and_an_access_line(place: Place) -> None:
    with place.connect(B) as client:
        answer = place.conversation(client)

    head, _, page = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert f"Content-Length: {len(page)}".encode() in head
    assert b"Connection: close" in head
    assert place.log.accesses == [("127.0.0.1 GET /b", "404 Not Found")]


def test_the_answer_to_a_head_request_has_no_body(place: Place) -> None:
    with place.connect(B.replace(b"GET", b"HEAD")) as client:
        assert place.conversation(client).endswith(b"\r\n\r\n")


def test_a_client_that_sends_half_a_head_and_then_no_more_is_closed(place: Place) -> None:
    with place.connect(A[:10]) as client:
        client.shutdown(socket.SHUT_WR)

        place.turn_until(lambda: place.seen.accepted == 1 and place.seen.open == 0)
        # To close with those bytes unread would be a reset; on Windows and others that destroys answers which came before.
        assert client.recv(1000) == b""


def test_a_client_that_sends_a_whole_request_and_then_no_more_is_served(place: Place) -> None:
    with place.connect(A) as client:
        client.shutdown(socket.SHUT_WR)

        with place.take() as connection:
            assert connection.recv(1000) == A


def test_a_request_on_a_unix_socket_is_served_also_if_its_client_waits_for_no_answer(make_place: MakePlace, tmp_path: Path) -> None:
    """There a close is seen as a hang-up although the bytes before it can still be read; on TCP it is a mere end of sending."""
    place = make_place(unix_path=tmp_path / "socket")
    client = place.connect(A[:10])
    place.turn_until(lambda: place.seen.peeking == 1)
    place.turn_until_quiet()

    client.sendall(A[10:])
    client.close()

    with place.take() as connection:
        assert connection.recv(1000) == A


def test_the_client_of_a_unix_socket_has_an_empty_address(make_place: MakePlace, tmp_path: Path) -> None:
    place = make_place(unix_path=tmp_path / "socket")
    with place.connect(B) as client:
        assert place.conversation(client).startswith(b"HTTP/1.1 404")

    assert place.log.accesses == [(" GET /b", "404 Not Found")]


# Deadlines.


@pytest.mark.usefixtures("fast_sweeps")
def test_half_a_head_is_a_408_at_the_deadline(make_place: MakePlace) -> None:
    place = make_place(head_timeout_s=0.1)
    with place.connect(A[:-1]) as client:
        assert place.conversation(client).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert place.given == []


@pytest.mark.usefixtures("fast_sweeps")
def test_a_client_that_never_says_a_word_is_closed_without_one(make_place: MakePlace) -> None:
    """As servers do: it may just be about to reuse a connection that it opened ahead, and would take a 408 for the answer."""
    place = make_place(head_timeout_s=0.1)
    with place.connect() as client:
        assert place.conversation(client) == b""


@pytest.mark.usefixtures("fast_sweeps")
def test_a_head_has_its_time_from_its_first_byte(make_place: MakePlace) -> None:
    """And not from the last one: a byte now and then would hold the connection for ever."""
    place = make_place(head_timeout_s=0.2)
    with place.connect() as client:
        for byte in A[:-1]:
            client.sendall(bytes([byte]))
            place.turn_until_quiet()
            if place.seen.lingering or not place.seen.open:
                break
            time.sleep(0.02)
        assert place.conversation(client).startswith(b"HTTP/1.1 408")


# Mounts that do not serve yet, or never will.


def test_a_request_waits_for_its_mount_and_is_handed_over_once_it_serves(place: Place) -> None:
    place.instance = NotServing.BOOTING
    with place.connect(A) as client:
        place.turn_until(lambda: place.seen.parked == 1)
        client.sendall(b"more")
        place.turn_until_quiet()
        assert place.seen.parked == 1

        place.instance = FakeInstance()
        place.acceptor.release(0)

        with place.take() as connection:
            assert connection.recv(1000) == A + b"more"


def test_a_request_that_waited_for_a_mount_that_fails_is_a_503(place: Place) -> None:
    place.instance = NotServing.BOOTING
    with place.connect(A) as client:
        place.turn_until(lambda: place.seen.parked == 1)

        place.instance = NotServing.FAILED
        place.acceptor.release(0)

        answer = place.conversation(client)
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nRetry-After: " in answer


def test_only_the_clients_of_the_mount_that_came_up_are_looked_at(place: Place) -> None:
    place.instance = NotServing.BOOTING
    with place.connect(A):
        place.turn_until(lambda: place.seen.parked == 1)
        place.instance = FakeInstance()

        place.acceptor.release(1)

        assert place.seen.parked == 1


class Tenants:
    """A template at "/a" of which as many live as have a place."""

    def __init__(self, place: Place, **settings: Any) -> None:
        self.places = 0
        self.entered: list[str] = []
        app = App(kind="module", target="m", call="app")
        mount = Mount(pattern="*.x/a", host="*.x", prefix="/a", app=app, max_live=1, **{"queue": 2, "queue_timeout": 60.0, **settings})
        place.acceptor.dispatcher.special = {0: mount}
        place.acceptor.dispatcher.tenant = self.tenant

    def tenant(self, number: int, host: str, waited_s: float, may_enter: bool) -> int | NotServing | None:
        if host in self.entered:
            return 7
        if not self.places or not may_enter:
            return NotServing.FULL
        self.places -= 1
        self.entered.append(host)
        return 7


def asks(host: str) -> bytes:
    return b"GET /a HTTP/1.1\r\nHost: %s\r\n\r\n" % host.encode()


def test_requests_for_tenants_wait_for_a_place_one_after_the_other_and_few_of_them(place: Place) -> None:
    """Who came later took the place, and a look at all who waited was made whenever anything happened."""
    tenants = Tenants(place)
    with place.connect(asks("w.x")):
        place.turn_until(lambda: place.seen.parked == 1)
        with place.connect(asks("w2.x")):
            place.turn_until(lambda: place.seen.parked == 2)
            with place.connect(asks("w.x")) as third:
                assert place.conversation(third).startswith(b"HTTP/1.1 503 ")
            tenants.places = 1
            place.take().close()
            with place.connect(asks("w.x")):
                place.take().close()  # it lives now
            assert (tenants.entered, place.seen.parked) == (["w.x"], 1)
            tenants.places = 1
            place.take().close()
    assert tenants.entered == ["w.x", "w2.x"]


def test_a_request_for_a_tenant_waits_for_a_place_no_longer_than_it_may(place: Place) -> None:
    Tenants(place, queue_timeout=0.1)
    with place.connect(asks("w.x")) as client:
        assert place.conversation(client).startswith(b"HTTP/1.1 503 ")


def test_a_request_that_waits_for_an_app_which_becomes_a_redirect_is_redirected(place: Place) -> None:
    """It was looked at while the dispatcher did not know yet that the mount has no app, which then was loaded over and over."""
    place.instance = NotServing.BOOTING
    with place.connect(A) as client:
        place.turn_until(lambda: place.seen.parked == 1)
        place.instance = NotServing.FAILED  # what the mount's deployment says
        app = App(kind="module", target="-", call="-")
        mount = Mount(pattern="/a", prefix="/a", app=app, redirect="/new{path}", status=308)

        place.acceptor.set_table(Router([Route(0, "", "/a")]), 20, 60, {0: mount})

        answer = place.conversation(client)
    assert answer.startswith(b"HTTP/1.1 308 ")
    assert b"\r\nLocation: /new\r\n" in answer


def test_who_waits_for_a_mount_that_is_https_only_keeps_its_place_when_the_table_changes(place: Place) -> None:
    place.instance = NotServing.BOOTING
    with place.connect(A):
        place.turn_until(lambda: place.seen.parked == 1)
        place.instance = NotServing.FAILED
        mount = Mount(pattern="/a", prefix="/a", app=App(kind="module", target="-", call="-"), https_only=True)

        place.acceptor.set_table(Router([Route(0, "", "/a")]), 20, 60, {0: mount})

        assert place.seen.parked == 1, "it would have been answered"


def test_a_client_that_goes_while_it_waits_for_its_mount_is_forgotten(place: Place) -> None:
    place.instance = NotServing.BOOTING
    client = place.connect(A)
    place.turn_until(lambda: place.seen.parked == 1)

    reset(client)

    place.turn_until(lambda: place.seen.open == 0)


def test_bytes_that_come_while_a_mount_comes_up_do_not_take_its_connection_back(place: Place) -> None:
    """One poll returned the mount's report and an event of a connection that waited for it. The report was looked at first and the
    connection handed over; then its event passed for a connection given back: two owners, and the worker died of the second one's
    epoll_ctl. About one reload in twenty, with forty clients of nginx.
    """
    comes_up = os.eventfd(0, os.EFD_CLOEXEC)

    def on_report() -> None:
        os.eventfd_read(comes_up)
        place.instance = FakeInstance()
        place.acceptor.release(0)

    place.instance = NotServing.BOOTING
    place.acceptor.watch(comes_up, on_report)
    with place.connect(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n") as client:
        place.turn_until(lambda: place.seen.parked == 1)
        place.turn_until_quiet()  # arming it told of the bytes that were there already

        os.eventfd_write(comes_up, 1)
        client.sendall(b"body")
        place.loop.turn(1)

        assert len(place.given) == 1
        assert place.seen.peeking == 0
    place.acceptor.unwatch(comes_up)
    os.close(comes_up)


# Closing so that the answer arrives.


def test_a_client_gets_its_answer_although_most_of_what_it_sent_was_not_read(place: Place) -> None:
    """To close with bytes unread is a reset, which may overtake the answer."""
    with place.connect(POST_B) as client:
        assert place.conversation(client).startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert place.seen.open == 1  # it may still be sending

    place.turn_until(lambda: place.seen.open == 0)


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_client_that_has_ended_its_side_already_gets_its_answer_too(make_place: MakePlace, tmp_path: Path, family: str) -> None:
    """Then both sides have ended theirs, which is a hang-up by epoll's word; what it sent must be read all the same."""
    place = make_place(unix_path=tmp_path / "socket" if family == "unix" else None)
    with place.connect(POST_B) as client:
        client.shutdown(socket.SHUT_WR)

        assert place.conversation(client).startswith(b"HTTP/1.1 404 Not Found\r\n")


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_client_whose_head_is_too_large_to_be_peeked_at_is_not_reset(make_place: MakePlace, tmp_path: Path, family: str) -> None:
    """As much as may be peeked at lies unread when it is answered."""
    place = make_place(unix_path=tmp_path / "socket" if family == "unix" else None)
    with place.connect(A[:-2] + b"X-A: " + b"x" * (PEEK_MAX_BYTES + 5000)) as client:
        place.turn_until(lambda: place.refusals)
        client.shutdown(socket.SHUT_WR)
        place.turn_until(lambda: place.seen.open == 0)

        assert receive_all(client) == REFUSAL


def test_an_answered_client_that_goes_on_sending_is_closed_in_the_end(place: Place) -> None:
    with place.connect(B) as client:
        place.turn_until(lambda: place.seen.lingering == 1)
        assert client.recv(10) == b"HTTP/1.1 4"

        client.setblocking(False)
        gone = False
        while not gone:
            try:
                client.send(b"x" * 10_000)
            except BlockingIOError:
                pass
            except OSError:
                gone = True
            place.loop.turn(0)

    assert place.seen.open == 0


@pytest.mark.usefixtures("fast_sweeps")
def test_an_answered_client_that_neither_sends_nor_closes_is_closed_after_a_while(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients_module, "LINGER_S", 0.1)
    with place.connect(B):
        place.turn_until(lambda: place.seen.lingering == 1)
        place.turn_until(lambda: place.seen.open == 0)


@pytest.mark.parametrize("ends_first", [False, True])
def test_connections_that_an_instance_has_answered_are_closed_as_gently(place: Place, ends_first: bool) -> None:
    with place.connect(POST_B.replace(b"/b", b"/a")) as client:
        connection = place.take()
        connection.sendall(b"answer")
        if ends_first:
            client.shutdown(socket.SHUT_WR)
        connection.shutdown(socket.SHUT_WR)
        place.lingering.give(connection.detach())

        assert place.conversation(client) == b"answer"
    place.turn_until(lambda: place.seen.open == 0)


@pytest.mark.usefixtures("fast_sweeps")
def test_connections_that_an_instance_has_answered_do_not_linger_for_ever(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients_module, "LINGER_S", 0.1)
    with place.connect(A):
        connection = place.take()
        connection.shutdown(socket.SHUT_WR)
        place.lingering.give(connection.detach())

        place.turn_until(lambda: place.seen.lingering == 1)
        place.turn_until(lambda: place.seen.open == 0)


def test_a_client_that_never_reads_does_not_stop_the_acceptor(
    make_place: MakePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its buffer is full of answers it never took: the acceptor serves all, so it must not wait to send one more.

    On a Unix socket, where a buffer once full stays so.
    """
    monkeypatch.setattr(clients_module, "LINGER_S", 3600)
    place = make_place(unix_path=tmp_path / "socket")
    with place.connect(A) as client:
        connection = place.take()
        assert connection.recv(1000) == A
        fill(connection)
        client.sendall(B)
        place.returns.give(connection.detach())

        place.turn_until(lambda: place.seen.open == 0)


def fill(connection: socket.socket) -> None:
    """Send until not one byte more fits."""
    connection.setblocking(False)
    for size in (100_000, 1):
        try:
            while True:
                connection.send(b"x" * size)
        except BlockingIOError:
            continue
    connection.setblocking(True)


# Connections that instances give back.


def give_back(place: Place, connection: socket.socket) -> None:
    """Do as an instance whose response was read, after the request was."""
    assert connection.recv(1000) == A
    place.returns.give(connection.detach())


def test_the_next_request_of_a_connection_given_back_is_routed_anew(place: Place) -> None:
    with place.connect(A) as client:
        give_back(place, place.take())
        place.turn_until(lambda: place.seen.peeking == 1)

        client.sendall(A + B)
        give_back_after(place, place.take(), len(A))

        assert place.conversation(client).startswith(b"HTTP/1.1 404")
    assert place.seen.accepted == 1


def test_a_request_that_was_there_before_its_connection_was_given_back_is_seen(place: Place) -> None:
    with place.connect(A) as client:
        connection = place.take()
        client.sendall(B)
        give_back_after(place, connection, len(A))

        assert place.conversation(client).startswith(b"HTTP/1.1 404")


def give_back_after(place: Place, connection: socket.socket, length: int) -> None:
    """Take so many bytes and give the rest back, once it is there."""
    while len(connection.recv(1000, socket.MSG_PEEK)) == length:
        pass
    connection.recv(length)
    place.returns.give(connection.detach())


@pytest.mark.usefixtures("fast_sweeps")
def test_a_connection_given_back_may_be_idle_for_as_long_as_keep_alive_allows(make_place: MakePlace) -> None:
    """Also one whose client never says another word: it is known only by the event that the giving back is."""
    place = make_place(keepalive_s=0.2)
    with place.connect(A) as client:
        give_back(place, place.take())
        began = time.monotonic()

        assert place.conversation(client) == b""
        assert time.monotonic() - began >= 0.2


@pytest.mark.usefixtures("fast_sweeps")
@again_if_disturbed
def test_a_request_that_begins_on_an_idle_connection_has_the_time_of_a_head(make_place: MakePlace) -> None:
    place = make_place(keepalive_s=0.5, head_timeout_s=20)
    with place.connect(A) as client:
        give_back(place, place.take())
        place.turn_until(lambda: place.seen.peeking == 1)
        client.sendall(A[:5])
        end = time.monotonic() + 0.7
        place.turn_until(lambda: time.monotonic() > end)

        client.sendall(A[5:])
        place.take().close()


@pytest.mark.parametrize("begun", [0, 5])
def test_a_request_that_came_in_time_is_served_however_late_it_is_looked_at(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, begun: int
) -> None:
    """A worker that stopped on a busy machine answered 408 to whole requests: they came while it was at others, and were seen expired."""
    place = make_place(keepalive_s=20, head_timeout_s=20, unix_path=tmp_path / "socket")  # what is sent there is there at once
    busy = os.eventfd(1, os.EFD_CLOEXEC)
    now = time.monotonic
    with place.connect(A) as client:
        give_back(place, place.take())
        place.turn_until(lambda: place.seen.peeking == 1)
        client.sendall(A[:begun])
        place.turn_until_quiet()

        def be_busy() -> None:
            place.loop.unwatch(busy)
            client.sendall(A[begun:])
            monkeypatch.setattr(time, "monotonic", lambda: now() + 25)  # past the deadline; deadlines are looked at in this turn

        place.loop.watch(busy, be_busy)
        place.take().close()
    os.close(busy)


def test_a_connection_that_was_reset_while_it_came_back_is_closed(place: Place) -> None:
    client = place.connect(A)
    connection = place.take()
    reset(client)
    poller = select.poll()
    poller.register(connection, select.POLLRDHUP)
    assert poller.poll(DEADLINE_S * 1000)

    place.returns.give(connection.detach())

    place.turn_until(lambda: place.seen.open == 0)


# Limits.


def test_over_the_limit_clients_wait_in_the_listeners_queue(make_place: MakePlace) -> None:
    place = make_place(max_connections=2)
    with place.connect(A), place.connect(A[:5]), place.connect(A):
        place.turn_until(lambda: place.seen.accepted == 2)
        place.turn_until_quiet()

        assert place.seen.accepted == 2
        assert place.board.row(0).words[AT_CAPACITY] == 1


def test_who_takes_the_last_place_is_handed_over_at_capacity(make_place: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer has to say that the connection is not kept; said a moment later, it came too late for an instance on another core."""
    place = make_place(max_connections=2)
    flags: list[int] = []

    def note(instance: FakeInstance, fd: int) -> None:
        flags.append(place.board.row(0).words[AT_CAPACITY])
        instance.given.append(fd)
        instance.progressed += 1

    monkeypatch.setattr(FakeInstance, "give", lambda instance, fd: note(instance, fd))
    with place.connect(A), place.connect(A), place.connect(A):
        place.turn_until(lambda: len(flags) == 2)

    assert flags == [0, 1]


def test_a_place_that_an_instance_frees_is_taken_when_it_tells(make_place: MakePlace) -> None:
    place = make_place(max_connections=1)
    with place.connect(A), place.connect(A):
        connection = place.take()
        place.turn_until_quiet()
        assert place.seen.accepted == 1

        connection.close()
        place.board.row(1).words[CLOSED] += 1
        place.acceptor.on_capacity()

        place.take().close()
        assert place.board.row(0).words[AT_CAPACITY] == 0 or place.seen.open == 1


def test_a_place_that_falls_free_in_the_acceptor_is_taken_at_once(make_place: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the next sweep: at the limit each connection would cost a second."""
    monkeypatch.setattr(acceptor_module, "_SWEEP_S", 3600)
    place = make_place(max_connections=1)
    first = place.connect(A[:5])
    with place.connect(A):
        place.turn_until(lambda: place.seen.accepted == 1)
        place.turn_until_quiet()
        assert place.given == []

        first.close()

        place.take().close()


def test_an_idle_connection_whose_request_has_just_come_does_not_yield_to_a_new_one(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = make_place(max_connections=1, unix_path=tmp_path / "socket")
    busy = os.eventfd(1, os.EFD_CLOEXEC)
    now = time.monotonic
    with place.connect(A) as client:
        give_back(place, place.take())
        place.turn_until(lambda: place.seen.peeking == 1)
        with place.connect(A):
            place.turn_until_quiet()

            def be_busy() -> None:
                place.loop.unwatch(busy)
                client.sendall(A)
                monkeypatch.setattr(time, "monotonic", lambda: now() + 5)  # idle for long enough to yield

            place.loop.watch(busy, be_busy)
            place.take().close()
            assert place.seen.accepted == 1
    os.close(busy)


def test_without_descriptors_the_queue_is_left_alone_for_a_while_and_then_tried_again(make_place: MakePlace) -> None:
    """The listener stays readable: to try at once would be a loop at full speed, with a line in the log for each turn."""
    place = make_place(errors=[errno.EMFILE])
    with place.connect(A):
        place.turn_until(lambda: place.log.errors)
        for _ in range(10):
            place.loop.turn(0.001)
        assert len(place.log.errors) == 1
        assert "cannot accept a connection: Too many open files" in place.log.errors[0]

        place.take().close()


def test_a_worker_whose_mounts_need_all_but_the_reserve_takes_a_few_connections(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch, fast_sweeps: None
) -> None:
    """It paused after the first one, and for ever: no connection's close gives back what the mounts have."""
    monkeypatch.setattr(listeners_module, "reserve_of", lambda limit: limit)
    place = make_place()
    clients = [place.connect(A) for _ in range(listeners_module._LEAST_OPEN + 3)]
    held = [place.take() for _ in range(listeners_module._LEAST_OPEN)]
    place.turn_until_quiet()
    assert place.seen.accepted == len(held)

    for _ in range(3):
        held.pop().close()
        place.board.row(1).words[CLOSED] += 1
        held.append(place.take())
    for sock in [*held, *clients]:
        sock.close()


def test_a_listener_that_cannot_be_registered_again_is_tried_at_the_next_look(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch, fast_sweeps: None
) -> None:
    """It is in no set then: a worker that takes no connection any more, and lives."""
    place = make_place(shared=True, accepting=False)
    watch, errors = place.loop.watch, [errno.ENOMEM]
    place.acceptor.start_accepting()

    def watch_later(*args: Any, **options: Any) -> None:
        if errors:
            raise OSError(errors.pop(), "no memory")
        watch(*args, **options)

    monkeypatch.setattr(place.loop, "watch", watch_later)
    with place.connect(), place.connect():
        place.turn_until(lambda: place.seen.accepted == 2)

    assert errors == []


@pytest.mark.parametrize(("value", "expected"), [(-(10**12), 1), (10**12, 0)])
def test_whatever_stands_on_the_board_the_worker_knows_how_many_connections_there_can_be(
    make_place: MakePlace, value: int, expected: int
) -> None:
    """With a billion of them it would accept nobody, and with fewer than none as many as come."""
    place = make_place()
    with place.connect():
        place.turn_until(lambda: place.seen.accepted == 1)
        place.board.row(1).words[CLOSED] = value

        assert place.seen.open == expected
        place.board.row(1).words[CLOSED] = 0


def test_a_client_that_gave_up_before_it_was_accepted_is_passed_over(make_place: MakePlace) -> None:
    place = make_place(errors=[errno.ECONNABORTED])
    with place.connect(A):
        place.take().close()

    assert place.log.errors == []


def test_a_process_that_shares_its_listeners_takes_one_connection_a_turn(make_place: MakePlace) -> None:
    """Otherwise the one that wakes first takes the whole queue, and the others have nothing to do."""
    place = make_place(shared=True, accepting=False)
    with place.connect(), place.connect(), place.connect():
        place.acceptor.start_accepting()

        counts = []
        for _ in range(3):
            place.loop.turn(1)
            counts.append(place.seen.accepted)

        assert counts[0] == 1
        place.turn_until(lambda: place.seen.accepted == 3)


def test_nothing_is_accepted_before_it_is_wanted(make_place: MakePlace) -> None:
    place = make_place(accepting=False)
    with place.connect(A):
        place.turn_until_quiet()
        assert place.seen.accepted == 0

        place.acceptor.start_accepting()
        place.take().close()


# The end.


def test_what_has_reached_the_queue_is_accepted_before_the_listeners_are_closed(make_place: MakePlace) -> None:
    """A client whose connection was established must not be reset because the worker stops."""
    place = make_place(accepting=False, max_connections=2)
    clients = [place.connect(A) for _ in range(5)]

    place.acceptor.stop()

    assert len(place.given) == 5
    with pytest.raises(ConnectionRefusedError):
        place.connect()
    for client in clients:
        client.close()


@pytest.mark.usefixtures("fast_sweeps")
def test_at_the_end_idle_connections_have_little_time_and_begun_heads_have_theirs(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor_module, "STOP_IDLE_S", 0.1)
    place = make_place()
    with place.connect() as idle, place.connect(A[:5]) as slow, place.connect(A) as kept:
        place.turn_until(lambda: place.seen.peeking == 2 and place.given)
        place.acceptor.stop()
        give_back(place, place.take())

        assert place.conversation(idle) == b""
        assert place.conversation(kept) == b""
        assert place.seen.open == 1
        slow.sendall(A[5:])
        place.take().close()


# Descriptors.


@pytest.mark.parametrize("data", [b"", A[:5], B, b"NONSENSE\r\n"])
@pytest.mark.parametrize("is_accepted_before", [True, False])
def test_a_client_that_resets_leaves_nothing_behind(place: Place, data: bytes, is_accepted_before: bool) -> None:
    client = place.connect(data)
    if is_accepted_before:
        place.turn_until(lambda: place.seen.accepted == 1)

    reset(client)

    place.turn_until(lambda: place.seen.accepted == 1 and place.seen.open == 0)
    assert place.seen.peeking == place.seen.lingering == 0


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.usefixtures("fast_sweeps")
def test_the_number_of_descriptors_is_the_same_after_as_before(make_place: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients_module, "LINGER_S", 0.05)
    place = make_place(head_timeout_s=0.05, keepalive_s=0.05)
    before = descriptors()

    for _ in range(5):
        with place.connect(B) as client:
            place.conversation(client)
        with place.connect(POST_B) as client:
            place.conversation(client)
        with place.connect(b"NONSENSE\r\n") as client:
            place.conversation(client)
        with place.connect(A[:5]) as client:
            place.conversation(client)
        with place.connect(A) as client:
            give_back(place, place.take())
            place.conversation(client)
        with place.connect(A) as client:
            connection = place.take()
            connection.shutdown(socket.SHUT_WR)
            place.lingering.give(connection.detach())
            place.conversation(client)
        reset(place.connect(A[:5]))
    place.turn_until(lambda: place.seen.accepted == 35 and place.seen.open == 0)

    assert descriptors() <= before


def test_what_fails_while_a_connection_is_looked_at_ends_that_connection_only(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NUL in a PROXY header's address was a ValueError in gunicorn's parser: it ended the worker, with all mounts."""
    look = place.acceptor.dispatcher._peeker.look

    def failing(data: bytes, *args: Any, **kwargs: Any) -> Any:
        if b"/bad" in data:
            raise ValueError("embedded null character")
        return look(data, *args, **kwargs)

    monkeypatch.setattr(place.acceptor.dispatcher._peeker, "look", failing)
    bad, good = place.connect(b"GET /bad HTTP/1.1\r\nHost: x\r\n\r\n"), place.connect(A)

    place.turn_until(lambda: place.given)

    place.turn_until(lambda: place.log.errors)
    assert "connection: internal error" in place.log.errors[0]
    with pytest.raises(ConnectionResetError):
        place.conversation(bad)
    place.take().close()
    assert place.seen.open == 1, "the one that is the instance's"
    bad.close()
    good.close()


def test_an_instance_that_cannot_be_given_a_connection_costs_a_503(place: Place) -> None:
    assert isinstance(place.instance, FakeInstance)
    place.instance.error = MemoryError()
    client = place.connect(A)

    assert place.conversation(client).startswith(b"HTTP/1.1 503 ")
    client.close()
    place.turn_until(lambda: place.seen.open == 0)


def test_who_cannot_be_handed_over_is_answered_without_waiting_whatever_an_app_has_set(place: Place) -> None:
    """An app in the main interpreter: the acceptor's thread waited for the client, up to the app's time limit."""
    assert isinstance(place.instance, FakeInstance)
    place.instance.error = MemoryError()
    client = place.connect(A)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(1)
    try:
        assert place.conversation(client).startswith(b"HTTP/1.1 503 ")
        assert [client.sock.gettimeout() for client in place.acceptor._clients.by_fd.values()] == [None]
    finally:
        socket.setdefaulttimeout(before)
    client.close()
    place.turn_until(lambda: place.seen.open == 0)


@pytest.mark.parametrize("has_another_file", [False, True])
def test_a_connection_that_an_app_has_closed_by_its_number_is_counted_as_closed(place: Place, has_another_file: bool) -> None:
    """The worker took one connection less for each, until it took none."""

    def close_it(fd: int) -> None:
        os.close(fd)
        if has_another_file:
            null = os.open("/dev/null", os.O_RDONLY)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)

    class Broken(FakeInstance):
        def give(self, fd: int) -> None:
            close_it(fd)
            raise OSError(errno.EBADF, "as asked")

    lent = place.connect(A)
    place.turn_until(lambda: place.given)
    fd = place.given.pop()
    close_it(fd)
    place.acceptor.take_back(fd)
    place.turn_until(lambda: place.seen.open == 0)

    place.instance = Broken()
    never_lent = place.connect(A)
    place.turn_until(lambda: place.seen.accepted == 2 and place.seen.open == 0)

    if has_another_file:
        os.close(fd)
    lent.close()
    never_lent.close()


def test_a_mount_that_answers_nobody_leaves_room_for_its_neighbours(
    make_place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a thread that polls no more, each request to it kept a connection for ever, and at worker_connections nobody else was served."""
    monkeypatch.setattr(shares_module, "STALLED_S", 0.1)
    place = make_place(max_connections=10)
    assert isinstance(place.instance, FakeInstance)
    place.instance.is_hung = True
    clients = [place.connect(A) for _ in range(8)]

    answer = place.conversation(clients[-1])

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After" in answer
    assert len(place.given) == 5
    neighbour = place.connect(B)
    assert place.conversation(neighbour).startswith(b"HTTP/1.1 404 ")
    for client in (*clients, neighbour):
        client.close()


def test_who_waits_for_a_mount_that_gets_on_is_served(make_place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_place(max_connections=4)
    assert isinstance(place.instance, FakeInstance)
    place.instance.is_hung = True
    clients = [place.connect(A) for _ in range(3)]
    place.turn_until(lambda: place.seen.parked)

    place.instance.progressed += 1

    place.turn_until(lambda: len(place.given) == 3)
    for client in clients:
        client.close()


def test_who_waits_for_a_mount_that_does_nothing_is_answered_when_the_worker_stops(make_place: Callable[..., Place]) -> None:
    place = make_place(max_connections=4)
    assert isinstance(place.instance, FakeInstance)
    place.instance.is_hung = True
    clients = [place.connect(A) for _ in range(3)]
    place.turn_until(lambda: place.seen.parked)

    place.instance = NotServing.FAILED
    place.acceptor.release(0)

    assert place.conversation(clients[-1]).startswith(b"HTTP/1.1 503 ")
    for client in clients:
        client.close()
