"""The socket of a client's connection, whatever the app has done to `socket`.

It is a `socket.socket`, as apps find it under `gunicorn.socket`. What an app puts in the place of that class' methods, or says by
`socket.setdefaulttimeout`, is not for us.
"""

from __future__ import annotations

import _socket
import socket


class ClientSocket(socket.socket):
    """A blocking stream socket over a descriptor, which it owns until it is detached."""

    __slots__ = ()

    def __init__(self, family: int, fd: int) -> None:
        # Told family and type, Python does not ask the kernel for them: two system calls of three. The family must be right, for the room
        # that Python has for addresses is that family's.
        _socket.socket.__init__(self, family, socket.SOCK_STREAM, 0, fd)
        self._io_refs = 0  # as `socket.socket` has them, for `makefile` and `close`
        self._closed = False
        if _default_timeout() is not None:  # of the app's for its own sockets; with it the descriptor does not block any more
            self.settimeout(None)

    def detach(self) -> int:
        self._closed = True
        return _socket.socket.detach(self)

    def close(self) -> None:
        self._closed = True
        if self._io_refs <= 0:
            _socket.socket.close(self)

    # Those that serve. They are named here, so that nobody looks for them in `socket.socket`.
    family = _socket.socket.family  # type: ignore[assignment] # a number, where `socket.socket` looks for a name for it
    fileno = _socket.socket.fileno
    getpeername = _socket.socket.getpeername
    getsockname = _socket.socket.getsockname
    getsockopt = _socket.socket.getsockopt
    recv = _socket.socket.recv
    send = _socket.socket.send
    sendall = _socket.socket.sendall
    setsockopt = _socket.socket.setsockopt
    settimeout = _socket.socket.settimeout
    shutdown = _socket.socket.shutdown


_default_timeout = _socket.getdefaulttimeout
