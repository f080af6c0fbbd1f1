"""Stacks that are read: those of this interpreter's threads, and nothing is kept of them."""

from __future__ import annotations

import _thread
import asyncio
import gc
import sys
import threading
import types
import weakref
from typing import Any

import pytest

from isowsgi.inside import tasks
from isowsgi.inside.stacks import Stacks, stack_from_app
from tests.conftest import eventually


class Local:
    """What a function has in a variable."""


@pytest.mark.parametrize("frames_are_own", [False, True])
def test_a_stack_that_was_read_keeps_nothing_of_it(frames_are_own: bool) -> None:
    """The frame of the reader held all frames, and so itself, until the interpreter ended: by a crash, with others' frames in it."""
    is_read, locals_, began = threading.Event(), [], threading.Event()

    def work() -> None:
        local = Local()
        locals_.append(weakref.ref(local))
        began.set()
        is_read.wait()

    thread = threading.Thread(target=work, name="worker of the app")
    thread.start()
    began.wait()
    gc.disable()
    try:
        text = Stacks(lambda: True, frames_are_own).of_all({})
        is_read.set()
        thread.join()
        kept = locals_[0]()
    finally:
        gc.enable()

    assert "worker of the app\n" in text
    assert "in work" in text
    assert kept is None


def test_a_thread_that_threading_does_not_know_is_told_by_its_number() -> None:
    is_read, began, idents = threading.Lock(), threading.Event(), []
    is_read.acquire()

    def work() -> None:
        idents.append(threading.get_ident())
        began.set()
        is_read.acquire()
        is_read.release()

    _thread.start_new_thread(work, ())
    began.wait()
    try:
        text = Stacks(lambda: True, frames_are_own=True).of_all({})
    finally:
        is_read.release()

    assert f"thread {idents[0]}\n" in text


def test_a_stack_whose_lines_cannot_be_had_costs_nobody_anything() -> None:
    """The lines of a module come from its loader, which may be the app's code; what it raised ended the watch over all requests."""

    class Loader:
        def get_source(self, name: str) -> str:
            raise SystemExit

    names: dict[str, Any] = {"__name__": "m", "__loader__": Loader(), "sys": sys}
    exec(compile("def where():\n    return sys._getframe()", "<no file>/m.py", "exec"), names)

    assert stack_from_app(names["where"]()) == "(its stack cannot be read)"


@pytest.mark.skipif(sys.version_info < (3, 14), reason="asyncio keeps no tasks of all threads before")
def test_tasks_are_told_with_the_line_where_each_waits_and_who_awaits_them() -> None:
    """The thread's own stack ends in the loop's poll, whatever the app waits for."""
    is_there, ends = threading.Event(), []

    async def fetch() -> None:
        stop = asyncio.Event()
        ends.append((asyncio.get_running_loop(), stop))
        is_there.set()
        await stop.wait()

    async def page() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fetch(), name="the fetch")

    async def main() -> None:
        await asyncio.create_task(page(), name="the page")

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="loop")
    thread.start()
    is_there.wait()
    try:
        text = str(eventually(lambda: (found := Stacks(lambda: True, True).of_all({})) and "in fetch" in found and found))
    finally:
        [(loop, stop)] = ends
        loop.call_soon_threadsafe(stop.set)
        thread.join()

    assert "task the fetch, awaited by the page\n" in text
    assert "await stop.wait()" in text.partition("task the fetch")[2].partition("task the page")[0]
    assert "task the page, awaited by Task-" in text


def test_what_an_app_has_put_in_the_place_of_asyncio_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __getattr__(self, name: str) -> Any:
            raise SystemExit

    for module in (None, Fake(), types.SimpleNamespace(all_tasks=lambda loop: 1 / 0, Task=Fake())):
        monkeypatch.setitem(sys.modules, "_asyncio", module)
        assert tasks.told([Fake()]) == ""
