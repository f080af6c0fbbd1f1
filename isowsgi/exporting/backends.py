"""What all exports have in common: each mount as a backend with the addresses that lead to it, in the order in which they are looked up."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

from isowsgi.configuration import Config, Mount
from isowsgi.shared.routing import WILDCARD

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


def backends(mounts: Sequence[Mount]) -> list[Backend]:
    """Return a backend for each mount, in the order of the config file."""
    taken: set[str] = set()
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
    yield from sorted(every, key=lambda each: (_width(each.host), each.host, -len(each.prefix), each.prefix))


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
