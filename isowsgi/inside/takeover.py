"""`gunicorn.socket`: the client's connection in the hands of the app, which speaks another protocol on it, such as WebSocket.

What the app gets is a duplicate, made when it first asks something of it: websocket libraries close their socket when they are done, and a
number that is closed behind our back is the next client's connection a moment later. Until then it has no descriptor and costs one object
for each connection.

Once the app reads, writes, or shuts it, the connection is the app's until its request ends: nobody gives the request up, no word of
HTTP is written, the time limits of ordinary requests are lifted, and what the app returns or raises is no answer. Then it is closed.
"""

from __future__ import annotations

import _socket
import errno
import os
import socket
from collections.abc import Iterable
from typing import Any

from isowsgi.inside.http import ClientGone

# Not those of `socket.socket`: its `close` leaves the descriptor open while the app keeps a file that it made of it.
_fileno, _close = _socket.socket.fileno, _socket.socket.close

_NO_LIMIT = b"\0" * 16  # a timeval of zero: SO_RCVTIMEO and SO_SNDTIMEO are for ever

# What an app may ask of its socket without taking the connection over: who is there, and what options it has.
_ONLY_LOOKS = frozenset(
    ("family", "getpeername", "getsockname", "getsockopt", "getblocking", "gettimeout", "proto", "recv", "setsockopt", "timeout", "type")
)


class _Taken(socket.socket):
    """The duplicate, once it is the app's: an ordinary socket."""

    __slots__ = ("_connection",)


class AppSocket(socket.socket):
    """The duplicate, until the app takes the connection over."""

    __slots__ = ("_connection",)
    _connection: Any

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            _open(self)
            if name == "fileno":  # to wait for the client to hang up, perhaps; but a library for another protocol keeps using the number
                if _asks_for_another_protocol(self._connection):
                    _take_over(self)
            elif name not in _ONLY_LOOKS:
                _take_over(self)
        return socket.socket.__getattribute__(self, name)  # not super(): its class may be another one by now

    def __repr__(self) -> str:  # for pages and logs that show the whole environ
        return "<the client's connection, not taken over>"

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Look at what the client has sent, with MSG_PEEK, or take the connection over."""
        if not flags & socket.MSG_PEEK:
            _take_over(self)
        return socket.socket.recv(self, size, flags)


def app_socket(connection: Any) -> AppSocket:
    """Return the socket for the environ of a connection's requests; without a descriptor so far."""
    sock = AppSocket.__new__(AppSocket)
    sock._connection = connection
    return sock


def release(sock: AppSocket) -> None:
    """Close the app's duplicate, if there is one, when the connection is parted from."""
    sock._connection = None
    if _fileno(sock) >= 0:
        try:
            _close(sock)
        except OSError:  # the app has closed the number itself
            return


def _open(sock: AppSocket) -> None:
    """Make the duplicate, if there is none yet."""
    connection = sock._connection
    if _fileno(sock) >= 0:
        return
    if connection is None:
        raise OSError(errno.EBADF, "the request to which this connection belonged has ended")
    # Between the request's beginning and its end: soon after the number may be another connection's.
    if (token := connection.ending.hold_open()) is None:
        raise OSError(errno.EBADF, "the request to which this connection belonged has ended")
    try:
        ours = connection.sock
        socket.socket.__init__(sock, ours.family, ours.type, ours.proto, os.dup(ours.fileno()))
        socket.socket.settimeout(sock, None)  # not the app's default, which would hold for our descriptor, too
    finally:
        connection.ending.release_open(token)


def _take_over(sock: AppSocket) -> None:
    connection = sock._connection
    response = connection.response
    if (token := connection.ending.hold_open()) is None:
        raise ClientGone("the request has timed out")
    try:
        if not (response.headers_sent or connection.ending.claim()):
            raise ClientGone("the request has timed out")
        connection.is_taken = True
    finally:
        connection.ending.release_open(token)
    sock.__class__ = _Taken  # type: ignore[assignment] # from here on it costs what any socket costs
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.sock.setsockopt(socket.SOL_SOCKET, option, _NO_LIMIT)
    response.give_way()


def _asks_for_another_protocol(connection: Any) -> bool:
    return any(name.upper() == "UPGRADE" for name, _ in connection.response.req.headers)


def shut_all(jobs: Iterable[Any]) -> None:
    """End the connections that apps have taken over, websockets for instance: nobody else can, and a drain waits for them.

    Args:
        jobs: of the threads that serve, see `deadlines.Job`.
    """
    for job in jobs:
        connection = job.connection
        if connection is None or not connection.is_taken or (token := job.ending.hold_open()) is None:
            continue
        try:
            if job.connection is connection:
                connection.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the client is gone
        finally:
            job.ending.release_open(token)
