"""Stacks that are read: those of this interpreter's threads, and nothing is kept of them."""

from __future__ import annotations

import _thread
import gc
import sys
import threading
import weakref
from typing import Any

import pytest

from isowsgi.inside.stacks import Stacks, stack_from_app


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
        text = Stacks(True, frames_are_own).of_all({})
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
        text = Stacks(True, frames_are_own=True).of_all({})
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
