"""Target: the router, and the part of its table that an instance keeps. Oracle: every route is tried, and the best that fits is taken."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from isowsgi.shared.routing import Route, Router

_SEGMENTS = ["a", "b", "ab", "A", ".", "..", "", "\xc3\xa9", "a b", "%61", "*"]
_HOSTS = ["", "", "", "a.example", "b.example", "example", "[::1]", "*.example", "*.a.example"]
_ASKED = [
    *("", "a.example", "A.EXAMPLE", "a.example.", "a.example:80", "a.example.:80", "b.example", "example", "x.a.example", "a.example.."),
    *("x.b.example", "*.example", ".example", "A-_9.example:1", "a b.example", "a" * 64 + ".example"),
    *("[::1]", "[::1]:80", "[::1", "::1", ":80", ".", "a.example:80:80", "[", "]", "[]", "\uff41.example", "\u0130.example"),
]

# Cases in a row with one table.
_TABLE_CASES = 50


def naive_match(routes: Iterable[tuple[int, str, str]], host: str, path: str) -> int | None:
    """Return the mount that docs/reference/config.md promises."""
    name = host.lower()
    name = name[: name.find("]") + 1] if name.startswith("[") else name.split(":")[0]
    if name.endswith(".") and not name.startswith("["):
        name = name[:-1]
    fitting = [
        (bool(wanted), "*" not in wanted, len(prefix), mount)
        for mount, wanted, prefix in routes
        if (not wanted or _takes(wanted, name)) and (not prefix or path == prefix or path.startswith(prefix + "/"))
    ]
    return max(fitting)[3] if fitting else None


def _takes(pattern: str, name: str) -> bool:
    if not pattern.startswith("*."):
        return pattern == name
    label, dot, rest = name.partition(".")
    return (
        bool(dot)
        and rest == pattern[2:]
        and 0 < len(label) < 64
        and label.isascii()
        and label.replace("-", "a").replace("_", "a").isalnum()
    )


def any_routes(rng: random.Random) -> list[tuple[int, str, str]]:
    """Return a table: no pattern twice, no slash at an end."""
    keys = set()
    for _ in range(rng.randint(1, 8)):
        prefix = "".join("/" + rng.choice(_SEGMENTS) for _ in range(rng.choice((0, 1, 1, 2, 3))))
        keys.add((rng.choice(_HOSTS), prefix.rstrip("/")))
    return [(number, host, prefix) for number, (host, prefix) in enumerate(sorted(keys))]


class RouterTarget:
    name = "router"

    def __init__(self, rng: random.Random) -> None:
        self._drawn = 0
        self._routes: list[tuple[int, str, str]] = []
        self._made: list[tuple[int, str, str]] = []
        self._router = Router([])
        self._parts: dict[int, Router] = {}

    def draw(self, rng: random.Random) -> dict[str, Any]:
        if self._drawn % _TABLE_CASES == 0:
            self._routes = any_routes(rng)
        self._drawn += 1
        return {"routes": self._routes, "host": rng.choice(_ASKED), "path": self._any_path(rng)}

    def change(self, case: dict[str, Any], rng: random.Random) -> dict[str, Any]:
        return {**case, "path": self._any_path(rng), "routes": self._routes or case["routes"]}

    def _any_path(self, rng: random.Random) -> str:
        path = rng.choice(self._routes)[2] if rng.random() < 0.7 else ""
        path += "".join("/" + rng.choice(_SEGMENTS) for _ in range(rng.choice((0, 0, 1, 1, 2, 3))))
        if rng.random() < 0.1:
            path = path[: rng.randint(0, len(path))] + rng.choice(("/", "x", "//", "?", "\0"))
        if rng.random() < 0.001:
            path += rng.choice(("/", "/a", "a", "//")) * rng.choice((100, 10_000))
        return path or rng.choice(("", "*", "/"))

    def check(self, case: dict[str, Any]) -> list[str]:
        routes, host, path = case["routes"], case["host"], case["path"]
        if routes is not self._made:
            self._made, self._router = routes, Router(Route(*route) for route in routes)
            self._parts = {mount: Router(self._router.rivals(mount)) for mount, _, _ in routes}
        expected = naive_match(routes, host, path)
        got = self._router.match(host, path)
        assert got == expected, f"{host!r} {path!r}: expected mount {expected}, got {got} by {routes}"
        for mount, part in self._parts.items():
            mine = part.match(host, path)
            assert (mine == mount) == (expected == mount), f"{host!r} {path!r} is mount {expected}'s; instance of {mount} says {mine}"
        return ["no mount" if got is None else "a mount"]

    def close(self) -> None:
        """Nothing is open."""
