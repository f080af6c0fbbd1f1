"""How much memory an app's objects have, in the app's own interpreter: found in looks of a few milliseconds, on the control thread.

What an interpreter has in blocks of up to 512 bytes CPython knows, see `shared.pymalloc`. Larger blocks (a long text, the table of a list
or dict) are malloc's, for all interpreters together. So they are found by their owners: the garbage collector knows all containers, these
know what they refer to, and each says how large it is. An object that several refer to counts for each of them by its share.

All of it is done by functions in C that run no code of the app's: no `__sizeof__`, `__class__`, `__hash__` or `__eq__` of a class
that is written in Python is called. What C code allocates by itself (a cache of SQLite's) is not seen.

An app of Flask, Django and Jinja together has 61,000 containers with 358,000 references: a round of 150 ms (CPython 3.14.10), in 40 looks.
"""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from isowsgi.shared import messages, pymalloc

# pymalloc's limit; larger blocks are malloc's.
_SMALL_BYTES = 512

# malloc's own word before a block, and the garbage collector's two before an object that it knows.
_MALLOC_BYTES, GC_BYTES = 16, 16

# What a container and a reference count for beside what has a size of its own, in the weight.
_CONTAINER_BYTES, _REFERENCE_BYTES = 64, 16

# Containers between two looks at the clock: some 0.2 ms.
_AT_ONCE = 64

# What is longer is looked at by a sample, of so many references.
_LONG_BYTES, _SAMPLE = 32 * 1024, 2048

# How long one look may take, beside the list of all containers (1 ms for 60,000). The control thread holds the GIL for as long.
LOOK_S = 0.003

Sizer = Callable[[Any], int]
mro: Any = type.__dict__["__mro__"].__get__
namespace: Any = type.__dict__["__dict__"].__get__
_itemsize: Any = type.__dict__["__itemsize__"].__get__
_basicsize: Any = type.__dict__["__basicsize__"].__get__
_flags: Any = type.__dict__["__flags__"].__get__
_IS_HEAP_TYPE, _HAS_GC = 1 << 9, 1 << 14  # Py_TPFLAGS_HEAPTYPE, Py_TPFLAGS_HAVE_GC
_MethodDescriptor = type(str.__sizeof__)
_OF_OBJECT: Any = object.__dict__["__sizeof__"]


def sizer_of(kind: type) -> Any:
    """Return the function in C that says how large an object of a type is, without the garbage collector's words."""
    for base in mro(kind):
        found = namespace(base).get("__sizeof__")
        if type(found) is _MethodDescriptor:
            return found
    return _OF_OBJECT


def is_collected(kind: type) -> bool:
    """Whether the garbage collector may know objects of a type."""
    return bool(_flags(kind) & _HAS_GC)


class Heap:
    """Measures one interpreter, round after round.

    Attributes:
        large: bytes in large blocks, by the last round that was ended.
        weight: by which interpreters that share their arenas are compared: bytes of what has a size of its own, and references.
        objects: containers.
    """

    def __init__(self) -> None:
        self.large = self.weight = self.objects = 0
        self._containers, self._others = _Sizers(_of_container), _Sizers(_of_other)
        self._at = -1  # containers that this round has dealt with; -1: none has begun
        self._large = 0.0
        self._weight = 0

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

    def look(self, limit_s: float = LOOK_S) -> bool:
        """Continue the round, or begin one; return whether it has ended.

        Args:
            limit_s: CPU time; while others have the processor nothing is gained by looking at less.
        """
        if self._at < 0:
            self._at, self._large, self._weight = 0, 0.0, 0
        # No reference to an object of the app's is kept from one look to the next: it would end later than it should, and on this thread.
        # So each look begins with a list of all. Old ones come first and keep their order, and what gets older moves to their end.
        lists = gc.get_objects(0), gc.get_objects(1), gc.get_objects(2)
        ours = {*map(id, lists)}  # a collection between two of the calls would put one into the other, with all that it holds
        objects = [*lists[2], *lists[1], *lists[0]]
        del lists
        deadline = time.thread_time() + limit_s
        try:
            while self._at < len(objects) and time.thread_time() < deadline:
                self._take([each for each in objects[self._at : self._at + _AT_ONCE] if id(each) not in ours])
                self._at += _AT_ONCE
        finally:
            self._containers.forget()
            self._others.forget()
        if self._at < len(objects):
            return False
        self.large, self.weight, self.objects, self._at = int(self._large), self._weight, len(objects), -1
        return True

    def _take(self, containers: list[Any]) -> None:
        """Add containers, and what only they know: the garbage collector has no list of texts and numbers."""
        sized = [(sizer(each), each) for sizer, each in zip(self._containers.of(containers), containers, strict=True) if sizer is not None]
        self._weight += sum([size for size, _ in sized]) + len(containers) * _CONTAINER_BYTES
        long = [each for size, each in sized if size > _LONG_BYTES]
        self._large += sum([size + _MALLOC_BYTES + GC_BYTES for size, _ in sized if size > _SMALL_BYTES])
        del sized
        if long:
            apart = {*map(id, long)}
            containers = [each for each in containers if id(each) not in apart]
        self._take_referents(gc.get_referents(*containers), 1.0)
        while long:
            self._take_sample(long.pop())

    def _take_sample(self, container: Any) -> None:
        """Add what a long list or dict knows by some of it, evenly spaced: to look at a million references takes 150 ms."""
        kind = type(container)
        base = next((base for base in (list, tuple, dict, set) if issubclass(kind, base)), None)
        if base is None:
            self._take_referents(gc.get_referents(container), 1.0)
            return
        count = base.__len__(container)
        step = max(count // _SAMPLE, 1)
        if base is list or base is tuple:
            sample = list(base.__getitem__(container, slice(None, None, step)))
        else:
            sample = list(islice(dict.values(container) if base is dict else set.__iter__(container), 0, None, step))
        self._take_referents(sample, count / max(len(sample), 1))

    def _take_referents(self, found: list[Any], factor: float) -> None:
        """Add what containers refer to.

        Args:
            factor: how many each of them stands for.
        """
        self._weight += int(len(found) * _REFERENCE_BYTES * factor)
        inner = [each for each in found if ((kind := type(each)) is tuple or kind is dict) and not gc.is_tracked(each)]
        if inner:  # of texts and numbers: the garbage collector leaves these out as well
            found += gc.get_referents(*inner)
        del inner
        large = [
            (size, each)
            for sizer, each in zip(self._others.of(found), found, strict=True)
            if sizer is not None and (size := sizer(each)) > _SMALL_BYTES and not gc.is_tracked(each)
        ]
        times = Counter([id(each) for _, each in large])
        while large:
            size, each = large.pop()
            if count := times.pop(id(each), 0):
                # Beside the app's references: `count` in `found`, those of `large` that are left, `each`, and the call's.
                self._large += factor * (size + _MALLOC_BYTES) * min(count / max(sys.getrefcount(each) - 2 * count - 1, 1), 1.0)


class _Sizers:
    """The functions that say how large objects are, by type.

    Args:
        find: returns that of a type; None: what such an object takes is not looked for.
    """

    def __init__(self, find: Callable[[type], Sizer | None]) -> None:
        self._find = find
        self._found: dict[int, Sizer | None] = {}
        self._mortal: list[tuple[int, type]] = []  # types that may end, and another one would get the number; each is kept for one look

    def of(self, objects: list[Any]) -> Iterator[Sizer | None]:
        """Return one for each object."""
        kinds = list(map(type, objects))
        keys = list(map(id, kinds))
        if new := {*keys} - self._found.keys():
            for key, kind in zip(keys, kinds, strict=True):
                if key in new:
                    new.remove(key)
                    self._found[key] = self._find(kind)
                    if _flags(kind) & _IS_HEAP_TYPE:
                        self._mortal.append((key, kind))
        return map(self._found.get, keys)

    def forget(self) -> None:
        """Let go of the app's types."""
        for key, _ in self._mortal:
            del self._found[key]
        self._mortal.clear()


def _of_container(kind: type) -> Any:
    """Return the function in C that says how large an object of a type is; None if all are the same, and small."""
    found = sizer_of(kind)
    if found is _OF_OBJECT and not _itemsize(kind) and _basicsize(kind) <= _SMALL_BYTES:
        return None
    return found


def _of_other(kind: type) -> Any:
    """The same of what no list of containers has: what knows no others, and tuples and dicts of texts and numbers. No int is large."""
    if kind is int or (_flags(kind) & _HAS_GC and kind is not tuple and kind is not dict):
        return None
    return _of_container(kind)
