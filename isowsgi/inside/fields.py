"""What apps say in the heads of their responses, checked once: their statuses and fields, as gunicorn's own class takes them."""

from __future__ import annotations

from typing import Any, NamedTuple

from gunicorn.http.errors import InvalidResponseHeader, InvalidResponseHeaderName
from gunicorn.http.message import TOKEN_RE
from gunicorn.http.wsgi import HEADER_VALUE_RE, STATUS_RE
from gunicorn.util import hop_headers

from isowsgi.shared.rows import RESPONSES


class Status(NamedTuple):
    """What a status means for its response."""

    word: int  # of the scoreboard, where it is counted
    is_special: bool  # whether any of the following is so, or it is a 5xx
    has_no_length: bool
    omits_body: bool


class Field(NamedTuple):
    """How a field that an app gives is treated."""

    pair: tuple[str, str]
    line: bytes  # of the head; b"" if the field is not the app's to say
    length: int | None  # that it states
    asks_upgrade: bool


class Block(NamedTuple):
    """How all fields of a response are treated."""

    pairs: tuple[tuple[str, str], ...]
    lines: bytes  # with the empty one behind them
    length: int | None
    upgrade: bool


# What was checked before: an app sends the same few statuses and fields again and again. Bounded, since it may also make them up: no more
# statuses are remembered then, and of fields, whose values change more, all are forgotten: those that come often are soon there again.
STATUSES: dict[str, Status] = {}
_FIELDS: dict[tuple[str, str], Field] = {}
_MAX_REMEMBERED = 512
_MAX_REMEMBERED_CHARS = 128

# And whole blocks of fields, if all of them were remembered already when they came together: who makes up a value for each response, a
# cookie say, leaves nothing here. With each of two fields remembered by itself, a hello takes one bytecode in thirty more.
BLOCKS: dict[tuple[tuple[str, str], ...], Block] = {}
_MAX_BLOCKS = 256
_MAX_BLOCK_FIELDS = 16


def check_status(status: Any) -> Status:
    if not isinstance(status, str):
        raise TypeError(f"{status!r} is not a string")
    if not STATUS_RE.fullmatch(status):
        raise ValueError(f"Invalid status {status!r}")
    code = int(status[:3])
    # RFC 9110: no body after HEAD, and in 1xx, 204 and 304, whatever the app gives; no length either in 1xx and 204.
    has_no_length = 100 <= code < 200 or code == 204
    omits_body = has_no_length or code == 304
    first_digit = code // 100 if 100 <= code < 600 else 0  # 0: no class that HTTP knows
    known = Status(RESPONSES + first_digit, omits_body or first_digit == 5, has_no_length, omits_body)
    if len(STATUSES) < _MAX_REMEMBERED:
        STATUSES[status] = known
    return known


def check_block(headers: tuple[Any, ...]) -> Block:
    """Return what becomes of fields; if one is bad, raise."""
    pairs, lines = [], []
    length = None
    upgrade = False
    were_all_known = len(headers) <= _MAX_BLOCK_FIELDS
    for name, value in headers:
        field = _FIELDS.get((name, value)) if name.__class__ is str and value.__class__ is str else None
        if field is None:
            were_all_known = False
            field = _check_field(name, value)
        if field.length is not None:
            length = field.length
        elif field.asks_upgrade:
            upgrade = True
        if field.line:
            pairs.append(field.pair)
            lines.append(field.line)
    lines.append(b"\r\n")
    block = Block(tuple(pairs), b"".join(lines), length, upgrade)
    if were_all_known and set(map(type, headers)) <= {tuple}:
        if len(BLOCKS) >= _MAX_BLOCKS:
            BLOCKS.clear()
        BLOCKS[headers] = block
    return block


def _check_field(name: Any, value: Any) -> Field:
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is not a string")
    if not TOKEN_RE.fullmatch(name):
        raise InvalidResponseHeaderName(repr(name))
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    if not HEADER_VALUE_RE.fullmatch(value):
        raise InvalidResponseHeader(repr(name))  # not the value: it may be a secret
    lower, stripped = name.lower(), value.strip(" \t")
    is_ours = lower in hop_headers and not (lower == "upgrade" and stripped.lower() == "websocket")
    field = Field(
        pair=(name, stripped),
        line=b"" if is_ours else f"{name}: {stripped}\r\n".encode("latin-1"),
        length=_check_length(stripped) if lower == "content-length" else None,
        asks_upgrade=lower == "connection" and stripped.lower() == "upgrade",
    )
    if len(name) + len(value) <= _MAX_REMEMBERED_CHARS and name.__class__ is value.__class__ is str:
        if len(_FIELDS) >= _MAX_REMEMBERED:
            _FIELDS.clear()
        _FIELDS[name, value] = field
    return field


def _check_length(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"Content-Length must be a number, got {value!r}")
    return int(value)
