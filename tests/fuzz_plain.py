"""Change golden requests at random and compare gunicorn's reading with isowsgi's: `python tests/fuzz_plain.py SECONDS [SEED]`.

Prints how many connections both sides served, and how many of their requests the fast path took. Ends with 1 at the first
disagreement, after showing it; the same seed finds it again.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from isowsgi.peek import PEEK_MAX_BYTES
from tests.differential import PEERS, PREFIXES, READS, SERVERS, SETTINGS, Disagreement, Place, compare

REQUESTS = Path(__file__).parent / "requests"

# Put in, or in the place of something: whatever means something to one reader of a head or another.
_PIECES = [
    *(bytes([octet]) for octet in range(256)),
    *(b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b"\r\n ", b"\r\n\t", b" ", b"  ", b"\t", b":", b": ", b" :", b",", b";"),
    *(b"Host", b"Host: a", b"Connection", b"Content-Length", b"Content-Type", b"Transfer-Encoding", b"Expect", b"Cookie", b"Upgrade"),
    *(b"X-Forwarded-Proto", b"X-Forwarded-Ssl", b"X-FORWARDED-PROTOCOL", b"X-Forwarded-For", b"X_Forwarded_Proto", b"SCRIPT_NAME", b"X-A"),
    *(b"close", b"Close", b"keep-alive", b"KEEP-ALIVE", b"upgrade", b"chunked", b"identity", b"100-continue", b"https", b"http", b"on"),
    *(b"0", b"1", b"00", b"+1", b"-1", b"1_0", b"0x1", b"\xb2", b"\xbd", b"99999999999999999999", b"1,1", b"1 1"),
    *(b"GET", b"POST", b"HEAD", b"CONNECT", b"get", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.\xb9"),
    *(b"/", b"//", b"/a", b"/a/b", b"/%C3%A9", b"%2F", b"%", b"%00", b"?", b"#", b"..", b"[", b"]", b"\\", b"|", b"://", b"http://a"),
]  # fmt: skip


def changed(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return a copy with one change."""
    return rng.choice(_CHANGES)(data, others, rng)


def _insert(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.choice(_PIECES) + data[at:]


def _replace(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + rng.choice(_PIECES) + data[end:]


def _delete(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 9)) + data[end:]


def _swap_case(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[start:end].swapcase() + data[end:]


def _add_line(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Put a field line of any request between two lines."""
    lines = data.split(b"\r\n")
    line = rng.choice(rng.choice(others).split(b"\r\n"))
    lines.insert(rng.randint(1, len(lines)), line)
    return b"\r\n".join(lines)


def _repeat_line(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    lines = data.split(b"\r\n")
    lines.insert(rng.randint(1, len(lines)), rng.choice(lines))
    return b"\r\n".join(lines)


def _new_value(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Give a field a value of a few pieces."""
    lines = data.split(b"\r\n")
    at = rng.randrange(len(lines))
    name, colon, _ = lines[at].partition(b":")
    if colon:
        lines[at] = name + colon + b"".join(rng.choices(_PIECES, k=rng.randint(0, 3)))
    return b"\r\n".join(lines)


def _append(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Let the same request follow, or another."""
    return data + rng.choice((data, rng.choice(others)))


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, start + rng.choice((0, 1, 1, 2, 4, 8, 20))


_CHANGES: list[Callable[[bytes, list[bytes], random.Random], bytes]] = [
    _insert, _insert, _replace, _replace, _delete, _repeat, _swap_case, _add_line, _add_line, _repeat_line, _new_value, _new_value, _append,
]  # fmt: skip


def any_place(rng: random.Random) -> Place:
    """Return a place; half of all have gunicorn's default settings."""
    settings = {}
    if rng.random() < 0.5:
        for name in rng.sample(sorted(SETTINGS), rng.choice((1, 1, 2, 3))):
            settings[name] = rng.choice(SETTINGS[name])
    return Place(peer=rng.choice(PEERS), server=rng.choice(SERVERS), prefix=rng.choice(PREFIXES), settings=settings)


def fuzz(seconds: float, seed: int) -> Counter[str]:
    """Compare until the time is over.

    Raises:
        Disagreement: at the first.
    """
    rng = random.Random(seed)
    corpus = [path.read_bytes() for path in sorted(REQUESTS.rglob("*.http"))]
    count: Counter[str] = Counter()
    # A place is kept for a while, for a new one costs more than ten comparisons.
    place = Place()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if count["connections"] % 20 == 0:
            place = any_place(rng)
        data = rng.choice(corpus)
        if place.prefix and rng.random() < 0.9:
            data = data.replace(b" /", b" " + quote(place.prefix, encoding="latin-1").encode() + b"/")
        for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3))):
            data = changed(data, corpus, rng)
        reads = rng.choices(list(READS), k=4)
        readings = compare(data[: PEEK_MAX_BYTES - 1], place, reads, rng.choice((None, None, 1, 7, 100)))
        count["connections"] += 1
        for reading in readings:
            count["refused" if reading.refusal else "taken" if reading.is_plain else "left to gunicorn"] += 1
    return count


def main(arguments: list[str]) -> int:
    seconds = float(arguments[0]) if arguments else 10.0
    seed = int(arguments[1]) if len(arguments) > 1 else random.randrange(1 << 32)
    print(f"seed {seed}")
    try:
        count = fuzz(seconds, seed)
    except Disagreement as exc:
        print(exc)
        return 1
    print(", ".join(f"{number:,} {what}" for what, number in count.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
