"""A configuration of HAProxy: a backend for each mount, with a health check of its own, so that a server that cannot serve one mount still
gets the requests of the others.

Written for HAProxy 2.4 and later; what each keyword does is in its configuration manual, sections 4.2 (option httpchk, retry-on) and 7.1
(matching).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from isowsgi.exporting.backends import NOWHERE, Address, Balanced, addresses, ready_target
from isowsgi.shared.routing import WILDCARD

# Checks of a server that must fail, or succeed, in a row.
_FALL, _RISE = 2, 2

# What `shared.routing.bare_host` makes of a Host field: all behind the first colon is the port, but for addresses in brackets.
_HOST = r"""'req.fhdr(host),lower,regsub("^([^[:]*):.*$","\1"),regsub("^([[].*]).*$","\1"),regsub("[.]$","")'"""


def configuration(site: Balanced, sends_proxy: bool = False) -> str:
    """Return a frontend and its backends.

    Args:
        sends_proxy: whether each connection to a server begins with a header of the PROXY protocol, version 2.
    """
    return "\n".join([*_frontend(site), *_backends(site, sends_proxy)]) + "\n"


def _frontend(site: Balanced) -> Iterator[str]:
    yield f"# {site.title('haproxy')}"
    yield "# It needs `defaults` before it, with the time limits; and a server's [status] must allow this machine's address."
    yield ""
    yield "frontend isowsgi"
    yield "    mode http"
    yield f"    bind {site.bind}"
    yield "    option forwardfor"
    yield "    http-request set-header X-Forwarded-Proto https if { ssl_fc }"
    yield "    http-request set-header X-Forwarded-Proto http unless { ssl_fc }"
    yield "    # As isowsgi routes: by the name alone, in lower case, and by the path, percent-decoded once."
    yield f"    http-request set-var(txn.host) {_HOST}"
    yield "    http-request set-var(txn.path) path,url_dec"
    yield "    # The first that fits. The status page is nowhere for clients: it would answer anybody, as its [status] allows this machine,"
    yield "    # for the checks."
    closed = site.closed
    for address in addresses(site.backends):
        backend = NOWHERE if address.backend in closed else address.backend
        yield from (f"    use_backend {backend}{condition}" for condition in _conditions(address))
    yield f"    default_backend {NOWHERE}"
    yield ""
    yield f"backend {NOWHERE}"
    yield "    mode http"
    yield '    http-request return status 404 content-type text/plain string "Not Found"'


def _backends(site: Balanced, sends_proxy: bool) -> Iterator[str]:
    protocol = " send-proxy-v2 check-send-proxy" if sends_proxy else ""
    for backend in site.served:
        yield ""
        yield f"backend {backend.name}  # {backend.pattern}"
        yield "    mode http"
        yield "    balance leastconn"
        yield "    option httpchk"
        uri, host = quoted(ready_target(site.check, backend.pattern)), quoted(site.check.host)
        yield f"    http-check send meth GET uri {uri} ver HTTP/1.1 hdr Host {host} hdr Connection close"
        yield "    http-check expect status 200"
        yield "    # What reached no app is sent to another server; what an app may have begun is sent again only if that does no harm."
        yield "    option redispatch 1"
        yield "    retries 3"
        yield "    retry-on conn-failure empty-response"
        yield "    http-request disable-l7-retry unless { method GET HEAD OPTIONS }"
        yield f"    default-server check inter {round(site.interval_s * 1000)}ms fall {_FALL} rise {_RISE}{protocol}"
        yield from (f"    server {server.name} {server.address}" for server in site.servers_of(backend))


def _conditions(address: Address) -> Iterator[str]:
    """Yield the conditions of `use_backend`, one of which holds for what is below an address."""
    if not address.host:
        host = ""
    elif address.host.startswith(WILDCARD):
        domain = re.escape(address.host.removeprefix(WILDCARD))
        host = " { var(txn.host) -m reg -- " + quoted(rf"^[a-z0-9_-]{{1,63}}\.{domain}$") + " }"
    else:
        host = f" {{ var(txn.host) -m str -- {quoted(address.host)} }}"
    if address.prefix:
        yield f" if{host} {{ var(txn.path) -m str -- {quoted(address.prefix)} }}"
        yield f" if{host} {{ var(txn.path) -m beg -- {quoted(address.prefix + '/')} }}"
    else:
        yield f" if{host}" if host else ""


def quoted(text: str) -> str:
    """Return a word in HAProxy's strong quotes, in which nothing but the quote itself means anything (section 2.2)."""
    return "'" + text.replace("'", "'\\''") + "'"
