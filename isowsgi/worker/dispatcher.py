"""What happens to a connection's next request: it is peeked at, routed, handed over, answered, or left to wait for
its mount; `inside.admission` has the queue of a mount that is busy. On the acceptor's thread.

No byte of a request is consumed that is handed over, so a slow or half-sent head costs a descriptor and no thread.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Protocol

from gunicorn.http.errors import ParseException

from isowsgi.configuration import Mount
from isowsgi.shared import answers, redirects
from isowsgi.shared.handover import blocking
from isowsgi.shared.origins import Origin, Origins
from isowsgi.shared.peek import INCOMPLETE, Look, Peeker, Refused, peek
from isowsgi.shared.routing import Router
from isowsgi.shared.rows import ARRIVALS
from isowsgi.worker.clients import Client, Clients, Phase
from isowsgi.worker.loop import Loop
from isowsgi.worker.proxyheader import Header
from isowsgi.worker.replies import Replies
from isowsgi.worker.shares import Shares

# How often requests are looked at that wait because their mount has as many unanswered ones as it may.
_HELD_LOOK_S = 0.05


class NotServing(Enum):
    """Why a mount has no instance for a request just now."""

    BOOTING = "its app is being loaded"
    FAILED = "its app could not be loaded"
    FULL = "as many tenants are loaded as may be"


class Instance(Protocol):
    """What is needed of an instance."""

    def give(self, fd: int) -> None: ...
    def progress(self) -> int: ...
    def is_at_leisure(self) -> bool: ...
    def has_ended(self) -> bool: ...


class Dispatcher:
    """See the module's text.

    Args:
        loop: calls it when it wants to look again.
        clients: the acceptor's connections.
        replies: answers what is not handed over.
        shares: how many connections an instance may have.
        peeker: knows all mounts.
        choose: returns the instance that shall have a mount's next request, or why there is none.
        head_timeout_s: how long a head may take from its first byte.
        origins: of clients, for what a PROXY header says; None if there are no such headers.
        has_tls: whether the origins have what the relay says, too.
        proxy_header: reads a PROXY header, see `proxyheader.Reader`; None: there is none.
        arrivals: see `rows.Region.arrivals`.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        clients: Clients,
        replies: Replies,
        shares: Shares,
        peeker: Peeker,
        choose: Callable[[int], Instance | NotServing],
        head_timeout_s: float,
        origins: Origins | None,
        has_tls: bool,
        proxy_header: Callable[[bytes, Any], Header | None] | None,
        arrivals: memoryview,
    ) -> None:
        self._loop = loop
        self._containment = loop.containment
        self._clients = clients
        self._answer, self._refuse = replies.answer, replies.refuse
        self._shares = shares
        self._peeker = peeker
        self._choose = choose
        self.head_timeout_s = head_timeout_s
        self._origins = origins
        self._has_tls = has_tls
        self._proxy_header = proxy_header
        self._arrivals = arrivals
        self.special: Mapping[int, Mount] = {}  # see `Table.special`; the table sets these three
        # Returns the number of the tenant that a Host names, by the template's; why it has none just now; None if there is no such tenant.
        self.tenant: Callable[[int, str, float, bool], int | NotServing | None] = lambda template, host, waited_s, may_enter: None
        self.is_asleep: Callable[[int], bool] = lambda mount: False  # whether a request would have the mount's app loaded
        self._is_holding = False  # whether held connections will be looked at
        self._full: set[int] = set()  # mounts for which some are held
        self._is_turn = False  # whether the oldest one that is held for its mount is being looked at

    def set_table(self, router: Router, head_timeout_s: float, special: Mapping[int, Mount]) -> None:
        """Route by another table of mounts from now on, also what waits for a mount that is in it no more, or never has an instance.

        Args:
            special: see `Table.special`.
        """
        self._peeker, self.head_timeout_s, self.special = self._peeker.with_router(router), head_timeout_s, special
        without = {number for number, mount in special.items() if mount.redirect or mount.max_live}
        mounts = {route.mount for route in router.routes} - without
        for mount in {client.mount for client in self._clients.in_phase(Phase.PARKED)} - mounts:
            self.release(mount)

    def release(self, mount: int) -> None:
        """Look again at the connections that wait for a mount: it serves now, or never will."""
        for client in self._clients.in_phase(Phase.PARKED):
            if client.mount == mount:
                client.phase, client.is_held = Phase.PEEKING, False
                self._clients.guarded(client.sock.fileno(), self.look, client)

    def look(self, client: Client, hung_up: bool = False) -> None:
        """Peek at a head and do what can be done with it."""
        data = b""
        try:
            data = peek(client.sock)
            is_over = not data
            if client.is_new and data:
                if self._take_proxy_header(client, data):
                    self.look(client, hung_up)
                    return
                look = INCOMPLETE
            else:
                look = self._peeker.look(data, client.peer, not client.line_seen) if data else INCOMPLETE
        except BlockingIOError:
            look, is_over = INCOMPLETE, False
        except OSError:
            look, is_over = INCOMPLETE, True
        except ParseException as exc:
            self._refuse(client, exc)
            return
        except Refused as exc:
            self._answer(client, data, exc.status, str(exc))
            return
        if is_over:
            self._clients.close(client)
        elif look is INCOMPLETE and hung_up:
            self._clients.linger(client)  # which reads away the half that came: a close would be a reset, and may destroy an earlier answer
        elif look is INCOMPLETE:
            self._wait_for_more(client, data)
        elif look.mount is None:
            self._answer(client, data, answers.NOT_FOUND, "no app is mounted at this address")
        elif look.mount in self.special:
            mount = self.special[look.mount]
            if mount.redirect:
                self._redirect(client, data, look, mount)
            elif mount.max_live:
                self._dispatch_tenant(client, data, look, mount)
            else:
                self._dispatch_secure(client, data, look, mount)
        else:
            self._dispatch(client, data, look.mount)

    def _take_proxy_header(self, client: Client, data: bytes) -> bool:
        """Consume the PROXY header, if there is one; False if it is not complete.

        Raises:
            gunicorn.http.errors.ParseException: gunicorn would refuse it.
        """
        assert self._proxy_header is not None, "new connections are marked for its sake"
        assert self._origins is not None, "who gives a reader gives a table"
        header = self._proxy_header(data, client.peer)
        if header is None:
            return False
        client.is_new = client.line_seen = False
        client.sock.recv(header.length, socket.MSG_DONTWAIT)
        number = client.sock.fileno()
        origin = Origin(client.peer, client.sock.getsockname(), {}) if not self._has_tls else self._origins.read(number)
        self._origins.write(number, Origin(origin.peer, origin.own, origin.environ | header.environ))
        return True

    def _wait_for_more(self, client: Client, data: bytes) -> None:
        if data and not client.began:
            client.began = True
            client.arrived = time.monotonic()
            client.deadline = client.arrived + self.head_timeout_s
        client.line_seen = not client.is_new and b"\r\n" in data[2:]
        self._clients.arm(client)

    def _dispatch(self, client: Client, data: bytes, mount: int) -> None:
        instance = self._choose(mount)
        if instance is NotServing.BOOTING:
            self._park(client, mount)  # the deployment sets a limit to its boots
        elif instance is NotServing.FAILED:
            self._answer(client, data, answers.UNAVAILABLE, "the app at this address is not available", mount, answers.RETRY_LATER_S)
        else:
            assert not isinstance(instance, NotServing), "both kinds are dealt with"
            now = time.monotonic()
            if self._shares.may_have(instance, now):
                self._give(client, data, mount, instance, client.arrived or now)
            elif self._shares.is_stalled(instance, now):
                self._answer(client, data, answers.UNAVAILABLE, "the app at this address does not answer", mount, answers.RETRY_LATER_S)
            else:
                self._hold(client, mount)

    def _dispatch_secure(self, client: Client, data: bytes, look: Look, mount: Mount) -> None:
        """Dispatch a request to a mount that is for https only; none that came without TLS has its app loaded."""
        try:
            if self.is_asleep(mount.number) and self._sent_to_https(client, data, look, mount):
                return
        except ParseException as exc:
            self._refuse(client, exc)
            return
        self._dispatch(client, data, mount.number)

    def _sent_to_https(self, client: Client, data: bytes, look: Look, mount: Mount) -> bool:
        """Whether a request came without TLS and is answered; where an app is loaded `inside.httpsonly` does that.

        Raises:
            gunicorn.http.errors.ParseException: as `look`.
        """
        request = self._peeker.parse(data[: look.length], client.peer)
        if request.scheme == "https":
            return False
        status, text, place = redirects.to_https(request.method, dict(request.headers).get("HOST", ""), request.uri)
        self._answer(client, data, status, text, mount.number, location=place)
        return True

    def _dispatch_tenant(self, client: Client, data: bytes, look: Look, template: Mount) -> None:
        """Dispatch a request to the tenant that its host names."""
        waited_s = time.monotonic() - client.arrived if client.arrived else 0.0
        may_enter = self._is_turn or template.number not in self._full
        try:
            host = self._peeker.host(data[: look.length], look.line, client.peer)
            tenant = self.tenant(template.number, host, waited_s, may_enter and not template.https_only)
            if template.https_only and (tenant is NotServing.FULL or (isinstance(tenant, int) and self.is_asleep(tenant))):
                if self._sent_to_https(client, data, look, template):
                    return
                tenant = self.tenant(template.number, host, waited_s, may_enter)
        except ParseException as exc:
            self._refuse(client, exc)
            return
        if tenant is None:
            self._answer(client, data, answers.NOT_FOUND, "no app is mounted at this address", template.number)
        elif tenant is NotServing.BOOTING:
            self._park(client, template.number)  # until what must end first has ended
        elif tenant is NotServing.FULL and self._may_wait(template, waited_s):
            self._hold(client, template.number)
        elif isinstance(tenant, NotServing):
            self._answer(
                client, data, answers.UNAVAILABLE, "the app at this address is not available", template.number, answers.RETRY_SOON_S
            )
        else:
            self._dispatch(client, data, tenant)

    def _may_wait(self, template: Mount, waited_s: float) -> bool:
        """Whether a request may wait for a place among a template's tenants."""
        if template.queue_timeout and waited_s > template.queue_timeout:
            return False
        waiting = sum(client.is_held and client.mount == template.number for client in self._clients.in_phase(Phase.PARKED))
        return waiting < template.queue

    def _redirect(self, client: Client, data: bytes, look: Look, mount: Mount) -> None:
        try:
            location = redirects.location(mount.redirect, len(mount.prefix), *self._peeker.address(data[: look.length], client.peer))
        except ParseException as exc:
            self._refuse(client, exc)
            return
        status = answers.MOVED[mount.status]
        self._answer(client, data, status, f"This address has moved to {location}", mount.number, location=location)

    def _park(self, client: Client, mount: int) -> None:
        client.phase, client.mount, client.deadline = Phase.PARKED, mount, math.inf
        client.arrived = client.arrived or time.monotonic()
        self._clients.arm(client)

    def _hold(self, client: Client, mount: int) -> None:
        """Let a request wait for its turn."""
        client.is_held = True
        self._full.add(mount)
        self._park(client, mount)
        self._look_at_held_soon()

    def _look_at_held_soon(self) -> None:
        if not self._is_holding:
            self._is_holding = True
            self._loop.later(_HELD_LOOK_S, self._look_at_held, "acceptor")

    def _look_at_held(self) -> None:
        """Hand over what waited for a mount that has got on since, the oldest first, or answer it if the mount does nothing."""
        self._is_holding = False
        held = sorted((client for client in self._clients.in_phase(Phase.PARKED) if client.is_held), key=lambda client: client.arrived)
        full: set[int] = set()
        self._is_turn = True
        for client in held:
            if client.is_held and client.mount not in full:  # else a look at another one has released it
                client.phase, client.is_held = Phase.PEEKING, False
                self._clients.guarded(client.sock.fileno(), self.look, client)
                if client.is_held:
                    full.add(client.mount)
        self._is_turn, self._full = False, full
        if full:
            self._look_at_held_soon()

    def _give(self, client: Client, data: bytes, mount: int, instance: Instance, arrived: float) -> None:
        fd = self._clients.part_with(client)
        if fd < ARRIVALS:
            self._arrivals[fd] = int(arrived * 1e9)
        try:
            instance.give(fd)
        except Exception:  # the hand-over failed: no memory for one more, or the instance is broken
            self._containment.failed("hand-over")
            if self._clients.count_if_closed(fd):
                return
            client = self._clients.add(blocking(socket.socket(fileno=fd)), client.peer)
            self._answer(client, data, answers.UNAVAILABLE, "the app at this address is not available", mount, answers.RETRY_LATER_S)
