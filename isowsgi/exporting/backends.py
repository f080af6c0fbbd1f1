"""What all exports have in common: each mount as a backend with the addresses that lead to it, in the order in which they are looked up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple
from urllib.parse import quote

from isowsgi.configuration import Config, Mount
from isowsgi.shared.routing import WILDCARD

# The backend of what clients may not reach, and of what no mount has, for a balancer that needs one. It answers 404.
NOWHERE = "isowsgi-nowhere"

# Where a request for the status page may come from without a name of its own in `[status] hosts`.
_OWN_HOST = "localhost"


class CannotExport(Exception):
    """The config file lacks what a balancer needs; the text says what to do."""


class Address(NamedTuple):
    """A host and the paths below a prefix, which lead to a backend."""

    host: str  # "" is any, "*.example.com" any with one label in place of the asterisk
    prefix: str  # decoded text, no slash at the end; "" is the root
    backend: str


class Backend(NamedTuple):
    """A mount, as balancers know it.

    The status page answers whom `[status] allow` names. That is the balancer, who asks for anybody: nothing may be passed on to the page.
    """

    name: str  # letters, digits, "-"; unique
    pattern: str
    hosts: tuple[str, ...]  # none: any
    prefix: str  # as an address has it
    is_status: bool


class Server(NamedTuple):
    name: str
    address: str  # with its port


class Balanced(NamedTuple):
    """What a balancer stands before, and how it treats that."""

    backends: Sequence[Backend]
    check: Check
    servers: Sequence[Server]
    only: Mapping[str, Sequence[Server]]  # by pattern: those that serve it, where others do not
    interval_s: float  # between two checks of a mount on a server
    bind: str  # where the balancer listens, as it writes that

    def title(self, kind: str) -> str:
        """Return the first words of what is made, for people."""
        count = f"{len(self.backends)} mounts on {len(self.servers)} servers"
        return f"{count}. Made by `isowsgi export {kind}`: make it again when the mounts change."

    def servers_of(self, backend: Backend) -> Sequence[Server]:
        return self.only.get(backend.pattern, self.servers)

    @property
    def served(self) -> list[Backend]:
        """The mounts that clients may reach."""
        return [backend for backend in self.backends if not backend.is_status]

    @property
    def closed(self) -> set[str]:
        """The names of the others."""
        return {backend.name for backend in self.backends if backend.is_status}


def balanced(config: Config, servers: Sequence[Server], only: Mapping[str, Iterable[str]], interval_s: float, bind: str) -> Balanced:
    """Return what a balancer stands before.

    Args:
        only: names of servers by the pattern of a mount that the others do not have, nor its static files.

    Raises:
        CannotExport: the config has no status page, or `only` names what there is not.
    """
    by_name = {server.name: server for server in servers}
    if unknown := only.keys() - {mount.pattern for mount in config.mounts}:
        raise CannotExport(f"no mount {min(unknown)!r}; the mounts are {', '.join(mount.pattern for mount in config.mounts)}")
    if missing := {name for names in only.values() for name in names} - by_name.keys():
        raise CannotExport(f"no server {min(missing)!r}; the servers are {', '.join(by_name)}")
    chosen = {pattern: [by_name[name] for name in names] for pattern, names in only.items()}
    for mount in config.mounts:
        owner = max((pattern for pattern in only if mount.pattern.startswith(pattern.removesuffix("/") + "/")), key=len, default=None)
        if mount.files is not None and owner is not None:
            chosen.setdefault(mount.pattern, chosen[owner])
    return Balanced(backends(config.mounts), check_of(config), servers, chosen, interval_s, bind)


def backends(mounts: Sequence[Mount]) -> list[Backend]:
    """Return a backend for each mount, in the order of the config file."""
    taken = {NOWHERE}
    found = []
    for mount in mounts:
        hosts = tuple(host for host in (mount.host, *mount.hosts) if host)
        prefix = mount.prefix.encode("latin-1").decode("utf-8", "surrogateescape")
        found.append(Backend(_name(mount.pattern, taken), mount.pattern, hosts, prefix, mount.app.is_status))
    return found


def _name(pattern: str, taken: set[str]) -> str:
    name = base = re.sub("[^a-z0-9]+", "-", pattern.lower().replace("*", "any")).strip("-")[:40].strip("-") or "root"
    number = 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    taken.add(name)
    return name


def addresses(found: Sequence[Backend]) -> Iterator[Address]:
    """Yield the addresses of backends; the first one that fits a request is that of its mount, see `shared.routing`."""
    every = [Address(host, backend.prefix, backend.name) for backend in found for host in backend.hosts or ("",)]
    yield from sorted(every, key=lambda each: (_width(each.host), -len(each.prefix), each.prefix, each.host))


class Place(NamedTuple):
    """Addresses of one backend that differ in their host only, and are looked up at once."""

    hosts: tuple[str, ...]  # none: any
    prefix: str
    backend: str


def places(found: Sequence[Backend]) -> Iterator[Place]:
    """Yield the addresses of backends as `addresses` does, fewer of them: two hosts of the same width have no request in common."""
    for (_, prefix, backend), same in groupby(addresses(found), lambda each: (_width(each.host), each.prefix, each.backend)):
        yield Place(tuple(address.host for address in same if address.host), prefix, backend)


def by_host(found: Sequence[Backend]) -> dict[str, list[Address]]:
    """Return for each host, wildcard, and "" for any other, all addresses that a request to it may have, the longest prefix first.

    For balancers that look up the host first and the path in what belongs to it. Within a host the longest prefix that fits is that of
    the mount; a less specific host's is left out where a more specific one's takes it.
    """
    every = list(addresses(found))
    tables: dict[str, list[Address]] = {}
    for host in dict.fromkeys([*(address.host for address in every), ""]):
        wider = [] if not host else [""] if host.startswith(WILDCARD) else [WILDCARD + host.partition(".")[2], ""]
        table: list[Address] = []
        for each in (host, *wider):
            taken = [address.prefix for address in table]
            table += [
                address
                for address in every
                if address.host == each and not any(f"{address.prefix}/".startswith(f"{prefix}/") for prefix in taken)
            ]
        tables[host] = sorted(table, key=lambda address: (-len(address.prefix), address.prefix))
    return tables


def _width(host: str) -> int:
    return 2 if not host else int(host.startswith(WILDCARD))


class Check(NamedTuple):
    """How a server is asked whether it can serve a mount."""

    host: str  # for the Host field
    path: str  # percent-encoded; a pattern belongs behind it


def check_of(config: Config) -> Check:
    """Return how the status page of a config is asked.

    Raises:
        CannotExport: it has none.
    """
    for mount in config.mounts:
        if mount.app.is_status and not mount.host.startswith(WILDCARD):
            return Check(mount.host or _OWN_HOST, quote(mount.prefix.encode("latin-1")) + "/ready?mount=")
    raise CannotExport(
        "no mount has the status page, which a balancer asks whether a server can serve a mount; add to [mounts]: "
        '"/-/isowsgi" = "isowsgi.status:application", and the balancers\' networks to allow in [status]'
    )


def ready_target(check: Check, pattern: str) -> str:
    return check.path + quote(pattern, safe="/")
