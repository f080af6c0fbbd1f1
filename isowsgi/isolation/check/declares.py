"""What extension modules declare about subinterpreters: their module definition's slots, read in a child process.

Opening an extension file runs its code, and its init function may crash when it is called alone, so this never happens in the asking
process. Run as a script, `declares.py PATH...`, it is that child, under any CPython from 3.11 on; it then imports the standard library
only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What a module may declare, the least first.
SINGLE_PHASE = "single-phase"  # nothing; CPython takes it for one that no own GIL suits
ONE_INTERPRETER = "main interpreter only"  # Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED
SHARED_GIL = "shared GIL"  # ..._SUPPORTED, and what no slot means
OWN_GIL = "own GIL"  # Py_MOD_PER_INTERPRETER_GIL_SUPPORTED
UNKNOWN = "unknown"

# For the init functions of all modules of one app.
_LIMIT_S = 60.0

_DECLARED = (ONE_INTERPRETER, SHARED_GIL, OWN_GIL)

# Numbers of the slots: as they were, and as code built for 3.15's API has them (PEP 820).
_MULTIPLE_INTERPRETERS = (3, 86)
_GIL = (4, 87)
_NESTED = (92, 94)  # Py_slot_subslots, Py_mod_slots
_MOST_SLOTS = 64

# Offset of m_slots in PyModuleDef: the object's head (refcount, type), m_init, m_index, m_copy; m_name, m_doc, m_size, m_methods.
_TYPE_AT, _SLOTS_AT = 8, 72
_SLOT_BYTES = 16


def declared_by(
    paths: Iterable[str], executable: str = sys.executable, as_whom: Mapping[str, Any] | None = None
) -> dict[str, dict[str, str]]:
    """Ask extension files what they declare.

    Args:
        paths: extension module files.
        executable: a Python of the version that they were built for.
        as_whom: more for `subprocess`, see `isolation.whose`.

    Returns:
        by path: "interpreters", one of this module's words, and "gil", "needed" or "not needed" on a free-threaded build.
    """
    left = list(dict.fromkeys(paths))
    answers: dict[str, dict[str, str]] = {}
    while left:
        try:
            done = subprocess.run(
                [executable, __file__, *left],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_LIMIT_S,
                check=False,
                cwd="/",
                **(as_whom or {}),
            )
            output = done.stdout
        except subprocess.TimeoutExpired as exc:
            output = exc.stdout or b""
        except OSError:
            output = b""
        for line in output.splitlines():
            try:
                path, answer = json.loads(line)
            except ValueError:  # a module printed something
                continue
            answers[path] = answer
        rest = [path for path in left if path not in answers]
        if rest:  # the child died of the first of these
            answers[rest[0]] = {"interpreters": UNKNOWN, "gil": "needed"}
            rest.pop(0)
        left = rest
    return answers


def _main() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.dup(1)
    os.dup2(2, 1)  # what modules print
    for path in sys.argv[1:]:
        os.write(out, json.dumps([path, _ask(path)]).encode() + b"\n")
    os._exit(0)


def _ask(path: str) -> dict[str, str]:
    import ctypes

    name = os.path.basename(path).split(".")[0]
    try:
        library = ctypes.PyDLL(path)
    except OSError:  # it needs a library that only its package loads before
        return {"interpreters": UNKNOWN, "gil": "needed"}
    for prefix in ("PyModExport_", "PyInit_"):  # PEP 793, 3.15+: slots without a definition
        function = getattr(library, prefix + name, None)
        if function is not None:
            break
    else:
        return {"interpreters": UNKNOWN, "gil": "needed"}
    function.restype = ctypes.c_void_p
    try:
        address = function()
    except Exception:  # one that needs its package while it is initialized, so it makes the module at once
        return {"interpreters": SINGLE_PHASE, "gil": "needed"}
    if not address:
        return {"interpreters": SINGLE_PHASE, "gil": "needed"}
    if prefix == "PyInit_":
        definition = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "PyModuleDef_Type"))
        if _word(address + _TYPE_AT) != definition:
            return {"interpreters": SINGLE_PHASE, "gil": "needed"}
        address = _word(address + _SLOTS_AT)
    slots = _slots(address)
    interpreters = next((value for number, value in slots if number in _MULTIPLE_INTERPRETERS), 1)
    gil = next((value for number, value in slots if number in _GIL), 0)
    return {
        "interpreters": _DECLARED[interpreters] if interpreters < len(_DECLARED) else UNKNOWN,
        "gil": "not needed" if gil == 1 else "needed",
    }


def _word(address: int) -> int:
    import ctypes

    return ctypes.c_uint64.from_address(address).value


def _slots(address: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    while address and len(found) < _MOST_SLOTS:
        number, value = _word(address) & 0xFFFF, _word(address + 8)
        if number == 0:
            break
        found += _slots(value) if number in _NESTED else [(number, value)]
        address += _SLOT_BYTES
    return found


if __name__ == "__main__":
    # Its folder's modules have names that hide others'.
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != os.path.dirname(os.path.abspath(__file__))]
    _main()
