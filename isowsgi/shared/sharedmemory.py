"""Memory that processes share, and texts in it: sealed, so that nobody can cut it off under its readers, and read without a lock."""

from __future__ import annotations

import fcntl
import mmap
import os

GRANULE = 64 * 1024  # of mappings: the largest page of any Linux that CPython runs on

# What sequences and turns run up to, so that not even a stray value makes a word overflow.
TURN_MASK = (1 << 62) - 1

_TEXT_HEAD = 64

# How often a reader looks again at a text that is written over meanwhile.
_MOST_TRIES = 100


def make_memory(name: str, size: int, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL) -> int:
    """Return the descriptor of new shared memory, all zero, that nobody can make shorter: who reads beyond its end gets SIGBUS."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def text_bytes(capacity: int) -> int:
    """Return the room that a `Text` takes."""
    return -(-(_TEXT_HEAD + 2 * capacity) // GRANULE) * GRANULE


class Text:
    """A text with one writer and any number of readers, who never see half of a new one: two buffers, in turn.

    Attributes:
        capacity: bytes of the longest text.
    """

    def __init__(self, memory: mmap.mmap, offset: int, capacity: int) -> None:
        octets = memoryview(memory)
        self._head = octets[offset : offset + _TEXT_HEAD].cast("q")  # how many were written; the length of either
        start = offset + _TEXT_HEAD
        self._buffers = (octets[start : start + capacity], octets[start + capacity : start + 2 * capacity])
        self.capacity = capacity

    def write(self, data: bytes) -> None:
        """Put a text in place of the one before.

        Raises:
            ValueError: it is too long.
        """
        if len(data) > self.capacity:
            raise ValueError(f"a text of {len(data)} bytes is too long for its place in shared memory, which has room for {self.capacity}")
        turn = (self._head[0] + 1) & TURN_MASK
        self._buffers[turn % 2][: len(data)] = data
        self._head[1 + turn % 2] = len(data)
        self._head[0] = turn

    def read(self) -> bytes:
        """Return the newest text; b"" if there is none yet, or if somebody writes without a pause: a reader waits for nobody."""
        for _ in range(_MOST_TRIES):
            turn = self._head[0]
            if not turn:
                return b""
            data = bytes(self._buffers[turn % 2][: max(self._head[1 + turn % 2], 0)])
            if self._head[0] == turn:  # else the next but one may have been written over it meanwhile
                return data
        return b""

    def release(self) -> None:
        for view in (self._head, *self._buffers):
            view.release()

    def turn(self) -> int:
        """Return a number that changes with each text."""
        return self._head[0]
