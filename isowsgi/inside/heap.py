"""How much memory an app's objects have, in the app's own interpreter: found in looks of a few milliseconds, on the control thread.

What an interpreter has in blocks of up to 512 bytes CPython knows, see `shared.pymalloc`. Larger blocks (a long text, the table of a list
or dict) are malloc's, for all interpreters together. So they are found by their owners: the garbage collector knows all containers, and
these know what they refer to.

The collector shows objects that C code is still making: a tuple whose last items are NULL, and that cannot be resized while anybody else
has a reference to it (cpython#59313). So a look is one call of a function in C that runs others in C over all objects, and returns numbers
alone: the interpreter switches threads and collects garbage between two bytecodes only, so nothing of the app's runs while anything of the
app's is held. Nothing is held afterwards: the youngest generation is left out, as it has the look's own iterators, which would keep each
other alive, with all that they have; and the collector is off meanwhile, so that they stay there. Only of built-in types, and of these
exactly, is a size asked: that of a class is what the app says. At a round's begin all that is young becomes old, so what is made later is
for the next round. What C code allocates by itself (a cache of SQLite's) is not seen.

An app of Flask, Django and Jinja together has 55,000 containers: a round of 200 to 300 ms (CPython 3.11 to 3.15).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Set
from functools import partial
from itertools import chain, compress, islice, starmap, tee
from operator import methodcaller, not_
from typing import Any, TypeVar

from isowsgi.shared import messages, pymalloc

T = TypeVar("T")

# pymalloc's limit; larger blocks are malloc's.
_SMALL_BYTES = 512

# malloc's own word before a block, and the garbage collector's two before an object that it knows.
_MALLOC_BYTES, GC_BYTES = 16, 16

# What a container counts for beside what has a size of its own, in the weight.
_CONTAINER_BYTES = 64

# How long one look should take; the control thread holds the GIL for as long. So many containers are looked at as that takes.
_LOOK_S = 0.003
_FEWEST, _MOST = 1024, 8192

# The table of a list or dict from which on only some of what it knows is looked at, once that is known: all of it is 10 ms a megabyte.
_LONG_BYTES, _STEP = 256 * 1024, 64

# From how many containers on none are looked at: the list of all, of which each look makes one, would take 10 ms alone.
_MOST_CONTAINERS = 500_000

# Old ones first: they keep their order, and what gets older moves to their end.
_GENERATIONS = ((2,), (1,))

# Objects that CPython 3.12 has frozen itself, some 400.
_FROZEN = gc.get_freeze_count()

_exactly = frozenset(map(id, (str, bytes, bytearray, list, dict, set, frozenset, tuple)))
_flags: Any = type.__dict__["__flags__"].__get__
_HAS_GC = 1 << 14  # Py_TPFLAGS_HAVE_GC
_size = methodcaller("__sizeof__")


def _containers() -> Iterator[Any]:
    """Return all containers, from lists that are made when the first one of each is asked for."""
    return chain.from_iterable(starmap(gc.get_objects, _GENERATIONS))


def _some(first: int, count: int, but: Set[int]) -> Iterator[Any]:
    """Return some containers, and what they refer to that the collector has no list of, through tuples and dicts of such objects too.

    Args:
        but: ids of containers whose references are left out.
    """
    own, others, ids = tee(islice(_containers(), first, first + count), 3)
    others = compress(others, map(not_, map(but.__contains__, map(id, ids))))
    known, tracked = tee(chain.from_iterable(map(gc.get_referents, others)))
    plain, inner = tee(compress(known, map(not_, map(gc.is_tracked, tracked))))
    return chain(own, plain, chain.from_iterable(map(gc.get_referents, inner)))


def _known_by(number: int, first: int, count: int) -> Iterator[Any]:
    """Return some of what one container refers to, if it is among those."""
    containers, ids = tee(islice(_containers(), first, first + count))
    return islice(chain.from_iterable(map(gc.get_referents, compress(containers, map(number.__eq__, map(id, ids))))), 0, None, _STEP)


def _sized(objects: Iterator[Any]) -> Iterator[tuple[int, int]]:
    """Return the id of each and how large it is, without the collector's words; of built-in types alone."""
    objects, same = tee(objects)
    sized, again = tee(compress(objects, map(_exactly.__contains__, map(id, map(type, same)))))
    return zip(map(id, sized), map(_size, again), strict=True)


def _sized_known_by(number: int, first: int, count: int) -> Iterator[tuple[int, int]]:
    return _sized(_known_by(number, first, count))


def _typed(objects: Iterator[Any]) -> Iterator[tuple[int, type]]:
    objects, same = tee(objects)
    return zip(map(id, objects), map(type, same), strict=True)


def _at_once(make: Callable[[], Iterator[tuple[int, T]]]) -> dict[int, T]:
    """Return what an iterator over objects of the app's yields, made and used up with nothing in between."""
    collects = gc.isenabled()
    if collects:
        gc.disable()
    try:
        return dict(make())  # no name has the iterator: it is gone, with all that it holds, when this call is
    finally:
        if collects:
            gc.enable()


def sizes(first: int, count: int, but: Set[int]) -> dict[int, int]:
    """Return how large some containers are, and what they know, by id; see `_some` and `_sized`."""
    return _at_once(lambda: _sized(_some(first, count, but)))


def types(first: int, count: int, but: Set[int]) -> dict[int, type]:
    """Return the types of some containers, and of what they know, by id. To hold a type keeps nobody from anything."""
    return _at_once(lambda: _typed(_some(first, count, but)))


class Heap:
    """Measures one interpreter, round after round.

    Attributes:
        large: bytes in large blocks, by the last round that was ended.
        weight: by which interpreters that share their arenas are compared: bytes of what has a size of its own, and containers.
        objects: containers.
        long: sizes of long tables by id, found in the round before: what they know is looked at by a part of it.
    """

    def __init__(self) -> None:
        self.large = self.weight = self.objects = 0
        self._at = -1  # containers that this round has dealt with; -1: none has begun
        self._count = _FEWEST  # how many the next look is at
        self._all = 0
        self._large: dict[int, int] = {}  # sizes by id
        self._scaled = 0  # of what is estimated by some of it
        self._weight = 0
        self.long: dict[int, int] = {}

    def measure(self) -> messages.Measured:
        """Have one look, and return what is known."""
        started = time.thread_time()
        is_whole = self.look()
        small = pymalloc.bytes_in_use()
        return messages.Measured(
            is_whole=is_whole,
            took_s=round(time.thread_time() - started, 6),
            objects=self.objects,
            small=-1 if small is None else small,
            large=self.large,
            weight=self.weight,
        )

    def look(self) -> bool:
        """Continue the round, or begin one; return whether it has ended."""
        started = time.thread_time()
        if self._at < 0:
            self._begin()
        elif self._at < min(self._all, _MOST_CONTAINERS):
            first, count = self._at, self._count
            self._at += count
            self.take(first, count, sizes(first, count, self.long.keys()))
        took_s = time.thread_time() - started
        self._count = min(max(int(self._count * min(_LOOK_S / max(took_s, 1e-6), 2.0)), _FEWEST), _MOST)
        if self._at < min(self._all, _MOST_CONTAINERS):
            return False
        self._end()
        return True

    def _begin(self) -> None:
        self._at = 0
        if gc.get_freeze_count() <= _FROZEN:  # else it is the app that has frozen objects, and not for us to undo
            gc.freeze()
            gc.unfreeze()  # from the youngest generation to the oldest one, and no finalizer is called for it, as by a collection
        self._all = sum(map(len, starmap(gc.get_objects, _GENERATIONS)))
        if self._all > _MOST_CONTAINERS:
            self._at = self._all
        self._large, self._scaled, self._weight = {}, 0, 0

    def _end(self) -> None:
        self.large = sum(self._large.values()) + len(self._large) * (_MALLOC_BYTES + GC_BYTES) + self._scaled
        self.weight, self.objects, self._at = self._weight, self._all, -1
        self.long = {each: size for each, size in self._large.items() if size > _LONG_BYTES}
        self._large = {}

    def take(self, first: int, count: int, found: dict[int, int]) -> None:
        """Add some containers and what they know, whose sizes were found."""
        self._weight += sum(found.values()) + count * _CONTAINER_BYTES
        self._large |= {each: size for each, size in found.items() if size > _SMALL_BYTES}
        for each in [each for each in found if each in self.long]:
            sample = _at_once(partial(_sized_known_by, each, first, count))
            self._weight += sum(sample.values()) * _STEP
            self._scaled += sum(size + _MALLOC_BYTES for size in sample.values() if size > _SMALL_BYTES) * _STEP


def size_of(each: Any) -> int:
    """Return how large an object of a built-in type is, without the collector's words; 0: it is of another type."""
    size: int = each.__sizeof__() if id(type(each)) in _exactly else 0
    return size


def is_collected(kind: type) -> bool:
    """Whether the garbage collector may know objects of a type."""
    return bool(_flags(kind) & _HAS_GC)
