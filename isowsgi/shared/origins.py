"""Where connections come from, when their sockets do not say: shared memory that the worker writes and every instance reads.

The socket that an instance gets of a TLS connection is one of a pair inside the worker, and behind a proxy that speaks the PROXY protocol
the socket names the proxy. What is known of the real client (see `worker.proxyheader` and `worker.tlsfacts`) has a place here, under the
number by which the worker knows the connection's descriptor. That number is the connection's as long as it is open (see `handover`). So
whoever owns the connection reads what belongs to it, in an interpreter and in a child process alike, and nothing has to travel with the
descriptor.

A memfd, read and written by pread and pwrite: a place that was never used costs no memory, and one that was used keeps its page. Instances
get a descriptor that only reads, and nobody can cut the memory off. What is read is checked all the same, for a child process of the same
user can reopen the file.
"""

from __future__ import annotations

import fcntl
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
        peer: the client's address as `accept` gives it: of the other end of the connection, which may be a proxy's.
        own: the address that the client connected to, as `getsockname` gives it.
        environ: entries for the environ of every request on it.
    """

    peer: Any
    own: Any
    environ: dict[str, str]


class Origins:
    """The table.

    Args:
        fd: of an existing one, which stays the caller's and is only read; None makes a new one.

    Attributes:
        fd: for instances: it can only be read, where there is a /proc to reopen it.
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is not None:
            self.fd = self._writable = fd
            return
        self.fd = self._writable = os.memfd_create("isowsgi-origins", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(self._writable, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        try:
            self.fd = os.open(f"/proc/self/fd/{self._writable}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # no /proc, or no descriptor left
            return

    def write(self, number: int, origin: Origin) -> None:
        """Note where a connection comes from; by its owner, before anybody else has it.

        Raises:
            ValueError: there is no room for so much.
        """
        text = json.dumps([_plain(origin.peer), _plain(origin.own), origin.environ]).encode()
        data = _LENGTH.pack(len(text)) + text
        if len(data) > PLACE_BYTES:
            raise ValueError(f"{len(data)} bytes are too many, there is room for {PLACE_BYTES}")
        os.pwrite(self._writable, data, number * PLACE_BYTES)

    def copy(self, number: int, other: Origins) -> None:
        """Note in another table what is known of a connection here."""
        data = os.pread(self.fd, _FIRST_READ, number * PLACE_BYTES)
        if len(data) >= _LENGTH.size and (length := _LENGTH.unpack_from(data)[0] + _LENGTH.size) > len(data):
            data = os.pread(self.fd, min(length, PLACE_BYTES), number * PLACE_BYTES)
        os.pwrite(other._writable, data, number * PLACE_BYTES)

    def close(self) -> None:
        """Close a table that was made here."""
        for fd in {self.fd, self._writable}:
            os.close(fd)

    def read(self, number: int) -> Origin:
        """Return where a connection comes from; by its owner.

        Raises:
            ValueError: nothing was written for it, or another process has overwritten it.
        """
        place = number * PLACE_BYTES
        data = os.pread(self.fd, _FIRST_READ, place)
        if len(data) < _LENGTH.size:
            raise ValueError(f"connection {number}: no origin was written")
        (length,) = _LENGTH.unpack_from(data)
        if length > PLACE_BYTES - _LENGTH.size:
            raise ValueError(f"connection {number}: an origin of {length} bytes; there is room for {PLACE_BYTES}")
        if length > _FIRST_READ - _LENGTH.size:
            data = os.pread(self.fd, _LENGTH.size + length, place)
        try:
            peer, own, environ = json.loads(data[_LENGTH.size : _LENGTH.size + length])
        except (TypeError, RecursionError) as exc:
            raise ValueError(f"connection {number}: its origin cannot be read") from exc
        if not isinstance(environ, dict):
            raise ValueError(f"connection {number}: the origin's environ is {type(environ).__name__}")
        return Origin(_address(peer), _address(own), environ)


def _plain(address: Any) -> Any:
    # In the abstract namespace of Unix sockets names are bytes.
    return os.fsdecode(address) if isinstance(address, bytes) else address


def _address(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str):
        raise ValueError(f"an address is {type(value).__name__}")
    return value
