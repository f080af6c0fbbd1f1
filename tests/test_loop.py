"""The worker's loop: whatever a callback raises, the others are called, and so is it again."""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isowsgi.shared import controlmessages, sockets
from isowsgi.shared.containment import Containment
from isowsgi.shared.controlmessages import Request
from isowsgi.shared.rows import INTERNAL_ERRORS
from isowsgi.worker import loop as loop_module
from isowsgi.worker.control import commands
from isowsgi.worker.control import server as control_module
from isowsgi.worker.control.server import AT_ONCE, ControlServer, Errand, drive
from isowsgi.worker.loop import Loop
from isowsgi.worker.pieces import PAUSE_S, STEP_S
from tests.conftest import DEADLINE_S


class Log:
    def __init__(self) -> None:
        self.errors: list[str] = []

    def error(self, message: str, *args: object) -> None:
        self.errors.append(message % args)


class Broken(Exception):
    pass


def fail(*args: Any) -> None:
    raise Broken


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def words() -> memoryview:
    return memoryview(bytearray(8 * (INTERNAL_ERRORS + 1))).cast("q")


@pytest.fixture
def loop(log: Log, words: memoryview) -> Iterator[Loop]:
    made = Loop(Containment(log, words))
    yield made
    made.epoll.close()


@pytest.fixture
def event() -> Iterator[int]:
    """Something that is readable."""
    fd = os.eventfd(1, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("is_late", [True, False])
def test_a_callback_that_fails_is_logged_and_counted_and_its_descriptor_rests(
    loop: Loop, log: Log, words: memoryview, event: int, is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A level-triggered event would come again at once: a worker that does nothing but log."""
    monkeypatch.setattr(loop_module, "_REST_S", 0.05)
    loop.watch(event, fail, "the clock", is_late=is_late)

    for _ in range(3):
        loop.turn(0)

    assert words[INTERNAL_ERRORS] == 1
    assert "the clock: internal error" in log.errors[0]
    assert "Broken" in log.errors[0]
    deadline = time.monotonic() + 30
    while words[INTERNAL_ERRORS] == 1:
        assert time.monotonic() < deadline
        loop.turn(0.01)


def test_what_fails_keeps_nobody_else_from_being_called(loop: Loop, event: int) -> None:
    called: list[str] = []
    other = os.eventfd(1, os.EFD_NONBLOCK)
    stranger = os.eventfd(1, os.EFD_NONBLOCK)
    loop.watch(event, fail)
    loop.watch(other, lambda: called.append("watched"))
    loop.watch_room(other, fail)
    loop.epoll.register(stranger, select.EPOLLIN | select.EPOLLET)
    loop.on_connection = fail
    loop.every(1000, fail)
    loop.every(1000, lambda: called.append("timer"))
    loop.at_the_end(fail)
    loop.at_the_end(lambda: called.append("end"))

    loop.turn(0)
    loop.unwatch(other)
    loop.turn(0)  # the failure, and its traceback in the log, may have taken all the time for timers

    assert [each for each in called if each != "end"] == ["watched", "timer"]
    assert called.count("end") == 2
    os.close(other)
    os.close(stranger)


def test_who_is_no_longer_watched_is_not_called_for_an_event_of_before(loop: Loop, event: int) -> None:
    second = os.eventfd(1, os.EFD_NONBLOCK)
    loop.watch(event, lambda: loop.unwatch(second))
    loop.watch(second, lambda: loop.unwatch(event))

    loop.turn(0)  # one of the two is called, and ends the other

    assert len(loop._watched) == 1
    os.close(second)


def test_who_rests_may_be_unwatched(loop: Loop, event: int) -> None:
    loop.watch(event, fail)
    loop.turn(0)

    loop.unwatch(event)
    loop.watch(event, lambda: None)

    loop.turn(0)


def test_a_timer_that_is_called_once_is_called_once_and_wakes_the_loop(loop: Loop) -> None:
    called: list[int] = []
    loop.later(0.01, lambda: called.append(1))

    began = time.monotonic()
    while not called and time.monotonic() - began < 30:
        loop.turn(30)
    loop.turn(0.02)

    assert called == [1]
    assert time.monotonic() - began < 30


def test_room_is_told_only_while_somebody_wants_it(loop: Loop) -> None:
    told: list[str] = []
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    loop.watch(fd, lambda: None)
    loop.watch_room(fd, lambda: told.append("room"))
    loop.turn(0)
    loop.watch_room(fd, None)
    loop.turn(0)

    assert told == ["room"]
    os.close(fd)


def test_a_set_that_cannot_be_polled_ends_the_loop(loop: Loop) -> None:
    """Nothing can be served then; the master makes another worker."""
    loop.epoll.close()

    with pytest.raises(ValueError, match="closed"):
        loop.turn(0)


def test_who_rests_may_ask_for_room_and_is_told_once_it_is_awake(loop: Loop, event: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor is in no set just then, and what was asked for must not be lost with an error."""
    monkeypatch.setattr(loop_module, "_REST_S", 0.01)
    told: list[str] = []
    loop.watch(event, fail)
    loop.turn(0)

    loop.watch_room(event, lambda: told.append("room"))

    deadline = time.monotonic() + 30
    while not told:
        assert time.monotonic() < deadline
        loop.turn(0.01)


def test_who_cannot_be_woken_is_tried_again(loop: Loop, event: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_REST_S", 0.01)
    called: list[int] = []

    def fail_once() -> None:
        called.append(1)
        if len(called) == 1:
            raise Broken

    loop.watch(event, fail_once)
    loop.turn(0)
    loop.epoll.register(event, 0)  # so that registering it fails
    deadline = time.monotonic() + 30
    while loop.containment._words[INTERNAL_ERRORS] < 2:
        assert time.monotonic() < deadline
        loop.turn(0.01)
    loop.epoll.unregister(event)

    while len(called) < 2:
        assert time.monotonic() < deadline
        loop.turn(0.01)


def serve_control(
    loop: Loop, folder: Path, begin: Callable[[Request[Any]], Errand], clock: Callable[[], float] = time.thread_time
) -> tuple[ControlServer, str]:
    """Return a control server that the loop drives, and its socket's path."""
    server = ControlServer(begin, commands.this_worker("/isowsgi.toml", 1), logging.getLogger("test"), loop.containment, clock)
    folder.chmod(0o700)
    path = server.open([str(folder)], sockets.socket_name("/isowsgi.toml", 1, 2))
    assert path is not None
    drive(loop, server)
    return server, path


@pytest.mark.parametrize("pieces_a_step", [1, 4])
def test_an_errand_that_waits_for_nothing_goes_on_after_a_short_pause(loop: Loop, tmp_path: Path, pieces_a_step: int) -> None:
    """Each of its pieces would cost a tenth of a second otherwise, or all of them together keep requests waiting."""
    pieces, done, cpu_s = 48, 0, 0.0

    def begin(request: Request[Any]) -> Errand:
        nonlocal done, cpu_s
        yield AT_ONCE
        for _ in range(pieces):
            done += 1
            cpu_s += 1.001 * STEP_S / pieces_a_step
            yield AT_ONCE
        yield None
        return controlmessages.TableOutcome(outcome="dropped", text="")

    server, path = serve_control(loop, tmp_path, begin, lambda: cpu_s)
    steps: list[int] = []
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(controlmessages.encode_request(controlmessages.Drop(serial="s")))
        while not select.select([client], [], [], 0)[0]:
            before = done
            loop.turn(DEADLINE_S)
            steps += [done - before] if done > before else []
            assert done in (0, pieces) or server.wait_s() == PAUSE_S

    server.close()
    assert steps == [pieces_a_step] * (pieces // pieces_a_step)


def test_timers_that_are_due_together_leave_connections_their_turn(loop: Loop, event: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven are due each second in the same moment."""
    called: list[str] = []
    loop.watch(event, lambda: called.append("event"))
    for number in range(3):
        loop.later(0, lambda number=number: called.append(f"timer {number}"))  # type: ignore[misc] # mypy cannot infer a lambda's default
    monkeypatch.setattr(loop_module, "_MOST_OF_TURN_S", -1.0)
    for _ in range(3):
        loop.turn(DEADLINE_S)

    assert called == ["event", "timer 0", "event", "timer 1", "event", "timer 2"]


def test_an_errand_whose_wait_may_be_over_goes_on_in_the_next_turn_of_the_loop(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a command waits for a look at what has long been loaded, once for each step."""
    monkeypatch.setattr(control_module, "_LOOK_S", 1000.0)
    is_loaded = False

    def begin(request: Request[Any]) -> Errand:
        while not is_loaded:
            yield None
        return controlmessages.TableOutcome(outcome="dropped", text="")

    server, path = serve_control(loop, tmp_path, begin)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(controlmessages.encode_request(controlmessages.Drop(serial="s")))
        while server.wait_s() != 1000.0:
            loop.turn(DEADLINE_S)
        for _ in range(3):  # accept, take the request
            loop.turn(0)
        is_loaded = True
        server.look_soon()
        loop.turn(DEADLINE_S)

        assert select.select([client], [], [], 0)[0]
    server.close()
