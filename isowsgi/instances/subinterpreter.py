"""An instance in a subinterpreter of this process, or in its main interpreter: the host's side of it.

Between the two sides travel one JSON text at boot, short JSON packets on a socket pair, and file descriptors. A keeper thread creates
the interpreter, stays inside it in one call until it ends, and destroys it.
"""

from __future__ import annotations

import importlib.resources
import os
import queue
import select
import socket
import threading
from collections.abc import Mapping

from isowsgi.instances.base import NOT_SERVED, HostedInstance
from isowsgi.instances.judge import cut
from isowsgi.shared import interpreters, messages, slices
from isowsgi.shared.containment import MAX_ERROR_CHARS
from isowsgi.shared.handover import ARM_EDGE, Port, blocking, number_of
from isowsgi.shared.messages import BootOrder, Descriptors
from isowsgi.shared.rows import BUSY, OWN_GILS
from isowsgi.shared.scoreboard import Scoreboard

_BOOTSTRAP = importlib.resources.files("isowsgi.inside").joinpath("bootstrap.py").read_text(encoding="utf-8")


# Asked of an interpreter whose boot ended in an exception of ours. Nothing is imported for it: no descriptor may have been the reason.
# No assert, which PYTHONOPTIMIZE takes away. And not at once: before 3.13 a thread that was just started counts once it has had the GIL.
_HAS_NO_THREAD = "import _thread, time\ntime.sleep(0.1)\nif _thread._count():\n    raise RuntimeError"


def boot_source(order: BootOrder) -> str:
    """Return the first code to run in a new interpreter or child process."""
    return first_source(messages.encode(order))


def first_source(order: bytes) -> str:
    """Return the first code to run by an order of either kind: for an instance, or for a fork server."""
    return f"BOOT = {order.decode('utf-8', 'surrogatepass')!a}\n{_BOOTSTRAP}"


class InterpreterInstance(HostedInstance):
    """One live copy in its own interpreter.

    Args:
        shared_fds: descriptors that all instances share, by their names in `messages.Descriptors`. They stay the caller's.
    """

    def __init__(self, order: BootOrder, shared_fds: Mapping[str, int], board: Scoreboard) -> None:
        super().__init__(order, board)
        self._acceptor_words = board.row(0).words
        try:
            self._epoll = self._owned.enter_context(select.epoll())
            self._poke, self._rouse = (self._eventfd() for _ in range(2))
        except OSError:
            self.discard()
            raise
        self._port = Port(self._epoll, ARM_EDGE)
        self._turned_away: set[int] = set()
        self._disposal: queue.SimpleQueue[bool] = queue.SimpleQueue()
        # All stay this side's; the inside works on duplicates where an object there would close them.
        fds = Descriptors(**shared_fds, connections=self._epoll.fileno(), channel=self._inner.fileno(), poke=self._poke, rouse=self._rouse)
        self._order = order.replace(fds=fds)
        self._keeper = threading.Thread(target=self._keep, name=f"isowsgi-keeper {self.tag}", daemon=True)

    def start(self) -> None:
        self._keeper.start()

    def give(self, fd: int) -> None:
        self._port.give(fd)

    def _cut_waiting(self) -> None:
        """Answer those who wait for a thread in there; the connections stay the inside's, which finds them closed one day."""
        in_flight = {number_of(row.words[BUSY]) for row in self._thread_rows}
        for fd, _ in self._epoll.poll(0, 1024):
            if fd == self._poke or fd in self._turned_away:
                continue
            if fd not in in_flight:
                self._turned_away.add(fd)
                cut(blocking(socket.socket(fileno=os.dup(fd))), NOT_SERVED)
            self._epoll.modify(fd, ARM_EDGE)  # the event that was taken here is the inside's

    def dispose(self, destroy: bool) -> None:
        self._disposal.put(destroy and self.threads_left == 0)

    def join(self, timeout_s: float) -> bool:
        """Wait until nothing is left after `dispose`, and return whether that is so; for a trial, as it blocks."""
        self._keeper.join(timeout_s)
        return self.has_gone

    def _keep(self) -> None:
        """The keeper's whole life: it makes the interpreter and frees it, and serves nobody."""
        if self._order.host.has_long_slices:
            slices.lengthen()
        self._run_interpreter()
        self.has_gone = True

    def _run_interpreter(self) -> None:
        """Have one interpreter, from its creation to its end."""
        handle = None
        try:
            if self.isolation == interpreters.OWN_GIL:
                self._acceptor_words[OWN_GILS] = 1
            handle = interpreters.create(self.isolation)
            failure = interpreters.run(handle, boot_source(self._order))
        except Exception as exc:
            failure = f"cannot create an interpreter: {type(exc).__name__}: {exc}"
        if failure:
            self._report_failure(failure, threads_left=int(handle is not None and not _has_no_thread(handle)))
        if not self._disposal.get():
            return  # what is still in there holds our descriptors
        if handle is not None:
            try:
                self.is_in_line = True
                interpreters.destroy(handle, self._begin_to_go)
            except Exception:
                return  # refused: a thread is still in there after all
        self._owned.close()

    def _begin_to_go(self) -> None:
        self.is_in_line = False

    def _report_failure(self, failure: str, threads_left: int) -> None:
        # Outside of the app's code, so nobody inside could say it.
        self._report_from_keeper(messages.Failed(error=failure.strip().splitlines()[-1][:MAX_ERROR_CHARS], traceback=failure[-32_768:]))
        self._report_from_keeper(messages.Closed(threads=threads_left))

    def _eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._owned.callback(os.close, fd)
        return fd


def _has_no_thread(handle: object) -> bool:
    """Whether nobody is left in an interpreter but the keeper, so that it can be ended."""
    try:
        return interpreters.run(handle, _HAS_NO_THREAD) is None
    except Exception:  # 3.11 lets nobody in while there are threads
        return False
