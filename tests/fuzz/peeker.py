"""Target: the peeker, on bytes that come in any pieces.

Oracle: gunicorn's own parser and environ for the same bytes at once. The head's length is what it consumed; the mount is the one of the
environ that an app would see, by the reference of the router's target; what it refuses never has a mount of another reading, and how the
bytes were split never changes what becomes of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gunicorn.http.errors import ConfigurationProblem, NoMoreData, ParseException
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import create

from isowsgi.shared.peek import INCOMPLETE, PEEK_MAX_BYTES, Look, Peeker, Refused
from isowsgi.shared.routing import Route, Router
from tests.differential import PEERS, Wire, configs
from tests.fuzz.mutate import any_request, changed
from tests.fuzz.plain import any_settings
from tests.fuzz.router import naive_match

ROUTES = [
    (0, "", ""),
    (1, "", "/a"),
    (2, "", "/a/b"),
    (3, "a.example", "/a"),
    (4, "b.example", ""),
    (5, "b.example", "/\xc3\xa9"),
    (6, "[::1]", "/b"),
]
_NO_ROOT = [(1, "", "/a"), (2, "", "/a/b"), (3, "a.example", "/b")]
_TABLES = [ROUTES, ROUTES, _NO_ROOT]

# Settings in use at a time, see plain._PLACES.
_SETTINGS = 100


class PeekerTarget:
    name = "peeker"

    def __init__(self, rng: random.Random) -> None:
        self._settings = [any_settings(rng) for _ in range(_SETTINGS)]
        self._peekers: dict[int, Peeker] = {}  # by what is drawn, for as long as it is in use
        self._drawn: list[Any] = []

    def draw(self, rng: random.Random) -> dict[str, Any]:
        data = any_request(rng)
        if rng.random() < 0.02:
            data = rng.randbytes(rng.randint(1, 60))
        return {
            "data": data,
            "cuts": any_cuts(data, rng),
            "peer": rng.choice(PEERS),
            "settings": rng.choice(self._settings),
            "script_name": rng.choice(("", "", "", "", "", "", "/a", "/a/")),
            "routes": rng.choice(_TABLES),
        }

    def change(self, case: dict[str, Any], rng: random.Random) -> dict[str, Any]:
        data = changed(case["data"], rng, rng.choice((1, 1, 2)))
        settings = rng.choice(self._settings) if rng.random() < 0.1 else case["settings"]
        return {**case, "data": data, "cuts": any_cuts(data, rng), "settings": settings}

    def check(self, case: dict[str, Any]) -> list[str]:
        data, peer, routes = case["data"], case["peer"], case["routes"]
        peeker = Peeker(Router(Route(*route) for route in routes), configs(case["settings"])[1], case["script_name"])
        whole = outcome(peeker, data, peer)
        expected = gunicorns_outcome(case)
        pieced = pieced_outcome(peeker, data, case["cuts"], peer)
        if isinstance(expected, tuple):
            length, host, path, may_decline = expected
            wanted = (length, naive_match(routes, host, path))
            if whole is not Refused or not may_decline:
                assert whole == wanted, f"expected length and mount {wanted}, got {whole}"
            assert pieced == whole, f"in pieces {pieced}, at once {whole}"
            return ["declined" if whole is Refused else "taken"]
        if expected is NoMoreData:
            assert whole == pieced == INCOMPLETE[:2], f"expected it to be waited for, got {whole}, in pieces {pieced}"
            return ["unfinished"]
        end = data.find(b"\r\n\r\n") + 4
        if not (whole is Refused and expected is ConfigurationProblem):  # isowsgi's own rules are asked before the environ is made
            assert whole is expected or (isinstance(whole, tuple) and whole[0] == end > 3), f"expected {expected}, got {whole}"
        # Some are left to the instance, which reads them by gunicorn's parser and refuses them then. The line is looked at earlier if it
        # comes alone; so of two faults in a head another one may be found.
        assert isinstance(pieced, type) or pieced[0] == end > 3, f"expected {expected}, got {pieced} in pieces"
        return ["refused"]

    def close(self) -> None:
        """Nothing is open."""


Outcome = tuple[int, int | None] | type[Exception]


def any_cuts(data: bytes, rng: random.Random) -> list[int]:
    return sorted(rng.randint(1, max(len(data), 1)) for _ in range(rng.choice((0, 1, 1, 2, 3, 8))))


def outcome(peeker: Peeker, data: bytes, peer: Any, first_look: bool = True) -> Outcome:
    """Return a look's length and mount, or the type of the refusal; anything else that is raised is a failure."""
    try:
        look: Look = peeker.look(data, peer, first_look)
    except (ParseException, Refused) as exc:
        return type(exc)
    return look.length, look.mount


def pieced_outcome(peeker: Peeker, data: bytes, cuts: list[int], peer: Any) -> Outcome:
    """Return what becomes of bytes that come in pieces, looked at as the acceptor does."""
    line_seen = False
    found: Outcome = INCOMPLETE[:2]
    for length in (*cuts, len(data)):
        so_far = data[:length]
        found = outcome(peeker, so_far, peer, not line_seen)
        if found != INCOMPLETE[:2]:
            break
        line_seen = b"\r\n" in so_far[2:]
    return found


def gunicorns_outcome(case: dict[str, Any]) -> tuple[int, str, str, bool] | type[Exception]:
    """Return what gunicorn makes of the bytes.

    That is how many it consumed, the host and path that an app would see, and whether isowsgi may decline such requests by rules of its
    own; or the type of the refusal.
    """
    data, cfg = case["data"], configs(case["settings"])[0]
    unreader = IterUnreader([data])
    refusal: type[Exception] = NoMoreData  # gunicorn is not annotated
    try:
        request = Request(cfg, unreader, case["peer"], 2)
        with _script_name(case["script_name"]):
            _, environ = create(request, Wire(b""), case["peer"], ("127.0.0.1", 8000), cfg)
    except StopIteration:
        return refusal
    except (ParseException, NoMoreData, ConfigurationProblem) as exc:
        if isinstance(exc, NoMoreData) and len(data) >= PEEK_MAX_BYTES:
            raise AssertionError("cases are shorter than the peek limit") from exc
        return type(exc)
    declines = request.method == "CONNECT" or not request.uri.startswith(("/", "*"))
    return len(data) - len(unreader.buf.getvalue()), environ.get("HTTP_HOST", ""), environ["PATH_INFO"], declines


@contextmanager
def _script_name(name: str) -> Iterator[None]:
    if not name:
        yield
        return
    os.environ["SCRIPT_NAME"] = name
    try:
        yield
    finally:
        del os.environ["SCRIPT_NAME"]
