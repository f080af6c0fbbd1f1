"""What differs between CPython's releases, beside subinterpreters (`interpreters`): a constant each, with the reason and the release."""

from __future__ import annotations

import sys
from typing import Any

_VERSION = sys.version_info

# Arguments of `faulthandler.enable`. 3.14 adds the stacks in C: addresses, which say nothing to the reader of a log.
PYTHON_STACKS_ONLY: dict[str, Any] = {"c_stack": False} if _VERSION >= (3, 14) else {}

# `asyncio.get_event_loop()` makes a loop in the main thread, and raises in all others. From 3.14 on it raises in the main one, too.
MAIN_THREAD_HAS_A_LOOP = _VERSION < (3, 14)

# asyncio's C code has the tasks of all threads and who awaits whom, and can be asked by another thread.
TELLS_TASKS = _VERSION >= (3, 14)

# The namespaces of functions are dicts that the collector knows.
KNOWS_NAMESPACES_OF_FUNCTIONS = _VERSION >= (3, 14)
