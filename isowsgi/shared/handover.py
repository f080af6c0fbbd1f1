"""Hand-over: the move of one connection's ownership between the acceptor and an instance.

Within the worker process a file descriptor and an epoll set belong to the process, not to an interpreter. So arming a connection's
descriptor in another owner's set hands it over: one system call, and no object, lock, queue or byte of the request crosses.

An instance in a child process gets the descriptor by mail (SCM_RIGHTS, unix(7)). The worker keeps its own descriptor meanwhile, unarmed and
untouched: it is lent. So a child says by number what becomes of a connection, without sending a descriptor back, and when a child dies the
worker still has every connection of it: those in flight are answered 502, all others are served elsewhere.

A descriptor's number outlives its connection: it is the next one's. So whoever speaks of a connection that another may have closed names
it by a serial that is never used twice. Each loan has one, and a child is believed only for what is lent under it. And a row of the
scoreboard holds the **key** of the connection that is served: its number and the kernel's own serial for that socket (SO_COOKIE).

A connection has one owner at any moment. Who gives forgets the descriptor first (it is disarmed in the giver's own set, and the
socket object is detached) and never touches it again until it comes back.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from _socket import getdefaulttimeout as _default_timeout  # bound here, whatever an app does to `socket`
from collections.abc import Callable
from typing import Protocol

from isowsgi.shared.rows import AT_CAPACITY, CLOSED

_epoll = select.epoll  # bound here: eventlet takes it away while the app is loaded, and this is needed afterwards

# In an owner's set: an event for each arrival, with the bytes so far still in the buffer. Bytes peeked at stay there, so a level-triggered
# descriptor would fire for ever. One that is disarmed by its event and re-armed after each request costs a system call more.
ARM_EDGE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET

# Back to the acceptor: fires at once, for it learns of the connection only by an event, and has to close it in time even if the client
# never says another word.
ARM_RETURN = ARM_EDGE | select.EPOLLOUT

# A packet of mail to the child: the loan's serial, and the worker's number of the descriptor that comes with it. And back: what became of
# the connection, and that serial.
_GIVEN = struct.Struct("=qi")
_FATE = struct.Struct("=cq")
RETURNED = b"r"  # its next request is another instance's
LINGERING = b"l"  # it was answered and shut down for writing; what the client still sends is read and thrown away
CLOSED_THERE = b"c"  # nothing is left to do but to close it

_DESCRIPTOR = struct.Struct("=i")
_ROOM_FOR_ONE = socket.CMSG_LEN(_DESCRIPTOR.size)

# Descriptors that come by mail are not for the app's child processes.
_RECEIVE = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)

# What sending to a process that has ended fails with.
_DEAD = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN})

# And what it fails with while memory is scarce, or one user has as many descriptors on their way as it may (unix(7)).
_SCARCE = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})

# Connections taken out of the mail in a row, before their requests are looked at.
_MAIL_BATCH = 64

# Packets of a child read in a row, before others are looked at; what is left is another event.
FATES_BATCH = 256

# asm-generic/socket.h, since Linux 4.12; the socket module has no name for it.
_SO_COOKIE = 57
_COOKIE = struct.Struct("=Q")

# Of a connection's key: bits that hold its descriptor's number plus 1 (a process has 2^20 descriptors at most, fs.nr_open), and all.
_NUMBER_BITS = 24
_KEY_MASK = (1 << 63) - 1


def key_of(sock: socket.socket, number: int) -> int:
    """Return what names a connection on the scoreboard: 1 or more, and never another connection's.

    Args:
        sock: any descriptor of it, in any process.
        number: of the worker's descriptor.
    """
    try:
        cookie: int = _COOKIE.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, _COOKIE.size))[0]
    except OSError:  # a sandbox with its own kernel: the number must do
        cookie = 0
    return (cookie << _NUMBER_BITS | number + 1) & _KEY_MASK


def number_of(key: int) -> int:
    """Return the number of the worker's descriptor for a connection; -1 for a key that is none."""
    return (key & (1 << _NUMBER_BITS) - 1) - 1


def blocking(sock: socket.socket) -> socket.socket:
    """Have a new socket block, whatever an app in this interpreter has said by `socket.setdefaulttimeout`.

    With a time limit Python waits for its end wherever there is nothing to read, even if it is told not to (MSG_DONTWAIT), and the
    descriptor does not block for its other owners.
    """
    if _default_timeout() is not None:
        sock.settimeout(None)
    return sock


def dup_of(key: int) -> socket.socket | None:
    """Return another descriptor of a connection in the worker; None if it is closed, whoever has its number now."""
    number = number_of(key)
    try:
        fd = os.dup(number)
    except OSError:  # nobody has
        return None
    try:
        sock = blocking(socket.socket(fileno=fd))
    except OSError:  # no socket
        os.close(fd)
        return None
    if key_of(sock, number) == key:
        return sock
    sock.close()
    return None


class Port:
    """An owner's epoll set, as those see it who hand connections over to it."""

    def __init__(self, epoll: select.epoll, arm: int) -> None:
        self._epoll = epoll
        self._arm = arm

    @classmethod
    def open(cls, epoll_fd: int, arm: int) -> Port:
        """Return a port to the epoll set behind a descriptor of this process, which stays the caller's.

        The duplicate is this interpreter's own: `epoll.fromfd` closes its descriptor when it is collected.
        """
        return cls(_epoll.fromfd(os.dup(epoll_fd)), arm)

    def give(self, fd: int) -> None:
        """Hand a connection over; it is the port's owner's from here on.

        Args:
            fd: a connected stream socket that is armed in no other set.
        """
        self._epoll.register(fd, self._arm)


class Closable(Protocol):
    """A socket, or what stands in for one that could not be made."""

    def close(self) -> None: ...


class Exchange(Protocol):
    """An instance's side of the hand-over. Who calls has disarmed the descriptor and forgotten its socket."""

    mail_fd: int  # readable when `receive` has something; -1 if connections come without mail

    def receive(self) -> list[int]:
        """Return connections that have come; they are armed nowhere yet."""

    def worker_fd(self, fd: int) -> int:
        """Return the number of the worker's descriptor for a connection."""

    def give_back(self, fd: int) -> None:
        """Return a connection whose next request is for the acceptor to route."""

    def linger(self, fd: int) -> None:
        """Have the acceptor read away what the client still sends."""

    def close(self, sock: Closable, fd: int, row: memoryview) -> None:
        """Close a connection.

        Args:
            sock: closed here, unless the app has done so.
            fd: what its descriptor was.
            row: the words of the calling thread's row on the scoreboard.
        """


class SameProcess:
    """Hand-over by the acceptor's epoll sets.

    Args:
        returns, lingering: its sets, see `acceptor.Acceptor`.
        acceptor: the words of its row on the scoreboard.
        notify_capacity: tells it that a connection was closed while the worker had as many as it may.
    """

    mail_fd = -1

    def __init__(self, returns: Port, lingering: Port, acceptor: memoryview, notify_capacity: Callable[[], None]) -> None:
        self.give_back = returns.give
        self.linger = lingering.give
        self._acceptor = acceptor
        self._notify_capacity = notify_capacity

    def receive(self) -> list[int]:
        return []

    def worker_fd(self, fd: int) -> int:
        return fd

    def close(self, sock: Closable, fd: int, row: memoryview) -> None:
        try:
            sock.close()
        finally:  # even if the app has closed the number itself: a connection that is not counted is one less that the worker takes
            row[CLOSED] += 1
            if self._acceptor[AT_CAPACITY]:
                self._notify_capacity()


class Mail:
    """Hand-over by a socket to the worker, in a child process.

    Args:
        sock: a seqpacket socket; blocking, as the worker never waits for anybody and so soon reads.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loans: dict[int, tuple[int, int]] = {}  # serial and the worker's number, by the number here
        self._maker = os.getpid()
        self.mail_fd = sock.fileno()

    def receive(self) -> list[int]:
        came: list[int] = []
        while len(came) < _MAIL_BATCH:
            try:
                # Not socket.recv_fds: it takes flags and does not use them.
                packet, rights, _, _ = self._sock.recvmsg(_GIVEN.size, _ROOM_FOR_ONE, _RECEIVE)
            except BlockingIOError:
                break
            if not packet:  # the worker is gone, and this process will be at once
                break
            serial, number = _GIVEN.unpack(packet)
            if rights:
                (fd,) = _DESCRIPTOR.unpack(rights[0][2])
                self._loans[fd] = serial, number
                came.append(fd)
            else:  # this process has as many descriptors as it may
                self._say(CLOSED_THERE, serial)
        return came

    def worker_fd(self, fd: int) -> int:
        return self._loans[fd][1]

    def give_back(self, fd: int) -> None:
        self._part(RETURNED, fd)

    def linger(self, fd: int) -> None:
        self._part(LINGERING, fd)

    def close(self, sock: Closable, fd: int, row: memoryview) -> None:
        # Before it is closed: then another thread may take the next one out of the mail, under the same number.
        serial, _ = self._loans.pop(fd)
        try:
            sock.close()
        finally:
            self._say(CLOSED_THERE, serial)  # the worker counts it

    def _part(self, fate: bytes, fd: int) -> None:
        serial, _ = self._loans.pop(fd)  # first, see close
        try:
            os.close(fd)
        finally:
            self._say(fate, serial)

    def _say(self, fate: bytes, serial: int) -> None:
        if os.getpid() == self._maker:  # a child that the app has forked has copies of all this, and owns nothing
            self._sock.send(_FATE.pack(fate, serial))


class Loans:
    """The worker's side of the mail: the connections that a child process has.

    Args:
        sock: the other end of the child's socket; non-blocking.
        wants_to_send: called with whether `send_waiting` should be called once the socket takes more.
        send_later: called when that is no matter of the socket: `send_waiting` should be called in a while.
        on_unsent: becomes the owner of a connection that was given and cannot be sent.

    Attributes:
        is_cut_off: whether the child has closed its end; it has ended, or can neither get nor return a connection any more.
        passed_over: how many packets were of no loan.
        over: how many loans are, by what the child said.
    """

    def __init__(
        self,
        sock: socket.socket,
        wants_to_send: Callable[[bool], None],
        send_later: Callable[[], None] = lambda: None,
        on_unsent: Callable[[int], None] = lambda fd: None,
    ) -> None:
        self._sock = sock
        self._wants_to_send = wants_to_send
        self._send_later = send_later
        self._on_unsent = on_unsent
        self.is_cut_off = False
        self.passed_over = self.over = 0
        self._lent: dict[int, int] = {}  # descriptors by the loans' serials
        self._next_serial = 1
        self._waiting: list[int] = []  # serials of those given for which there was no room in the socket yet

    def give(self, fd: int) -> None:
        """Lend a connection; the descriptor stays open, and nobody here may use it until it comes back.

        Raises:
            Exception: it was not sent, and is the caller's still.
        """
        serial = self._next_serial
        self._next_serial = serial + 1
        self._waiting.append(serial)
        try:
            self._lent[serial] = fd
            if len(self._waiting) == 1 and (problem := self._send_while_there_is_room()) is not None:
                raise problem
        except Exception:
            if serial not in self._waiting:
                return  # the child has it: what failed came after, and a second owner would be worse
            self._lent.pop(serial, None)
            self._waiting.remove(serial)
            raise

    def has_lent(self, fd: int) -> bool:
        """Whether the child has a connection."""
        return fd in self._lent.values()

    def send_waiting(self) -> None:
        """Send what there was no room for.

        Raises:
            Exception: some could not be sent, and have another owner; those behind them were.
        """
        unsent, last = [], None
        while (problem := self._send_while_there_is_room()) is not None:
            last = problem
            unsent.append(self._lent.pop(self._waiting.pop(0)))
        for fd in unsent:  # only now: who gets one may give it again
            self._on_unsent(fd)
        if last is not None:
            raise last

    def _send_while_there_is_room(self) -> Exception | None:
        """Send what waits; return why the first of it can never be sent, if that is so."""
        wants = False
        while self._waiting:
            try:
                self._send(self._waiting[0])
            except BlockingIOError:  # no room in the socket
                wants = True
                break
            except OSError as exc:
                if exc.errno in _DEAD:  # its end will be reported, and then all are taken back
                    self._waiting.clear()
                elif exc.errno in _SCARCE:  # and the socket has room, so that waiting for it would be no wait
                    self._send_later()
                    break
                else:
                    return exc
            except Exception as exc:
                return exc
            else:
                del self._waiting[0]
        self._wants_to_send(wants)
        return None

    def read_fates(self, most: int = FATES_BATCH) -> list[tuple[bytes, int]]:
        """Return what became of connections since the last call; they are the caller's again.

        What is said of a loan that is over, or that never was, is passed over: it may come from a child that the app has forked.

        Args:
            most: packets to read; a child may write faster than they are read here.
        """
        fates: list[tuple[bytes, int]] = []
        for _ in range(most):
            try:
                packet = self._sock.recv(_FATE.size)
            except OSError:  # nothing more for now
                break
            if not packet:
                self.is_cut_off = True
                break
            fate, serial = _FATE.unpack(packet) if len(packet) == _FATE.size else (b"", -1)
            if (fd := self._lent.pop(serial, None)) is not None:
                fates.append((fate, fd))
                self.over += 1
            else:
                self.passed_over += 1
        return fates

    def take_back_waiting(self) -> list[int]:
        """Return those that were not sent yet; they are the caller's again."""
        waiting, self._waiting = self._waiting, []
        self._wants_to_send(False)
        return [self._lent.pop(serial) for serial in waiting]

    def take_back_all(self) -> list[int]:
        """Return all that the child, which is dead, had; they are the caller's again."""
        self._waiting.clear()
        self._wants_to_send(False)
        lent, self._lent = self._lent, {}
        return list(lent.values())

    def _send(self, serial: int) -> None:
        fd = self._lent[serial]
        self._sock.sendmsg([_GIVEN.pack(serial, fd)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(fd))])
