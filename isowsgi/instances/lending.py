"""The connections that a child process has: lent by mail, and the worker's again once it has parted from them, or has ended.

On the acceptor's thread.
"""

from __future__ import annotations

import abc
import functools
import socket
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from isowsgi.instances.base import BROKEN_OFF, HostedInstance
from isowsgi.instances.ownrows import OwnRows
from isowsgi.shared.containment import Containment
from isowsgi.shared.handover import FATES_BATCH, LINGERING, RETURNED, Loans, blocking, dup_of, key_of, number_of
from isowsgi.shared.judgement import has_status
from isowsgi.shared.messages import BootOrder
from isowsgi.shared.rows import BUSY, RESPONSES, Row
from isowsgi.shared.scoreboard import Scoreboard
from isowsgi.shared.wire import MessageError

# Packets read from a dead child: more than its mail can hold (net.core.wmem_default is 208 KiB, and each takes 768 bytes of it).
_MAIL_HOLDS = 4096

# How long a child that has closed its end of the mail may take to exit.
_CUT_OFF_S = 2.0

# How long to wait when the system is short of what sending a descriptor takes.
_SCARCE_S = 0.1


class Owner(Protocol):
    """Who owns connections that no instance has: the acceptor."""

    def take_back(self, fd: int) -> None:
        """Own a connection whose next request must be routed."""

    def take_lingering(self, fd: int) -> None:
        """Own one that was answered and shut down for writing."""

    def take_closed(self, fd: int) -> None:
        """Close one."""

    def watch(self, fd: int, callback: Callable[[], None]) -> None: ...
    def watch_room(self, fd: int, callback: Callable[[], object] | None) -> None: ...
    def unwatch(self, fd: int) -> None: ...
    def later(self, delay_s: float, callback: Callable[[], object]) -> None: ...


class LendingInstance(HostedInstance, abc.ABC):
    """An instance that gets its connections by mail.

    Args:
        owner: of the connections that come back.
        containment: where mistakes end that are one connection's.
        own_rows: what it writes in the place of the scoreboard; this object's from now on. None: it writes there.
    """

    def __init__(self, order: BootOrder, board: Scoreboard, owner: Owner, containment: Containment, own_rows: OwnRows | None) -> None:
        super().__init__(order, board, own_rows.region if own_rows is not None else None)
        self.own_rows = own_rows
        if own_rows is not None:
            self._owned.callback(own_rows.close)
        self._owner = owner
        self._open_mail()
        self._loans = Loans(self._mail, self._want_to_send, self._send_later, owner.take_back)
        # A connection that cannot be sent is no reason to let the mail rest, as the loop does with what has failed.
        self._on_room = functools.partial(containment.call, f"{self.tag}: mail", self._loans.send_waiting)
        self._killed_by = ""  # by whom, or for what, as the rest of a sentence
        self._unserved: list[int] = []  # connections of the dead child whose requests it had not begun

    @abc.abstractmethod
    def _end_cut_off(self) -> None:
        """End a child that has closed its end of the mail, unless it has ended by then."""

    def _open_mail(self) -> None:
        try:
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._mail, self._inner_mail = (self._owned.enter_context(blocking(end)) for end in pair)
            self._mail.setblocking(False)
            self._owner.watch(self._mail.fileno(), self._on_mail)
            self._owned.callback(self._owner.unwatch, self._mail.fileno())
        except OSError:
            self.discard()
            raise

    def give(self, fd: int) -> None:
        if self.own_rows is not None:
            self.own_rows.lend(fd)
        self._loans.give(fd)

    def progress(self) -> int:
        return super().progress() if self.own_rows is None else self._loans.over  # it writes its rows itself

    def is_at_leisure(self) -> bool:
        return self.own_rows is None and super().is_at_leisure()

    def drain(self) -> None:
        super().drain()
        for fd in self._loans.take_back_waiting():
            self._owner.take_back(fd)

    def _settle(self) -> None:
        """Take every connection of the dead child back; only those whose requests it was serving are lost."""
        self._read_mail(_MAIL_HOLDS)
        begun = {row.words[BUSY]: row for row in self._thread_rows if row.words[BUSY]}
        for fd in self._loans.take_back_all():
            try:
                take = self._settle_one(fd, begun)
            except Exception:  # an app in the main interpreter has closed it, or no memory is left
                take = self._owner.take_closed
            take(fd)

    def _settle_one(self, fd: int, begun: Mapping[int, Row]) -> Callable[[int], None]:
        """Answer a connection's request if the child had begun it; return who takes the connection. Takes no descriptor."""
        sock = blocking(socket.socket(fileno=fd))
        try:
            row = begun.get(key_of(sock, fd))
            if row is None:
                return self._unserved.append
            if has_status(row.words):
                return self._owner.take_closed
            self._board.mount_row(self._mount_of(row)).words[RESPONSES + 5] += 1
            try:
                sock.send(BROKEN_OFF, socket.MSG_DONTWAIT)
            except OSError:
                pass  # the client is gone
            return self._owner.take_lingering
        finally:
            sock.detach()

    def _connection_of(self, key: int) -> socket.socket | None:
        # The child writes its rows itself, and may name any connection there.
        return dup_of(key) if self._loans.has_lent(number_of(key)) else None

    def _on_mail(self) -> None:
        before = self._loans.passed_over
        self._read_mail()
        if self._allowance is not None and (count := self._loans.passed_over - before):
            try:
                self._allowance.take(0, time.monotonic(), count)
            except MessageError:
                self._killed_by = "for flooding the worker with messages"
                self._allowance = None  # that is told once, and its reports are no flood beside
                self._owner.unwatch(self._mail.fileno())
                self._end_cut_off()
        if self._loans.is_cut_off:  # else its event would come again and again
            self._owner.unwatch(self._mail.fileno())
            # It is about to exit and its keeper tells how; or it lives on, and nothing would come of what it is given.
            self._owner.later(_CUT_OFF_S, self._end_cut_off)

    def _read_mail(self, most: int = FATES_BATCH) -> None:
        for fate, fd in self._loans.read_fates(most):
            if fate == RETURNED:
                self._owner.take_back(fd)
            elif fate == LINGERING:
                self._owner.take_lingering(fd)
            else:
                self._owner.take_closed(fd)

    def _want_to_send(self, wants: bool) -> None:
        self._owner.watch_room(self._mail.fileno(), self._on_room if wants else None)

    def _send_later(self) -> None:
        self._owner.later(_SCARCE_S, self._on_room)
