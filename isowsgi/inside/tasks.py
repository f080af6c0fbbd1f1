"""asyncio's tasks of an app, for `isowsgi stacks`: a thread in a loop that waits says nothing of what it waits for.

Only where C code tells them (`releases.TELLS_TASKS`). Loops are found where threads run them, so that uvloop's, which run in C, are not
seen. What is told is asked of asyncio's own C functions, and attributes of the exact types are read; what an app derived from them is
passed over. But asyncio's `all_tasks` itself calls `done` and `get_loop` of each task, also where a subclass has its own: one that waits
there keeps the control thread from its work.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, CoroutineType
from typing import Any

from isowsgi.inside.private import theirs
from isowsgi.shared import releases

# Tasks that are told; a loop may have many thousands.
MOST_TASKS = 200

_MOST_FRAMES = 50
_MOST_CHARS = 100

_app_sys: Any = theirs("sys")


def loops_of(frame: Any) -> Iterator[Any]:
    """Yield the loops that a thread runs, by its innermost frame."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "run_forever" and code.co_filename.endswith("asyncio/base_events.py"):
            try:
                yield frame.f_locals["self"]
            except KeyError:
                return
        frame = frame.f_back


def told(loops: Iterable[Any]) -> str:
    """Return the tasks of loops that wait, each with its stack, outermost call first; "" if there are none."""
    module = _app_sys.modules.get("_asyncio")
    names = getattr(module, "__dict__", None)
    all_tasks, kind = (names.get("all_tasks"), names.get("Task")) if type(names) is dict else (None, None)
    if not releases.TELLS_TASKS or type(all_tasks) is not BuiltinFunctionType or type(kind) is not type:
        return ""
    texts: list[str] = []
    left = 0
    for loop in loops:
        try:
            tasks = sorted((task for task in all_tasks(loop) if type(task) is kind), key=_name)
        except Exception:  # the app has changed asyncio
            continue
        left += max(len(tasks) - (MOST_TASKS - len(texts)), 0)
        texts += [_of(task, kind) for task in tasks[: MOST_TASKS - len(texts)]]
    return "\n".join([*texts, *([f"{left} more tasks"] if left else [])])


def _name(task: Any) -> str:
    name = task.get_name()
    return name[:_MOST_CHARS] if type(name) is str else "?"


def _of(task: Any, kind: type) -> str:
    frames: list[tuple[Any, int]] = []
    coroutine = task.get_coro()
    is_running = False
    while type(coroutine) is CoroutineType and len(frames) < _MOST_FRAMES:
        is_running = is_running or coroutine.cr_running
        if (frame := coroutine.cr_frame) is not None:
            frames.append((frame, frame.f_lineno))
        coroutine = coroutine.cr_await
    waiters = [_name(each) for each in task._asyncio_awaited_by or () if type(each) is kind]
    by = f", awaited by {', '.join(sorted(waiters)[:10])}" if waiters else ""
    if is_running:  # its frames change, and its thread's stack has them
        return f"task {_name(task)}{by}: running"
    try:
        stack = "".join(traceback.StackSummary.extract(iter(frames), lookup_lines=False).format()).rstrip()
    except BaseException:  # lines may come from the app's code, see `stacks`
        stack = "(its stack cannot be read)"
    return f"task {_name(task)}{by}\n{stack}"
