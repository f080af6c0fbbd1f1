"""gunicorn's settings inside an app's interpreter, where gunicorn's parser, responses and logger take them for a Config.

Plain attributes, because a read of gunicorn's Config goes through __getattr__ and two more calls: about 120 ns each, and there are about
20 reads a request. Imports nothing at start but what every interpreter has, since each mount pays for each import.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, without the 2 ms of importing typing
if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Network, IPv6Network
    from typing import Any


class Settings:
    """The settings of one server, frozen when the interpreter was made; a reload of gunicorn makes new interpreters with new ones.

    Stands in for gunicorn.config.Config where gunicorn.http, gunicorn.glogging and gunicorn.instrument want a `cfg`. Made by
    `isowsgi.configuration.crossing.snapshot` on the other side. Safe to read from any thread.
    """

    # For the parser.
    casefold_http_method: bool
    forwarded_allow_ips: list[str]
    forwarder_headers: list[str]
    header_map: str
    http_parser: str
    is_ssl: bool
    limit_request_field_size: int
    limit_request_fields: int
    limit_request_line: int
    permit_obsolete_folding: bool
    permit_unconventional_http_method: bool
    permit_unconventional_http_version: bool
    protocol: str
    proxy_allow_ips: list[str]
    proxy_protocol: str
    secure_scheme_headers: dict[str, str]
    strip_header_spaces: bool
    # For responses and the environ.
    sendfile: bool
    workers: int
    # For the logger.
    access_log_format: str
    accesslog: str | None
    capture_output: bool
    disable_redirect_access_to_syslog: bool
    dogstatsd_tags: str
    errorlog: str
    group: int
    logconfig: str | None
    logconfig_dict: dict[str, Any]
    logconfig_json: str | None
    logger_class: str  # for gunicorn.util.load_class; a Config gives the class itself
    loglevel: str
    proc_name: str
    statsd_host: tuple[str, int] | str | None
    statsd_prefix: str
    syslog: bool
    syslog_addr: str
    syslog_facility: str
    syslog_prefix: str | None
    user: int
    # Empty: what gunicorn's --env asks for is in the process's environment already.
    env: dict[str, str]

    def __init__(self, snapshot: Mapping[str, Any]) -> None:
        # One by one: CPython reads attributes that came by __dict__.update two to three times slower (3.13: 33 ns, not 9).
        for name, value in snapshot.items():
            setattr(self, name, value)
        # A socket address must be a tuple, and JSON has none.
        host = snapshot["statsd_host"]
        self.statsd_host = tuple(host) if isinstance(host, list) else host
        self._forwarded_allow_networks: list[IPv4Network | IPv6Network] | None = None
        self._proxy_allow_networks: list[IPv4Network | IPv6Network] | None = None

    def __getattr__(self, name: str) -> Any:
        # Reached only for what is not there; a logger_class of the user's may read any setting, and then this is the line he sees.
        raise AttributeError(f"gunicorn setting {name!r}: not passed into the interpreters of apps", name=name, obj=self)

    def forwarded_allow_networks(self) -> list[IPv4Network | IPv6Network]:
        """Return the networks of forwarded_allow_ips, without "*"; the parser calls it for each request."""
        if self._forwarded_allow_networks is None:
            self._forwarded_allow_networks = _networks(self.forwarded_allow_ips)
        return self._forwarded_allow_networks

    def proxy_allow_networks(self) -> list[IPv4Network | IPv6Network]:
        """Return the networks of proxy_allow_ips, without "*"."""
        if self._proxy_allow_networks is None:
            self._proxy_allow_networks = _networks(self.proxy_allow_ips)
        return self._proxy_allow_networks


def _networks(addresses: list[str]) -> list[IPv4Network | IPv6Network]:
    named = [address for address in addresses if address != "*"]
    if not named:
        return []
    import ipaddress

    return [ipaddress.ip_network(address) for address in named]
