"""What extension modules share between the interpreters of a process; looked at in a trial only, once an app is loaded.

An extension module may keep objects of one interpreter in C variables, or give all interpreters the same objects. Then one app's
registrations, classes or secrets are in another app's hands (psycopg2's adapters), and an interpreter that ends leaves dead pointers.
Nothing a module declares says so for certain. So three facts are gathered, each without a list of packages:

* how it is initialized: single-phase modules have one state for the whole process, if any (PEP 489, PEP 630);
* which objects that can change are in its namespace: those that two copies of an app have at the same address are shared;
* which objects of this interpreter its C variables point to.

Static types are shared too, but nobody can change them: they do no harm by themselves.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import struct
import sys
import types
from collections.abc import Iterator
from typing import Any

from isowsgi.inside.private import theirs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from isowsgi.inside.extensions import Extensions

_modules = theirs("sys").modules  # the app's

# Of CPython's `type.__flags__`: made at run time, and closed to changes (Include/object.h).
_HEAP_TYPE = 1 << 9
_IMMUTABLE_TYPE = 1 << 8

# Containers are followed so deep: a module's own registries, not the whole of what it knows.
_MOST_DEPTH = 3

# Objects of one module that are looked at: pycurl and numpy's core have some 2,000 names.
_MOST_OBJECTS = 20_000

# Most C variables that are reported of one module; the first few say enough.
_MOST_HELD = 8

# Sizes in C of what the compiler lays out among a module's variables: PyTypeObject on 3.11 to 3.15 (the last field was added in 3.12),
# PyModuleDef on all.
_STATIC_TYPE_WORDS = 52
_MODULE_DEF_WORDS = 13
_SLOTS_AT = 72  # m_slots in PyModuleDef

# What is imported lazily imports lazily itself; each round goes one step further down.
_MOST_LAZY_ROUNDS = 100

# ELF, 64 bits: e_phoff, e_phentsize and e_phnum; PT_LOAD; PF_W.
_HEADER_BYTES = 64
_LOAD, _WRITABLE = 1, 2

# Values that cannot change. A tuple's and a frozenset's members are looked at.
_IMMUTABLE = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), type(NotImplemented), types.BuiltinFunctionType,
    types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType,
    types.ClassMethodDescriptorType, types.MappingProxyType, types.MethodWrapperType, types.CodeType, type(sys.float_info),
)  # fmt: skip

# Names that the import system sets, which are each interpreter's own.
_IMPORTS_OWN = frozenset({"__builtins__", "__spec__", "__loader__", "__path__"})


def tell(fd: int, record: Extensions, is_gil_shared: bool) -> None:
    """Write what is known of an app's extension modules into a file, as one line of JSON; see `isolation.sharing`.

    Args:
        is_gil_shared: else nothing is shared that matters: modules that an own GIL takes say themselves that they share nothing.
    """
    modules = [look_at(name, path) for name, path in dict(record.loaded).items()] if is_gil_shared else []
    text = json.dumps({"modules": modules, "lost": record.lost()})
    os.write(fd, text.encode("utf-8", "backslashreplace") + b"\n")


def tell_answers(fd: int, load_s: float, answers: list[tuple[str, str, str]]) -> None:
    """Write in place of that how long an app took to load, and what it answered; what was put off stays so."""
    os.write(fd, json.dumps({"load_s": round(load_s, 4), "answers": answers}).encode("utf-8", "backslashreplace") + b"\n")


def resolve_lazy_imports() -> None:
    """Import what modules have put off until it is used (PEP 810, Python 3.15): it counts for where an app can live.

    What cannot be imported is left as it is: the app may never use it, and a refused extension module is on record.
    """
    lazy: Any = getattr(types, "LazyImportType", None)
    for _ in range(_MOST_LAZY_ROUNDS if lazy else 0):
        waiting = [
            (module, name)
            for module in list(_modules.values())
            if isinstance(module, types.ModuleType)
            for name, value in list(vars(module).items())
            if type(value) is lazy and (module.__name__, name) not in _failed
        ]
        for module, name in waiting:
            try:
                getattr(module, name)
            except (Exception, SystemExit):
                _failed.add((module.__name__, name))
        if not waiting:
            return


# Lazy imports that raised.
_failed: set[tuple[str, str]] = set()


def look_at(name: str, path: str) -> dict[str, Any]:
    """Return what is known of one module: "name", "path", "is_single_phase", "objects" (place, kind, address), "held" (descriptions)."""
    module = _modules.get(name)
    return {
        "name": name,
        "path": path,
        "is_single_phase": is_single_phase(module, path),
        "objects": list(_changeable(vars(module))) if isinstance(module, types.ModuleType) else [],
        "held": held_in_c(path),
    }


def is_single_phase(module: object, path: str) -> bool:
    """Whether a module was made by a single-phase init function: its definition has no slots, or a copy has no definition any more."""
    if not isinstance(module, types.ModuleType):
        return False  # its Py_mod_create slot made something else
    get_definition = ctypes.pythonapi.PyModule_GetDef
    get_definition.restype, get_definition.argtypes = ctypes.c_void_p, [ctypes.py_object]
    definition = get_definition(module)
    if definition:
        return not ctypes.c_uint64.from_address(definition + _SLOTS_AT).value
    # PEP 793, 3.15: slots without a definition.
    return not hasattr(ctypes.PyDLL(path), f"PyModExport_{module.__name__.rpartition('.')[2]}")


def _changeable(namespace: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yield place, kind and address of each object below a namespace that an app could change."""
    seen: set[int] = set()
    left: list[tuple[str, Any, int]] = [(name, value, 0) for name, value in list(namespace.items()) if name not in _IMPORTS_OWN]
    while left and len(seen) < _MOST_OBJECTS:
        place, value, depth = left.pop()
        if id(value) in seen or isinstance(value, _IMMUTABLE):
            continue
        seen.add(id(value))
        if not isinstance(value, (tuple, frozenset)) and _can_change(value):
            yield place, _kind_of(value), id(value)
        if depth < _MOST_DEPTH:
            left += [(f"{place}{key}", member, depth + 1) for key, member in _members(value)]


def _can_change(value: object) -> bool:
    if isinstance(value, type):
        return bool(value.__flags__ & _HEAP_TYPE) and not value.__flags__ & _IMMUTABLE_TYPE
    return type(value).__name__ != "PyCapsule"  # a pointer and a name


def _kind_of(value: object) -> str:
    return "class" if isinstance(value, type) else type(value).__name__


def _members(value: Any) -> list[tuple[str, Any]]:
    if type(value) is dict:
        return [(f"[{str(key)[:40]!r}]", member) for key, member in list(value.items())]
    if type(value) in (list, tuple, set, frozenset):
        return [("[]", member) for member in list(value)]
    return []


def held_in_c(path: str) -> list[str]:
    """Return which objects of this interpreter a loaded file's C variables point to; none where memory cannot be read."""
    objects = {id(value): value for value in gc.get_objects()}
    own_type = id(type)
    definition_type = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "PyModuleDef_Type"))
    held: dict[int, str] = {}
    try:
        for words in _variables(os.path.realpath(path)):
            end_of_known = 0  # of a static type or a definition, which CPython fills in
            for number, (word, after) in enumerate(zip(words, (*words[1:], 0), strict=True)):
                if after == own_type:
                    end_of_known = max(end_of_known, number + _STATIC_TYPE_WORDS)
                elif after == definition_type:
                    end_of_known = max(end_of_known, number + _MODULE_DEF_WORDS)
                value = objects.get(word) if number >= end_of_known else None
                if value is not None and not isinstance(value, _IMMUTABLE):
                    held[word] = _describe(value)
    except (OSError, ValueError, struct.error):
        return []
    return list(held.values())[:_MOST_HELD]


def _describe(value: object) -> str:
    if isinstance(value, (type, types.FunctionType, types.ModuleType)):
        return f"{_kind_of(value)} {value.__name__}"[:80]
    return f"a {type(value).__name__}"


def _variables(path: str) -> Iterator[tuple[int, ...]]:
    """Yield the words of each writable part of a loaded file, its variables without a first value included."""
    if struct.calcsize("P") != 8:
        return
    loads = _loads_of(path)
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        starts = [int(line.split("-")[0], 16) for line in maps if line.rstrip("\n").endswith(f" {path}")]
    if not starts or not loads:
        return
    base = min(starts) - (min(address for _, address, _ in loads) & ~(os.sysconf("SC_PAGE_SIZE") - 1))
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        for flags, address, size in loads:
            if flags & _WRITABLE:
                start = (base + address + 7) & ~7
                memory.seek(start)
                data = memory.read((base + address + size - start) & ~7)
                yield struct.unpack(f"={len(data) // 8}Q", data[: len(data) & ~7])


def _loads_of(path: str) -> list[tuple[int, int, int]]:
    """Return flags, address and size in memory of each part of an ELF file that is loaded."""
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES)
        if head[:5] != b"\x7fELF\x02":
            return []
        [at] = struct.unpack_from("=Q", head, 32)
        size, count = struct.unpack_from("=HH", head, 54)
        file.seek(at)
        table = file.read(size * count)
    parts = [struct.unpack_from("=IIQQQQQ", table, number * size) for number in range(count)]
    return [(flags, address, in_memory) for kind, flags, _, address, _, _, in_memory in parts if kind == _LOAD]
