"""Hand-over: the move of one connection's ownership between the acceptor and an instance.

Within the worker process a file descriptor and an epoll set belong to the process, not to an interpreter. So arming a connection's
descriptor in another owner's set hands it over: one system call, and no object, lock, queue or byte of the request crosses.

An instance in a child process gets the descriptor by mail (SCM_RIGHTS, unix(7)). The worker keeps its own descriptor meanwhile, unarmed and
untouched: it is lent. So a child says by number what becomes of a connection, without sending a descriptor back, and when a child dies the
worker still has every connection of it: those in flight are answered 502, all others go on elsewhere.

A connection has one owner at any moment. Who gives forgets the descriptor first (it is disarmed in the giver's own set, and the
socket object is detached) and never touches it again until it comes back.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from isowsgi.shared.scoreboard import AT_CAPACITY, CLOSED

# In an owner's set: an event for each arrival, with the bytes so far still in the buffer. Bytes peeked at stay there, so a level-triggered
# descriptor would fire for ever. One that is disarmed by its event and armed anew after each request costs a system call more.
ARM_EDGE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET

# Back to the acceptor: fires at once, for it learns of the connection only by an event, and has to close it in time even if the client
# never says another word.
ARM_RETURN = ARM_EDGE | select.EPOLLOUT

# A packet of mail to the child: the worker's number of the descriptor that comes with it. And back: what became of the connection, and
# that number.
_GIVEN = struct.Struct("=i")
_FATE = struct.Struct("=ci")
RETURNED = b"r"  # its next request is another instance's
LINGERING = b"l"  # it was answered and shut down for writing; what the client still sends is to be read away
CLOSED_THERE = b"c"  # nothing is left to do but to close it

_DESCRIPTOR = struct.Struct("=i")
_ROOM_FOR_ONE = socket.CMSG_LEN(_DESCRIPTOR.size)

# Descriptors that come by mail are not for the app's child processes.
_RECEIVE = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)

# What sending to a process that has ended fails with.
_DEAD = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN})

# Connections taken out of the mail in a row, before their requests are looked at.
_MAIL_BATCH = 64


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
        return cls(select.epoll.fromfd(os.dup(epoll_fd)), arm)

    def give(self, fd: int) -> None:
        """Hand a connection over; it is the port's owner's from here on.

        Args:
            fd: a connected stream socket that is armed in no other set.
        """
        self._epoll.register(fd, self._arm)


class Exchange(Protocol):
    """An instance's side of the hand-over. Who calls has disarmed the descriptor and forgotten its socket."""

    mail_fd: int  # readable when `receive` has something; -1 if connections come without mail

    def receive(self) -> list[int]:
        """Return connections that have come; they are armed nowhere yet."""

    def worker_fd(self, fd: int) -> int:
        """Return the number that the worker knows a connection by."""

    def give_back(self, fd: int) -> None:
        """Return a connection whose next request is for the acceptor to route."""

    def linger(self, fd: int) -> None:
        """Have the acceptor read away what the client still sends."""

    def close(self, sock: socket.socket, fd: int, row: memoryview) -> None:
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

    def close(self, sock: socket.socket, fd: int, row: memoryview) -> None:
        sock.close()
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
        self._worker_fds: dict[int, int] = {}
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
            (number,) = _GIVEN.unpack(packet)
            if rights:
                (fd,) = _DESCRIPTOR.unpack(rights[0][2])
                self._worker_fds[fd] = number
                came.append(fd)
            else:  # this process has as many descriptors as it may
                self._say(CLOSED_THERE, number)
        return came

    def worker_fd(self, fd: int) -> int:
        return self._worker_fds[fd]

    def give_back(self, fd: int) -> None:
        self._part(RETURNED, fd)

    def linger(self, fd: int) -> None:
        self._part(LINGERING, fd)

    def close(self, sock: socket.socket, fd: int, row: memoryview) -> None:
        # Before it is closed: then another thread may take the next one out of the mail, under the same number.
        number = self._worker_fds.pop(fd)
        sock.close()
        self._say(CLOSED_THERE, number)  # the worker counts it

    def _part(self, fate: bytes, fd: int) -> None:
        number = self._worker_fds.pop(fd)  # first, see close
        os.close(fd)
        self._say(fate, number)

    def _say(self, fate: bytes, number: int) -> None:
        self._sock.send(_FATE.pack(fate, number))


class Loans:
    """The worker's side of the mail: the connections that a child process has.

    Args:
        sock: the other end of the child's socket; non-blocking.
        wants_to_send: called with whether `send_waiting` should be called once the socket takes more.
    """

    def __init__(self, sock: socket.socket, wants_to_send: Callable[[bool], None]) -> None:
        self._sock = sock
        self._wants_to_send = wants_to_send
        self._lent: set[int] = set()
        self._waiting: list[int] = []  # given, but there was no room in the socket yet

    def give(self, fd: int) -> None:
        """Lend a connection; the descriptor stays open, and nobody here may use it until it comes back."""
        self._lent.add(fd)
        if self._waiting or not self._send(fd):
            self._waiting.append(fd)
            self._wants_to_send(True)

    def send_waiting(self) -> None:
        """Send what there was no room for."""
        while self._waiting and self._send(self._waiting[0]):
            del self._waiting[0]
        self._wants_to_send(bool(self._waiting))

    def read_fates(self) -> list[tuple[bytes, int]]:
        """Return what became of connections since the last call; they are the caller's again."""
        fates: list[tuple[bytes, int]] = []
        while True:
            try:
                packet = self._sock.recv(_FATE.size)
            except OSError:  # nothing more for now, or for ever
                return fates
            if not packet:
                return fates
            fate, fd = _FATE.unpack(packet)
            self._lent.discard(fd)
            fates.append((fate, fd))

    def take_back_waiting(self) -> list[int]:
        """Return those that were not sent yet; they are the caller's again."""
        waiting, self._waiting = self._waiting, []
        self._lent.difference_update(waiting)
        self._wants_to_send(False)
        return waiting

    def take_back_all(self) -> list[int]:
        """Return all that the child, which is dead, had; they are the caller's again."""
        self._waiting.clear()
        self._wants_to_send(False)
        lent, self._lent = self._lent, set()
        return sorted(lent)

    def _send(self, fd: int) -> bool:
        """Send a connection; False if it must be tried again."""
        try:
            self._sock.sendmsg([_GIVEN.pack(fd)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(fd))])
        except OSError as exc:
            # If the child is dead, its end will be told, and then it is taken back. Else there was no room: in the socket, in memory, or
            # in the number of descriptors that one user may have on their way (unix(7)).
            return exc.errno in _DEAD
        return True
