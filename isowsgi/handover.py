"""Hand-over: the move of one connection's ownership between the acceptor and an instance.

A file descriptor and an epoll set belong to the process, not to an interpreter. So arming a connection's descriptor in another
owner's set hands it over: one system call, and no object, lock, queue or byte of the request crosses between interpreters.

A connection has one owner at any moment. Who gives forgets the descriptor first (it is disarmed in the giver's own set, and the
socket object is detached) and never touches it again until it comes back.
"""

from __future__ import annotations

import os
import select

# In an instance's set: one event, then disarmed until armed anew. Bytes peeked at stay in the kernel's buffer, so a level-triggered
# descriptor would fire for ever, and an event must reach one thread only.
ARM_ONCE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT

# In the acceptor's set: an event for each arrival, with the bytes so far still in the buffer.
ARM_EDGE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET

# Back to the acceptor: fires at once, for it learns of the connection only by an event, and has to close it in time even if the client
# never says another word.
ARM_RETURN = ARM_EDGE | select.EPOLLOUT


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
