"""Where a client is sent instead of being served. Values only, no I/O.

What a client has sent is in the answer's head, so nothing of it may end a line there, or come to stand where the host is.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from isowsgi.shared import answers

# What stays as it is in a path: all that RFC 3986 allows there, and the percent sign of what is encoded already.
_SAFE = "%/:@!$&'()*+,;=~-._"

PATH = "{path}"

# A host that may stand in an address; and its port, which is that of plain HTTP.
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d*)?")

# Methods whose client may ask with GET for what it was sent to; for the others 308 keeps the method and body.
_SAFE_METHODS = frozenset(("GET", "HEAD"))


def location(target: str, prefix_length: int, path: str, query: str) -> str:
    """Return the address for a request.

    Args:
        target: the setting, in which "{path}" is what follows the mount's prefix.
        prefix_length: of the mount's prefix, decoded.
        path, query: as they were sent; the path begins with the prefix.
    """
    found = target.replace(PATH, _encoded(_after(path, prefix_length), _SAFE))
    return found + ("&" if "?" in found else "?") + _encoded(query, _SAFE + "?") if query else found


def to_https(method: str, host: str, uri: str) -> tuple[str, str, str]:
    """Return what a request is answered that came without TLS and must have it: status, a text, and where to go, "" for nowhere.

    Args:
        host: the Host field, "" if there is none.
        uri: the target as it was sent.
    """
    found = _HOST.fullmatch(host)
    if found is None:
        return "400 Bad Request", "https is needed, and the request names no host to ask with it", ""
    path, _, query = uri.partition("#")[0].partition("?")
    if not path.startswith("/"):  # absolute-form, or `*`
        path = "/" + path.partition("://")[2].partition("/")[2]
    place = f"https://{found[1]}{location(PATH, 0, path, query)}"
    return answers.MOVED[301 if method in _SAFE_METHODS else 308], f"This address has moved to {place}", place


def _encoded(text: str, safe: str) -> str:
    """Return a part of a request's target as it may stand in a field."""
    return quote(text.encode("latin-1", "replace"), safe=safe)


def _after(path: str, length: int) -> str:
    """Return what follows a prefix of a path as it was sent: "" or what begins with a slash, as the client wrote it.

    Args:
        length: of the prefix, decoded. `*` and a missing path are the root.
    """
    start = 0
    for _ in range(length):
        start += 3 if _is_encoded(path[start : start + 3]) else 1
    rest = path[start:]
    return rest if rest.startswith("/") else "/" + rest[3:] if rest[:3].lower() == "%2f" else ""


def _is_encoded(text: str) -> bool:
    return len(text) == 3 and text[0] == "%" and all(digit in "0123456789abcdefABCDEF" for digit in text[1:])
