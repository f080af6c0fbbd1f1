"""A Caddyfile: a site that routes as isowsgi does, with an active health check for each mount.

Written for Caddy 2.6 and later. Its own `path` and `host` matchers are not used: paths are matched without regard to case and after they
were cleaned, and a host with a dot at its end is another one (caddyserver.com/docs/caddyfile/matchers). isowsgi does none of that, and a
path that only one of both takes for the status page's would open that to anybody.
"""

from __future__ import annotations

from collections.abc import Iterator

from isowsgi.exporting import regexes
from isowsgi.exporting.backends import Backend, Balanced, Place, places, ready_target

_SNIPPET = "isowsgi"

# Seconds for which a request looks for a server that takes it, and between two tries.
_TRY_S, _TRY_INTERVAL_S = 5, 0.25

# Seconds for a connection to a server in the same network.
_DIAL_S = 3

# Seconds that an idle connection to a server is kept: less than `keepalive` in deploy/hosts/gunicorn.conf.py, so that Caddy closes it.
_IDLE_S = 60


def configuration(site: Balanced) -> str:
    return "\n".join(_lines(site)) + "\n"


def _lines(site: Balanced) -> Iterator[str]:
    yield f"# {site.title('caddy')}"
    yield "# A server's [status] must allow this machine's address. Caddy sets X-Forwarded-For, -Proto and -Host by itself."
    yield ""
    yield from _snippet(site)
    yield ""
    yield f"{site.bind} {{"
    yield "\t# The first that fits. By regular expressions, as Caddy's own path and host matchers route otherwise than isowsgi."
    yield "\troute {"
    by_name = {backend.name: backend for backend in site.backends}
    for number, place in enumerate(places(site.backends), 1):
        backend = by_name[place.backend]
        name = f"@{number}-{place.backend}"
        matcher = list(_matcher(name, place))
        yield ""
        yield f"\t\t# {backend.pattern}"
        yield from (f"\t\t{line}" for line in matcher)
        target = f"{name} " if matcher else ""
        if backend.is_status:
            yield "\t\t# It would answer anybody: its [status] allows this machine, for the checks."
            yield f"\t\trespond {target}404"
        else:
            yield from (f"\t\t{line}" for line in _proxy(site, backend, target))
    yield ""
    yield '\t\trespond "Not Found" 404'
    yield "\t}"
    yield "}"


def _matcher(name: str, place: Place) -> Iterator[str]:
    conditions = []
    if place.hosts:
        conditions.append(rf"header_regexp Host `^{regexes.of_hosts(place.hosts)}\.?(?::.*)?$`")
    if place.prefix:
        conditions.append(f"vars_regexp {{http.request.uri.path}} `{regexes.of_prefix(place.prefix)}`")
    if conditions:
        yield f"{name} {{"
        yield from (f"\t{condition}" for condition in conditions)
        yield "}"


def _proxy(site: Balanced, backend: Backend, target: str) -> Iterator[str]:
    yield f"reverse_proxy {target}{{"
    yield f"\tto {' '.join(server.address for server in site.servers_of(backend))}"
    yield f"\thealth_uri `{ready_target(site.check, backend.pattern)}`"
    yield f"\timport {_SNIPPET}"
    yield "}"


def _snippet(site: Balanced) -> Iterator[str]:
    """Yield what all mounts have in common."""
    yield f"({_SNIPPET}) {{"
    yield "\tlb_policy least_conn"
    yield f"\tlb_try_duration {_TRY_S}s"
    yield f"\tlb_try_interval {round(_TRY_INTERVAL_S * 1000)}ms"
    yield "\t# What reached no app is sent to another server in any case; what an app may have begun only if that does no harm."
    yield "\tlb_retry_match {"
    yield "\t\tmethod GET HEAD OPTIONS"
    yield "\t}"
    yield f"\thealth_interval {round(site.interval_s * 1000)}ms"
    yield "\thealth_status 200"
    yield "\thealth_headers {"
    yield f"\t\tHost {site.check.host}"
    yield "\t}"
    yield "\ttransport http {"
    yield f"\t\tdial_timeout {_DIAL_S}s"
    yield f"\t\tkeepalive {_IDLE_S}s"
    yield "\t}"
    yield "}"
