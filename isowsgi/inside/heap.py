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

An app of Flask, Django and Jinja together has 67,000 containers: a round of 130 ms with warm caches (CPython 3.14), and of more in looks
with pauses between them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Set
from itertools import chain, compress, islice, starmap, tee
from operator import methodcaller, not_
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
)
from typing import Any, TypeVar, cast
from weakref import ReferenceType

from isowsgi.shared import messages, pymalloc, releases, residentmemory

T = TypeVar("T")

# pymalloc's limit; larger blocks are malloc's.
_SMALL_BYTES = 512

# malloc's own word before a block, and the garbage collector's two before an object that it knows.
_MALLOC_BYTES, GC_BYTES = 16, 16

# What a container counts for beside what has a size of its own, in the weight.
_CONTAINER_BYTES = 64

# How long one look should take beside the list of all that it begins with, or as long as that one: a heap four times as large would
# otherwise take sixteen times as long (460,000 containers 8 s, and so 1.3 s); and at most. The control thread holds the GIL meanwhile.
# So many containers are looked at as that takes.
_LOOK_S, _LONGEST_LOOK_S = 0.003, 0.01
_FEWEST, _MOST = 1024, 8192

# The table of a list or dict from which on only some of what it knows is looked at: all of it is 10 ms a megabyte.
_LONG_BYTES, _STEP = 256 * 1024, 64

# From how many containers on none are looked at: the list of all, of which each look makes one, would take 10 ms alone. A round that has
# begun with fewer ends when there are more.
_MOST_CONTAINERS = 500_000

# How much longer than it should a look at the fewest has to take for the containers to be counted again.
_SLOWER = 2.0

# Old ones first: they keep their order, and what gets older moves to their end.
_GENERATIONS = ((2,), (1,))

# Objects that CPython 3.12 has frozen itself, some 400.
_FROZEN = gc.get_freeze_count()

_exactly = frozenset(map(id, (str, bytes, bytearray, list, dict, set, frozenset, tuple)))
_flags: Any = type.__dict__["__flags__"].__get__
_HAS_GC = 1 << 14  # Py_TPFLAGS_HAVE_GC
_size = methodcaller("__sizeof__")

# What objects that the collector has no list of may refer to others.
_nested = frozenset(map(id, (tuple, dict, frozenset)))

# A third of all containers, which have no large block that nobody else has.
_barren: tuple[type, ...] = (
    BuiltinFunctionType, WrapperDescriptorType, MethodDescriptorType, ClassMethodDescriptorType, GetSetDescriptorType,
    MemberDescriptorType, ReferenceType,
)  # fmt: skip
_BARREN = frozenset(map(id, (*_barren, FunctionType) if releases.KNOWS_NAMESPACES_OF_FUNCTIONS else _barren))


def _containers() -> Iterator[Any]:
    """Return all containers, from lists that are made when the first one of each is asked for."""
    return chain.from_iterable(starmap(gc.get_objects, _GENERATIONS))


def _twice(objects: Iterator[T]) -> tuple[Iterator[T], Iterator[T]]:
    """Return two iterators over the same, by one list, which is made when either is used."""
    first, second = tee(map(list, [objects]))
    return chain.from_iterable(first), chain.from_iterable(second)


def _where(objects: Iterator[Any], ids: Set[int], key: Callable[[Any], Any] | None = None, but: bool = False) -> Iterator[Any]:
    """Return those whose id, or whose key's id, is among some; or those whose is not."""
    objects, same = _twice(objects)
    found: Iterator[bool] = map(ids.__contains__, map(id, map(key, same) if key else same))
    return compress(objects, map(not_, found) if but else found)


def _referents(objects: Iterator[Any]) -> Iterator[Any]:
    """Return what some objects refer to, each once."""
    known, same = tee(starmap(gc.get_referents, [cast("Any", objects)]))
    by_id = zip(map(id, chain.from_iterable(known)), chain.from_iterable(same), strict=True)
    return chain.from_iterable(map(dict.values, map(dict, [by_id])))


def _short(objects: Iterator[Any]) -> Iterator[Any]:
    """Return those without a long table."""
    objects, same = _twice(objects)
    sized, again = _twice(_where(same, _exactly, type))
    return chain(_where(objects, _exactly, type, but=True), compress(sized, map(_LONG_BYTES.__ge__, map(_size, again))))


def _some(first: int, count: int, is_sized: bool) -> Iterator[Any]:
    """Return some containers, and what they refer to that the collector has no list of, through tuples and dicts of such objects too.

    What those with long tables refer to is left out.

    Args:
        is_sized: whether only what may have a large block is wanted.
    """
    own: Iterator[Any] = islice(_containers(), first, first + count)
    own, others = _twice(_where(own, _BARREN, type, but=True) if is_sized else own)
    known = _referents(_short(others))
    known, tracked = _twice(_where(known, _exactly, type) if is_sized else known)
    plain, inner = _twice(compress(known, map(not_, map(gc.is_tracked, tracked))))
    return chain(own, plain, _referents(_where(inner, _nested, type)))


def _known_by(ids: Set[int], first: int, count: int) -> Iterator[Any]:
    """Return some of what containers with such ids refer to, of those that are among some."""
    containers = _where(islice(_containers(), first, first + count), ids)
    return islice(chain.from_iterable(map(gc.get_referents, containers)), 0, None, _STEP)


def _sized(objects: Iterator[Any]) -> Iterator[int]:
    """Return the ids of all of built-in types, and then how large they are, without the collector's words."""
    sized, again = _twice(_where(objects, _exactly, type))
    return chain(map(id, sized), map(_size, again))


def _typed(objects: Iterator[Any]) -> Iterator[Any]:
    objects, same = _twice(objects)
    return chain(map(id, objects), map(type, same))


def _at_once(make: Callable[[], Iterator[Any]]) -> dict[int, Any]:
    """Return what is found of objects of the app's, by id, in one call with nothing in between.

    Args:
        make: returns an iterator over their ids, and then over as many values.
    """
    collects = gc.isenabled()
    if collects:
        gc.disable()
    try:
        found = list(make())  # no name has the iterator: it is gone, with all that it holds, when this call is
    finally:
        if collects:
            gc.enable()
    count = len(found) // 2
    return dict(zip(islice(found, count), islice(found, count, None), strict=True))


def sizes(first: int, count: int) -> dict[int, int]:
    """Return how large some containers are, and what they know, by id; see `_some` and `_sized`."""
    return _at_once(lambda: _sized(_some(first, count, is_sized=True)))


def types(first: int, count: int) -> dict[int, type]:
    """Return the types of some containers, and of what they know, by id. To hold a type keeps nobody from anything."""
    return _at_once(lambda: _typed(_some(first, count, is_sized=False)))


class Heap:
    """Measures one interpreter, round after round.

    Attributes:
        large: bytes in large blocks, by the last round that was ended.
        weight: by which interpreters that share their arenas are compared: bytes of what has a size of its own, and containers.
        objects: containers.
    """

    def __init__(self) -> None:
        self.large = self.weight = self.objects = 0
        self._at = -1  # containers that this round has dealt with; -1: none has begun
        self._count = _FEWEST  # how many the next look is at
        self._all = 0
        self._listing_s = 0.0  # how long it takes to make the list of all, which each look does
        self._large: dict[int, int] = {}  # sizes by id
        self._scaled = 0  # of what is estimated by some of it
        self._weight = 0

    def measure(self) -> messages.Measured:
        """Have one look, and return what is known."""
        started, before, faults = time.thread_time(), residentmemory.bytes_of("self"), residentmemory.faults_of()
        is_whole = self.look()
        small = pymalloc.bytes_in_use()
        return messages.Measured(
            is_whole=is_whole,
            took_s=round(time.thread_time() - started, 6),
            grown=_grown(before, faults),
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
            self.take(first, count, sizes(first, count))
        took_s = time.thread_time() - started
        should_take_s = self._should_take_s()
        if self._count == _FEWEST and took_s > _SLOWER * should_take_s:
            self._count_all()
            should_take_s = self._should_take_s()
        self._count = min(max(int(self._count * min(should_take_s / max(took_s, 1e-6), 2.0)), _FEWEST), _MOST)
        if self._at < min(self._all, _MOST_CONTAINERS):
            return False
        self._end()
        return True

    def _begin(self) -> None:
        self._at = 0
        if gc.get_freeze_count() <= _FROZEN:  # else it is the app that has frozen objects, and not for us to undo
            gc.freeze()
            gc.unfreeze()  # from the youngest generation to the oldest one, and no finalizer is called for it, as by a collection
        self._large, self._scaled, self._weight = {}, 0, 0
        self._count_all()

    def _should_take_s(self) -> float:
        return self._listing_s + min(max(self._listing_s, _LOOK_S), _LONGEST_LOOK_S)

    def _count_all(self) -> None:
        """Count the containers, and be done with this round if they are too many to be looked at."""
        started = time.thread_time()
        found = sum(map(len, starmap(gc.get_objects, _GENERATIONS)))
        self._listing_s = time.thread_time() - started
        if self._at == 0 or found > _MOST_CONTAINERS:  # what is added to a smaller heap meanwhile is for the next round
            self._all = found
        if found > _MOST_CONTAINERS:
            # Who shares arenas with it is compared by weight: without one it would have no part of them.
            self._weight += (found - self._at) * (self.weight // self.objects if self.objects else 2 * _CONTAINER_BYTES)
            self._at = found

    def _end(self) -> None:
        self.large = sum(self._large.values()) + len(self._large) * (_MALLOC_BYTES + GC_BYTES) + self._scaled
        self.weight, self.objects, self._at = self._weight, self._all, -1
        self._large = {}

    def take(self, first: int, count: int, found: dict[int, int]) -> None:
        """Add some containers and what they know, whose sizes were found."""
        self._weight += sum(found.values()) + count * _CONTAINER_BYTES
        large = dict(compress(found.items(), map(_SMALL_BYTES.__lt__, found.values())))
        self._large |= large
        if long := {each for each, size in large.items() if size > _LONG_BYTES}:
            sample = _at_once(lambda: _sized(_known_by(long, first, count)))
            self._weight += sum(sample.values()) * _STEP
            self._scaled += sum(size + _MALLOC_BYTES for size in sample.values() if size > _SMALL_BYTES) * _STEP


def _grown(before: int | None, faults: residentmemory.Faults | None) -> int:
    """Return by how much the process's memory has changed in a look, as far as this thread can have done it: others' apps run meanwhile.

    Args:
        before: bytes (RSS) before the look; None: not known.
        faults: of this thread by then; None: not known.
    """
    after, faults_after = residentmemory.bytes_of("self"), residentmemory.faults_of()
    if before is None or after is None:
        return 0
    if faults is None or faults_after is None:
        return after - before
    most = (faults_after.pages - faults.pages) * residentmemory.PAGE_BYTES
    return min(max(after - before, -most), most)


def size_of(each: Any) -> int:
    """Return how large an object of a built-in type is, without the collector's words; 0: it is of another type."""
    size: int = each.__sizeof__() if id(type(each)) in _exactly else 0
    return size


def is_collected(kind: type) -> bool:
    """Whether the garbage collector may know objects of a type."""
    return bool(_flags(kind) & _HAS_GC)
