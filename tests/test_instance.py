"""The host's side of an instance: its state is what the inside said, and orders reach the inside."""

import errno
import os
import re
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from isowsgi.instances import subinterpreter
from isowsgi.instances.judge import TIMED_OUT
from isowsgi.instances.lifecycle import State
from isowsgi.instances.subinterpreter import InterpreterInstance
from isowsgi.shared import messages
from isowsgi.shared.handover import key_of
from isowsgi.shared.messages import Closed, Failed, Ready, Report
from isowsgi.shared.rows import ANSWERED, BEAT, BUSY, BUSY_SINCE, BY_APP, BY_WATCHER, PROGRESS_AT, RESPONSES, TIMEOUTS
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.shared.wire import MessageError
from tests.conftest import DEADLINE_S, ROOT
from tests.orders import any_order

READY = Ready(boot_s=0.5, objects=1, extensions=[], refused=[])


class Puppet(InterpreterInstance):
    """An instance without an interpreter: the test says what the inside says."""

    def __init__(self, isolation: str = "shared-gil") -> None:
        self._shared = {name: os.eventfd(0, os.EFD_CLOEXEC) for name in ("returns", "lingering", "capacity")}
        self.board = Scoreboard()
        self.board.set_mounts(["/a"])
        order = any_order(isolation, first_row=self.board.allot(2, [0]), threads=2)
        super().__init__(order, {**self._shared, "board": self.board.fd}, self.board)

    def hears(self, report: Report | bytes) -> Report | None:
        """Take in one report and return it."""
        self._inner.send(report if isinstance(report, bytes) else messages.encode(report))
        return self.read()

    def said(self) -> list[str]:
        """Return the orders given so far."""
        orders = []
        while True:
            try:
                orders.append(type(messages.decode_order(self._inner.recv(1000, socket.MSG_DONTWAIT))).__name__)
            except BlockingIOError:
                return orders

    def ready_connections(self) -> list[int]:
        return [fd for fd, _ in self._epoll.poll(0)]

    def close(self) -> None:
        for fd in (self.board.fd, *self._shared.values()):
            os.close(fd)
        self.discard()


@pytest.fixture
def instance() -> Iterator[Puppet]:
    instance = Puppet()
    yield instance
    instance.close()


def test_an_instance_serves_once_its_app_was_loaded(instance: Puppet) -> None:
    assert (instance.state, instance.is_loaded) == (State.BOOTING, False)

    assert instance.hears(READY) == READY

    assert (instance.state, instance.is_loaded, instance.boot_s) == (State.SERVING, True, 0.5)


def test_an_app_that_cannot_be_loaded_leaves_its_traceback(instance: Puppet) -> None:
    instance.hears(Failed(error="ImportError: x", traceback="Traceback ..."))
    instance.hears(Closed(threads=0))

    assert (instance.state, instance.error, instance.traceback) == (State.FAILED, "ImportError: x", "Traceback ...")


def test_an_interpreter_that_ends_without_a_word_has_failed(instance: Puppet) -> None:
    instance.hears(Closed(threads=2))

    assert (instance.state, instance.threads_left) == (State.FAILED, 2)
    assert "ended before the app was loaded" in instance.error


@pytest.mark.parametrize("order", [None, "finish"])
def test_an_interpreter_that_breaks_off_after_its_app_was_loaded_does_not_take_the_worker_with_it(
    instance: Puppet, order: str | None
) -> None:
    """Its keeper then reports a failure that is none of the boot; the table knows no such event, and an exception here ends the worker."""
    instance.hears(READY)
    if order:
        instance.finish()

    instance.hears(Failed(error="RuntimeError: can't start new thread", traceback="Traceback ..."))
    instance.hears(Closed(threads=0))

    assert (instance.state, instance.error) == (State.CLOSED, "RuntimeError: can't start new thread")


def test_one_that_was_stopped_while_it_loaded_its_app_drains_when_that_is_done(instance: Puppet) -> None:
    instance.finish()
    instance.hears(READY)

    assert (instance.state, instance.is_loaded) == (State.DRAINING, True)


def test_a_thread_that_was_given_up_may_still_end(instance: Puppet) -> None:
    instance.hears(READY)
    instance.drain()
    instance.abandon()
    before = instance.state

    instance.hears(Closed(threads=0))

    assert (before, instance.state) == (State.STUCK, State.CLOSED)


def test_orders_reach_the_inside_in_order(instance: Puppet) -> None:
    instance.hears(READY)

    instance.tell(messages.Reopen())
    instance.drain()
    instance.stop()

    assert instance.said() == ["Reopen", "Drain", "Stop"]


def test_an_order_to_an_inside_that_is_gone_is_dropped(instance: Puppet) -> None:
    instance._inner.close()

    instance.stop()


def test_a_connection_is_given_with_the_bytes_that_it_already_has(instance: Puppet) -> None:
    client, ours = socket.socketpair()
    with client, ours:
        client.sendall(b"GET")

        instance.give(ours.fileno())

        assert instance.ready_connections() == [ours.fileno()]
        assert instance.ready_connections() == []  # armed for one event
        assert ours.recv(10) == b"GET"


def test_reports_are_taken_in_one_by_one(instance: Puppet) -> None:
    """Whoever handles one must find the state that it led to, not that of those behind it."""
    for report in (READY, Closed(threads=0)):
        instance._inner.send(messages.encode(report))

    assert (instance.read(), instance.state) == (READY, State.SERVING)
    assert (instance.read(), instance.state) == (Closed(threads=0), State.CLOSED)
    assert instance.read() is None


@pytest.mark.parametrize("packet", [b"", b"x", b"[]", b'{"is": "Ready"}', b"[" * 100_000, messages.encode(READY) * 2])
def test_what_is_no_report_is_refused_and_changes_nothing(instance: Puppet, packet: bytes) -> None:
    with pytest.raises(MessageError):
        instance.hears(packet)

    assert (instance.state, instance.is_loaded) == (State.BOOTING, False)


@pytest.mark.parametrize(("module", "name"), [(os, "eventfd"), (select, "epoll")])
def test_one_that_cannot_be_made_leaves_no_descriptor_behind(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
    """Each try kept two; the few descriptors that a worker has left over were gone after some tries."""
    made: list[socket.socket] = []
    real = socket.socketpair

    def remember(*args: Any) -> tuple[socket.socket, socket.socket]:
        pair = real(*args)
        made.extend(pair)
        return pair

    def refuse(*args: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    board = Scoreboard()
    monkeypatch.setattr(socket, "socketpair", remember)
    monkeypatch.setattr(module, name, refuse)

    with pytest.raises(OSError, match="too many"):
        InterpreterInstance(any_order(threads=2), {"board": board.fd}, board)

    os.close(board.fd)
    assert [sock.fileno() for sock in made] == [-1, -1]


@pytest.mark.parametrize(
    ("isolation", "answered", "is_overdue", "counts"),
    [
        ("own-gil", 0, True, (1, 1)),
        ("own-gil", BY_APP, True, (1, 0)),
        ("own-gil", BY_WATCHER, True, (0, 0)),
        ("shared-gil", 0, False, (0, 0)),  # who could look has that GIL: the control thread is only late
    ],
)
def test_a_request_is_timed_out_from_outside_once_and_only_if_nothing_can_run_inside(
    isolation: str, answered: int, is_overdue: bool, counts: tuple[int, int]
) -> None:
    """With 3.11 the control thread was once late by two seconds, and both it and the supervisor counted an answer."""
    instance = Puppet(isolation)
    client, connection = socket.socketpair()
    with client, connection:
        [row] = instance.board.thread_rows(instance.first_row, [0], 0).values()
        instance.hears(READY)
        key = key_of(connection, connection.fileno())
        row.words[BUSY], row.words[BUSY_SINCE], row.words[ANSWERED] = key, 1000, answered
        instance.board.row(instance.first_row).words[BEAT] = 1000

        assert [instance.cut_off(1, 60), instance.cut_off(1, 61)] == [is_overdue] * 2
        assert [mount for mount, _ in instance.take_cuts()] == [0] * counts[0]
        assert instance.take_cuts() == []

        assert (client.recv(1000, socket.MSG_DONTWAIT) if counts[1] else b"") == (TIMED_OUT if counts[1] else b"")

    words = instance.board.mount_row(0).words
    assert (words[TIMEOUTS], words[RESPONSES + 5]) == counts
    instance.close()


def test_one_that_has_ended_has_nobody_to_cut_off() -> None:
    """What its rows last said was judged again and again, and its descriptors belong to others by then."""
    instance = Puppet("own-gil")
    [row] = instance.board.thread_rows(instance.first_row, [0], 0).values()
    instance.hears(READY)
    instance.finish()
    instance.hears(Closed(threads=0))
    row.words[BUSY], row.words[BUSY_SINCE] = 12345, 1000
    instance.board.row(instance.first_row).words[BEAT] = 1000

    assert not instance.cut_off(1, 60)
    instance.close()


def test_who_judges_from_outside_goes_by_progress() -> None:
    """A download that had moved for longer than request_timeout was cut off when C code held the GIL for three seconds."""
    instance = Puppet("own-gil")
    client, connection = socket.socketpair()
    with client, connection:
        [row] = instance.board.thread_rows(instance.first_row, [0], 0).values()
        instance.hears(READY)
        row.words[BUSY], row.words[BUSY_SINCE] = key_of(connection, connection.fileno()), 1000
        instance.board.row(instance.first_row).words[BEAT] = row.words[PROGRESS_AT] = 60_000

        assert not instance.cut_off(5, 64), "noted inside"
        connection.send(b"more")  # so it moves, as far as the kernel can say
        assert not instance.cut_off(5, 68)
        assert not instance.cut_off(5, 74)
        assert instance.cut_off(5, 76)
    instance.close()


def test_a_row_that_a_dead_thread_left_busy_does_not_cut_off_whoever_has_its_number_now(instance: Puppet) -> None:
    """The supervisor sent 504 into a neighbour's connection, and shut it down; without one, `os.dup` ended the worker."""
    own_gil = Puppet("own-gil")
    own_gil.hears(READY)
    [row] = own_gil.board.thread_rows(own_gil.first_row, [0], 0).values()
    lost_client, lost = socket.socketpair()
    number = lost.fileno()
    row.words[BUSY], row.words[BUSY_SINCE] = key_of(lost, number), 1000
    client, neighbours = socket.socketpair()
    os.dup2(neighbours.fileno(), number)

    own_gil.cut_off(1, 60)

    with pytest.raises(BlockingIOError):
        client.recv(100, socket.MSG_DONTWAIT)
    lost.close()
    row.words[ANSWERED] = 0
    own_gil.cut_off(1, 61)  # nobody has the number
    for each in (client, neighbours, lost_client):
        each.close()
    own_gil.close()


def test_an_instance_that_is_being_loaded_cannot_hold_a_request(instance: Puppet) -> None:
    """Rows are used again; a busy one was taken for C code that holds the GIL, in a state that knows no such event."""
    own_gil = Puppet("own-gil")
    [row] = own_gil.board.thread_rows(own_gil.first_row, [0], 0).values()
    row.words[BUSY], row.words[BUSY_SINCE] = 1, 1000

    assert not own_gil.cut_off(1, 60)
    own_gil.close()


@pytest.mark.parametrize(("code", "left"), [("", 0), ("import _thread, time; _thread.start_new_thread(time.sleep, (60,)); ", 1)])
def test_an_interpreter_whose_boot_cannot_even_begin_is_left_behind_only_with_a_thread(code: str, left: int) -> None:
    """While an app had all descriptors, each boot of its neighbours passed for one that had left a thread, and counted for max_stuck."""
    script = f"""
import os, select
from isowsgi.instances import subinterpreter
from tests.test_instance import Puppet
subinterpreter._BOOTSTRAP = {(code + "raise OSError(24, 'no descriptor')")!r}
instance = Puppet()
instance.start()
for _ in range(2):
    select.select([instance], [], [])
    instance.read()
print(instance.state.name, "no descriptor" in instance.error, instance.threads_left, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)

    assert done.stdout == f"FAILED True {left}\n", done.stderr


def test_an_instance_in_the_main_interpreter_has_gone_when_it_has_ended() -> None:
    """Each one counted as stuck ten seconds later: with a mount that cannot be imported one worker after another was replaced."""
    script = """
import os, select
from gunicorn import config, glogging
from isowsgi.instances.maininterpreter import MainInstance
from isowsgi.shared.scoreboard import Scoreboard
from tests.orders import any_order
board = Scoreboard()
board.set_mounts(["/a"])
fds = {name: os.eventfd(0, os.EFD_CLOEXEC) for name in ("returns", "lingering", "capacity")}
order = any_order("main", first_row=board.allot(1, [0]), threads=1)
instance = MainInstance(order, {**fds, "board": board.fd}, board, glogging.Logger(config.Config()))
instance.start()
while not instance.has_ended():
    select.select([instance], [], [])
    instance.read()
instance.dispose(destroy=True)
print(instance.join(30), instance.state.name, instance.threads_left, instance.error, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)

    assert done.stdout == "True FAILED 0 ModuleNotFoundError: No module named 'tried'\n", done.stderr


def test_an_instance_in_the_main_interpreter_whose_code_cannot_be_read_for_lack_of_descriptors_says_so() -> None:
    """Its keeper died of that without a word: the boot took its boot_timeout, and all other boots of the worker waited for it."""
    script = """
import os, resource, select, sys
from gunicorn import config, glogging
from isowsgi.instances.maininterpreter import MainInstance
from isowsgi.shared.scoreboard import Scoreboard
from tests.orders import any_order
assert "isowsgi.inside.boot" not in sys.modules
board = Scoreboard()
board.set_mounts(["/a"])
fds = {name: os.eventfd(0, os.EFD_CLOEXEC) for name in ("returns", "lingering", "capacity")}
for takes_all in (True, False):
    order = any_order("main", first_row=board.allot(1, [0]), threads=1)
    instance = MainInstance(order, {**fds, "board": board.fd}, board, glogging.Logger(config.Config()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest if takes_all else soft, hard))
    instance.start()
    while not instance.has_ended():
        select.select([instance], [], [])
        instance.read()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    instance.dispose(destroy=True)
    print(instance.join(30), instance.state.name, instance.threads_left, instance.error, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)

    starved, served = done.stdout.splitlines()
    assert re.fullmatch(r"True FAILED 0 OSError: \[Errno 24\] Too many open files.*", starved), done.stderr
    assert served == "True FAILED 0 ModuleNotFoundError: No module named 'tried'", "once there are some, it is tried again"


def test_who_is_left_in_an_interpreter_is_seen_without_asserts_too() -> None:
    """With PYTHONOPTIMIZE an interpreter in which an app's thread ran was taken for empty, and ended."""
    question = compile(subinterpreter._HAS_NO_THREAD, "question", "exec", optimize=2)
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError):
            exec(question, {})
    finally:
        gate.set()
        thread.join()


def test_who_waits_for_a_thread_is_cut_off_without_waiting_whatever_an_app_has_set(
    monkeypatch: pytest.MonkeyPatch, instance: Puppet
) -> None:
    """An app in the main interpreter: the acceptor's thread waited for the client, up to the app's time limit."""
    limits: list[float | None] = []

    def cut(sock: socket.socket, answer: bytes) -> None:
        limits.append(sock.gettimeout())
        sock.close()

    monkeypatch.setattr(subinterpreter, "cut", cut)
    ours, client = socket.socketpair()
    client.sendall(b"GET /a HTTP/1.1\r\n\r\n")
    instance.give(ours.fileno())
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(1)
    try:
        instance._cut_waiting()
    finally:
        socket.setdefaulttimeout(before)

    assert limits == [None]
    ours.close()
    client.close()
