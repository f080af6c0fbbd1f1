"""`isowsgi export`: configurations for what stands before several servers, made from the mounts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from isowsgi import configuration
from isowsgi.cli import asking
from isowsgi.configuration import Config

if TYPE_CHECKING:
    from isowsgi.exporting.backends import Balanced, Server

# A server's name, as HAProxy's configuration has it, and its address: a name, an IPv4 address or an IPv6 one in brackets, with a port.
_SERVER = re.compile(r"(?:([A-Za-z0-9_.-]+)=)?((?:[A-Za-z0-9_.-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5})")

# Where balancers listen, in their own words: nothing that would begin something else in their files.
_BIND = re.compile(r"[^\s'\"#$\\{}][^\n'\"#$\\{}]*")
_SITE = re.compile(r"[A-Za-z0-9_.:*/\[\]-]+(?:, [A-Za-z0-9_.:*/\[\]-]+)*")
_LISTEN = re.compile(r"[A-Za-z0-9_.:*/\[\]-]+(?: [a-z0-9_=]+)*")
_NAMES = re.compile(r"[A-Za-z0-9_-]+(?:,[A-Za-z0-9_-]+)*")


@click.group(short_help="Make configurations for balancers from the mounts.")
def export() -> None:
    """Make the configuration of what stands before several servers from the mounts, so that patterns are written in one place.

    It is printed. Nothing is asked: the config file is enough.
    """


def _balancer(
    name: str,
    short_help: str,
    where: str,
    bind: re.Pattern[str],
    default: str,
    interval: str = "Seconds between two checks of a mount on a server.",
) -> Callable[[Callable[..., str]], click.Command]:
    """Make a command of a function that returns the text for a balancer.

    Args:
        where: what --bind is, for people.
        bind: what it may be.
        interval: what --interval is, for people.
    """

    def command(make: Callable[..., str]) -> click.Command:
        @wraps(make)
        def show(config: str, servers: str, only: tuple[str, ...], interval: float, bind_to: str, **more: Any) -> None:
            from isowsgi.exporting.backends import CannotExport, balanced

            if not bind.fullmatch(bind_to):
                raise click.BadParameter(f"expected {where}, got {bind_to!r}", param_hint="--bind")
            try:
                click.echo(make(balanced(_load(config), _servers(servers), _only(only), interval, bind_to), **more), nl=False)
            except CannotExport as exc:
                asking.fail(str(exc), 2)

        some = "Only these servers have this mount; may be given again."
        options = (
            click.option("--bind", "bind_to", default=default, show_default=True, help=f"Where it listens: {where}."),
            click.option("--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help=interval),
            click.option("--only", multiple=True, metavar="PATTERN=NAME,...", help=some),
            click.option("--servers", required=True, metavar="[NAME=]HOST:PORT,...", help="The servers that serve this config file."),
            asking.config_file,
        )
        decorated: Callable[..., Any] = show
        for option in options:
            decorated = option(decorated)
        return export.command(name, short_help=short_help)(decorated)

    return command


def _servers(text: str) -> list[Server]:
    from isowsgi.exporting.backends import Server

    found = []
    for number, part in enumerate(text.split(","), 1):
        if (match := _SERVER.fullmatch(part.strip())) is None:
            raise click.BadParameter(f"expected [NAME=]HOST:PORT, got {part.strip()!r}", param_hint="--servers")
        found.append(Server(match[1] or f"server{number}", match[2]))
    if len({server.name for server in found}) < len(found):
        raise click.BadParameter("two servers have the same name", param_hint="--servers")
    return found


def _only(texts: Sequence[str]) -> dict[str, list[str]]:
    found = {}
    for text in texts:
        pattern, equals, names = text.rpartition("=")
        if not (equals and names and pattern):
            raise click.BadParameter(f"expected PATTERN=NAME,..., got {text!r}", param_hint="--only")
        found[pattern] = [name.strip() for name in names.split(",")]
    return found


@_balancer("haproxy", "A frontend and backends of HAProxy.", "an address as HAProxy's `bind` has it", _BIND, ":80")
@click.option("--proxy-protocol", is_flag=True, help="Tell servers the client's address by the PROXY protocol, version 2.")
def haproxy(site: Balanced, proxy_protocol: bool) -> str:
    """Print a frontend that routes as isowsgi does, and a backend for each mount.

    Each backend asks each server for /ready?mount=PATTERN of the status page: one that cannot serve a mount keeps the requests of the
    others.
    """
    from isowsgi.exporting import haproxy

    return haproxy.configuration(site, proxy_protocol)


@_balancer("caddy", "A site of Caddy.", "an address as a Caddyfile has it", _SITE, ":80")
def caddy(site: Balanced) -> str:
    """Print a site that routes as isowsgi does, with a `reverse_proxy` for each mount.

    Each asks each server for /ready?mount=PATTERN of the status page: one that cannot serve a mount keeps the requests of the others.
    """
    from isowsgi.exporting import caddy

    return caddy.configuration(site)


@_balancer(
    "nginx",
    "Upstreams and servers of nginx.",
    "an address as nginx' `listen` has it",
    _LISTEN,
    "80",
    "Seconds for which a server gets no requests for a mount that failed there.",
)
def nginx(site: Balanced) -> str:
    """Print a `server` for each host, and an `upstream` for each mount.

    nginx asks no server how it is. It sends what failed to another server, if that does no harm, and a server that failed for a mount
    gets none of its requests for a while.
    """
    from isowsgi.exporting import nginx

    return nginx.configuration(site)


@_balancer("traefik", "A file for Traefik's file provider.", "names of entry points", _NAMES, "web")
def traefik(site: Balanced) -> str:
    """Print routers and services of Traefik 3 as TOML.

    Each service asks each server for /ready?mount=PATTERN of the status page: one that cannot serve a mount keeps the requests of the
    others.
    """
    from isowsgi.exporting import traefik

    return traefik.configuration(site)


@export.command("kubernetes-routes", short_help="HTTPRoutes or Ingresses of Kubernetes.")
@asking.config_file
@click.option("--kind", type=click.Choice(["httproute", "ingress"]), default="httproute", show_default=True, help="What is made.")
@click.option("--gateway", metavar="NAME", help="The Gateway of the HTTPRoutes, or the class of the Ingresses.")
@click.option("--service", default="isowsgi", show_default=True, help="The Service that serves the mounts.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Its port.")
@click.option("--service-of", "of", multiple=True, metavar="PATTERN=SERVICE", help="Another Service for one mount; may be given again.")
def kubernetes_routes(config: str, kind: str, gateway: str | None, service: str, port: int, of: tuple[str, ...]) -> None:
    """Print a route for each mount as JSON, which `kubectl apply -f -` takes.

    The status page is closed to clients of the Gateway. An Ingress cannot do that: a route for / leads to the page too, so let no address
    of the Ingress controller be in `allow` of [status].
    """
    from isowsgi.exporting import kubernetes
    from isowsgi.exporting.backends import CannotExport

    services = {}
    for text in of:
        pattern, equals, name = text.rpartition("=")
        if not (equals and name and pattern):
            raise click.BadParameter(f"expected PATTERN=SERVICE, got {text!r}", param_hint="--service-of")
        services[pattern] = name
    try:
        click.echo(json.dumps(kubernetes.routes(_load(config), kind, service, port, services, gateway), indent=2, ensure_ascii=False))
    except CannotExport as exc:
        asking.fail(str(exc), 2)


def _load(config: str) -> Config:
    try:
        loaded = configuration.load(config)
    except configuration.ConfigError as exc:
        asking.fail_by_faults(exc.faults, False, 2)
    if loaded.faults:
        asking.fail_by_faults(loaded.faults, False, 2)
    return loaded
