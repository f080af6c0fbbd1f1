"""A connection has one owner at any moment, whichever thread polls, serves or gives back."""

from __future__ import annotations

import gc
import math
import os
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gunicorn.config import Config

from isowsgi.configuration.crossing import snapshot
from isowsgi.configuration.values import BODY_TIMEOUT_S, SEND_TIMEOUT_S
from isowsgi.inside import serve
from isowsgi.inside.serve import Service
from isowsgi.inside.settings import Settings
from isowsgi.inside.wsgi import Gateway
from isowsgi.shared.containment import Containment
from isowsgi.shared.handover import ARM_EDGE, CLOSED_THERE, LINGERING, RETURNED, Loans, Mail, Port, SameProcess, number_of
from isowsgi.shared.messages import Descriptors
from isowsgi.shared.peek import Peeker
from isowsgi.shared.progress import since_last_bytes_ns
from isowsgi.shared.routing import Route, Router
from isowsgi.shared.rows import BUCKET_LIMITS_S, BUSY, BUSY_NS, CLOSED, INTERNAL_ERRORS, REQUESTS, SENDING_NS, STOPPING
from isowsgi.shared.scoreboard import END_COUNTERS, FIRST_COUNTER, Counters, Scoreboard
from isowsgi.shared.sockettimeouts import STANDARD, has_limits, limits_of
from tests.conftest import DEADLINE_S, eventually
from tests.orders import any_order

CFG = Settings(snapshot(Config()))
REQUEST = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


class QuietLog:
    """Logs nothing; an error fails the test."""

    access_enabled = False

    def debug(self, *args: Any) -> None:
        return

    def exception(self, message: str, *args: Any) -> None:
        raise AssertionError(message % args)


class Place:
    """A service whose runner is the test, with one client."""

    def __init__(self) -> None:
        self.during_a_request: Callable[[], None] = lambda: None
        self.note: Callable[[dict[str, Any]], object] = lambda environ: None
        self.body = b"ok"
        self._sends_since = math.inf
        self.connections, self.returns, self.lingering = select.epoll(), select.epoll(), select.epoll()
        self.poke_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.board = Scoreboard()
        fds = Descriptors(
            board=self.board.fd,
            channel=-1,
            connections=self.connections.fileno(),
            returns=self.returns.fileno(),
            lingering=self.lingering.fileno(),
            poke=self.poke_fd,
        )
        order = any_order(fds=fds, threads=1, keepalive_s=60.0, listeners=[["127.0.0.1", 80]])
        gateway = self.gateway = Gateway(0, self._app, CFG, QuietLog(), "/a", {}, lambda: None)
        peeker = Peeker(Router([Route(0, "", "/a")]), CFG)
        returns, lingering = (Port.open(epoll.fileno(), ARM_EDGE) for epoll in (self.returns, self.lingering))
        exchange = SameProcess(returns, lingering, self.board.row(0).words, lambda: None)
        self.contained = Containment(QuietLog(), self.board.row(1).words)
        self.service = Service(order, {0: gateway}, QuietLog(), peeker, self.board, exchange, self.contained)
        self.service.enter_thread(0)
        self.client, served = socket.socketpair()
        self.client.settimeout(DEADLINE_S)
        self.fd = served.detach()
        self.connections.register(self.fd, ARM_EDGE)

    def _app(self, environ: Any, start_response: Any) -> list[bytes]:
        self.during_a_request()
        self.note(environ)
        start_response("200 OK", [("Content-Length", str(len(self.body)))])
        return [self.body]

    def drain(self) -> None:
        self.service.draining = True
        os.eventfd_write(self.poke_fd, 1)

    def ask(self) -> None:
        """Have a request served."""
        self.client.sendall(REQUEST)
        for fd in self.service.poll(True):
            self.serve(fd)
        assert self.client.recv(1000).endswith(b"ok")

    def answer(self, request: bytes = REQUEST) -> bytes:
        """Send a request, serve it, and return what the client has got."""
        self.client.sendall(request)
        for fd in self.service.poll(True):
            self.serve(fd)
        return self.client.recv(1000)

    def serve(self, fd: int) -> None:
        """Do what the runner does with a connection."""
        self.service.settle(self.service.serve(fd))

    def counters(self) -> Counters:
        """Return what the thread has counted."""
        words = self.board.row(2).words
        return Counters(words[REQUESTS], tuple(words[FIRST_COUNTER:END_COUNTERS]))

    def sends_since(self) -> float:
        """Return for how long the thread has waited in a call for the client to take the response, as far as was asked."""
        [connection] = self.service._connections.values()
        if connection.waits_for_client() != "send":
            self._sends_since = math.inf
        else:
            self._sends_since = min(self._sends_since, time.monotonic())
        return time.monotonic() - self._sends_since

    def given_back(self) -> list[int]:
        """Return the connections that the acceptor was handed."""
        return [fd for fd, _ in self.returns.poll(0)]

    def close(self) -> None:
        if self.service.open_connections():
            self.drain()
            self.service.poll(True)
        self.client.close()
        os.close(self.poke_fd)
        if self.service.open_connections() == 0 and not self.board.row(2).words[CLOSED]:  # given back, and so ours
            os.close(self.fd)
        for epoll in (self.connections, self.returns, self.lingering):
            epoll.close()


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


def test_a_drain_gives_an_idle_connection_back(place: Place) -> None:
    place.ask()
    place.drain()

    assert place.service.poll(True) == []
    place.client.sendall(REQUEST)  # the acceptor's set fires for what comes now
    assert place.given_back() == [place.fd]
    assert place.service.open_connections() == 0
    assert place.board.total(CLOSED) == 0


def test_a_connection_is_given_back_with_the_time_limits_that_others_count_on(place: Place) -> None:
    """Who has the standard ones does not set them, and would take over those of the mount before."""
    own = any_order().serving.limits.replace(body_timeout_s=3.0)
    place.service.set_limits(own)
    place.ask()
    with socket.socket(fileno=os.dup(place.fd)) as seen:
        assert has_limits(seen, limits_of(3.0, own.send_timeout_s))
        place.drain()
        place.service.poll(True)
        place.client.sendall(REQUEST)

        assert place.given_back() == [place.fd]
        assert has_limits(seen, STANDARD)


def test_the_limits_that_connections_inherit_are_those_of_mounts_that_say_nothing() -> None:
    assert limits_of(BODY_TIMEOUT_S, SEND_TIMEOUT_S) == STANDARD


def test_a_connection_that_was_polled_is_left_to_the_thread_that_will_serve_it(place: Place) -> None:
    """Another thread may poll before it is served. It took it for idle until then, and gave it back while it was being served."""
    place.ask()
    place.client.sendall(REQUEST)
    ready = place.service.poll(True)
    place.drain()

    assert place.service.poll(True) == []
    assert place.given_back() == []
    for fd in ready:
        place.serve(fd)
    assert place.client.recv(1000).endswith(b"ok")
    place.client.sendall(REQUEST)
    assert place.given_back() == [place.fd]


def test_a_connection_whose_request_outlasts_the_drains_beginning_is_given_back_after_it(place: Place) -> None:
    def drain_meanwhile() -> None:
        place.drain()
        assert place.service.poll(True) == []

    place.during_a_request = drain_meanwhile
    place.ask()

    place.client.sendall(REQUEST)
    assert place.given_back() == [place.fd]


def test_from_the_moment_the_worker_stops_each_response_is_its_connections_last(place: Place) -> None:
    """The order to finish is read a moment later. A response in between kept its connection, which was closed as idle soon after: into
    the client's next request.
    """
    place.ask()
    place.board.row(0).words[STOPPING] = 1

    place.client.sendall(REQUEST)
    for fd in place.service.poll(True):
        place.serve(fd)
    assert b"\r\nConnection: close\r\n" in place.client.recv(1000)
    assert place.client.recv(1000) == b""


def test_what_comes_while_a_request_is_served_is_told_to_nobody_until_the_connection_is_kept(place: Place) -> None:
    """Another thread that polls would serve what the first one serves. The event is over then, so `settle` asks for another."""
    polled: list[list[int]] = []

    def send_and_poll() -> None:
        place.client.sendall(REQUEST)
        polled.append(place.service.poll(False))

    place.during_a_request = send_and_poll
    place.ask()
    place.during_a_request = lambda: None

    assert polled == [[]]
    for fd in place.service.poll(True):
        place.serve(fd)
    assert place.client.recv(1000).endswith(b"ok")


def test_requests_that_came_in_one_packet_are_all_served(place: Place) -> None:
    """There is one event for them, and none for the second."""
    place.client.sendall(REQUEST * 3)
    answers = b""

    for _ in range(3):
        (fd,) = place.service.poll(True)
        place.serve(fd)
        answers += place.client.recv(1000)

    assert answers.count(b"ok") == 3
    assert place.service.poll(False) == []


def test_a_client_that_sends_its_last_request_and_hangs_up_is_answered_and_then_closed(place: Place) -> None:
    """Both are one event."""
    place.client.sendall(REQUEST)
    place.client.shutdown(socket.SHUT_WR)

    for _ in range(2):
        (fd,) = place.service.poll(True)
        place.serve(fd)

    assert place.client.recv(1000).endswith(b"ok")
    assert place.client.recv(1000) == b""
    assert place.service.open_connections() == 0


def test_a_closed_connection_is_disarmed_though_a_child_process_still_has_its_descriptor(place: Place) -> None:
    """Its number may be the next connection's, which an event of the old one would have served by two threads."""
    inherited = os.dup(place.fd)
    place.client.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    for fd in place.service.poll(True):
        place.serve(fd)
    assert place.service.open_connections() == 0

    place.client.sendall(b"more")

    assert place.connections.poll(0) == []
    os.close(inherited)


def test_a_connection_that_is_ready_is_not_found_a_second_time_by_a_repair(place: Place) -> None:
    """It was taken for idle, and so two threads served it."""
    place.client.sendall(REQUEST)
    place.service.repair_later()

    assert place.service.poll(True) == [place.fd]
    place.client.sendall(REQUEST)
    os.eventfd_write(place.poke_fd, 1)

    assert place.service.poll(True) == []
    place.serve(place.fd)
    assert place.service.poll(True) == [place.fd], "once it was settled what came meanwhile is seen"
    place.serve(place.fd)


def test_a_mistake_of_ours_in_a_take_over_costs_that_connection_only(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stayed open and uncounted, and the events that were polled with it were lost."""
    monkeypatch.setattr(place.service._holdings, "_gateway", None)
    place.service._log.error = place.service._containment._log.error = lambda *args: None
    place.client.sendall(REQUEST)

    assert place.service.poll(True) == []

    assert place.service.open_connections() == 0
    assert place.board.row(1).words[INTERNAL_ERRORS] == 1
    assert place.board.row(2).words[CLOSED] == 1


def test_a_client_bound_to_an_abstract_name_that_is_no_text_is_served(place: Place) -> None:
    environ = place.service._holdings._gateway.base_environ(None, b"\0\xff", ("127.0.0.1", 80))

    assert os.fsencode(environ["REMOTE_ADDR"]) == b"\0\xff"


class Child(Place):
    """A service whose connections come by mail; the worker's side is the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.connections.unregister(self.fd)  # it is the worker's, and armed nowhere
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.ours, self.theirs = ours, theirs
        self.loans = Loans(ours, lambda wants: None)
        fds = Descriptors(board=self.board.fd, channel=-1, connections=self.connections.fileno(), poke=self.poke_fd)
        order = any_order("process", first_row=3, fds=fds, threads=1, keepalive_s=60.0)
        self.connections.unregister(self.poke_fd)  # the service that Place made will not poll
        gateway = Gateway(0, self._app, CFG, QuietLog(), "/a", {}, lambda: None)
        peeker = Peeker(Router([Route(0, "", "/a")]), CFG)
        self.service = Service(order, {0: gateway}, QuietLog(), peeker, self.board, Mail(theirs), self.contained)
        self.service.enter_thread(0)

    def turn(self) -> None:
        for fd in self.service.poll(True):
            self.serve(fd)

    def close(self) -> None:
        self.drain()
        self.service.poll(True)  # what it still has, it closes
        self.client.close()
        self.ours.close()
        self.theirs.close()
        os.close(self.fd)
        os.close(self.poke_fd)
        for epoll in (self.connections, self.returns, self.lingering):
            epoll.close()


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.close()


def test_a_connection_that_comes_by_mail_with_its_request_is_served_in_the_same_turn(child: Child) -> None:
    child.client.sendall(REQUEST)
    child.loans.give(child.fd)

    child.turn()

    assert child.client.recv(1000).endswith(b"ok")
    assert child.service.open_connections() == 1
    assert child.loans.read_fates() == []


def test_a_request_in_a_child_is_noted_by_the_workers_number_of_its_connection(child: Child) -> None:
    """When the child dies, the worker finds by it who is to be answered 502."""
    noted: list[int] = []
    child.during_a_request = lambda: noted.append(number_of(child.board.row(4).words[BUSY]))
    child.client.sendall(REQUEST)
    child.loans.give(child.fd)

    child.turn()

    assert noted == [child.fd]
    assert child.board.row(4).words[BUSY] == 0


@pytest.mark.parametrize(
    ("request_bytes", "fate"),
    [
        (b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n", RETURNED),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", CLOSED_THERE),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nmore", LINGERING),
        (b"", CLOSED_THERE),
    ],
    ids=["another mount's", "close", "close, and more", "gone"],
)
def test_the_worker_is_told_what_becomes_of_a_connection(child: Child, request_bytes: bytes, fate: bytes) -> None:
    child.client.sendall(request_bytes)
    if not request_bytes:
        child.client.shutdown(socket.SHUT_WR)
    child.loans.give(child.fd)

    child.turn()

    assert child.loans.read_fates() == [(fate, child.fd)]
    assert child.service.open_connections() == 0
    if fate == RETURNED:
        assert os.read(child.fd, 1000) == request_bytes, "not a byte was taken"


def test_a_drain_gives_back_what_is_idle_and_what_comes_by_mail_is_still_served(child: Child) -> None:
    child.client.sendall(REQUEST)
    child.loans.give(child.fd)
    child.turn()
    child.drain()
    child.turn()
    assert child.loans.read_fates() == [(RETURNED, child.fd)]

    child.client.recv(1000)
    child.client.sendall(REQUEST)
    child.loans.give(child.fd)  # on its way when the child was told
    child.turn()

    assert child.client.recv(1000).endswith(b"ok")
    assert child.loans.read_fates() == [(RETURNED, child.fd)]


def test_a_copy_in_a_sandbox_repairs_its_epoll_set_though_the_kernel_does_not_say_what_is_in_it(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There /proc/self is that of the process from which it was forked."""

    def refuse(epoll_fd: int) -> list[int]:
        raise PermissionError(epoll_fd)

    monkeypatch.setattr(serve, "armed", refuse)
    child.client.sendall(REQUEST)
    child.loans.give(child.fd)
    child.turn()
    assert child.client.recv(1000).endswith(b"ok")

    child.client.sendall(REQUEST)
    assert child.service.poll(True) != []  # an event that is lost, say by an exception
    child.service.repair_later()
    child.turn()
    child.turn()

    assert child.client.recv(1000).endswith(b"ok")


def test_ten_thousand_connections_leave_no_descriptor_in_a_child(child: Child) -> None:
    """Their descriptors are used again at once, while the epoll set might still know the one before under the same number."""
    gc.collect()  # what tests before have left
    before = len(os.listdir("/proc/self/fd"))
    for number in range(10_000):
        child.client.sendall(REQUEST if number % 2 else REQUEST.replace(b"/a", b"/b"))
        child.loans.give(child.fd)
        child.turn()
        if number % 2:
            assert child.client.recv(1000).endswith(b"ok")
            child.drain()
            child.turn()
            child.service.draining = False
        else:
            os.read(child.fd, 1000)
        assert child.loans.read_fates() == [(RETURNED, child.fd)]

    assert len(os.listdir("/proc/self/fd")) == before
    assert child.service.open_connections() == 0


# How long a request waited.


def waited(place: Place) -> float:
    """Serve a request; return what its app was told."""
    told: list[float] = []
    place.note = lambda environ: told.append(environ["isowsgi.queue_s"])
    place.ask()
    [queue_s] = told
    return queue_s


def test_a_request_has_waited_since_the_acceptor_saw_its_first_byte(place: Place) -> None:
    place.board.arrivals()[place.fd] = time.monotonic_ns() - 3 * 10**9

    assert 3 <= waited(place) < 3 + DEADLINE_S
    assert place.counters().waiting_buckets()[11] == 1, "more than 2.5 s, and at most 5"
    assert waited(place) < 3, "the next one on the connection came later"


class LateEpoll:
    """A set in which something happens only once somebody waits for it."""

    def __init__(self, epoll: Any, happens: Callable[[], object]) -> None:
        self._epoll, self._happens = epoll, happens

    def poll(self, timeout: float, events: int) -> Any:
        time.sleep(2 * serve._WAITED_NS / 1e9)
        self._happens()
        return self._epoll.poll(timeout, events)


def test_the_kernel_is_asked_only_for_what_came_while_nobody_looked(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def ask(sock: object) -> int:
        asked.append(sock)
        return 0

    monkeypatch.setattr(serve, "since_last_bytes_ns", ask)
    waited(place)
    epoll = place.service._epoll
    place.service._looked_ns -= 10**9
    monkeypatch.setattr(place.service, "_epoll", LateEpoll(epoll, lambda: place.client.sendall(REQUEST)))
    [fd] = place.service.poll(True)
    assert asked == []
    monkeypatch.setattr(place.service, "_epoll", epoll)
    place.serve(fd)
    assert place.client.recv(1000).endswith(b"ok")

    monkeypatch.setattr(serve, "_WAITED_NS", 10**15)  # however busy the machine is
    place.service._looked_ns -= 10**9
    waited(place)
    assert len(asked) == 1


@pytest.mark.parametrize("written_ns", [0, -1, 1 << 62], ids=["never", "nonsense", "in the future"])
def test_a_request_whose_arrival_was_not_noted_has_not_waited(place: Place, written_ns: int) -> None:
    place.board.arrivals()[place.fd] = written_ns

    assert 0 <= waited(place) < DEADLINE_S


def test_the_kernel_says_when_the_latest_bytes_came(place: Place) -> None:
    """A thread that looks again after a while may find a request that has waited for as long, or one that has just come."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        sock, _ = server.accept()
        with sock:
            client.sendall(b"GET")
            sock.recv(1, socket.MSG_PEEK)
            eventually(lambda: since_last_bytes_ns(sock) > 50e6)
            client.sendall(b" /")
            assert sock.recv(5, socket.MSG_WAITALL) == b"GET /"
            eventually(lambda: since_last_bytes_ns(sock) < 50e6 or client.send(b"x") < 0, "a look soon after the bytes came")
    assert since_last_bytes_ns(place.client) == 0, "of a Unix socket it does not know"
    assert since_last_bytes_ns(sock) == 0, "nor of one that is closed"


# How long a client took for a response.


def test_the_time_in_which_a_client_takes_a_response_is_not_the_apps(place: Place) -> None:
    body = b"x" * (4 << 20)
    place.body = body
    place.client.sendall(REQUEST)
    [fd] = place.service.poll(True)
    taking = threading.Thread(target=take_late, args=(place, len(body)))
    taking.start()
    place.serve(fd)
    taking.join(DEADLINE_S)

    counters = place.counters()
    assert sum(counters.sending_buckets()) == sum(counters.app_buckets()) == 1
    assert counters.sending_buckets()[0] == 0, "the thread was in it for 50 ms at least"
    assert counters.get(SENDING_NS) >= 50e6
    durations, apps = counters.buckets(), counters.app_buckets()
    assert BUCKET_LIMITS_S[apps.index(1)] * 1e9 >= counters.get(BUSY_NS), "what is left is the app's: no sum falls between two writes"
    assert BUCKET_LIMITS_S[durations.index(1)] * 1e9 >= counters.get(BUSY_NS) + counters.get(SENDING_NS)


def take_late(place: Place, length: int) -> None:
    eventually(lambda: place.sends_since() > 0.05)
    while length > 0:
        length -= len(place.client.recv(1 << 20))


def test_a_response_that_the_kernel_takes_at_once_costs_no_look_at_the_clock(place: Place) -> None:
    place.ask()

    assert place.counters().sending_buckets() == (1, *[0] * 15)
    assert place.counters().get(SENDING_NS) == 0


def test_a_response_says_where_its_time_went_if_that_is_wanted(place: Place) -> None:
    assert b"Server-Timing" not in place.answer()

    place.gateway.has_server_timing = True
    place.board.arrivals()[place.fd] = 0
    head = place.answer().decode()
    assert re.search(r"\r\nServer-Timing: queue;dur=\d+\.\d{3}, app;dur=\d+\.\d{3}\r\n", head), head
    assert head.endswith("\r\n\r\nok")
