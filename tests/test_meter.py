"""What is known of an interpreter's memory, and what is kept of it."""

from __future__ import annotations

import gc

from isowsgi.inside.heap import Heap
from isowsgi.shared import pymalloc
from isowsgi.worker.trend import Trend

MIB = 2**20


class Hostile:
    """Runs code for whatever a look at its size could ask of it."""

    def __sizeof__(self) -> int:
        raise AssertionError("the app's code was called")

    __hash__ = __eq__ = __len__ = __class__ = property(__sizeof__)


def large(heap: Heap) -> int:
    """Return the bytes in large blocks after a whole round."""
    while not heap.look():
        pass
    return heap.large


def test_large_blocks_are_found_by_their_owners() -> None:
    gc.collect()
    heap = Heap()
    before = large(heap)

    blocks = [b"x" * MIB for _ in range(10)]
    # In a list: up to 3.13 the garbage collector does not know a dict of texts, so one that only a local variable has is not found.
    texts = [{number: "x" * 2048 + str(number) for number in range(5000)}]
    inner = [(1, (2, b"x" * MIB))]
    twice = blocks[3:5]

    assert abs(large(heap) - before - 11 * MIB - 5000 * 2100) < 4 * MIB  # other tests have left much in this process
    del blocks, texts, inner, twice
    assert large(heap) - before < 4 * MIB


def test_no_code_of_the_apps_is_called_for_a_figure() -> None:
    kept = [Hostile() for _ in range(3)]

    assert large(Heap()) > 0
    del kept


def test_small_blocks_are_counted() -> None:
    before = pymalloc.bytes_in_use()
    kept = [object() for _ in range(100_000)]
    after = pymalloc.bytes_in_use()

    assert before is not None
    assert after is not None
    assert 1_500_000 < after - before < 2_000_000
    del kept


def test_a_trend_keeps_few_values_of_any_time() -> None:
    trend = Trend()
    for second in range(0, 100_000, 5):
        trend.add(second * MIB, float(second))

    assert 16 <= len(trend.mib) <= 32
    assert trend.mib == sorted(trend.mib)
    assert trend.mib[-1] > 90_000
