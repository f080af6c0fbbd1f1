"""How far a client has come in taking what was sent to it: asked of the kernel, by whoever has the connection's descriptor."""

from __future__ import annotations

import socket
import struct
from fcntl import ioctl
from termios import TIOCOUTQ

# Where the kernel's tcp_info (linux/tcp.h, from 4.1 on) has tcpi_bytes_acked.
_BYTES_ACKED = struct.Struct("=120xQ")

# And where tcpi_last_data_recv, in milliseconds.
_LAST_RECEIVED = struct.Struct("=52xI")

# The kernel counts ticks for it, 10 ms at most (CONFIG_HZ): one that has just passed says nothing.
_TICK_MS = 10


def delivered(sock: socket.socket) -> int:
    """Return a number that changes with every byte that the other side takes: over TCP how many it has taken.

    One call sends a whole response, or a whole file, so what was handed to the kernel says nothing about its progress.
    """
    try:
        if sock.family == socket.AF_UNIX:
            return _unread(sock)
        acked: int
        (acked,) = _BYTES_ACKED.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size))
        return acked
    except (OSError, struct.error, ValueError):  # closed
        return 0


def since_last_bytes_ns(sock: socket.socket) -> int:
    """Return how long ago the latest bytes came, to 10 ms; 0 if they have just come, or the kernel does not say: it does for TCP."""
    try:
        if sock.family == socket.AF_UNIX:
            return 0
        ms: int
        (ms,) = _LAST_RECEIVED.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_RECEIVED.size))
    except (OSError, struct.error, ValueError):  # closed, or a sandbox with its own kernel
        return 0
    return ms * 1_000_000 if ms > _TICK_MS else 0


def _unread(sock: socket.socket) -> int:
    """Return how much the other side of a Unix socket has yet to read."""
    return int(struct.unpack("i", ioctl(sock.fileno(), TIOCOUTQ, b"\0" * 4))[0])
