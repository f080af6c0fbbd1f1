"""What a request asks of a file beside its name: unless it has changed, only a part of it, in some encoding. RFC 9110, and where it leaves
a choice, or nginx does otherwise and clients live with it, what nginx does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

# How many of the newest Accept-Encoding fields are remembered: browsers send a handful.
_ACCEPTS = 64

# A part of a Range field, as nginx reads it. More digits than a file can have bytes are no number: it answers 416, too.
_SPEC = re.compile(r" *(\d{1,19})? *- *(\d{1,19})? *")

_ETAG = re.compile(r'(?:W/)?"[^"]*"')


class Unsatisfiable(Exception):
    """None of the ranges is in the file; 416."""


def ranged(value: str, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one behind the last of the range that a request asks for; None: all of the file.

    Several ranges at once get the whole file, which RFC 9110 section 14.2 allows.

    Args:
        value: of the Range field.

    Raises:
        Unsatisfiable: as nginx takes it, which includes what cannot be read.
    """
    if value[:6].lower() != "bytes=" or len(value) < 7:
        return None
    found: list[tuple[int, int]] = []
    for spec in value[6:].split(","):
        match = _SPEC.fullmatch(spec)
        if match is None or match[1] is match[2] is None:
            raise Unsatisfiable
        if match[1] is None:
            start, end = max(size - int(match[2]), 0), size
        else:
            start, end = int(match[1]), size if match[2] is None else min(int(match[2]) + 1, size)
        if start < end:
            found.append((start, end))
        elif start == 0:
            return None  # of a file that is empty
    if not found:
        raise Unsatisfiable
    return found[0] if len(found) == 1 else None


def is_range_meant(environ: Mapping[str, Any], etag: str, modified: int) -> bool:
    """Whether a Range field counts: If-Range names the file as it is now."""
    condition = environ.get("HTTP_IF_RANGE")
    if condition is None:
        return True
    return condition == etag if '"' in condition else seconds(condition) == modified


def failed(environ: Mapping[str, Any], etag: str, modified: int) -> str | None:
    """Return the status of an answer without a body, if a condition of the request asks for it (RFC 9110 section 13.2.2).

    Args:
        modified: seconds since the epoch.
    """
    if (wanted := environ.get("HTTP_IF_MATCH")) is not None:
        if wanted.strip() != "*" and etag not in _ETAG.findall(wanted):
            return "412 Precondition Failed"
    elif (date := environ.get("HTTP_IF_UNMODIFIED_SINCE")) is not None and (since := seconds(date)) is not None and modified > since:
        return "412 Precondition Failed"
    if (known := environ.get("HTTP_IF_NONE_MATCH")) is not None:
        is_known = known.strip() == "*" or etag in (each.removeprefix("W/") for each in _ETAG.findall(known))
    else:
        date = environ.get("HTTP_IF_MODIFIED_SINCE")
        is_known = date is not None and (since := seconds(date)) is not None and modified <= since
    return "304 Not Modified" if is_known else None


def seconds(date: str) -> int | None:
    """Return an HTTP date as seconds since the epoch; None: it is none."""
    try:
        return int(parsedate_to_datetime(date).timestamp())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


@lru_cache(_ACCEPTS)
def accepted(value: str) -> frozenset[str]:
    """Return the encodings that an Accept-Encoding field names and does not refuse."""
    names = set()
    for each in value.split(","):
        name, _, parameters = each.partition(";")
        if not re.search(r"\bq\s*=\s*0(?:\.0{0,3})?\s*$", parameters):
            names.add(name.strip().lower())
    return frozenset(names)


def has_any(environ: Mapping[str, Any]) -> bool:
    """Whether a request may be answered with anything else than all of the file."""
    return (
        "HTTP_RANGE" in environ
        or "HTTP_IF_NONE_MATCH" in environ
        or "HTTP_IF_MODIFIED_SINCE" in environ
        or "HTTP_IF_MATCH" in environ
        or "HTTP_IF_UNMODIFIED_SINCE" in environ
    )
