"""A configuration of HAProxy: a backend for each mount, with a health check of its own, so that a server that cannot serve one mount still
gets the requests of the others.

Written for HAProxy 2.4 and later; what each keyword does is in its configuration manual, sections 4.2 (option httpchk, retry-on) and 7.1
(matching).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from isowsgi.configuration import Config
from isowsgi.exporting.backends import Address, backends, check_of, ready_target
from isowsgi.exporting.backends import addresses as addresses_of
from isowsgi.shared.routing import WILDCARD

# Checks of a server that must fail, or succeed, in a row.
_FALL, _RISE = 2, 2


class Server(NamedTuple):
    name: str
    address: str  # with its port


def configuration(config: Config, servers: Sequence[Server], interval_s: float, bind: str) -> str:
    """Return a frontend and its backends.

    Args:
        interval_s: between two checks of a mount on a server.
        bind: where the frontend listens, as HAProxy writes it.

    Raises:
        CannotExport: see `check_of`.
    """
    return "\n".join(_lines(config, servers, interval_s, bind)) + "\n"


def _lines(config: Config, servers: Sequence[Server], interval_s: float, bind: str) -> Iterator[str]:
    check, found = check_of(config), backends(config.mounts)
    yield f"# {len(found)} mounts on {len(servers)} servers. Made by `isowsgi export haproxy`: make it again when the mounts change."
    yield "# It needs `defaults` before it, with the time limits; and a server's [status] must allow this machine's address."
    yield ""
    yield "frontend isowsgi"
    yield "    mode http"
    yield f"    bind {bind}"
    yield "    option forwardfor"
    yield "    http-request set-header X-Forwarded-Proto https if { ssl_fc }"
    yield "    http-request set-header X-Forwarded-Proto http unless { ssl_fc }"
    yield "    # As isowsgi routes: by the name alone, in lower case, and by the path, percent-decoded once."
    yield "    http-request set-var(txn.host) req.hdr(host),lower,regsub(:[0-9]*$,),regsub([.]$,)"
    yield "    http-request set-var(txn.path) path,url_dec"
    yield "    # The status page would answer anybody: its [status] allows this machine, for the checks."
    for address in addresses_of([backend for backend in found if backend.is_status]):
        yield from (f"    http-request return status 404{condition}" for condition in _conditions(address))
    found = [backend for backend in found if not backend.is_status]
    for address in addresses_of(found):
        yield from (f"    use_backend {address.backend}{condition}" for condition in _conditions(address))
    yield "    default_backend isowsgi-nowhere"
    yield ""
    yield "backend isowsgi-nowhere"
    yield "    mode http"
    yield '    http-request return status 404 content-type text/plain string "Not Found"'
    for backend in found:
        yield ""
        yield f"backend {backend.name}  # {backend.pattern}"
        yield "    mode http"
        yield "    balance leastconn"
        yield "    option httpchk"
        uri, host = quoted(ready_target(check, backend.pattern)), quoted(check.host)
        yield f"    http-check send meth GET uri {uri} ver HTTP/1.1 hdr Host {host} hdr Connection close"
        yield "    http-check expect status 200"
        yield "    # What reached no app is sent to another server; what an app may have begun is sent again only if that does no harm."
        yield "    option redispatch 1"
        yield "    retries 3"
        yield "    retry-on conn-failure empty-response"
        yield "    http-request disable-l7-retry unless { method GET HEAD OPTIONS }"
        yield f"    default-server check inter {round(interval_s * 1000)}ms fall {_FALL} rise {_RISE}"
        yield from (f"    server {server.name} {server.address}" for server in servers)


def _conditions(address: Address) -> Iterator[str]:
    """Yield the conditions of `use_backend`, one of which holds for what is below an address."""
    if not address.host:
        host = ""
    elif address.host.startswith(WILDCARD):
        domain = re.escape(address.host.removeprefix(WILDCARD))
        host = " { var(txn.host) -m reg " + quoted(rf"^[a-z0-9_-]{{1,63}}\.{domain}$") + " }"
    else:
        host = f" {{ var(txn.host) -m str {quoted(address.host)} }}"
    if address.prefix:
        yield f" if{host} {{ var(txn.path) -m str {quoted(address.prefix)} }}"
        yield f" if{host} {{ var(txn.path) -m beg {quoted(address.prefix + '/')} }}"
    else:
        yield f" if{host}" if host else ""


def quoted(text: str) -> str:
    """Return a word in HAProxy's strong quotes, in which nothing but the quote itself means anything (section 2.2)."""
    return "'" + text.replace("'", "'\\''") + "'"
