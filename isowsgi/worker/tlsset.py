"""The relay's TLS connections, by the numbers of their descriptors: how they are armed in its epoll set, and how they leave it."""

from __future__ import annotations

import math
import select
import socket

from isowsgi.worker.tlssession import Phase, Session


class Sessions:
    """All of them. For the relay's thread.

    Attributes:
        all: in the order in which they came.
        openings: those in that phase, the oldest first.
        by_fd: by either descriptor.
    """

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.all: dict[Session, None] = {}
        self.openings: dict[Session, None] = {}
        self.by_fd: dict[int, Session] = {}
        self._ended: list[socket.socket] = []

    def add(self, session: Session) -> None:
        self.all[session] = self.openings[session] = None
        self.by_fd[session.outer.fileno()] = session

    def open(self, session: Session, inner: socket.socket) -> None:
        """Take note of our end of the pair."""
        session.inner = inner
        self.by_fd[inner.fileno()] = session
        del self.openings[session]
        session.phase, session.deadline = Phase.OPEN, math.inf

    def close_inner(self, session: Session) -> None:
        if session.inner is not None:
            self._disarm_app(session)
            del self.by_fd[session.inner.fileno()]
            self.close_later(session.inner)
            session.inner = None

    def remove(self, session: Session) -> None:
        """Forget a connection; its sockets are disarmed, for a child process between fork and exec may hold them longer than we do."""
        del self.all[session]
        self.disarm_client(session)
        del self.by_fd[session.outer.fileno()]
        self.close_inner(session)

    def close_later(self, sock: socket.socket) -> None:
        """Close a socket behind a batch of events, none of which may be of the next one with that number."""
        self._ended.append(sock)

    def close_ended(self) -> None:
        while self._ended:
            self._ended.pop().close()

    def arm(self, session: Session) -> None:
        if session not in self.all:
            return
        of_client = session.wanted_of_client()
        if of_client != session.client_armed:
            if session.client_armed is None:
                self.epoll.register(session.outer, of_client)
            else:
                self.epoll.modify(session.outer, of_client)
            session.client_armed = of_client
        of_app = session.wanted_of_app()
        if of_app != session.app_armed:
            assert session.inner is not None, "else it is neither armed nor wanted"
            if of_app is None:
                self.epoll.unregister(session.inner)
            elif session.app_armed is None:
                self.epoll.register(session.inner, of_app)
            else:
                self.epoll.modify(session.inner, of_app)
            session.app_armed = of_app

    def disarm_client(self, session: Session) -> None:
        if session.client_armed is not None:
            self.epoll.unregister(session.outer)
            session.client_armed = None

    def _disarm_app(self, session: Session) -> None:
        if session.app_armed is not None and session.inner is not None:
            self.epoll.unregister(session.inner)
            session.app_armed = None
