"""Changed copies of requests: one change at a time, with pieces that mean something to one reader of a head or another."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from isowsgi.shared.peek import PEEK_MAX_BYTES

CORPUS = [path.read_bytes() for path in sorted((Path(__file__).parent.parent / "requests").rglob("*.http"))]

_PIECES = [
    *(bytes([octet]) for octet in range(256)),
    *(b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b"\r\n ", b"\r\n\t", b" ", b"  ", b"\t", b":", b": ", b" :", b",", b";"),
    *(b"Host", b"Host: a", b"Connection", b"Content-Length", b"Content-Type", b"Transfer-Encoding", b"Expect", b"Cookie", b"Upgrade"),
    *(b"X-Forwarded-Proto", b"X-Forwarded-Ssl", b"X-FORWARDED-PROTOCOL", b"X-Forwarded-For", b"X_Forwarded_Proto", b"SCRIPT_NAME", b"X-A"),
    *(b"close", b"Close", b"keep-alive", b"KEEP-ALIVE", b"upgrade", b"chunked", b"identity", b"100-continue", b"https", b"http", b"on"),
    *(b"0", b"1", b"00", b"+1", b"-1", b"1_0", b"0x1", b"\xb2", b"\xbd", b"99999999999999999999", b"1,1", b"1 1"),
    *(b"GET", b"POST", b"HEAD", b"CONNECT", b"get", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.\xb9"),
    *(b"/", b"//", b"/a", b"/a/b", b"/%C3%A9", b"%2F", b"%", b"%00", b"?", b"#", b"..", b"[", b"]", b"\\", b"|", b"://", b"http://a"),
    *(b"a.example", b"b.example", b"[::1]", b"a.example:80", b"A.EXAMPLE.", b"@", b"*"),
]  # fmt: skip


def any_request(rng: random.Random) -> bytes:
    """Return a golden request with a few changes, or none."""
    return changed(rng.choice(CORPUS), rng, rng.choice((0, 1, 1, 1, 2, 2, 3)))


def changed(data: bytes, rng: random.Random, times: int = 1) -> bytes:
    """Return a copy with so many changes, short enough to be peeked at."""
    for _ in range(times):
        data = rng.choice(_CHANGES)(data, rng)
    if rng.random() < 0.002:
        data = _blow_up(data, rng)
    return data[: PEEK_MAX_BYTES - 1]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.choice(_PIECES) + data[at:]


def _replace(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + rng.choice(_PIECES) + data[end:]


def _delete(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 9)) + data[end:]


def _blow_up(data: bytes, rng: random.Random) -> bytes:
    """Repeat something until the request is as long as may be: what takes the square of a length shows then."""
    start, end = _span(data, rng)
    piece = data[start:end] or rng.choice(_PIECES)
    return data[:end] + piece * (PEEK_MAX_BYTES // len(piece)) + data[end:]


def _swap_case(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[start:end].swapcase() + data[end:]


def _add_line(data: bytes, rng: random.Random) -> bytes:
    """Put a field line of any request between two lines."""
    lines = data.split(b"\r\n")
    line = rng.choice(rng.choice(CORPUS).split(b"\r\n"))
    lines.insert(rng.randint(1, len(lines)), line)
    return b"\r\n".join(lines)


def _repeat_line(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\r\n")
    lines.insert(rng.randint(1, len(lines)), rng.choice(lines))
    return b"\r\n".join(lines)


def _new_value(data: bytes, rng: random.Random) -> bytes:
    """Give a field a value of a few pieces."""
    lines = data.split(b"\r\n")
    at = rng.randrange(len(lines))
    name, colon, _ = lines[at].partition(b":")
    if colon:
        lines[at] = name + colon + b"".join(rng.choices(_PIECES, k=rng.randint(0, 3)))
    return b"\r\n".join(lines)


def _append(data: bytes, rng: random.Random) -> bytes:
    """Let the same request follow, or another."""
    return data + rng.choice((data, rng.choice(CORPUS)))


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, start + rng.choice((0, 1, 1, 2, 4, 8, 20))


_CHANGES: list[Callable[[bytes, random.Random], bytes]] = [
    _insert, _insert, _replace, _replace, _delete, _repeat, _swap_case, _add_line, _add_line, _repeat_line, _new_value, _new_value, _append,
]  # fmt: skip
