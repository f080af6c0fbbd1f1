"""Hosts and paths as regular expressions of Go (RE2), which Caddy and Traefik take.

No pattern leaves its quotes: what is not a letter, a digit or harmless is written as an escape, a backquote and a brace among it.
"""

from __future__ import annotations

from collections.abc import Iterable

from isowsgi.shared.routing import WILDCARD

# A label, as the router takes it for the asterisk of a wildcard.
_LABEL = "[a-z0-9_-]{1,63}"

# Stand for themselves, in an expression and in a path. Not "." and others that an expression needs.
_HARMLESS = frozenset("/-_~")

# Characters that a path has for itself or percent-encoded, with different meanings (RFC 3986 section 2.2), and that of the encoding.
_RESERVED = frozenset(":/?#[]@!$&'()*+,;=%")


def of_hosts(hosts: Iterable[str], is_bare: bool = False) -> str:
    """Return an expression for a host's name alone, in any case.

    Args:
        is_bare: whether an IPv6 address that is looked at has no brackets.
    """
    return f"(?i:{'|'.join(_of_host(host.strip('[]') if is_bare else host) for host in hosts)})"


def _of_host(host: str) -> str:
    if host.startswith(WILDCARD):
        return rf"{_LABEL}\.{literal(host.removeprefix(WILDCARD))}"
    return literal(host)


def of_prefix(prefix: str, is_encoded: bool = False) -> str:
    """Return an expression for the paths at and below a prefix that is not the root.

    Args:
        is_encoded: whether the path that is looked at may have reserved characters percent-encoded.
    """
    slash = "(?:/|%2[fF])" if is_encoded else "/"
    return f"^{''.join(_encodable(char) for char in prefix) if is_encoded else literal(prefix)}(?:{slash}|$)"


def _encodable(char: str) -> str:
    if char not in _RESERVED:
        return literal(char)
    digits = "".join(digit if digit.isdigit() else f"[{digit}{digit.upper()}]" for digit in f"{ord(char):02x}")
    return f"(?:{literal(char)}|%{digits})"


def literal(text: str) -> str:
    return "".join(_literal(char) for char in text)


def _literal(char: str) -> str:
    if char.isalnum() or char in _HARMLESS:
        return char
    return "\\." if char == "." else f"\\x{{{ord(char):x}}}"
