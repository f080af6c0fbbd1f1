"""Where connections come from, by the numbers of their descriptors."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from isowsgi.shared.origins import PLACE_BYTES, Origin, Origins


@pytest.fixture
def origins() -> Iterator[Origins]:
    made = Origins()
    yield made
    for fd in {made.fd, made._writable}:
        os.close(fd)


@pytest.mark.parametrize(
    ("peer", "own"),
    [
        (("192.0.2.1", 5000), ("198.51.100.2", 443)),
        (("fe80::1%eth0", 5000, 0, 2), ("fe80::2%eth0", 443, 0, 2)),
        ("", "/run/socket"),
        ("K\xe4se", ""),
    ],
)
def test_what_is_written_is_read_by_whoever_has_the_descriptor(origins: Origins, peer: Any, own: Any) -> None:
    origin = Origin(peer, own, {"SSL_CLIENT_CERT": "x" * 5000, "SSL_CLIENT_S_DN": "K\xc3\xa4se"})
    origins.write(7, Origin("", "", {}))
    origins.write(70_000, origin)

    assert Origins(origins.fd).read(70_000) == origin
    assert Origins(origins.fd).read(7) == Origin("", "", {})


def test_a_shorter_text_leaves_nothing_of_the_longer_one(origins: Origins) -> None:
    origins.write(3, Origin(("192.0.2.1", 5000), "/run/socket", {"SSL_CLIENT_CERT": "x" * 5000}))
    origins.write(3, Origin("", "", {}))

    assert origins.read(3) == Origin("", "", {})


def test_names_in_the_abstract_namespace_are_read_as_text(origins: Origins) -> None:
    origins.write(3, Origin(b"\0client", b"\0listener", {}))

    assert origins.read(3) == Origin("\0client", "\0listener", {})


def test_too_much_is_refused_and_the_neighbours_stay(origins: Origins) -> None:
    origins.write(4, Origin("", "/run/socket", {}))
    with pytest.raises(ValueError, match="there is room for"):
        origins.write(3, Origin("", "", {"SSL_CLIENT_CERT": "x" * PLACE_BYTES}))

    assert origins.read(4).own == "/run/socket"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01\0",
        b"\xff\xff\xff\xff[]",
        *(struct.pack("=I", len(text)) + text for text in (b"", b"5", b"[1, 2]", b'["", "", 3]', b"\xff", b'[1, "", {}]', b"[" * 9000)),
    ],
)
def test_what_cannot_be_read_is_one_kind_of_error(origins: Origins, data: bytes) -> None:
    """Child processes may write there, or nobody has: the connection is closed, and no more comes of it."""
    os.pwrite(origins._writable, data, 3 * PLACE_BYTES)

    with pytest.raises(ValueError):  # noqa: PT011 # json has texts of its own
        origins.read(3)


def test_instances_can_neither_write_nor_cut_off(origins: Origins) -> None:
    origins.write(3, Origin("", "/run/socket", {}))

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(origins.fd, b"x", 0)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(origins._writable, 0)
