"""Which mount a request belongs to: host first, then the longest prefix by whole segments. Values only, no I/O.

A wildcard `*.example.com` stands for one label, as in a certificate (RFC 6125 section 6.4.3). So a host is looked up twice at most,
however many patterns there are: as it is, and by what follows its first label.

Paths here are what an app will see as SCRIPT_NAME + PATH_INFO: percent-decoded once, in WSGI form (UTF-8 bytes as latin-1 text), with
no other normalisation. `//` and `..` are ordinary segments, as they are for the app: both sides see the same path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# What a wildcard takes: a label as a pattern may have it.
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")

WILDCARD = "*."  # what a host begins with that stands for many


class Route(NamedTuple):
    """One pattern of the table."""

    mount: int  # the mount's place in the config file
    host: str  # lower case, without port; "" is any host, "*.example.com" any with one label in place of the asterisk
    prefix: str  # "" or "/" + segments, no slash at the end


class Router:
    """An immutable table of routes.

    Of two with the same host and prefix the first counts. No file has such; a table may, of which a part is older than the rest.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        unique: dict[tuple[str, str], Route] = {}
        for route in routes:
            unique.setdefault((route.host, route.prefix), route)
        self.routes = tuple(unique.values())
        self._hosts: dict[str, dict[str, int]] = {}
        self._domains: dict[str, dict[str, int]] = {}  # by what follows the asterisk and its dot
        for route in self.routes:
            if route.host.startswith(WILDCARD):
                self._domains.setdefault(route.host.removeprefix(WILDCARD), {})[route.prefix] = route.mount
            else:
                self._hosts.setdefault(route.host, {})[route.prefix] = route.mount
        self._any_host = self._hosts.get("", {})
        self._longest = max((len(route.prefix) for route in self.routes), default=0)
        self.has_hosts = any(route.host for route in self.routes)

    def match(self, host: str, path: str) -> int | None:
        """Return the mount of a request, or None.

        A pattern with a host wins over one without, however long (as in Go's ServeMux), and one with this very host over a wildcard.

        Args:
            host: the Host field as received, port and any case included; "" if there was none.
            path: decoded, see above; "*" and "" (absolute-form without a path) belong to the root.
        """
        if self.has_hosts and host:
            name = bare_host(host)
            prefixes = self._hosts.get(name)
            if prefixes is not None:
                mount = self._longest_prefix(prefixes, path)
                if mount is not None:
                    return mount
            if self._domains:
                label, _, domain = name.partition(".")
                prefixes = self._domains.get(domain)
                if prefixes is not None and _LABEL.fullmatch(label):
                    mount = self._longest_prefix(prefixes, path)
                    if mount is not None:
                        return mount
        return self._longest_prefix(self._any_host, path)

    def rivals(self, mount: int) -> list[Route]:
        """Return the routes that decide whether a request is this mount's: its own, and those that may take one from it.

        An instance keeps only these, so that a thousand mounts do not each hold a thousand patterns.
        """
        own = [route for route in self.routes if route.mount == mount]
        return [route for route in self.routes if route.mount == mount or any(may_win(route, each) for each in own)]

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
    if not _is_wider(own.host, route.host):
        return False  # a pattern never wins over one whose host says more
    return below or own.prefix == route.prefix or own.prefix.startswith(route.prefix + "/")


def _is_wider(host: str, other: str) -> bool:
    """Whether all that another host, which is not the same, takes is taken by a host too."""
    return not host or host == WILDCARD + other.partition(".")[2]
