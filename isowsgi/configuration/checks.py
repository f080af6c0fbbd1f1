"""One check per kind of value: each returns the value in the form in which it is used, or raises `Fault`."""

from __future__ import annotations

import difflib
import ipaddress
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs
from cattrs import Converter

from isowsgi.configuration.faults import KINDS, SOME_MOUNT, Fault, at, quoted, spelt, wrong_type
from isowsgi.configuration.values import ISOLATIONS, MAIN_GROUP, MAX_HEAD_TIMEOUT_S, MAX_HOST_CHARS, MAX_SECONDS
from isowsgi.shared import policies, routing

T = TypeVar("T")


@attrs.frozen
class Pattern:
    host: str
    path: str  # as written, no slash at the end

    def __str__(self) -> str:
        return self.host + (self.path or "/")


def typed(kind: type[T], value: Any) -> T:
    if type(value) is not kind:  # not isinstance: a bool is an int to Python, but not to TOML
        raise wrong_type(KINDS[kind], value)
    return value


def not_empty(value: Any) -> dict[str, Any]:
    if not typed(dict, value):
        raise Fault(SOME_MOUNT)
    return typed(dict, value)


def one_or_more(converter: Converter, value: Any, kind: Any) -> list[Any]:
    if isinstance(value, list):
        return converter.structure(value, list[kind])
    if not isinstance(value, str):
        raise wrong_type("a string or a list of strings", value)
    return [converter.structure(value, kind)]


def mapping(converter: Converter, table: dict[str, Any], key_kind: Any, value_kind: Any) -> dict[Any, Any]:
    """Build keys and values separately: cattrs does not look at a key whose value is wrong."""
    built, groups = [], []
    for side, kind in (({key: key for key in table}, dict[str, key_kind]), (table, dict[str, value_kind])):
        try:
            built.append(converter.structure(side, kind))
        except ExceptionGroup as group:
            groups.append(group)
    if groups:
        raise ExceptionGroup("keys and values", groups)
    keys, values = built
    return {keys[key]: value for key, value in values.items()}


def whole_number(value: Any, *, least: int = 1, most: int) -> int:
    if not least <= typed(int, value) <= most:
        raise Fault(f"must be {least} to {most}, got {spelt(value)}")
    return typed(int, value)


def head_timeout(value: Any) -> float:
    if type(value) not in (int, float):
        raise wrong_type("a number of seconds", value)
    if not 0 < value <= MAX_HEAD_TIMEOUT_S:
        raise Fault(f"must be above 0 and at most {MAX_HEAD_TIMEOUT_S} seconds, got {spelt(value)}")
    return float(value)


def time_limit(value: Any) -> float:
    if type(value) not in (int, float):
        raise wrong_type("a number of seconds", value)
    if not 0 <= value <= MAX_SECONDS:
        raise Fault(f"must be 0 (no limit) to {MAX_SECONDS} seconds, got {spelt(value)}")
    return float(value)


def one_of(value: Any, *, names: tuple[str, ...]) -> str:
    if typed(str, value) not in names:
        raise Fault(f"expected one of {', '.join(map(repr, names))}, got {spelt(value)}")
    return typed(str, value)


def one_of_numbers(value: Any, *, numbers: tuple[int, ...]) -> int:
    if typed(int, value) not in numbers:
        raise Fault(f"expected one of {', '.join(map(str, numbers))}, got {spelt(value)}")
    return typed(int, value)


def redirect(value: Any) -> str:
    """Check where a mount's requests are sent; nothing that a client sends may choose the host."""
    example = 'expected an address such as "https://www.example.com{path}" or "/new{path}"'
    if not typed(str, value).isascii() or not value.isprintable() or not set(' "<>\\^`|').isdisjoint(value):
        raise Fault(f"{example}, percent-encoded where it holds other characters, got {spelt(value)}")
    fixed, _, rest = value.partition("{path}")
    if set("{}") & set(fixed + rest):
        raise Fault(f"{{path}} may stand in it once, and no other brace, got {spelt(value)}")
    if "#" in value or "?" in fixed:
        raise Fault(f"expected no fragment, and {{path}} before the query, got {spelt(value)}")
    if not re.match(r"https?://[^/?@]+(/|\?|$)|/(?!/)[^?]*", fixed) or (fixed == "/" and fixed != value):
        raise Fault(f"{example}, got {spelt(value)}: a client must not be able to choose the host")
    if not fixed.startswith("/"):
        _check_authority(fixed)
    return typed(str, value)


def _check_authority(address: str) -> None:
    """Check the host and port of an address."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError as exc:
        raise Fault(f"expected a host, and a port of 1 to 65535 if any, in {spelt(address)}: {exc}") from None
    if port == 0:
        raise Fault(f"expected a port of 1 to 65535, got 0 in {spelt(address)}")
    if ":" not in host:  # else urlsplit has read it as an IPv6 address
        _host(host, host + "/")


def url_path(value: Any) -> str:
    if not typed(str, value).startswith("/") or not value.isascii() or not value.isprintable() or " " in value:
        raise Fault(f"expected a path below the mount as a browser sends it, such as '/health', got {spelt(value)}")
    return typed(str, value)


def policy_word(value: str) -> str:
    if value in policies.WORDS:
        return value
    # By the names of the functions too: "setuid" is a likely slip for "ids".
    meant = {call.rpartition(".")[2]: word for call, word in (policies.EVENTS | policies.FUNCTIONS).items()}
    meant |= {word: word for word in policies.WORDS}
    near = difflib.get_close_matches(value.lower(), meant, n=1)
    expected = f"did you mean {meant[near[0]]!r}?" if near else f"expected one of {', '.join(policies.WORDS)}"
    raise Fault(f"unknown word; {expected}")


def network(value: Any) -> str:
    if typed(str, value) == "unix":
        return "unix"
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as exc:
        text = "its address has bits below the prefix; " if "host bits" in str(exc) else ""
        raise Fault(f"{text}expected an address, a network such as '10.0.0.0/8', or 'unix', got {spelt(value)}") from None


def host_name(value: Any) -> str:
    if not typed(str, value):
        raise Fault("expected a host name, got ''")
    return _host(value, value + "/")


def isolation(value: Any, *, own_gil_error: str | None) -> str:
    one_of(value, names=ISOLATIONS)
    if value == "own-gil" and own_gil_error is not None:
        raise Fault(own_gil_error)
    return typed(str, value)


def group(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", typed(str, value)):
        raise Fault(f"expected a name of letters, digits, '_', '.' and '-', got {spelt(value)}")
    if value == MAIN_GROUP:
        raise Fault(f'{MAIN_GROUP!r} is the group of the mounts with isolation = "main"; choose another name')
    return typed(str, value)


# Patterns.


def new_addresses(text: str, table: Any, seen: dict[Pattern, str], where: str) -> tuple[Pattern, ...]:
    """Return what a mount takes, and note it as taken; its pattern comes first.

    Args:
        text: the key in the file.
        table: its value there, whose faults are told elsewhere.
        seen, where: see `converter.make_converter`.
    """
    found = _addresses(text, table)
    for address in found:
        if address in seen:
            what = "" if len(found) == 1 else f"{quoted(str(address))} is "
            raise Fault(f"{what}the same pattern as {seen[address]}; keep one of them")
    seen.update(dict.fromkeys(found, quoted(text) + where))
    return found


def note_files(text: str, table: Any, addresses: Sequence[Pattern], seen: dict[Pattern, str], where: str) -> list[Fault]:
    """Note the addresses of the files that a mount has below itself, and return what is wrong with them.

    Args:
        text, table, seen, where: see `new_addresses`.
        addresses: of the mount.
    """
    faults = []
    for path, found in _below(table, addresses).items():
        place = (text, "static", path)
        if isinstance(found, Fault):
            faults.append(at(place, found))
            continue
        if taken := [address for address in found if address in seen]:
            faults.append(at(place, Fault(f"{quoted(str(taken[0]))} is the same pattern as {seen[taken[0]]}; keep one of them")))
            continue
        seen.update(dict.fromkeys(found, f"{quoted(path)} in static of {quoted(text)}{where}"))
    return faults


def _below(table: Any, addresses: Sequence[Pattern]) -> dict[str, list[Pattern] | Fault]:
    """Return the addresses of a mount's files, by their paths below it, or what is wrong with the path."""
    static = table.get("static") if isinstance(table, dict) and "app" in table else None
    found: dict[str, list[Pattern] | Fault] = {}
    for path in static if isinstance(static, dict) else ():
        try:
            if not path.startswith("/") or path == "/":
                raise Fault(f"expected a path below the mount, as in '/static', got {spelt(path)}")
            found[path] = [Pattern(address.host, address.path + pattern(path).path) for address in addresses]
        except Fault as fault:
            found[path] = fault
    return found


def file_name(value: Any) -> str:
    if "/" in typed(str, value) or "\0" in value or value.startswith("."):
        raise Fault(f"expected the name of a file in each folder, such as 'index.html', or '' for none, got {spelt(value)}")
    return typed(str, value)


def below_folder(value: Any) -> str:
    if "\0" in typed(str, value) or any(name in ("", ".", "..") for name in value.removeprefix("/").split("/") if value):
        raise Fault(f"expected a file below the folder, such as '/index.html', got {spelt(value)}")
    return typed(str, value)


def addresses_of(mounts: Any) -> list[tuple[Pattern, ...]]:
    """Return what the mounts of a table take that has faults, as far as that is in order."""
    found = []
    for text, table in mounts.items() if isinstance(mounts, dict) else ():
        try:
            found.append(_addresses(text, table))
        except Fault:
            continue
    return found


def _addresses(text: str, table: Any) -> tuple[Pattern, ...]:
    own = pattern(text)
    hosts = table.get("hosts", []) if isinstance(table, dict) else []
    found = [own] if own.host else []
    for host in hosts if isinstance(hosts, list) else [hosts]:
        try:
            found.append(Pattern(mount_host(host), own.path))
        except Fault:
            continue  # told at its place
    return tuple(dict.fromkeys(found)) or (own,)


def glob_pattern(value: Any) -> str:
    if not typed(str, value) or "\0" in value:
        raise Fault(f'expected a glob of config files, as in "sites.d/*.toml", got {spelt(value)}')
    return str(value)


def pattern(value: str) -> Pattern:
    """Read `[host]/prefix`, as the keys of Go's ServeMux; "/blog/" is "/blog"."""
    if not value:
        raise Fault('expected a pattern, as in "/blog" or "api.example.com/", got \'\'')
    if any(char.isspace() or unicodedata.category(char) == "Cc" for char in value):
        raise Fault(f"a pattern may not hold spaces and control characters, got {spelt(value)}")
    if "://" in value:
        raise Fault(f"expected a pattern without a scheme: {value.partition('://')[2]!r}")
    host, slash, rest = value.partition("/")
    host = _any_host(host, value) if host else ""
    if not slash:
        raise Fault(f"write {quoted(value + '/')} for the whole host")
    path = slash + rest
    if found := re.search("%[0-9A-Fa-f]{2}", path):
        raise Fault(f"write it decoded: requests are matched after percent-decoding, got {found[0]!r}")
    if found := re.search(r"[?#]", path):
        raise Fault(f"a pattern is a path: no query and no fragment, got {found[0]!r}")
    if found := re.search(r"//|/\.\.?(?=/|$)", path):
        raise Fault(f"expected no '//', '.' or '..': no request path is normalised, so they would be matched literally, got {found[0]!r}")
    return Pattern(host, path.removesuffix("/"))


def mount_hosts(converter: Converter, value: Any, kind: Any) -> tuple[str, ...]:
    if value == []:
        raise Fault("expected a host, or a list of hosts, got an empty list")
    return tuple(one_or_more(converter, value, kind))


def mount_host(value: Any) -> str:
    """Check a host at which a mount is served, beside that of its pattern or in place of none."""
    host, slash, _ = typed(str, value).partition("/")
    if not host:
        raise Fault(f"expected a host, as in 'www.example.com', got {spelt(value)}")
    if slash:
        raise Fault(f"expected a host alone, {host!r}: the path is the pattern's; got {spelt(value)}")
    return _any_host(host, host + "/")


def tls_host(value: Any) -> str:
    """Check a host that clients ask for when they begin with TLS."""
    host = mount_host(value)
    if host.startswith("[") or re.fullmatch(r"[0-9.]+", host):
        raise Fault(f"no client asks for an address when it begins with TLS (RFC 6066): expected a host name, got {spelt(value)}")
    return host


def _any_host(host: str, pattern: str) -> str:
    """Check a host, or a wildcard for hosts.

    Args:
        pattern: that it is from, whose slash may be missing.
    """
    if "*" not in host:
        return _host(host, pattern)
    star, _, domain = host.partition(".")
    if star != "*" or not domain or "*" in domain or domain.startswith("["):
        raise Fault(f"'*' stands for the whole first label of a host, as in '*.example.com/', got {host!r}")
    return routing.WILDCARD + _host(domain, domain + "/")


def _host(host: str, pattern: str) -> str:
    if not host.isascii() and ("." in host or "/" in pattern):
        raise Fault(f"a host must be ASCII, got {host!r}; write the form that begins with 'xn--'")
    if found := re.fullmatch(r"\[([0-9A-Fa-f:.]+)\]", host):
        try:
            return f"[{ipaddress.IPv6Address(found[1])}]"
        except ValueError:
            raise Fault(f"expected an IPv6 address in brackets, got {host!r}") from None
    if found := re.fullmatch(r"(.*[^:]):\d*", host):
        raise Fault(f"expected a host without a port, got {host!r}; ports belong to gunicorn's bind")
    if "/" not in pattern and "." not in host and host.lower() != "localhost":
        raise Fault(f"expected {'/' + pattern!r} (a pattern begins with a slash or a host), got {pattern!r}")
    name = host.lower().removesuffix(".")
    if len(name) > MAX_HOST_CHARS or not re.fullmatch(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", name):
        raise Fault(f"expected a host of letters, digits, '-', '_' and '.', got {host!r}")
    return name
