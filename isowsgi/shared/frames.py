"""The control protocol's frames: four bytes of length, most significant first, then that many bytes of JSON. Values only, no I/O.

`controlmessages` has the requests and answers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from isowsgi.shared.applied import MAX_BYTES

# Longest request: one that holds a table of some thousand mounts.
MAX_REQUEST_BYTES = MAX_BYTES + 64 * 1024

# Longest answer that a client takes: the status of thousands of mounts, or the stacks of hundreds of threads.
MAX_ANSWER_BYTES = 64 * 1024 * 1024

_LENGTH = struct.Struct("!I")


class FrameError(Exception):
    """The other side does not speak this protocol; the text says what it did. The connection is useless from then on."""


def encode(message: Mapping[str, Any]) -> bytes:
    """Return a frame; plain ASCII, so that a surrogate (a byte of a file's name) passes too."""
    body = json.dumps(message).encode("ascii")
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Puts one frame together from bytes as they come.

    Args:
        max_bytes: of the JSON; a longer frame is refused as soon as its length is known.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> dict[str, Any] | None:
        """Take in some bytes; return the message once it is whole.

        Raises:
            FrameError: too long, no JSON, no object, or bytes behind it (there is one message each way).
        """
        self._buffer += data
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > self._max_bytes:
            raise FrameError(f"expected a frame of at most {self._max_bytes} bytes, got one of {length}")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        if len(self._buffer) > end:
            raise FrameError("expected one frame, got bytes after it")
        try:
            message = json.loads(self._buffer[_LENGTH.size : end])
        except (ValueError, RecursionError) as exc:  # ValueError: not UTF-8, a syntax error, an int of too many digits
            raise FrameError("expected JSON in UTF-8") from exc
        if not isinstance(message, dict):
            raise FrameError(f"expected a JSON object, got {type(message).__name__}")
        return message
