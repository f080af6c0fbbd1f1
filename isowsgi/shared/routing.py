"""Which mount a request belongs to: host first, then the longest prefix by whole segments. Values only, no I/O.

Paths here are what an app will see as SCRIPT_NAME + PATH_INFO: percent-decoded once, in WSGI form (UTF-8 bytes as latin-1 text), with
no other normalisation. `//` and `..` are ordinary segments, as they are for the app: both sides see the same path.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Route(NamedTuple):
    """One pattern of the table."""

    mount: int  # the mount's place in the config file
    host: str  # lower case, without port; "" is any host
    prefix: str  # "" or "/" + segments, no slash at the end


class Router:
    """An immutable table of routes."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._hosts: dict[str, dict[str, int]] = {}
        for route in self.routes:
            self._hosts.setdefault(route.host, {})[route.prefix] = route.mount
        self._any_host = self._hosts.get("", {})
        self._longest = max((len(route.prefix) for route in self.routes), default=0)
        self.has_hosts = any(route.host for route in self.routes)

    def match(self, host: str, path: str) -> int | None:
        """Return the mount of a request, or None.

        A pattern with a host wins over one without, however long (as in Go's ServeMux).

        Args:
            host: the Host field as received, port and any case included; "" if there was none.
            path: decoded, see above; "*" and "" (absolute-form without a path) belong to the root.
        """
        if self.has_hosts and host:
            prefixes = self._hosts.get(bare_host(host))
            if prefixes is not None:
                mount = self._longest_prefix(prefixes, path)
                if mount is not None:
                    return mount
        return self._longest_prefix(self._any_host, path)

    def rivals(self, mount: int) -> list[Route]:
        """Return the routes that decide whether a request is this mount's: its own, and those that may take one from it.

        An instance keeps only these, so that a thousand mounts do not each hold a thousand patterns.
        """
        own = next(route for route in self.routes if route.mount == mount)
        return [route for route in self.routes if route is own or may_win(route, own)]

    def _longest_prefix(self, prefixes: dict[str, int], path: str) -> int | None:
        candidate = path
        if len(path) > self._longest:
            # No prefix is longer, so start at the last boundary that could matter: the cost must not grow with a hostile path.
            cut = self._longest if path[self._longest] == "/" else path.rfind("/", 0, self._longest)
            candidate = path[: max(cut, 0)]
        while candidate:
            mount = prefixes.get(candidate)
            if mount is not None:
                return mount
            candidate = candidate[: max(candidate.rfind("/"), 0)]
        return prefixes.get("")


def bare_host(host: str) -> str:
    """Return a Host field's name alone: lower case, without port and without the root's dot."""
    host = host.lower()
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0].removesuffix(".")


def may_win(route: Route, own: Route) -> bool:
    """Whether some request matches both patterns and belongs to `route`."""
    below = route.prefix.startswith(own.prefix + "/")
    if route.host == own.host:
        return below
    if own.host:
        return False  # a pattern without a host never wins over one with
    return below or own.prefix == route.prefix or own.prefix.startswith(route.prefix + "/")
