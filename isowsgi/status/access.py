"""Who may see the status page: clients on this machine that come through no proxy, and whom the config file allows.

The address is that of the connection. What a header says of another one is never believed; but a request that says it came through a
proxy is not taken for one from this machine.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from typing import Any

# Fields by which proxies say for whom they ask. A proxy that sends none of them looks like a client on this machine: the docs
# say how to close the page there.
_PROXY_FIELDS = (
    "HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PROTO", "HTTP_X_REAL_IP",
    "HTTP_CF_CONNECTING_IP", "HTTP_TRUE_CLIENT_IP",
)  # fmt: skip


class Access:
    """Judges requests.

    Args:
        allow: networks, and "unix", see `configuration.Status`.
        hosts: names besides this machine's own.
    """

    def __init__(self, allow: Sequence[str], hosts: Sequence[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in allow if network != "unix"]
        self._takes_unix = "unix" in allow
        self._hosts = {"localhost", socket.gethostname().lower(), *filter(None, hosts)}

    def refusal(self, environ: Mapping[str, Any]) -> str | None:
        """Say why a request is refused, or None."""
        return self._address_refusal(environ) or self._host_refusal(environ.get("HTTP_HOST", ""))

    def _address_refusal(self, environ: Mapping[str, Any]) -> str | None:
        peer = environ.get("REMOTE_ADDR", "")
        address = _address(peer)
        if address is None:
            # As behind most proxies, who would all be let in if a file's permissions were enough.
            return (
                None
                if self._takes_unix
                else 'clients of a Unix socket are not allowed; set allow = ["unix"] in [status] of isowsgi.toml to allow them'
            )
        if any(address in network for network in self._networks):
            return None
        if not address.is_loopback:
            return f"{peer} is not allowed; allow in [status] of isowsgi.toml lists who is"
        if any(field in environ for field in _PROXY_FIELDS):
            return f"this request came through a proxy; to allow that, add the proxy's address {peer} to allow in [status] of isowsgi.toml"
        return None

    def _host_refusal(self, field: str) -> str | None:
        """Refuse names that lead here but are not ours.

        A page of another site can have its own name lead to this machine once it is loaded, and then read what a browser here may read
        (DNS rebinding). An address cannot be rebound.
        """
        if not field:
            return None  # HTTP/1.0; no browser
        name = field.lower().removesuffix(".")
        if name.startswith("["):
            name = name.partition("]")[0][1:]
        elif name.count(":") == 1:
            name = name.partition(":")[0].removesuffix(".")
        if name in self._hosts or name.endswith(".localhost") or _address(name) is not None:
            return None
        return f"{name!r} is not known as a name of this page; add it to hosts in [status] of isowsgi.toml"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # An IPv4 client on a listener for both.
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address
