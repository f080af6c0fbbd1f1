"""Where a client is sent instead of being served. Values only, no I/O.

What a client has sent is in the answer's head, so nothing of it may end a line there, or come to stand where the host is.
"""

from __future__ import annotations

from urllib.parse import quote

# What stays as it is in a path: all that RFC 3986 allows there, and the percent sign of what is encoded already.
_SAFE = "%/:@!$&'()*+,;=~-._"

PATH = "{path}"


def location(target: str, prefix_length: int, path: str, query: str) -> str:
    """Return the address for a request.

    Args:
        target: the setting, in which "{path}" is what follows the mount's prefix.
        prefix_length: of the mount's prefix, decoded.
        path, query: as they were sent; the path begins with the prefix.
    """
    found = target.replace(PATH, _encoded(_after(path, prefix_length), _SAFE))
    return found + ("&" if "?" in found else "?") + _encoded(query, _SAFE + "?") if query else found


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
