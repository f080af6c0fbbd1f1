"""An instance in a subinterpreter of this process: the host's side of it.

Between the two sides travel one JSON text at boot, short JSON packets on a socket pair, and file descriptors. A keeper thread creates
the interpreter, stays inside it in one call until it ends, and destroys it.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import queue
import select
import socket
import threading
from collections.abc import Mapping
from typing import Any

from isowsgi import interpreters
from isowsgi.handover import ARM_ONCE, Port
from isowsgi.lifecycle import Event, State, step
from isowsgi.scoreboard import BEAT, BUSY_FD, BUSY_SINCE, HEAD_SENT, MOUNT, REQUESTS, RESPONSES, TIMEOUTS, Scoreboard

# A control thread looks at its instance's requests four times a second while there are any; it has stopped if it did not for so long.
_LOST_BEAT_MS = 2000

_BOOTSTRAP = importlib.resources.files("isowsgi.inside").joinpath("bootstrap.py").read_text(encoding="utf-8")


class InterpreterInstance:
    """One live copy of a mount's app. Its methods are the acceptor thread's alone; none of them waits.

    Args:
        order: the boot order; this class adds the descriptors to it.
        shared_fds: descriptors that all instances share: returns, lingering, capacity, board. They stay the caller's.
        board: the worker's scoreboard, with this instance's rows as the order has them.
    """

    def __init__(self, order: Mapping[str, Any], shared_fds: Mapping[str, int], board: Scoreboard) -> None:
        self.state = State.BOOTING
        self.tag: str = order["tag"]
        self.is_loaded = False  # whether its app ever was
        self.boot_s = 0.0
        self.error = ""  # one line, once FAILED
        self.traceback = ""
        self.threads_left = 0  # that the app left behind, once it ended
        self.objects = 0  # that its garbage collector knew when last asked
        self.objects_at_boot = 0
        self.isolation: str = order["isolation"]
        self.first_row: int = order["first_row"]
        self.rows: int = 1 + order["threads"]
        self._board = board
        self._control_words = board.row(self.first_row).words
        self._thread_rows = [board.row(self.first_row + 1 + number) for number in range(order["threads"])]
        self._requests_before = self._all_requests()
        self._epoll = select.epoll()
        self._port = Port(self._epoll, ARM_ONCE)
        self._poke = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._rouse = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._channel, self._inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        self._turned_away: set[int] = set()
        self._disposal: queue.SimpleQueue[bool] = queue.SimpleQueue()
        # All stay this side's; the inside works on duplicates where an object there would close them.
        fds = {
            **shared_fds,
            "connections": self._epoll.fileno(),
            "channel": self._inner.fileno(),
            "poke": self._poke,
            "rouse": self._rouse,
        }
        self._order = {**order, "fds": fds}
        self._keeper = threading.Thread(target=self._keep, name=f"isowsgi-keeper {self.tag}", daemon=True)

    def start(self) -> None:
        """Create the interpreter and load the app there, in the background."""
        self._keeper.start()

    def fileno(self) -> int:
        """Return the descriptor that is readable when `read_reports` has something to read."""
        return self._channel.fileno()

    def give(self, fd: int) -> None:
        """Hand a connection to this instance; the caller must not touch `fd` again until it is given back.

        Args:
            fd: a connected stream socket whose next bytes start a request; nothing of it has been consumed.
        """
        self._port.give(fd)

    def read_reports(self) -> list[dict[str, Any]]:
        """Take in what the instance said since the last call; its state changes accordingly.

        Returns:
            the reports, for whoever logs them: "ready", "failed", "files", "closed".
        """
        reports: list[dict[str, Any]] = []
        while True:
            try:
                packet = self._channel.recv(256 * 1024)
            except BlockingIOError:
                return reports
            report = json.loads(packet)
            self._take_in(report)
            reports.append(report)

    def drain(self) -> None:
        """Let requests in flight end, and have every idle connection given back to the acceptor."""
        self._move(Event.DRAIN)
        self._say("drain")

    def finish(self) -> None:
        """As `drain`, and say `Connection: close` in every response from now on: the worker is stopping."""
        self._move(Event.DRAIN)
        self._say("last")

    def stop(self) -> None:
        """End the serving threads once their requests are done, then run the app's exit functions."""
        self._say("stop")

    def abandon(self) -> None:
        """Give up waiting for a thread that does not end."""
        self._move(Event.DRAIN_TIMEOUT)

    def time_out_boot(self) -> None:
        """Give up waiting for its app to be loaded."""
        self._move(Event.BOOT_TIMEOUT)

    def call_stuck(self) -> None:
        """Note that a thread does not come out of its request."""
        self._move(Event.THREAD_STUCK)

    def reopen_logs(self) -> None:
        self._say("reopen")

    def measure(self) -> None:
        """Ask for the report "measured"."""
        self._say("measure")

    def requests(self) -> int:
        """Return how many requests it has begun to serve."""
        return self._all_requests() - self._requests_before

    def is_busy(self) -> bool:
        return any(row.words[BUSY_FD] for row in self._thread_rows)

    def has_free_thread(self) -> bool:
        return not all(row.words[BUSY_FD] for row in self._thread_rows)

    def requests_in_flight(self) -> list[str]:
        """Return the request lines that its threads are serving."""
        return [row.line() for row in self._thread_rows if row.words[BUSY_FD]]

    def cut_off(self, older_than_s: float, now: float) -> bool:
        """Answer, from outside, requests that last too long while the control thread inside does not run either.

        It does not because C code holds the interpreter's own GIL. So nobody in there touches these connections meanwhile.

        Returns:
            whether that is so.
        """
        now_ms = int(now * 1000)
        if now_ms - self._control_words[BEAT] < _LOST_BEAT_MS:
            return False
        limit_ms = int(older_than_s * 1000) + _LOST_BEAT_MS
        overdue = [row for row in self._thread_rows if row.words[BUSY_FD] and now_ms - row.words[BUSY_SINCE] > limit_ms]
        for row in overdue:
            is_answered, row.words[HEAD_SENT] = row.words[HEAD_SENT], 1
            if not is_answered:
                words = self._board.mount_row(row.words[MOUNT] - 1).words
                words[TIMEOUTS] += 1
                words[RESPONSES + 5] += 1
            _cut(row.words[BUSY_FD] - 1, b"" if is_answered else _TIMED_OUT)
        if overdue:
            self._cut_waiting()
        return bool(overdue)

    def _cut_waiting(self) -> None:
        """Answer those who wait for a thread in there; the connections stay the inside's, which finds them closed one day."""
        for fd, _ in self._epoll.poll(0, 1024):
            if fd == self._poke or fd in self._turned_away:
                continue
            self._turned_away.add(fd)
            _cut(fd, _NOT_SERVED)
            self._epoll.modify(fd, ARM_ONCE)

    def dispose(self, destroy: bool) -> None:
        """Let the keeper go after the report "closed": it closes what it owns.

        Args:
            destroy: whether to end the interpreter too; without effect while a thread of the app's is left in it.
        """
        self._disposal.put(destroy and self.threads_left == 0)

    def _say(self, order: str) -> None:
        try:
            self._channel.send(json.dumps({"do": order}).encode())
        except OSError:  # it ended by itself
            return

    def _take_in(self, report: Mapping[str, Any]) -> None:
        if report["event"] == "ready":
            self.is_loaded, self.boot_s, self.objects_at_boot = True, report["boot_s"], report["objects"]
            self._move(Event.READY)
        elif report["event"] == "failed":
            self.error, self.traceback = report["error"], report["traceback"]
            if not self.is_loaded:  # else it broke off later, and "closed" follows
                self._move(Event.BOOT_FAILED)
        elif report["event"] == "measured":
            self.objects = report["objects"]
        elif report["event"] == "closed":
            self.threads_left = report["threads"]
            if self.state is State.BOOTING:
                self.error = "the interpreter ended before the app was loaded"
                self._move(Event.BOOT_FAILED)
            elif self.state is not State.CLOSED:
                self._move(Event.ENDED)

    def _move(self, event: Event) -> None:
        self.state = step(self.state, event)

    def _all_requests(self) -> int:
        return self._board.total(REQUESTS, self.first_row, self.rows)

    def _keep(self) -> None:
        """The keeper's whole life: one interpreter, from its creation to its end."""
        handle = None
        try:
            handle = interpreters.create(self.isolation)
            failure = interpreters.run(handle, f"BOOT = {json.dumps(self._order)!r}\n{_BOOTSTRAP}")
        except Exception as exc:
            failure = f"cannot create an interpreter: {type(exc).__name__}: {exc}"
        if failure:
            # Outside of the app's code, so nobody inside could say it.
            self._report_from_keeper("failed", error=failure.strip().splitlines()[-1], traceback=failure[-32_768:])
            self._report_from_keeper("closed", threads=0 if handle is None else 1)
        if not self._disposal.get():
            return  # what is still in there holds our descriptors
        if handle is not None:
            try:
                interpreters.destroy(handle)
            except Exception:
                return  # refused: somebody is still in there after all
        for fd in (self._poke, self._rouse):
            os.close(fd)
        self._epoll.close()
        self._inner.close()

    def _report_from_keeper(self, event: str, **facts: Any) -> None:
        self._inner.send(json.dumps({"event": event, **facts}, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def _cut(fd: int, answer: bytes) -> None:
    """Answer a client whose connection belongs to somebody who cannot run, and shut the connection down."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            if answer:
                sock.send(answer, socket.MSG_DONTWAIT)
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # the client is gone
            return


_NOT_SERVED = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 24\r\n\r\n503 Service Unavailable\n"
)
_TIMED_OUT = (
    b"HTTP/1.1 504 Gateway Timeout\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 20\r\n\r\n504 Gateway Timeout\n"
)
