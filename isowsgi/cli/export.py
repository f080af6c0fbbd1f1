"""`isowsgi export`: configurations for what stands before several servers, made from the mounts."""

from __future__ import annotations

import json
import re

import click

from isowsgi import configuration
from isowsgi.cli import asking
from isowsgi.configuration import Config

# A server's name in HAProxy's configuration, and what can be its address: a name, an IPv4 address or an IPv6 one in brackets, with a port.
_SERVER = re.compile(r"(?:([A-Za-z0-9_.-]+)=)?((?:[A-Za-z0-9_.-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5})")
_BIND = re.compile(r"[^\s'\"#$\\{}][^\n'\"#$\\{}]*")


@click.group(short_help="Make configurations for balancers from the mounts.")
def export() -> None:
    """Make the configuration of what stands before several servers from the mounts, so that patterns are written in one place.

    It is printed. Nothing is asked: the config file is enough.
    """


@export.command(short_help="A frontend and backends of HAProxy.")
@asking.config_file
@click.option("--servers", required=True, metavar="[NAME=]HOST:PORT,...", help="The servers that serve this config file.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Seconds between two checks of a mount on a server."
)
@click.option("--bind", default=":80", show_default=True, help="Where HAProxy listens, as its `bind` has it.")
def haproxy(config: str, servers: str, interval: float, bind: str) -> None:
    """Print a frontend that routes as isowsgi does, and a backend for each mount.

    Each backend asks each server for /ready?mount=PATTERN of the status page: one that cannot serve a mount keeps the requests of the
    others.
    """
    from isowsgi.exporting import haproxy
    from isowsgi.exporting.backends import CannotExport

    found = []
    for number, text in enumerate(servers.split(","), 1):
        if (match := _SERVER.fullmatch(text.strip())) is None:
            raise click.BadParameter(f"expected [NAME=]HOST:PORT, got {text.strip()!r}", param_hint="--servers")
        found.append(haproxy.Server(match[1] or f"server{number}", match[2]))
    if len({server.name for server in found}) < len(found):
        raise click.BadParameter("two servers have the same name", param_hint="--servers")
    if not _BIND.fullmatch(bind):
        raise click.BadParameter(f"expected an address as HAProxy's bind has it, got {bind!r}", param_hint="--bind")
    try:
        click.echo(haproxy.configuration(_load(config), found, interval, bind), nl=False)
    except CannotExport as exc:
        asking.fail(str(exc), 2)


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
