"""Python stacks of this interpreter's threads.

Before 3.13.16 and 3.14.8 `sys._current_frames` returns the frames of all interpreters (gh-158364). A frame that is held while its function
returns owns the function's variables from then on: they would end with ours, in the wrong interpreter, and if a cycle kept them until our
own end, by a crash (seen on 3.13.0). So the frames of others are dropped within the C call that fetches them, and no frame is kept that
holds itself.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from itertools import starmap
from operator import methodcaller
from typing import Any

from isowsgi.inside import tasks
from isowsgi.inside.private import theirs
from isowsgi.shared import releases
from isowsgi.shared.places import exact

# What lies under an app's frames on every stack: this package, and the thread's beginning.
_OWN_FILES = os.path.dirname(__file__) + os.sep
_OWN_NAMES = (threading.__file__, "<script>", "<string>", "<isowsgi>")

_UNSEEN = "(stacks cannot be read safely on this release of CPython)"

# The app's threads by number, without the lock that `threading.enumerate` takes: a thread of the app's may have left it taken.
app_threads: dict[int, Any] = theirs("threading")._active


class Stacks:
    """Reads the stacks of this interpreter's threads.

    Args:
        can_see: returns False where reading them may crash; then a text says so instead.
        frames_are_own: whether `sys._current_frames` has no others, so that threads are found which `threading` does not know.
    """

    def __init__(self, can_see: Callable[[], bool], frames_are_own: bool) -> None:
        self._can_see = can_see
        self._frames_are_own = frames_are_own

    def of(self, ident: int) -> str:
        """Return a thread's stack from the app's first frame on; empty if it has ended."""
        if not self._can_see():
            return _UNSEEN
        frame = frame_of(ident)
        return "" if frame is None else stack_from_app(frame)

    def of_all(self, busy: Mapping[int, str]) -> str:
        """Return the stacks of all threads, those that serve first, and of asyncio's tasks; of threads that wait only the names.

        Args:
            busy: the request line of each thread that serves one, by its number.
        """
        if not self._can_see():
            return _UNSEEN
        names = {ident: name_of(thread) for ident, thread in list(app_threads.items())}
        idents = {*names, *busy, *(sys._current_frames() if self._frames_are_own else ())}
        texts, waiting = [], []
        loops: list[Any] = []
        for ident in sorted(idents, key=lambda ident: (ident not in busy, names.get(ident, ""))):
            if ident == threading.get_ident() or (frame := frame_of(ident)) is None:
                continue
            if releases.TELLS_TASKS:
                loops += tasks.loops_of(frame)
            name = names.get(ident, f"thread {ident}")
            if ident in busy:
                texts.append(f"{name}: {busy[ident]}\n{stack_from_app(frame)}")
            elif stack := stack_from_app(frame, or_all=False):
                texts.append(f"{name}\n{stack}")
            elif name.startswith("isowsgi-"):
                waiting.append(name)
        if waiting:
            texts.append(f"waiting: {', '.join(waiting)}")
        if loops and (text := tasks.told(loops)):
            texts.append(text)
        return "\n".join(texts)


def frame_of(ident: int) -> Any:
    """Return the frame in which a thread is, or None; not to be kept, see above."""
    # One C call from the fetch to the end of the dict, so that no other thread runs between.
    return next(map(methodcaller("get", ident), starmap(sys._current_frames, ((),))))


def is_own_file(name: str) -> bool:
    """Whether code lies in a file of this package, or is what starts a thread."""
    name = exact(name)
    return name.startswith(_OWN_FILES) or name in _OWN_NAMES


def name_of(thread: Any) -> str:
    """Return what a thread of the app's `threading` is called."""
    name = fact_of(thread, "_name")
    return exact(name) if isinstance(name, str) else ""


def fact_of(thread: Any, name: str) -> Any:
    """Return an attribute of such a thread, without calling what its class may have made of it."""
    try:
        return object.__getattribute__(thread, "__dict__").get(name)
    except AttributeError:
        return None


def stack_from_app(frame: Any, or_all: bool = True) -> str:
    """Return a thread's stack from the app's first frame on.

    Args:
        or_all: whether to return the whole if the app has none.
    """
    try:
        entries = list(traceback.extract_stack(frame))
    except BaseException:  # the lines of some modules come from the app's code: a loader's get_source
        return "(its stack cannot be read)"
    own = 0
    while own < len(entries) and is_own_file(entries[own].filename):
        own += 1
    entries = entries[own:] or (entries if or_all else [])
    try:
        return "".join(traceback.format_list(entries)).rstrip()
    except BaseException:  # a line is looked up when it is asked for, see above
        return "(its stack cannot be read)"
