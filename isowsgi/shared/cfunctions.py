"""CPython's C functions that isowsgi calls by ctypes; loaded before an app is, which may patch what that needs."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple


class _Functions(NamedTuple):
    """Of the process, for small blocks: see `pymalloc`."""

    ask: Any
    open_memory: Any
    close: Any
    free: Any


def load_ctypes() -> Any:
    """Import ctypes, and make the functions that are called while an app is there; it takes 0.2 MiB, once in each interpreter.

    An import gives up the GIL hundreds of times. If it is shared with a thread in a loop and with other interpreters, it took 20 s once
    (3.11) until the loop was interrupted.

    Returns:
        the module; None on a Python that was built without libffi.
    """
    try:
        import ctypes
    except ImportError:
        return None
    memory_functions()
    system_call()
    return ctypes


def make_memory_functions() -> _Functions | None:
    """Return what `pymalloc` calls; None where there is no such function.

    Made once: the library has a class of its own for them, which only a full collection frees.
    """
    try:
        import ctypes

        process = ctypes.PyDLL(None)
        # In no comprehension: a policy knows this function by its code.
        found = _Functions(process["_PyObject_DebugMallocStats"], process["open_memstream"], process["fclose"], process["free"])
    except (ImportError, AttributeError):
        return None
    # Not shared with others: an item is a new object each time.
    found.ask.argtypes = found.close.argtypes = found.free.argtypes = (ctypes.c_void_p,)
    found.open_memory.restype = ctypes.c_void_p
    return found


memory_functions = functools.cache(make_memory_functions)


def make_system_call() -> Any:
    """Return libc's `syscall`, for what neither it nor Python has a function for; None where there is none. Made once, as above."""
    try:
        import ctypes

        call = ctypes.CDLL(None)["syscall"]
    except (ImportError, OSError, AttributeError):
        return None
    # The first argument is the number, the last one flags; between them what sched_setattr(2) takes.
    call.argtypes, call.restype = (ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_ulong), ctypes.c_long
    return call


system_call = functools.cache(make_system_call)
