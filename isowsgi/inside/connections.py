"""The connections that an instance owns: taken over, given back, closed.

Only the holder of the runner's baton calls anything here, see `runner`.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from isowsgi.inside.takeover import release
from isowsgi.inside.wsgi import Connection, Gateway
from isowsgi.shared.clientsocket import ClientSocket
from isowsgi.shared.containment import Containment
from isowsgi.shared.handover import Closable, Exchange, key_of
from isowsgi.shared.messages import BootOrder, Limits
from isowsgi.shared.origins import Origins
from isowsgi.shared.rows import ARRIVALS
from isowsgi.shared.sockettimeouts import INHERITING, STANDARD, limits_of, set_limits

# The event of bytes that have come, and nothing else.
MORE = select.EPOLLIN

# How often at most idle connections are looked through for those past their keep-alive time, and how long nobody looks at most.
SWEEP_S = 1.0


class _Number:
    """A connection for which no socket can be made."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)


class Holdings:
    """What the instance has.

    Args:
        epoll: where all of it is armed.
        exchange: by which connections come and go.
        gateway: of the app that a connection's first request is taken to be for.
        closed_row: returns the words of the row where the calling thread counts what it closes.
        arrivals: see `rows.Region.arrivals`.
    """

    def __init__(
        self,
        order: BootOrder,
        epoll: select.epoll,
        exchange: Exchange,
        gateway: Gateway,
        containment: Containment,
        closed_row: Callable[[], memoryview],
        arrivals: memoryview,
    ) -> None:
        serving, fds = order.serving, order.fds
        assert fds is not None, "the maker of the instance gives it descriptors"
        self._keepalive_s = serving.keepalive_s
        self._listeners = [tuple(address) for address in serving.listeners]
        self._only_listener = self._listeners[0] if len(self._listeners) == 1 else None
        self._family = serving.family if fds.origins < 0 else 0  # behind the relay for TLS a connection has another one; 0: ask the kernel
        self.set_limits(serving.limits)
        self._origins = Origins(fds.origins) if fds.origins >= 0 else None
        self._epoll = epoll
        self._exchange = exchange
        self._gateway = gateway
        self._containment = containment
        self._closed_row = closed_row
        self._arrivals = arrivals
        self.connections: dict[int, Connection] = {}  # by their descriptors
        self.next_sweep_ns = 0  # monotonic nanoseconds when `close_expired` is due

    def set_limits(self, limits: Limits) -> None:
        """Have other limits count for single calls on the connections that come from now on."""
        self._time_limits = limits_of(limits.body_timeout_s, limits.send_timeout_s)
        self._must_limit = self._time_limits != STANDARD or self._family not in INHERITING

    def take_over(self, fd: int, flags: int) -> bool:
        """Become the owner of a connection that was handed over; False if it was reset before we looked."""
        try:
            sock = ClientSocket(self._family or socket.AF_INET, fd)
        except Exception:  # an audit hook of the app's refuses sockets
            self._containment.failed("incoming connection")
            self._part(_Number(fd), fd)
            return False
        facts: dict[str, str] = {}
        must_limit, limits = self._must_limit, self._time_limits  # the control thread may change them at any moment
        try:
            if must_limit:
                set_limits(sock, limits)
            if not self._family:
                family = sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
                if family != socket.AF_INET:
                    sock = ClientSocket(family, sock.detach())
            if self._origins is not None:
                peer, own_name, facts = self._origins.read(self._exchange.worker_fd(fd))
                server = self._listener_of(own_name)
            else:
                peer = sock.getpeername()
                is_only = self._only_listener is not None and isinstance(peer, tuple)
                server = self._only_listener if is_only else self._listener_of(sock.getsockname())
            number = self._exchange.worker_fd(fd)
            connection = Connection(sock, fd, key_of(sock, number), peer, server, self._gateway, facts)
            connection.has_own_limits = must_limit
            connection.has_pending_event = flags != MORE
            arrived_ns, now_ns = self._arrivals[number] if number < ARRIVALS else 0, time.monotonic_ns()
            connection.arrived_ns = arrived_ns if 0 < arrived_ns < now_ns else now_ns
            self.connections[fd] = connection
        except (OSError, ValueError):  # it was reset, or what is known of it cannot be read
            self._part(sock, fd)
            return False
        except Exception:
            self._containment.failed("incoming connection")
            self._part(sock, fd)
            return False
        return True

    def _listener_of(self, own_name: Any) -> Any:
        """Return the address of the listener that a connection came by, as gunicorn's workers have it for SERVER_NAME."""
        if not isinstance(own_name, tuple):
            return os.fsdecode(own_name)  # bytes in the abstract namespace
        for listener in self._listeners:
            if listener[1] == own_name[1] and listener[0] in (own_name[0], "0.0.0.0", "::"):
                return listener
        return own_name

    def give_back(self, connection: Connection) -> None:
        """Return a connection to the acceptor, which routes its next request."""
        if connection.has_own_limits:
            try:
                set_limits(connection.sock, STANDARD)
            except OSError:  # the client is gone
                self.close(connection)
                return
        self._forget(connection)
        self._exchange.give_back(connection.fd)

    def linger(self, connection: Connection) -> None:
        """Say that nothing more is sent, and let the acceptor read away what the client still sends (RFC 9112 section 9.6)."""
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client is gone
            self.close(connection)
            return
        self._forget(connection)
        self._exchange.linger(connection.fd)

    def _forget(self, connection: Connection) -> None:
        self._epoll.unregister(connection.fd)
        del self.connections[connection.fd]
        release(connection.app_socket)
        connection.sock.detach()

    def close(self, connection: Connection) -> None:
        self.connections.pop(connection.fd, None)
        release(connection.app_socket)
        self._part(connection.sock, connection.fd)

    def _part(self, sock: Closable, fd: int) -> None:
        # Closing the descriptor need not disarm it: the worker has what it lent, and a child process between fork and exec what it
        # inherited. An event of it would be taken for one of the next connection that gets the number.
        try:
            self._epoll.unregister(fd)
        except OSError:  # it is no longer armed
            pass
        self._exchange.close(sock, fd, self._closed_row())

    def close_expired(self) -> None:
        now = time.monotonic()
        for connection in list(self.connections.values()):
            if connection.idle_since and now - connection.idle_since > self._keepalive_s:
                self.close(connection)
        self.next_sweep_ns = int((now + SWEEP_S) * 1e9)

    def give_back_idle(self) -> None:
        for connection in list(self.connections.values()):
            if connection.idle_since:
                self.give_back(connection)
