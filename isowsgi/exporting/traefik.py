"""A file for Traefik's file provider: a router for each address, and for each mount a service with a health check.

Written for Traefik 3 (doc.traefik.io, "Routers", "Services", "IPAllowList"). `PathPrefix` does not keep to whole segments, and newer
releases look at a path whose reserved characters are still percent-encoded, older ones at one that is decoded: the expressions take both.
"""

from __future__ import annotations

from typing import Any

import tomlkit

from isowsgi.exporting import regexes
from isowsgi.exporting.backends import Backend, Balanced, Place, places, ready_target

# The longest that a check may take, as a part of the interval: Traefik wants it to be less.
_TIMEOUT_PART = 0.9

# Tries of a request that could not be sent to a server. Traefik sends none twice that it has begun to send.
_ATTEMPTS = 3

# No request comes from it (RFC 919): who is allowed by this address alone is nobody.
_NOBODY = "255.255.255.255/32"

# Below `keepalive` in deploy/hosts/gunicorn.conf.py, so that Traefik closes idle connections.
_IDLE = "60s"


def configuration(site: Balanced) -> str:
    document = tomlkit.document()
    document.add(tomlkit.comment(site.title("traefik")))
    document.add(tomlkit.comment("A server's [status] must allow this machine's address. Traefik sets the X-Forwarded fields by itself."))
    document.add("http", tomlkit.item(tables(site)["http"]))
    return str(tomlkit.dumps(document))


def tables(site: Balanced) -> dict[str, Any]:
    """Return what the file has."""
    by_name = {backend.name: backend for backend in site.backends}
    found = list(places(site.backends))
    routers = {
        f"{place.backend}-{number}": _router(site, place, by_name[place.backend], len(found) + 1 - number)
        for number, place in enumerate(found, 1)
    }
    middlewares = {
        "isowsgi-again": {"retry": {"attempts": _ATTEMPTS}},
        "isowsgi-closed": {"ipAllowList": {"sourceRange": [_NOBODY]}},
    }
    transports = {"isowsgi": {"forwardingTimeouts": {"dialTimeout": "3s", "idleConnTimeout": _IDLE}}}
    services = {backend.name: {"loadBalancer": _balancer(site, backend)} for backend in site.backends}
    return {"http": {"routers": routers, "services": services, "middlewares": middlewares, "serversTransports": transports}}


def _router(site: Balanced, place: Place, backend: Backend, priority: int) -> dict[str, Any]:
    middleware = "isowsgi-closed" if backend.is_status else "isowsgi-again"
    router = {"rule": _rule(place), "service": backend.name, "priority": priority, "middlewares": [middleware]}
    return {"entryPoints": site.bind.split(","), **router}


def _rule(place: Place) -> str:
    conditions = []
    if place.hosts:
        conditions.append(rf"HostRegexp(`^{regexes.of_hosts(place.hosts, is_bare=True)}\.?(?::.*)?$`)")
    if place.prefix:
        conditions.append(f"PathRegexp(`{regexes.of_prefix(place.prefix, is_encoded=True)}`)")
    return " && ".join(conditions) or "PathPrefix(`/`)"


def _balancer(site: Balanced, backend: Backend) -> dict[str, Any]:
    check = {
        "path": ready_target(site.check, backend.pattern),
        "hostname": site.check.host,
        "interval": f"{round(site.interval_s * 1000)}ms",
        "timeout": f"{round(site.interval_s * _TIMEOUT_PART * 1000)}ms",
        "followRedirects": False,
    }
    servers = [{"url": f"http://{server.address}"} for server in site.servers_of(backend)]
    return {"serversTransport": "isowsgi", "healthCheck": check, "servers": servers}
