"""The original of a mount's copies, from the worker's side: nothing depends on it, whatever becomes of it."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from isowsgi.instances.forkedprocess import ForkedProcess
from isowsgi.instances.forkservers import ForkServers
from isowsgi.instances.original import Edition
from isowsgi.shared import births
from isowsgi.shared.births import LoadOrder, PreloadOrder
from isowsgi.shared.containment import Containment
from isowsgi.shared.messages import BootOrder, Descriptors
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.shared.wire import MessageError, plain
from isowsgi.worker.slots import Slots
from tests.conftest import DEADLINE_S, ROOT, eventually
from tests.orders import any_orders, order_for

ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def board() -> Iterator[Scoreboard]:
    made = Scoreboard()
    yield made
    os.close(made.fd)


@pytest.fixture(scope="module")
def servers(board: Scoreboard) -> Iterator[ForkServers]:
    log = logging.getLogger("test")
    made = ForkServers(any_orders([]).packages, log, Containment(log, board.row(0).words))
    yield made
    made.end()


class Place:
    """An edition of a mount.

    Args:
        folder: for its app.
    """

    def __init__(self, folder: Path, servers: ForkServers, board: Scoreboard) -> None:
        self._folder = folder
        self.board, self.servers = board, servers
        self.edition = Edition()
        self.edition.limit_s = DEADLINE_S
        self._ends: list[socket.socket] = []

    def order(self, code: str) -> BootOrder:
        """Return one for a mount with an app. Its worker is not there, so each copy ends as soon as it begins to serve."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ends += [ours, theirs]
        ours.close()
        fds = Descriptors(board=self.board.fd, channel=theirs.fileno(), mail=theirs.fileno())
        return order_for(self._folder, code).replace(isolation="process", worker_pid=os.getpid(), fds=fds)

    def copy(self, order: BootOrder) -> ForkedProcess | None:
        return self.servers.copy(sys.executable, ENVIRON, order, self.edition)

    def original(self) -> int:
        original = self.edition._original
        assert original is not None
        return original._pid

    def end(self) -> None:
        for end in self._ends:
            end.close()


@pytest.fixture
def place(tmp_path: Path, servers: ForkServers, board: Scoreboard) -> Iterator[Place]:
    made = Place(tmp_path, servers, board)
    yield made
    made.end()


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def has_ended(pid: int) -> bool:
    """Say whether a process has ended; who is its parent now may not have waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_copies_come_from_one_original_which_is_there_as_long_as_one_of_them_is(place: Place) -> None:
    order = place.order("open(__file__ + '.loaded', 'a').write('once')")
    members: list[AbstractContextManager[None]] = [place.edition.membership(), place.edition.membership()]
    for member in members:
        member.__enter__()

    for _ in range(3):
        copy = place.copy(order)
        assert copy is not None
        copy.wait()

    assert (Path(order.environment.pythonpath[0]) / "tried.py.loaded").read_text() == "once"
    original = place.original()
    members[0].__exit__(None, None, None)
    assert is_there(original)
    members[1].__exit__(None, None, None)
    eventually(lambda: not is_there(original), "the end of the original")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise SystemExit('as it was told')", "SystemExit: as it was told"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "it died before it could get ready"),
        ("import subprocess; child = subprocess.Popen(['sleep', '600'])", "its import starts a process that still runs"),
        ("import asyncio; loop = asyncio.new_event_loop()", "its import leaves (an eventpoll|a socket) open, which all copies would share"),
        ("import os; ends = os.pipe()", "its import leaves a pipe open"),
        ("import _thread, time; _thread.start_new_thread(time.sleep, (600,))", r"its import starts a thread \("),
        (
            "import os\nfor fd in map(int, os.listdir('/proc/self/fd')):\n"
            '  if fd > 2:\n    try: os.write(fd, b\'{"is": "Settled"}\')\n    except OSError: pass\n',
            "it said Settled where Warm was due",
        ),
    ],
)
def test_an_app_of_which_no_copies_can_be_made_is_loaded_by_each_process_and_a_line_says_why(
    place: Place, caplog: pytest.LogCaptureFixture, code: str, why: str
) -> None:
    order = place.order(code)
    with place.edition.membership():
        assert place.copy(order) is None
        assert place.copy(order) is None

    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{order.tag}: copies are not forked, so each loads the app by itself: ")
    assert re.search(why, line)


def test_a_process_that_an_import_started_and_that_ignores_sigterm_is_killed(place: Place) -> None:
    """It was left behind: each process that loads the app starts one too, and the original of copies that cannot be had ends."""
    started = "import subprocess\nchild = subprocess.Popen(['sh', '-c', 'trap \"\" TERM; echo; exec sleep 600'], stdout=subprocess.PIPE)\n"
    order = place.order(f"{started}child.stdout.readline()\nopen(__file__ + '.pid', 'w').write(str(child.pid))")

    with place.edition.membership():
        assert place.copy(order) is None

    pid = int((Path(order.environment.pythonpath[0]) / "tried.py.pid").read_text())
    eventually(lambda: has_ended(pid), "the end of what the import started")


def test_what_an_import_has_done_with_is_no_obstacle(place: Place) -> None:
    """A thread that is about to end, and a process that has ended; and a copy of its own that came out of the import."""
    code = "import os, threading, time\nthreading.Thread(target=time.sleep, args=(0.05,)).start()\nif os.fork():\n    os.wait()\n"
    order = place.order(code)

    with place.edition.membership():
        copy = place.copy(order)
        assert copy is not None
        copy.wait()


def test_an_import_without_end_is_given_up_with_the_copies_that_wait_for_it(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    order = place.order("import time; time.sleep(600)")
    got: list[ForkedProcess | None] = []
    with place.edition.membership():
        waits = [threading.Thread(target=lambda: got.append(place.copy(order))) for _ in range(2)]
        for each in waits:
            each.start()
        eventually(lambda: place.edition._original is not None, "the original")
        original = place.original()

        place.edition.give_up()

        for each in waits:
            each.join(DEADLINE_S)
    assert got == [None, None]
    assert not is_there(original)
    assert caplog.text == ""


def test_an_import_that_takes_too_long_is_ended(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with place.edition.membership():  # the fork server is warm from now on
        copy = place.copy(place.order("pass"))
        assert copy is not None
        copy.wait()
    place.edition.limit_s = 0.3

    with place.edition.membership():
        assert place.copy(place.order("import time; time.sleep(600)")) is None

    assert "it did not get ready within 0.3 s" in caplog.text


def test_an_original_that_has_died_is_told_of_once_and_done_without_until_the_next_edition(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    order = place.order("pass")
    with place.edition.membership():
        copy = place.copy(order)
        assert copy is not None
        copy.wait()
        os.kill(place.original(), signal.SIGKILL)

        assert place.copy(order) is None
        assert place.copy(order) is None

    assert caplog.text.count("new copies are not forked any more, so each loads the app by itself until the next reload") == 1


def test_a_mount_that_no_server_suits_loads_its_app_in_each_process(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    order = place.order("pass")
    order = order.replace(environment=order.environment.replace(env={"OPENSSL_CONF": "/x"}))

    with place.edition.membership():
        assert place.copy(order) is None

    assert "there is no fork server for it" in caplog.text


def test_orders_for_servers_are_told_from_each_other_and_from_nonsense(place: Place) -> None:
    load = LoadOrder(release="1", server=3, worker_pid=1, boot=place.order("pass").replace(fds=None))
    preload = PreloadOrder(release="1", server=3, worker_pid=1, venv=None, site=[], start_folder="/", modules=[])

    assert births.read_server_order(plain(load)) == load
    assert births.read_server_order(plain(preload)) == preload
    for facts in ({"server": 3, "boot": []}, {"server": 3, "boot": {}}, {"server": 3}):
        with pytest.raises(MessageError):
            births.read_server_order(facts)


def test_a_mounts_slots_are_of_one_edition_until_all_are_empty_or_replaced() -> None:
    slots = Slots(2)
    instances: list[Any] = [object() for _ in range(4)]
    slots.fill()
    first = slots.edition
    slots.live[:] = instances[:2]

    slots.renew()
    second = slots.edition
    slots.coming[0] = instances[2]
    slots.vacate(instances[2])
    assert first is not second
    assert slots.edition is first

    slots.renew()
    third = slots.edition
    slots.coming[:] = instances[2:]
    slots.install(instances[2])
    slots.vacate(instances[3])
    assert slots.edition is third

    slots.clear()
    slots.fill()
    assert slots.edition is not third
