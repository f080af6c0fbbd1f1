"""Routes of Kubernetes: an HTTPRoute of the Gateway API, or an Ingress, for each mount.

Both match a prefix by whole segments, and the longest one first, as isowsgi does. They are JSON, which kubectl and kustomize take as YAML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from isowsgi.configuration import Config
from isowsgi.exporting.backends import Backend, CannotExport, backends

# Characters that a path of the Gateway API may have unencoded (RFC 3986, pchar).
_SAFE = "/-._~!$&'()*+,;=:@"

# Hosts of one HTTPRoute, at most.
_MOST_HOSTS = 16


def routes(config: Config, kind: str, service: str, port: int, services: Mapping[str, str], gateway: str | None) -> dict[str, Any]:
    """Return a List of routes.

    Args:
        kind: "httproute" or "ingress".
        service: whose pods serve the mounts that `services` does not name.
        services: by pattern.
        gateway: that HTTPRoutes attach to, or the class of Ingresses; None: the cluster's default class, for Ingresses.

    Raises:
        CannotExport: `services` has a pattern that is no mount's, or a mount has too many hosts.
    """
    if unknown := services.keys() - {mount.pattern for mount in config.mounts}:
        raise CannotExport(f"no mount {min(unknown)!r}; the mounts are {', '.join(mount.pattern for mount in config.mounts)}")
    found = backends(config.mounts)
    make = _httproutes if kind == "httproute" else _ingresses
    items = [item for backend in found for item in make(backend, services.get(backend.pattern, service), port, gateway)]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _httproutes(backend: Backend, service: str, port: int, gateway: str | None) -> Sequence[dict[str, Any]]:
    if gateway is None:
        raise CannotExport("an HTTPRoute needs the name of its Gateway: --gateway NAME")
    if len(backend.hosts) > _MOST_HOSTS:
        raise CannotExport(f"{backend.pattern}: {len(backend.hosts)} hosts; an HTTPRoute has {_MOST_HOSTS} at most: use --kind ingress")
    rule: dict[str, Any] = {"matches": [{"path": {"type": "PathPrefix", "value": _path(backend)}}]}
    if not backend.is_status:  # a rule without a backend answers with an error, which keeps the page from strangers
        rule["backendRefs"] = [{"name": service, "port": port}]
    spec: dict[str, Any] = {"parentRefs": [{"name": gateway}], "rules": [rule]}
    if backend.hosts:
        spec["hostnames"] = list(backend.hosts)
    return [{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": _metadata(backend), "spec": spec}]


def _ingresses(backend: Backend, service: str, port: int, gateway: str | None) -> Sequence[dict[str, Any]]:
    if backend.is_status:  # an Ingress can refuse nothing
        return []
    target = {"service": {"name": service, "port": {"number": port}}}
    paths = {"paths": [{"path": _path(backend), "pathType": "Prefix", "backend": target}]}
    rules = [{"host": host, "http": paths} for host in backend.hosts] or [{"http": paths}]
    spec = {"rules": rules} if gateway is None else {"ingressClassName": gateway, "rules": rules}
    return [{"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": _metadata(backend), "spec": spec}]


def _path(backend: Backend) -> str:
    return quote(backend.prefix.encode("utf-8", "surrogateescape"), safe=_SAFE) or "/"


def _metadata(backend: Backend) -> dict[str, Any]:
    return {
        "name": f"isowsgi-{backend.name}",
        "labels": {"app.kubernetes.io/part-of": "isowsgi"},
        "annotations": {"isowsgi/mount": backend.pattern},
    }
