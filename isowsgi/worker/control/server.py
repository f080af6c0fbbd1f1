"""A worker's control socket: takes requests of the operator's, has them carried out, answers.

On the acceptor's loop and thread, because what a request asks for or changes (deployments, instances) is that thread's alone; a thread of
its own could only queue for it. Nothing here waits: connections are non-blocking in an epoll set of their own, which the acceptor
watches as one descriptor, and an errand that takes time (a reload, an answer about all mounts) is a generator, looked at by and by.

One request and one answer per connection. A client that misbehaves gets one error, and its connection is closed.
"""

from __future__ import annotations

import math
import os
import select
import socket
import time
from collections.abc import Callable, Generator
from typing import Any

from isowsgi.shared import controlmessages, frames, sockets
from isowsgi.shared.containment import Containment
from isowsgi.shared.controlmessages import Answer, Error, Refusal, Request, Worker
from isowsgi.shared.frames import Decoder, FrameError
from isowsgi.worker.loop import Loop
from isowsgi.worker.pieces import PAUSE_S, STEP_S

# Connections at a time; each may wait for a reload. They are few operators and scripts.
MAX_CLIENTS = 16

# How long a client may take to send its request, or to read its answer.
IDLE_S = 5.0

# How often an errand that takes time is looked at when nothing else wakes the loop.
_LOOK_S = 0.1

# How much earlier than planned a timer may be by rounding.
_EARLY_S = 0.001

# Bytes that are read at a time.
_CHUNK_BYTES = 64 * 1024

Errand = Generator[bool | None, float, Answer]
"""What a request asks for, in pieces. It yields `AT_ONCE` if it waits for nothing else; else the next one comes with the next look.

However short pieces are, they cost little: as many are done in one step as there is time for, see `pieces`.
"""

AT_ONCE = True


class _Client:
    """A connection: it sends its request, then waits while there is an errand, then reads its answer."""

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.uid = sockets.peer_uid(sock)
        self.pid = sockets.peer_pid(sock)
        self.decoder = Decoder(frames.MAX_REQUEST_BYTES)
        self.errand: Errand | None = None
        self.is_eager = False  # its errand waits for nothing
        self.answer = memoryview(b"")  # what of it is to be sent yet
        self.is_answered = False
        self.deadline = now + IDLE_S


class ControlServer:
    """Serves one worker's control socket. All methods are for the acceptor's thread.

    Args:
        begin: returns the errand that a request asks for; a step of it may raise Refusal.
        worker: who answers.
        log: gunicorn's logger.
        containment: where mistakes end.
        clock: CPU seconds of this thread.

    Attributes:
        asker: whose request is being begun or was begun last, for the log.
        on_soon: has `tick` called in the next turn of the loop.
    """

    def __init__(
        self,
        begin: Callable[[Request[Any]], Errand],
        worker: Worker,
        log: Any,
        containment: Containment,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._begin = begin
        self._worker = worker
        self._log = log
        self._containment = containment
        self._clock = clock
        self._epoll = select.epoll()
        self._listener: socket.socket | None = None
        self.folder_fd = -1  # of the folder with the socket, once it is open
        self._name = ""
        self._clients: dict[int, _Client] = {}
        self.asker = ""
        self.on_soon: Callable[[], None] = lambda: None

    def open(self, folders: list[str], name: str) -> str | None:
        """Listen in the first folder that is safe; return the socket's path.

        None if there is none: the worker serves without, and the log says why.
        """
        problems = []
        for folder in folders:
            try:
                # Only the last one is always ours to make; /run/isowsgi is root's, or a service manager's.
                fd = sockets.open_folder(folder, make=folder == folders[-1] or os.geteuid() == 0)
            except sockets.UnsafeFolder as exc:
                problems.append(str(exc))
                continue
            try:
                sockets.clean_up(folder, fd)
                self._listener = sockets.listen(fd, name)
            except OSError as exc:
                os.close(fd)
                problems.append(f"{folder}: {exc.strerror or exc}")
                continue
            self.folder_fd, self._name = fd, name
            self._epoll.register(self._listener, select.EPOLLIN)
            return os.path.join(folder, name)
        self._log.warning("no control socket, so `isowsgi` commands cannot reach this worker: %s", "; ".join(problems))
        return None

    def fileno(self) -> int:
        """Return the descriptor that is readable when `turn` has something to do."""
        return self._epoll.fileno()

    def wait_s(self) -> float:
        """Return after how many seconds `tick` must be called at the latest."""
        if any(client.is_eager for client in self._clients.values()):
            return PAUSE_S
        return _LOOK_S if self._clients else math.inf

    def look_soon(self) -> None:
        """Look at errands in the next turn of the loop: what they wait for may have come."""
        if self._clients:
            self.on_soon()

    def turn(self) -> None:
        """Handle what came on the connections."""
        now = time.monotonic()
        for fd, flags in self._epoll.poll(0):
            client = self._clients.get(fd)
            if client is not None:
                self._guarded(client, self._serve, client, flags, now)
            elif self._listener is not None and fd == self._listener.fileno():
                self._accept(now)

    def tick(self) -> None:
        """Look at errands and deadlines."""
        if not self._clients:
            return
        now = time.monotonic()
        for client in list(self._clients.values()):
            self._guarded(client, self._look_at, client, now)

    def _look_at(self, client: _Client, now: float) -> None:
        if client.errand is not None:
            self._go_on(client, now)
        elif now > client.deadline:
            if client.is_answered:
                self._close(client)
            else:
                self._refuse(client, "timeout", f"expected a complete request within {IDLE_S:g} s", now)

    def _guarded(self, client: _Client, step: Callable[..., None], *args: Any) -> None:
        """Do a step for one connection; what can go wrong ends this connection only."""
        try:
            step(*args)
        except Exception:
            self._containment.failed("control socket")
            if self._clients.pop(client.fd, None) is not None:
                client.sock.close()

    def close(self) -> None:
        """Stop listening; clients that wait are told that the worker stops."""
        if self._listener is not None:
            sockets.remove(self.folder_fd, self._name)
            self._epoll.unregister(self._listener)
            self._listener.close()
            self._listener = None
            os.close(self.folder_fd)
            self.folder_fd = -1
        for client in list(self._clients.values()):
            if not client.is_answered:
                self._guarded(client, self._refuse, client, "stopping", "the worker is stopping", time.monotonic())

    def _accept(self, now: float) -> None:
        assert self._listener is not None, "its descriptor has just fired"
        try:
            sock, _ = self._listener.accept()
        except OSError:  # gone again, or no descriptor is left; the loop comes back
            return
        sock.setblocking(False)
        client = _Client(sock, now)
        is_full = len(self._clients) >= MAX_CLIENTS
        self._clients[client.fd] = client
        self._epoll.register(client.fd, select.EPOLLIN)
        if client.uid not in (0, os.geteuid()):
            self._refuse(client, "forbidden", f"only uid {os.geteuid()} and root may use this socket, got uid {client.uid}", now)
        elif is_full:
            self._refuse(client, "busy", f"{MAX_CLIENTS} connections are open; try again", now)

    def _serve(self, client: _Client, flags: int, now: float) -> None:
        if client.is_answered:
            self._write(client)
            return
        try:
            data = client.sock.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(client)  # what it asked for is done all the same
            return
        if client.errand is not None:
            self._refuse(client, "malformed", "expected one request, got bytes after it", now)
            return
        try:
            message = client.decoder.feed(data)
        except FrameError as exc:
            self._refuse(client, "malformed", str(exc), now)
            return
        if message is not None:
            self._step(client, lambda: self._start(client, message), now)

    def _start(self, client: _Client, message: dict[str, Any]) -> None:
        self.asker = f"uid {client.uid}, pid {client.pid}"
        client.errand = self._begin(controlmessages.decode_request(message))
        client.is_eager = bool(next(client.errand))

    def _go_on(self, client: _Client, now: float) -> None:
        errand = client.errand
        assert errand is not None, "asked by tick()"
        self._step(client, lambda: self._send(client, errand, now), now)

    def _send(self, client: _Client, errand: Errand, now: float) -> None:
        until = self._clock() + STEP_S
        client.is_eager = bool(errand.send(now))
        while client.is_eager and self._clock() < until:
            client.is_eager = bool(errand.send(now))

    def _step(self, client: _Client, step: Callable[[], None], now: float) -> None:
        """Take an errand's first or next step; the last one brings its answer."""
        try:
            step()
        except StopIteration as done:
            self._answer(client, done.value, now)
        except Refusal as refusal:
            self._answer(client, refusal.error, now)
        except Exception:
            self._containment.failed("control socket")
            self._refuse(client, "mistake", "internal error in isowsgi; the error log has the traceback", now)

    def _refuse(self, client: _Client, kind: str, text: str, now: float) -> None:
        self._answer(client, Error(kind=kind, text=text), now)

    def _answer(self, client: _Client, answer: Answer | Error, now: float) -> None:
        client.errand = None
        client.is_eager = False
        client.is_answered = True
        client.answer = memoryview(controlmessages.encode_answer(self._worker, answer))  # a slice of which copies nothing
        client.deadline = now + IDLE_S
        self._write(client)

    def _write(self, client: _Client) -> None:
        try:
            client.answer = client.answer[client.sock.send(client.answer) :]
        except BlockingIOError:
            pass
        except OSError:  # it is gone
            self._close(client)
            return
        if client.answer:
            self._epoll.modify(client.fd, select.EPOLLOUT)
        else:
            self._close(client)

    def _close(self, client: _Client) -> None:
        del self._clients[client.fd]
        try:
            client.sock.recv(_CHUNK_BYTES)  # unread data would make a reset of the close
        except OSError:
            pass
        client.sock.close()


def drive(loop: Loop, server: ControlServer) -> None:
    """Have a loop call a server whenever it has something to do."""
    planned = math.inf  # monotonic seconds

    def plan(at_once: bool = False) -> None:
        nonlocal planned
        at = time.monotonic() + (0.0 if at_once else server.wait_s())
        if at < planned:
            planned = at
            loop.later(at - time.monotonic(), tick, "control socket")

    def tick() -> None:
        nonlocal planned
        if time.monotonic() < planned - _EARLY_S:
            return  # it was planned before something more urgent was, and that has planned anew
        planned = math.inf
        try:
            server.tick()
        finally:
            plan()

    def turn() -> None:
        try:
            server.turn()
        finally:
            plan()

    server.on_soon = lambda: plan(at_once=True)
    loop.watch(server.fileno(), turn, "control socket")
