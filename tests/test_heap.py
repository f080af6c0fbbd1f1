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


# What is measured is a small process's heap: pytest's own has hundreds of thousands of containers once other tests have run.
_SMALL = """
import gc, struct, sys
from isowsgi.inside.heap import Heap

MIB = 1 << 20

def measured():
    gc.collect()
    heap = Heap()
    while not heap.look():
        pass
    return heap.large
"""


def run_alone(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SMALL + textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_large_blocks_are_found_by_their_owners() -> None:
    run_alone("""
        before = measured()
        blocks = [b"x" * MIB for _ in range(10)]
        # In a list: up to 3.13 the garbage collector does not know a dict of texts, so one that only a local variable has is not found.
        texts = [{number: "x" * 2048 + str(number) for number in range(5000)}]
        inner = [(1, (2, b"x" * MIB))]
        twice = blocks[3:5]

        def function(): pass
        function.attribute = b"x" * MIB

        class Class:
            attribute = b"x" * MIB

        grown = measured() - before
        assert abs(grown - 13 * MIB - 5000 * 2100) < MIB, grown
        del blocks, texts, inner, twice, function, Class
        left = measured() - before
        assert abs(left) < MIB, left
    """)


def test_no_look_keeps_an_object() -> None:
    run_alone("""
        marked = [object()]
        container = [marked, bytes(4096)]
        before = sys.getrefcount(marked), sys.getrefcount(container)
        measured()
        assert (sys.getrefcount(marked), sys.getrefcount(container)) == before
    """)


def test_no_code_of_the_apps_is_called_and_no_class_can_say_or_break_its_size() -> None:
    """So cannot one whose size is another type's affair, and one that C code has not begun with; both ended each look before."""
    run_alone("""
        class Hostile:
            def __sizeof__(self): raise AssertionError("the app's code was called")
            __hash__ = __eq__ = __len__ = __class__ = property(__sizeof__)

        class Foreign:
            __sizeof__ = list.__sizeof__

        class Huge:
            def __sizeof__(self): raise SystemExit

        class Unmade(struct.Struct):
            pass

        keep = [[Hostile(), Foreign(), Huge(), Unmade.__new__(Unmade, "i")] for _ in range(10)]
        assert measured() > 0
    """)


def test_a_long_list_is_estimated_by_some_of_it() -> None:
    run_alone("""
        before = measured()
        keep = [bytes(1000) for _ in range(100_000)]
        grown, held = measured() - before, (8 + 1000 + 49) * len(keep)
        assert abs(grown - held) < held / 10, (grown, held)
    """)


def test_too_many_containers_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_MOST_CONTAINERS", 10)
    found = Heap()

    assert [found.look(), found.large] == [True, 0]
    assert found.objects > 10
    assert found.weight > found.objects, "else who shares its arenas gets its part of them"


def test_a_round_ends_when_the_heap_has_grown_too_large_to_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """It went on in looks of 60 ms with pauses of a second, and ended after minutes."""
    monkeypatch.setattr(heap, "_MOST", heap._FEWEST)
    found = Heap()
    assert not found.look()
    monkeypatch.setattr(heap, "_MOST_CONTAINERS", 10_000)
    monkeypatch.setattr(heap, "_SLOWER", 0.0)  # so that this look is one that takes too long

    assert found.look()
    assert found.objects > 10_000
    assert found.weight > found.objects


def test_the_collector_is_as_it_was() -> None:
    heap.sizes(0, 10)
    assert gc.isenabled()
    gc.disable()
    try:
        heap.sizes(0, 10)
        assert not gc.isenabled()
    finally:
        gc.enable()
