"""How a process is forked by a fork server, step by step, as the worker, the server and the new process speak of it.

1. The worker starts the server with a `ForkOrder`, and the server says `Warm` or `Unfit`.
2. For a process the worker sends the server one end of a socket pair, in a packet of one byte. The server forks and has no part in the
   rest: it never holds a descriptor of a mount, nor learns what a process is for.
3. On that pair the new process says `Forked`, or the server `NotForked`. Which process has said so is the kernel's word.
4. The worker sends the process its descriptors: the boot order as a file, standard output and error, and those that the order names, by
   their places in the packet. A process that gets none ends, so one that the worker no longer waits for is never an instance.
   A process that becomes a fork server for one venv gets a `PreloadOrder` in place of a boot order, and continues as in 1; one that becomes
   the original of a mount's copies a `LoadOrder`.
5. The process takes them for its own, and says `Settled`. From there on it is as one that was started on its own.

The server runs isowsgi's code and a preloaded package's, so what it says is not trusted: `decode` takes what fits, and nothing else. Only a
worker and a fork server import this, so that other instances need not pay for it.
"""

import os
import socket
import struct
from typing import Any

import isowsgi
from isowsgi.shared import wire
from isowsgi.shared.messages import BootOrder
from isowsgi.shared.wire import MessageError, Value, plain

# Longest packet; `Warm` names some 150 modules.
MAX_PACKET_BYTES = 64 * 1024

# Descriptors that one packet carries at most (SCM_MAX_FD, net/scm.h).
MOST_FDS = 253

# What the worker sends along with descriptors: the kernel delivers none without a byte.
TOKEN = b"f"

# The first place in the packet of descriptors that the boot order names; before it are standard input (the order), output and error.
FIRST_PLACE = 3

# Who has sent a packet: process, user, group (struct ucred, unix(7)).
_SENDER = struct.Struct("=iII")
_CREDENTIALS = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)

# How descriptors lie in a packet's ancillary data (unix(7)).
_FD = struct.Struct("=i")
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)


class ForkOrder(Value):
    """All that a fork server has to know; it comes as a boot order does, so it says where the packages are and that no boot follows."""

    release: str  # of isowsgi, that wrote it
    packages: dict[str, str]  # folders of isowsgi and gunicorn, by package
    server: int  # descriptor of its socket
    worker_pid: int


class PreloadOrder(Value):
    """All that a process has to know that becomes a fork server for one venv; it comes where a boot order does."""

    release: str
    server: int  # descriptor of its socket, by its place in the packet
    worker_pid: int
    venv: str | None
    site: list[str]  # as `messages.Host.site`
    start_folder: str
    modules: list[str]  # to import


class LoadOrder(Value):
    """All that a process has to know that loads the app of a mount, and forks its copies from then on."""

    release: str
    server: int  # as in a `PreloadOrder`
    worker_pid: int
    boot: BootOrder  # of a copy; of its descriptors there are only the log files', by their places in the packet


class Dropped(Value):
    """Modules cannot be preloaded; the server has ended, and another one would do without them."""

    failed: list[tuple[str, str]]  # name and error of those that cannot be imported; "": said of others before it
    module: str = ""  # whose import leaves or changes what is the whole process', so that none after it was tried
    reason: str = ""


class Stale(Value):
    """A file that the server has loaded is another one by now; it forks nothing any more."""


class Warm(Value):
    """The server has loaded what it was to load, and forks from now on."""

    names: list[str]  # top-level modules that it has loaded


class Unfit(Value):
    """The server cannot fork, and has ended."""

    error: str


class Forked(Value):
    """There is a new process; said by itself, as its process id is the sender's."""


class NotForked(Value):
    """There is none."""

    error: str


class Settled(Value):
    """The new process has its descriptors and its order."""


Birth = Warm | Unfit | Dropped | Stale | Forked | NotForked | Settled

_KINDS: dict[str, type[Birth]] = {kind.__name__: kind for kind in (Warm, Unfit, Dropped, Stale, Forked, NotForked, Settled)}


def encode(message: Birth) -> bytes:
    """Return a message as it travels."""
    return wire.encode({"is": type(message).__name__, **plain(message)})


def decode(packet: bytes) -> Birth:
    """Return the message in a packet.

    Raises:
        MessageError: it is none.
    """
    facts = wire.decode(packet)
    if not isinstance(facts, dict):
        raise MessageError(f"expected a JSON object, got {wire.shown(facts)}")
    name = facts.pop("is", None)
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise MessageError(f"expected one of {', '.join(_KINDS)}, got {wire.shown(name)}")
    return wire.read(facts, kind)


def read_server_order(facts: dict[str, Any]) -> PreloadOrder | LoadOrder:
    """Return the order that was read from JSON, for a fork server of one venv or for an original.

    Raises:
        MessageError: it is none.
    """
    return wire.read(facts, LoadOrder) if "boot" in facts else wire.read(facts, PreloadOrder)


def read_order(facts: object) -> ForkOrder:
    """Return the order for a fork server that was read from JSON.

    Raises:
        MessageError: it is none, or one of another release.
    """
    if isinstance(facts, dict) and (release := facts.get("release")) != isowsgi.__version__:
        raise MessageError(f"the worker runs isowsgi {release}, but {isowsgi.__version__} is installed now; restart gunicorn")
    return wire.read(facts, ForkOrder)


def send(sock: socket.socket, packet: bytes, fds: list[int]) -> None:
    """Send a packet and descriptors, which stay the caller's.

    Raises:
        OSError: nobody is on the other side, or no memory is left.
    """
    sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(map(_FD.pack, fds)))])


def receive(sock: socket.socket, most_fds: int) -> tuple[bytes, list[int]]:
    """Return the next packet and its descriptors, which are the caller's from now on; an empty packet at the end.

    Raises:
        OSError: not all descriptors had room here; those that came are closed.
    """
    packet, ancillary, flags, _ = sock.recvmsg(MAX_PACKET_BYTES, socket.CMSG_SPACE(most_fds * _FD.size), socket.MSG_CMSG_CLOEXEC)
    rights = [data[: len(data) // _FD.size * _FD.size] for level, kind, data in ancillary if (level, kind) == _RIGHTS]
    fds = [fd for data in rights for (fd,) in _FD.iter_unpack(data)]
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise OSError("descriptors are missing")
    return packet, fds


def receive_from(sock: socket.socket) -> tuple[bytes, int]:
    """Return the next packet, and the process id of who has sent it; an empty packet at the end.

    Args:
        sock: with SO_PASSCRED. Descriptors that came along find no room, and the kernel closes them.

    Raises:
        OSError: nothing comes any more, or not in time.
    """
    packet, ancillary, _, _ = sock.recvmsg(MAX_PACKET_BYTES, socket.CMSG_LEN(_SENDER.size))
    senders = [_SENDER.unpack(data) for level, kind, data in ancillary if (level, kind) == _CREDENTIALS and len(data) == _SENDER.size]
    return packet, senders[0][0] if senders else 0
