"""Target: the fast path, and gunicorn's parser as an instance feeds it. Oracle: gunicorn serving the same bytes (tests/differential.py)."""

from __future__ import annotations

import random
from typing import Any
from urllib.parse import quote

from isowsgi.shared.peek import PEEK_MAX_BYTES
from tests.differential import PEERS, PREFIXES, READS, SERVERS, SETTINGS, Place, compare
from tests.fuzz.mutate import any_request, changed

# Settings in use at a time: gunicorn's Config is large, and a new one takes longer than ten comparisons.
_PLACES = 200

# Longest case that is read in small steps.
_STEPPED_BYTES = 8192


class PlainTarget:
    name = "plain"

    def __init__(self, rng: random.Random) -> None:
        self._places = [any_place(rng) for _ in range(_PLACES)]

    def draw(self, rng: random.Random) -> dict[str, Any]:
        case = {
            **rng.choice(self._places),
            "data": any_request(rng),
            "reads": rng.choices(list(READS), k=4),
            "step": rng.choice((None, None, 1, 7, 100)),
        }
        prefix = case["prefix"]
        if prefix and rng.random() < 0.9:
            case["data"] = case["data"].replace(b" /", b" " + quote(prefix, encoding="latin-1").encode() + b"/")[: PEEK_MAX_BYTES - 1]
        return case

    def change(self, case: dict[str, Any], rng: random.Random) -> dict[str, Any]:
        place = rng.choice(self._places) if rng.random() < 0.1 else {}
        return {**case, **place, "data": changed(case["data"], rng, rng.choice((1, 1, 2)))}

    def check(self, case: dict[str, Any]) -> list[str]:
        place = Place(peer=case["peer"], server=case["server"], prefix=case["prefix"], settings=case["settings"])
        # gunicorn looks through all trailers that it has for each read: 64 KiB of them byte by byte take it 10 s, as they would on a socket
        # from a client that sends 65,536 packets.
        step = case["step"] if len(case["data"]) <= _STEPPED_BYTES else None
        readings = compare(case["data"], place, case["reads"], step)
        return ["refused" if reading.refusal else "taken" if reading.is_plain else "left to gunicorn" for reading in readings]

    def close(self) -> None:
        """Nothing is open."""


def any_place(rng: random.Random) -> dict[str, Any]:
    """Return the facts of a place; half of all have gunicorn's default settings."""
    return {"peer": rng.choice(PEERS), "server": rng.choice(SERVERS), "prefix": rng.choice(PREFIXES), "settings": any_settings(rng)}


def any_settings(rng: random.Random) -> dict[str, Any]:
    names = rng.sample(sorted(SETTINGS), rng.choice((1, 1, 2, 3))) if rng.random() < 0.5 else []
    return {name: rng.choice(SETTINGS[name]) for name in names}
