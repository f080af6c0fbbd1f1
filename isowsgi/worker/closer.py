"""Closes connections that child processes had, on a thread of its own.

close(2) waits for the client if SO_LINGER is set, in whoever has the last descriptor of a connection, whether the socket blocks or not.
What a child has set the worker's descriptor has too. So it is set back before; but a child that keeps a copy can set it again just then,
and close that copy. A thread that waits for such a client is woken by a signal, and the kernel closes without it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import struct
import threading
import time

# Off (socket(7)).
_NO_LINGER = struct.pack("ii", 0, 0)

# How long a close may take: microseconds, if it waits for nobody.
_LONG_S = 0.5

# What wakes the thread: a signal that nobody else uses, and that is ignored where it has no handler.
_WAKES = signal.SIGURG


class Closer:
    """One worker's. On the acceptor's thread."""

    def __init__(self) -> None:
        self._fds: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._began = 0.0  # monotonic seconds, of the close that takes place just now; 0.0: none does

    def close(self, fd: int) -> None:
        """Close a connection soon; its number is in use until then."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="isowsgi-closer", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread is left
                _close(fd)
                return
            self._thread = thread
            with contextlib.suppress(ValueError):  # not in the main thread, as in tests
                signal.signal(_WAKES, _do_nothing)
        self._fds.put(fd)

    def tick(self) -> None:
        """Wake the thread if it waits for a client; called some times a second, or each second."""
        began = self._began
        if self._thread is not None and began and time.monotonic() - began > _LONG_S:
            assert self._thread.ident is not None, "it was started"
            signal.pthread_kill(self._thread.ident, _WAKES)

    def _run(self) -> None:
        while True:
            fd = self._fds.get()
            self._began = time.monotonic()
            _close(fd)
            self._began = 0.0


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):  # an app has closed it by its number
        _set_back(fd)
    with contextlib.suppress(OSError):
        os.close(fd)


def _set_back(fd: int) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)  # of whatever family: who knows it is not asked
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    finally:
        sock.detach()


def _do_nothing(number: int, frame: object) -> None:
    return
