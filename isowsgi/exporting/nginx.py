"""A site of nginx: an upstream for each mount, so that failures of one mount on a server are no reason against the others there.

Written for nginx 1.18 and later. Without a subscription it asks no server how it is (nginx.org, ngx_http_upstream_hc_module): it
learns from the requests that fail, so some of each mount's are tried in vain.

`location` looks at the path without dot segments, and isowsgi at the path as sent, which nginx passes on. So a path with dot segments may
be counted for another mount than the one that answers it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from isowsgi.exporting.backends import Balanced, by_host
from isowsgi.shared.routing import WILDCARD

# Failures of a mount on a server within the interval, after which it gets no requests for that long.
_MAX_FAILS = 2

# Idle connections to servers that each process of nginx keeps for a mount, and the seconds for which it does: less than `keepalive` in
# deploy/hosts/gunicorn.conf.py, so that nginx closes them.
_IDLE, _IDLE_S = 16, 60

_CONNECT_S = 3

# Between two reads. Longer than queue_timeout (30 s) and request_timeout (60 s) of a mount, so that isowsgi answers first, and says why.
_READ_S = 120

_SETTINGS = (
    "merge_slashes off;  # isowsgi's paths have them as they are",
    "client_max_body_size 100m;",
    "underscores_in_headers off;",
    "proxy_http_version 1.1;",
    'proxy_set_header Connection "";',
    "proxy_set_header Host $http_host;",
    "proxy_set_header X-Forwarded-For $remote_addr;",
    "proxy_set_header X-Forwarded-Proto $scheme;",
    f"proxy_connect_timeout {_CONNECT_S}s;",
    f"proxy_read_timeout {_READ_S}s;",
    "# What reached no server is sent to another one. So is a GET that a server has lost, or that it answers 503 as it cannot",
    "# serve the mount; not a POST, which an app may have begun.",
    "proxy_next_upstream error timeout http_503;",
)


def configuration(site: Balanced) -> str:
    return "\n".join(_lines(site)) + "\n"


def _lines(site: Balanced) -> Iterator[str]:
    yield f"# {site.title('nginx')}"
    yield "# It belongs into `http`. nginx asks no server how it is: it learns from requests that fail, which it sends to another server."
    for backend in site.served:
        yield ""
        yield f"upstream isowsgi-{backend.name} {{  # {backend.pattern}"
        yield f"    zone isowsgi-{backend.name} 64k;  # what one process learns, all know"
        yield "    least_conn;"
        for server in site.servers_of(backend):
            yield f"    server {server.address} max_fails={_MAX_FAILS} fail_timeout={math.ceil(site.interval_s)}s;"
        yield f"    keepalive {_IDLE};"
        yield f"    keepalive_timeout {_IDLE_S}s;"
        yield "}"
    closed = site.closed
    alike: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for host, table in by_host(site.backends).items():
        alike.setdefault(tuple((address.prefix, address.backend) for address in table), []).append(host)
    for paths, hosts in alike.items():
        yield ""
        yield from _server(site, hosts, paths, closed)


def _server(site: Balanced, hosts: Sequence[str], paths: Sequence[tuple[str, str]], closed: set[str]) -> Iterator[str]:
    yield "server {"
    yield f"    listen {site.bind}{'' if all(hosts) else ' default_server'};"
    yield f"    server_name {' '.join(_name(host) for host in hosts)};"
    yield from (f"    {line}" for line in _SETTINGS)
    for prefix, backend in paths:
        yield from _locations(prefix, "return 404;" if backend in closed else f"proxy_pass http://isowsgi-{backend};")
    if all(prefix for prefix, _ in paths):
        yield "    location / { return 404; }"
    yield "}"


def _name(host: str) -> str:
    if not host:
        return "_"
    if host.startswith(WILDCARD):
        return quoted(rf"~^[a-z0-9_-]{{1,63}}\.{re.escape(host.removeprefix(WILDCARD))}$")
    return quoted(host)


def _locations(prefix: str, action: str) -> Iterator[str]:
    if prefix:
        yield f"    location = {quoted(prefix)} {{ {action} }}"
    yield f"    location {quoted(prefix + '/')} {{ {action} }}"


def quoted(text: str) -> str:
    """Return a word in nginx' quotes, in which a backslash keeps its meaning but before a quote or another backslash."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
