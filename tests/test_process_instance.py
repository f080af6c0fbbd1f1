"""The worker's side of an instance in a child process: whatever the child does, its connections come back and its end is told."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from isowsgi.instances.allowance import Allowance
from isowsgi.instances.controlgroups import ControlGroups
from isowsgi.instances.lifecycle import State
from isowsgi.instances.preloads import MOST_MODULES
from isowsgi.instances.process import ProcessInstance
from isowsgi.shared import landlock, messages
from isowsgi.shared.containment import Containment
from isowsgi.shared.handover import key_of
from isowsgi.shared.messages import BootOrder, Exited, Imported, Ready, Report
from isowsgi.shared.rows import BUSY
from isowsgi.shared.scoreboard import Scoreboard
from tests.conftest import DEADLINE_S
from tests.orders import any_order, with_values


class FakeOwner:
    """An acceptor that notes what it is given."""

    def __init__(self) -> None:
        self.got: list[tuple[str, int]] = []
        self.watched: dict[int, Callable[[], None]] = {}
        self.timers: list[Callable[[], object]] = []
        self.room: list[Callable[[], object] | None] = []  # what was to be called when there is room, None: nothing

    def take_back(self, fd: int) -> None:
        self.got.append(("back", fd))

    def take_lingering(self, fd: int) -> None:
        self.got.append(("lingering", fd))

    def take_closed(self, fd: int) -> None:
        self.got.append(("closed", fd))

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self.watched[fd] = callback

    def watch_room(self, fd: int, callback: Callable[[], object] | None) -> None:
        self.room.append(callback)

    def unwatch(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def later(self, delay_s: float, callback: Callable[[], object]) -> None:
        self.timers.append(callback)


@pytest.fixture
def owner() -> FakeOwner:
    return FakeOwner()


@pytest.fixture
def instance(owner: FakeOwner) -> Iterator[ProcessInstance]:
    """One whose child is never started."""
    board = Scoreboard()
    board.set_mounts(["/a"])
    order = any_order("process", first_row=board.allot(2, [0], "process"), threads=2)
    log = logging.getLogger("test")
    made = ProcessInstance(order, {"board": board.fd}, board, owner, {}, Containment(log, board.row(0).words), ControlGroups(log))
    yield made
    made.discard()
    os.close(board.fd)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_all_connections_of_a_dead_child_come_back_without_a_descriptor_to_spare(instance: ProcessInstance, owner: FakeOwner) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    numbers = [ours.fileno() for _, ours in pairs]
    closed = os.dup(numbers[0])
    instance._loans.give(closed)
    os.close(closed)
    for number in numbers:
        instance._loans.give(number)
    instance._thread_rows[0].words[BUSY] = key_of(pairs[1][1], numbers[1])
    instance._has_exited = True

    with no_descriptors():
        instance._on_exited(Exited(status=-9))

    assert instance.state is State.FAILED
    assert owner.got == [("closed", closed), ("lingering", numbers[1])]
    assert instance._unserved == [numbers[0], numbers[2]]
    assert pairs[1][0].recv(100).startswith(b"HTTP/1.1 502 ")
    assert not instance.is_busy()
    for pair in pairs:
        for end in pair:
            end.close()


class Learner:
    """Fork servers that note what they are told."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []

    def learn(self, python: str, order: BootOrder, modules: list[str]) -> None:
        self.told.append(modules)


@pytest.mark.parametrize("learns", [True, False])
def test_what_a_child_says_that_it_has_loaded_is_bounded_and_counts_once_it_serves(instance: ProcessInstance, learns: bool) -> None:
    """It may say so for ever; and a word of it later, or unasked, is worth nothing."""
    instance._servers = servers = Learner()  # type: ignore[assignment] # all of them that is used
    instance._order = instance._order.replace(environment=instance._order.environment.replace(learns=learns))

    def says(report: Report) -> None:
        instance._inner.send(messages.encode(report))
        assert instance.read() == report

    for _ in range(3):
        says(Imported(modules=["m"] * (MOST_MODULES // 2 - 1)))
    says(Ready(boot_s=0.1, objects=1, extensions=[], refused=[]))
    says(Imported(modules=["late"]))

    assert servers.told == ([["m"] * MOST_MODULES] if learns else [])
    assert instance._imported == []


def test_a_child_that_closes_its_mail_and_lives_is_ended(instance: ProcessInstance, owner: FakeOwner) -> None:
    """The end of a socket is an event for ever: the loop would do nothing else, and the child get no connection any more."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        instance._child = child
        mail = instance._mail.fileno()
        instance._inner_mail.close()

        owner.watched[mail]()

        assert mail not in owner.watched
        assert child.poll() is None  # it may be about to exit
        for timer in owner.timers:
            timer()
        assert child.wait(30) == -9


def test_a_walled_child_whose_mail_is_nonsense_is_ended_before_it_costs_the_worker_much(
    instance: ProcessInstance, owner: FakeOwner
) -> None:
    """Reports were bounded and mail was not: the worker read whatever came, as fast as it came."""
    instance._allowance = Allowance()
    killed: list[bool] = []
    instance._child = cast(Any, SimpleNamespace(kill=lambda: killed.append(True)))
    mail = instance._mail.fileno()
    packets = 0
    while mail in owner.watched and packets < 100_000:
        for _ in range(50):
            instance._inner_mail.send(os.urandom(9), socket.MSG_DONTWAIT)
        packets += 50
        owner.watched[mail]()

    assert (packets < 100_000, killed) == (True, [True])
    instance._child = None

    # What it reports in the same second is no flood beside: whoever floods both sides would end without that being told.
    instance._inner.send(messages.encode(Imported(modules=["m"])))
    instance._has_exited = True
    instance._report_from_keeper(Exited(status=-9))
    while instance.read() is not None:
        pass
    assert instance.error == "its process was killed for flooding the worker with messages before the app was loaded"


@pytest.mark.parametrize(("status", "has_hint"), [(1, True), (-9, False), (0, False)])
def test_a_python_that_cannot_start_in_its_sandbox_ends_with_what_to_do(instance: ProcessInstance, status: int, has_hint: bool) -> None:
    """It ended with "exited with status 1", and its last words were on standard error."""
    sandbox = messages.Sandbox(code=[], read=[], write=[], connect=None, sockets=[], listen=[], tmp="")
    walls = messages.Walls(umask=-1, nice=0, memory=0, files=0, file_size=0, cpu=0.0, processes=0, sandbox=sandbox, grouped=[])
    instance._order = with_values(instance._order, python="/srv/shop/bin/python", walls=walls)
    instance._has_exited = True

    instance._on_exited(Exited(status=status))

    hint = "; if '/srv/shop/bin/python' cannot start in its sandbox, add the folders of that Python to sandbox.read"
    assert instance.error.endswith("before the app was loaded" + (hint if has_hint else ""))


@pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")
def test_a_python_that_its_sandbox_refuses_is_told_with_its_folders(instance: ProcessInstance, tmp_path: Path) -> None:
    """What is no installation is not opened by itself; it ended with a traceback of ours, or with no word."""
    (tmp_path / "bin").mkdir()
    python = Path(shutil.copy("/bin/true", tmp_path / "bin" / "python"))
    sandbox = messages.Sandbox(code=[], read=[], write=[], connect=None, sockets=[], listen=[], tmp="")
    walls = messages.Walls(umask=-1, nice=0, memory=0, files=0, file_size=0, cpu=0.0, processes=0, sandbox=sandbox, grouped=[])
    instance._order = with_values(instance._order, python=str(python), walls=walls)
    instance._python = sys.executable

    instance.start()
    instance._keeper.join(DEADLINE_S)
    while instance.read() is not None:
        pass

    assert instance.error.startswith(f"cannot start {str(python)!r}, so it is not loaded: [Errno 13] Permission denied")
    assert instance.error.endswith(f"; add the folders of {str(python)!r} to sandbox.read")


def test_a_connection_that_can_never_be_sent_is_given_back_and_nothing_else_is_kept_waiting(
    instance: ProcessInstance, owner: FakeOwner, caplog: pytest.LogCaptureFixture
) -> None:
    """Its error left the loop's callback, and what the child had to say was not read for a second."""
    pairs = []
    while not owner.room or owner.room[-1] is None:
        pairs.append(socket.socketpair())
        instance.give(pairs[-1][0].fileno())
    call_when_there_is_room = owner.room[-1]
    last = pairs[-1][0].fileno()
    os.close(last)
    for _ in pairs[1:]:
        instance._inner_mail.recv(100)

    call_when_there_is_room()

    assert owner.got == [("back", last)]
    assert "mail: internal error, contained" in caplog.text
    assert owner.room[-1] is None
    instance._want_to_send(True)
    assert owner.room[-1] is call_when_there_is_room, "callbacks are compared by identity"
    pairs[-1][0].detach()
    for pair in pairs:
        for end in pair:
            end.close()
