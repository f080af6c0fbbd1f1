"""Keeps what it is asked to: `/large?5` 5 MiB in blocks of 1 MiB, `/small?5` about 5 MiB in objects of a class, with a text each."""

from __future__ import annotations

from typing import Any

KEPT: list[Any] = []

_MIB = 1024 * 1024


class Item:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


# An object of one slot with the collector's two words: 40 bytes, so a block of 48; its text of 200 letters: 241 bytes, so a block of 256;
# and its place in the list: 8, or 9 with the room to grow.
_ITEM_BYTES = 48 + 256 + 8


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    mib = int(environ["QUERY_STRING"] or 0)
    if environ["PATH_INFO"] == "/large":
        for _ in range(mib):
            KEPT.append(b"x" * _MIB)  # not zeros, which take no memory before somebody writes to it
    elif environ["PATH_INFO"] == "/small":
        for number in range(mib * _MIB // _ITEM_BYTES):
            KEPT.append(Item(f"{number:0200}"))
    elif environ["PATH_INFO"] == "/nothing":
        KEPT.clear()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
