"""Routes of Kubernetes: an HTTPRoute of the Gateway API, or an Ingress, for each mount.

Both match a prefix by whole segments, and the longest one first, as isowsgi does. They are JSON, which kubectl and kustomize take as YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from isowsgi.configuration import Config
from isowsgi.exporting.backends import Backend, CannotExport, backends, by_host

# Characters that a path of the Gateway API may have unencoded (RFC 3986, pchar).
_SAFE = "/-._~!$&'()*+,;=:@"

# Hosts of one HTTPRoute, at most.
_MOST_HOSTS = 16

# What both kinds take for a host, which also must not be an address (the Gateway API's Hostname; RFC 1123).
_LABEL = "[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_HOST = re.compile(rf"(?!(?:[0-9]+\.){{3}}[0-9]+$)(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")


class _Target(NamedTuple):
    """Where requests for a mount go."""

    service: str
    port: int
    gateway: str | None
    default: str  # the Service of mounts that have no other


def routes(config: Config, kind: str, service: str, port: int, services: Mapping[str, str], gateway: str | None) -> dict[str, Any]:
    """Return a List of routes.

    Args:
        kind: "httproute" or "ingress".
        service: whose pods serve the mounts that `services` does not name.
        services: by pattern.
        gateway: that HTTPRoutes attach to, or the class of Ingresses; None: the cluster's default class, for Ingresses.

    Raises:
        CannotExport: `services` has a pattern that is no mount's, or a mount has a host that Kubernetes does not take.
    """
    if unknown := services.keys() - {mount.pattern for mount in config.mounts}:
        raise CannotExport(f"no mount {min(unknown)!r}; the mounts are {', '.join(mount.pattern for mount in config.mounts)}")
    if kind == "httproute" and gateway is None:
        raise CannotExport("an HTTPRoute needs the name of its Gateway: --gateway NAME")
    found = backends(config.mounts)
    for backend in found:
        for host in backend.hosts:
            if _HOST.fullmatch(host) is None:
                raise CannotExport(f"{backend.pattern}: Kubernetes routes by names of hosts as DNS has them, got {host!r}")
    narrower = _narrower_hosts(found)
    make = _httproutes if kind == "httproute" else _ingresses
    items: list[dict[str, Any]] = []
    for backend in found:
        items += make(backend, narrower[backend.name], _Target(services.get(backend.pattern, service), port, gateway, service))
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _narrower_hosts(found: Sequence[Backend]) -> dict[str, list[str]]:
    """Return for each backend the hosts of other mounts at which requests for its path are its own.

    For who looks up the most specific host, and does not go on with the others where it has no path that fits.
    """
    narrower: dict[str, list[str]] = {backend.name: [] for backend in found}
    for host, table in by_host(found).items():
        for address in table:
            if address.host != host:
                narrower[address.backend].append(host)
    return narrower


def _httproutes(backend: Backend, narrower: Sequence[str], target: _Target) -> Sequence[dict[str, Any]]:
    rule: dict[str, Any] = {"matches": [{"path": {"type": "PathPrefix", "value": _path(backend)}}]}
    if not backend.is_status:  # a rule without a backend answers with an error, which keeps the page from strangers
        rule["backendRefs"] = [{"name": target.service, "port": target.port}]
    hosts = [*backend.hosts, *narrower]
    parts = [hosts[first : first + _MOST_HOSTS] for first in range(0, len(hosts), _MOST_HOSTS)]
    if not backend.hosts:
        parts.insert(0, [])
    items = []
    for number, part in enumerate(parts, 1):
        spec: dict[str, Any] = {"parentRefs": [{"name": target.gateway}], "rules": [rule]}
        if part:
            spec["hostnames"] = part
        metadata = _metadata(backend, target, number)
        items.append({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": metadata, "spec": spec})
    return items


def _ingresses(backend: Backend, narrower: Sequence[str], target: _Target) -> Sequence[dict[str, Any]]:
    if backend.is_status:  # an Ingress can refuse nothing
        return []
    to = {"service": {"name": target.service, "port": {"number": target.port}}}
    paths = {"paths": [{"path": _path(backend), "pathType": "Prefix", "backend": to}]}
    rules: list[dict[str, Any]] = [{"host": host, "http": paths} for host in (*backend.hosts, *narrower)]
    if not backend.hosts:
        rules.append({"http": paths})
    spec = {"rules": rules} if target.gateway is None else {"ingressClassName": target.gateway, "rules": rules}
    return [{"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": _metadata(backend, target), "spec": spec}]


def _path(backend: Backend) -> str:
    return quote(backend.prefix.encode("utf-8", "surrogateescape"), safe=_SAFE) or "/"


def _metadata(backend: Backend, target: _Target, number: int = 1) -> dict[str, Any]:
    # By these `kubectl apply --prune` finds the routes that are exported no more. The Deployment is a part too, and another config file's
    # routes may be in the same namespace.
    labels = {"part-of": "isowsgi", "component": "routes", "instance": target.default}
    return {
        "name": f"isowsgi-{backend.name}" if number == 1 else f"isowsgi-{backend.name}.{number}",
        "labels": {f"app.kubernetes.io/{name}": value for name, value in labels.items()},
        "annotations": {"isowsgi/mount": backend.pattern},
    }
