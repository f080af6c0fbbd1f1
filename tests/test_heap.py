"""A look at an app's objects takes nothing from the app: no reference, no code of its, no object that is not finished."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap

import pytest

from isowsgi.inside import heap
from isowsgi.inside.heap import Heap
from tests.conftest import ROOT

MIB = 1 << 20

# Looks beside a thread that makes tuples, which C code resizes while it fills them; prints how many looks there were and what failed.
_BESIDE = """
import itertools, sys, threading, time
from isowsgi.inside.heap import Heap

def numbers(count):
    yield from range(count)

def make():
    while not is_over:
        try:
            {make}
        except SystemError as exc:
            failed.append(exc)

keep, failed, is_over = [[] for _ in range(30_000)], [], False
thread = threading.Thread(target=make)
thread.start()
sys.setswitchinterval(1e-5)
heap, end = Heap(), time.thread_time() + 0.4
looks = 0
while time.thread_time() < end:
    heap.look()
    looks += 1
    time.sleep(0)
is_over = True
thread.join()
print(looks > 3, failed[:1])
"""


@pytest.mark.parametrize(
    "make", ["tuple(numbers(20_000))", pytest.param("list(itertools.batched(numbers(50_000), 20_000))", marks=pytest.mark.skipif(
        sys.version_info < (3, 12), reason="itertools.batched is new in 3.12"))],
)  # fmt: skip
def test_an_object_that_c_code_is_still_making_stays_its_own(make: str) -> None:
    """A slice of such a tuple ended the worker with SIGSEGV, and a reference to it failed the app with SystemError."""
    done = subprocess.run([sys.executable, "-c", _BESIDE.replace("{make}", make)], cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert (done.returncode, done.stdout) == (0, "True []\n"), done.stderr


def test_no_look_keeps_an_object() -> None:
    marked = [object()]
    container = [marked, bytes(4096)]
    gc.collect()
    before = sys.getrefcount(marked), sys.getrefcount(container)

    found = Heap()
    while not found.look():
        pass

    assert (sys.getrefcount(marked), sys.getrefcount(container)) == before


def test_a_class_cannot_say_or_break_its_size() -> None:
    """So do one whose size is another type's affair, and one that C code has not begun with; both ended each look before."""
    code = """
        import gc, struct
        from isowsgi.inside.heap import Heap
        class Foreign:
            __sizeof__ = list.__sizeof__
        class Huge:
            def __sizeof__(self): raise SystemExit
        class Unmade(struct.Struct):
            pass
        keep = [[Foreign(), Huge(), Unmade.__new__(Unmade, "i")] for _ in range(10)]
        gc.collect()
        heap = Heap()
        while not heap.look(): pass
        print(heap.objects > 30)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_long_list_is_estimated_by_some_of_it() -> None:
    def measured() -> int:
        gc.collect()
        found = Heap()
        for _ in range(2):  # that it is long is known after the first
            while not found.look():
                pass
        return found.large

    before = measured()
    keep = [bytes(1000) for _ in range(100_000)]

    assert abs(measured() - before - (8 + 1000 + 49) * len(keep)) < 10 * MIB


def test_too_many_containers_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_MOST_CONTAINERS", 10)
    found = Heap()

    assert [found.look(), found.large] == [True, 0]
    assert found.objects > 10


def test_the_collector_is_as_it_was() -> None:
    heap.sizes(0, 10, frozenset())
    assert gc.isenabled()
    gc.disable()
    try:
        heap.sizes(0, 10, frozenset())
        assert not gc.isenabled()
    finally:
        gc.enable()
