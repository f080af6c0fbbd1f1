"""Counts an app's objects by type, and says what its modules' containers hold: for `isowsgi memory`, on the control thread.

All of it is done in looks of a few milliseconds, as `heap` does, and by functions in C that run no code of the app's. No reference to an
object of the app's is kept from one look to the next; within one only to what modules have, which is complete.

Only a process has its allocations traced: `tracemalloc` has one table and one switch for all interpreters of a process, so elsewhere it
would slow the neighbours, tell what they allocate, and hold names of files that belong to another interpreter.
"""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from functools import lru_cache
from itertools import islice
from types import BuiltinFunctionType, FunctionType, GetSetDescriptorType, ModuleType
from typing import Any

from isowsgi.inside import heap
from isowsgi.inside.heap import GC_BYTES, Heap, is_collected, size_of
from isowsgi.inside.private import theirs
from isowsgi.shared.places import exact

_app_sys = theirs("sys")

# How long a look at modules may take, in CPU time: Python code lets go of the GIL meanwhile. A worker has one every 50 ms.
_LOOK_S = 0.008

# Most that is told: an app of Flask, Django and Jinja has 1,100 types with objects, and 900 containers that are large enough.
MOST_TYPES, MOST_HOLDERS, _MOST_LINES = 3000, 2000, 1000
_MOST_NAME_CHARS, _MOST_KEY_CHARS, _MOST_PATH_CHARS = 150, 50, 500

# What is smaller than both is not told: it cannot have grown by much.
_LEAST_BYTES, _LEAST_LENGTH = 4096, 64

# By how many of a container's entries its size is estimated, and how many objects of each entry count.
_SAMPLE, _OF_EACH = 64, 16

# How many times as large as the usual entry one is that is no sample of others.
_UNUSUAL = 16

# How deep the attributes of a module's objects are looked at: `app.cache.entries` is one of two. Of a dict with so few entries, a registry,
# each is looked at: `app.extensions['cache']`.
_DEPTH, _FEW = 2, 64

# How large the table of what is traced may grow: half a million blocks, which take 0.5 s to be read.
_MOST_TRACED_BYTES = 64 * 1024 * 1024

_qualname: Any = type.__dict__["__qualname__"].__get__
_module: Any = type.__dict__["__module__"].__get__
_basicsize: Any = type.__dict__["__basicsize__"].__get__
_mro: Any = type.__dict__["__mro__"].__get__
_namespace: Any = type.__dict__["__dict__"].__get__
_globals: Any = vars(ModuleType)["__dict__"].__get__
_CONTAINERS: tuple[Any, ...] = (list, dict, set, deque)
_CACHE: Any = type(lru_cache(len))
_NO_ENTRIES = (type, ModuleType, FunctionType, BuiltinFunctionType)


class Counting(Heap):
    """Counts the objects of each type."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[str, list[float]] = {}  # number and bytes, by name
        self._counted: set[int] = set()  # ids: containers of several looks may refer to one object

    def take(self, first: int, count: int, found: dict[int, int]) -> None:
        super().take(first, count, found)
        kinds = heap.types(first, count)
        for each in kinds.keys() - self._counted:
            kind = kinds[each]
            sums = self.types.setdefault(_name_of(kind), [0.0, 0.0])
            sums[0] += 1
            sums[1] += (found.get(each) or _basicsize(kind)) + (GC_BYTES if is_collected(kind) else 0)
        self._counted |= kinds.keys()


class Holders:
    """Finds the containers that an app's modules, their classes and their objects have."""

    def __init__(self) -> None:
        self._names = [name for name in list(_app_sys.modules) if type(name) is str]
        self._names.reverse()
        self.found: dict[int, tuple[str, str, int, int, int]] = {}

    def look(self) -> bool:
        """Look at modules for a few milliseconds; return whether there are none left."""
        deadline = time.thread_time() + _LOOK_S
        while self._names and time.thread_time() < deadline:
            name = self._names.pop()
            module = _app_sys.modules.get(name)
            if issubclass(type(module), ModuleType):
                try:
                    self._look_at(name, _globals(module))
                except RuntimeError:  # up to 3.11 the collector runs in between, and finalizers of the app's change what is looked at
                    continue
        return not self._names

    def _look_at(self, name: str, variables: dict[str, Any]) -> None:
        file = variables.get("__file__")
        file = file[:_MOST_PATH_CHARS] if type(file) is str else ""
        seen: set[int] = set()
        todo = [(name, variables, 0)]
        while todo:
            prefix, attributes, depth = todo.pop()
            for key, value in list(attributes.items()):
                if type(key) is not str or key.startswith("__") or id(value) in seen:
                    continue
                seen.add(id(value))
                whole = f"{prefix}.{key}"
                if type(value) is dict and len(value) <= _FEW and depth < _DEPTH:
                    self._look_into(whole, file, value)
                if not self._note(whole, file, value) and depth < _DEPTH and (inner := _attributes(value, name)) is not None:
                    todo.append((whole, inner, depth + 1))

    def _look_into(self, name: str, file: str, registry: dict[Any, Any]) -> None:
        for key, value in list(registry.items()):
            if type(key) is str:
                self._note(f"{name}[{key[:_MOST_KEY_CHARS]!r}]", file, value)

    def _note(self, name: str, file: str, value: Any) -> bool:
        """Note a container; return whether it is one."""
        kind = type(value)
        if kind is _CACHE:
            length, size = _CACHE.cache_info(value).currsize, 0
        else:
            base = next((base for base in _CONTAINERS if issubclass(kind, base)), None)
            if base is None:
                return False
            length = base.__len__(value)
            size = _estimated(value, base, length)
        if (size >= _LEAST_BYTES or length >= _LEAST_LENGTH) and id(value) not in self.found:
            self.found[id(value)] = name[-_MOST_NAME_CHARS:], file, id(value), length, size
        return True


class Tracing:
    """Traces what a process allocates, for a limited time; nothing else does it meanwhile."""

    def __init__(self) -> None:
        self._until = 0.0  # monotonic seconds; 0: nothing is traced
        self._is_registered = False
        self.problem = ""  # why there is nothing, or not all
        self._lines: list[tuple[str, int, int, int]] = []

    def start(self, seconds: float, now: float) -> None:
        import tracemalloc  # late: nothing else needs it

        self.problem, self._lines = "whole", []
        if tracemalloc.is_tracing():
            self.problem = "the app uses tracemalloc itself"
            return
        if not self._is_registered:
            self._is_registered = True
            os.register_at_fork(after_in_child=self.stop)  # a child that the app forks would go on for ever
        tracemalloc.start(1)
        self._until = now + seconds

    def is_on(self, now: float) -> bool:
        """Whether anything is traced; past its time, or with too much, that ends."""
        if self._until:
            import tracemalloc

            if now > self._until:
                self.stop()
            elif tracemalloc.get_tracemalloc_memory() > _MOST_TRACED_BYTES:
                self._read()
                self.problem = "tracing ended early: the app allocated more than half a million blocks that it still has"
        return bool(self._until)

    def take(self) -> list[tuple[str, int, int, int]]:
        """End it, and return what was found."""
        if self._until:
            self._read()
        lines, self._lines = self._lines, []
        return lines

    def _read(self) -> None:
        import tracemalloc

        try:
            found = tracemalloc.take_snapshot()
        finally:
            self.stop()
        ours = os.path.dirname(os.path.dirname(__file__)) + os.sep
        lines = [
            (file[:_MOST_PATH_CHARS], each.traceback[0].lineno, each.count, each.size)
            for each in found.statistics("lineno")
            if not (file := each.traceback[0].filename).startswith((ours, tracemalloc.__file__))
        ]
        self._lines = lines[:_MOST_LINES]

    def stop(self) -> None:
        """Trace no more."""
        if self._until:
            import tracemalloc

            self._until = 0.0
            tracemalloc.stop()


def _name_of(kind: type) -> str:
    module, name = _module_of(kind), exact(_qualname(kind))
    return (name if module in ("builtins", "") else f"{module}.{name}")[:_MOST_NAME_CHARS]


def _module_of(kind: type) -> str:
    try:
        module = _module(kind)
    except AttributeError:  # an app may have deleted it
        return ""
    return module if type(module) is str else ""


def _attributes(value: Any, module: str) -> Any:
    """Return the attributes of a class of a module, or of an object; None: it has none, or they are found elsewhere."""
    kind = type(value)
    if issubclass(kind, type):
        return _namespace(value) if _module_of(value) == module else None
    if issubclass(kind, _NO_ENTRIES):
        return None
    for base in _mro(kind):
        found = _namespace(base).get("__dict__")
        if found is not None:  # a proxy's is no descriptor of C's: it would run code of the app's
            attributes = found.__get__(value) if type(found) is GetSetDescriptorType else None
            return attributes if type(attributes) is dict else None
    return None


def _estimated(container: Any, base: Any, length: int) -> int:
    """Return about how large a container is with its entries, by some of them."""
    step = max(length // _SAMPLE, 1)
    if base is dict:
        entries = list(islice(dict.values(container), 0, None, step))
    elif base is list:
        entries = list(list.__getitem__(container, slice(None, None, step)))
    else:
        entries = list(islice(base.__iter__(container), 0, None, step))
    sizes = sorted(_size(each) + sum(map(_size, islice(gc.get_referents(each), _OF_EACH))) for each in entries)
    usual = sizes[len(sizes) // 2] * _UNUSUAL if sizes else 0
    # A large one among small ones counts for itself only: as one of a sample it would make a list of 10 MiB one of 10 GiB.
    many, few = sum(size for size in sizes if size <= usual), sum(size for size in sizes if size > usual)
    own: int = base.__sizeof__(container)
    return own + few + many * length // max(len(sizes), 1)


def _size(each: Any) -> int:
    kind = type(each)
    if issubclass(kind, _NO_ENTRIES):
        return 0
    return (size_of(each) or _basicsize(kind)) + (GC_BYTES if is_collected(kind) else 0)
