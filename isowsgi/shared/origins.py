"""Where connections come from, when their sockets do not say: shared memory that the worker writes and every instance reads.

The socket that an instance gets of a TLS connection is one of a pair inside the worker, and behind a proxy that speaks the PROXY protocol
the socket names the proxy. What is known of the real client has a place here, under the number by which the worker knows the connection's
descriptor. That number is the connection's as long as it is open (see `handover`). So whoever owns the connection reads what belongs to
it, in an interpreter and in a child process alike, and nothing has to travel with the descriptor.

A memfd, read and written by pread and pwrite: a place that was never used costs no memory, and one that was used keeps its page.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any, NamedTuple

# Room for each connection. Without a client's certificate some 200 bytes are used, with one some 3 KiB, and never more than 16.
PLACE_BYTES = 16 * 1024

_FIRST_READ = 1024
_LENGTH = struct.Struct("=I")


class Origin(NamedTuple):
    """What is known of a connection.

    Attributes:
        peer: the client's address as `accept` gives it: of whoever holds the other end, be it a proxy.
        own: the address that the client connected to, as `getsockname` gives it.
        environ: entries for the environ of every request on it.
    """

    peer: Any
    own: Any
    environ: dict[str, str]


class Origins:
    """The table.

    Args:
        fd: of an existing one, which stays the caller's; None makes a new one.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("isowsgi-origins") if fd is None else fd

    def write(self, number: int, origin: Origin) -> None:
        """Note where a connection comes from; by its owner, before anybody else has it.

        Raises:
            ValueError: there is no room for so much.
        """
        text = json.dumps([_plain(origin.peer), _plain(origin.own), origin.environ]).encode()
        data = _LENGTH.pack(len(text)) + text
        if len(data) > PLACE_BYTES:
            raise ValueError(f"{len(data)} bytes are too many, there is room for {PLACE_BYTES}")
        os.pwrite(self.fd, data, number * PLACE_BYTES)

    def read(self, number: int) -> Origin:
        """Return where a connection comes from; by its owner."""
        place = number * PLACE_BYTES
        data = os.pread(self.fd, _FIRST_READ, place)
        (length,) = _LENGTH.unpack_from(data)
        if length > _FIRST_READ - _LENGTH.size:
            data = os.pread(self.fd, _LENGTH.size + length, place)
        peer, own, environ = json.loads(data[_LENGTH.size : _LENGTH.size + length])
        return Origin(_address(peer), _address(own), environ)


def _plain(address: Any) -> Any:
    # In the abstract namespace of Unix sockets names are bytes.
    return os.fsdecode(address) if isinstance(address, bytes) else address


def _address(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
