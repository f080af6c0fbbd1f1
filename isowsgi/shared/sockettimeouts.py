"""The kernel's limits to a call on a client's connection that waits (SO_RCVTIMEO, SO_SNDTIMEO), so that no thread polls before it.

A connection of TCP that is in no instance has the standard ones. It inherits them from its listener: Linux copies a listener's options when
the handshake ends. So instances with these limits, which are the defaults, need not set them. They do not depend on the configuration, as
workers with another one, and masters that come after, accept from the same listeners. An instance with other limits sets its own, and the
standard ones again before it gives a connection back.
"""

from __future__ import annotations

import math
import socket
import struct

# How many times send_timeout the kernel lets a thread wait. It wakes a writer only once a third of a full buffer, of 4 MiB at most, is
# free: so it cannot tell a client that reads slowly from one that reads nothing. `deadlines.Watcher` can; this is in case it does not run.
_SEND_MARGIN = 10


def limits_of(body_timeout_s: float, send_timeout_s: float) -> tuple[bytes, bytes]:
    """Return both limits, as the kernel takes them, for the times that a mount gives its clients; 0 is for ever."""
    return _timeval(body_timeout_s), _timeval(_SEND_MARGIN * send_timeout_s)


def set_limits(sock: socket.socket, limits: tuple[bytes, bytes]) -> None:
    receive, send = limits
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, receive)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, send)


def has_limits(sock: socket.socket, limits: tuple[bytes, bytes]) -> bool:
    receive, send = limits
    return (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, len(receive)) == receive
        and sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, len(send)) == send
    )


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", *divmod(math.ceil(seconds * 1_000_000), 1_000_000))


# Of mounts that say nothing else, see `configuration.values`.
STANDARD = limits_of(60.0, 60.0)

# Families whose connections inherit from their listener; those of Unix sockets do not.
INHERITING = (socket.AF_INET, socket.AF_INET6)
