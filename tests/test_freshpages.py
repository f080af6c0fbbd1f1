"""How much an interpreter is estimated to have grown by since it was measured."""

from __future__ import annotations

import os
import threading

import pytest

from isowsgi.instances.counters import ServingThread
from isowsgi.shared import residentmemory
from isowsgi.shared.residentmemory import Faults
from isowsgi.worker import freshpages
from isowsgi.worker.freshpages import FreshPages
from tests.fakes import FakeInstance

MIB = 2**20
PAGE = os.sysconf("SC_PAGE_SIZE")


class Worker:
    """Interpreters, each with a thread, that serve and touch pages; and the kernel that counts these."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int = 2) -> None:
        self.now, self.level, self.readings = 100.0, 300 * MIB, 0
        self.faults: dict[int, Faults] = {}
        self.made = [FakeInstance() for _ in range(count)]
        for place, instance in enumerate(self.made):
            instance.thread, instance.memory, instance.memory_at_boot = 1000 + place, 10 * MIB, 10 * MIB
            self.faults[instance.thread] = Faults(50_000, start=7)  # of its load
        monkeypatch.setattr(residentmemory, "faults_of", self._faults_of)
        monkeypatch.setattr(freshpages, "_most_page_bytes", lambda: PAGE)
        self.fresh = FreshPages()
        self.tick()

    def _faults_of(self, thread: int) -> Faults | None:
        self.readings += 1
        return self.faults.get(thread)

    def tick(self) -> None:
        self.now += 1
        self.fresh.tick({each: each.served for each in self.made}, self.level, self.now)

    def serve(self, instance: FakeInstance, touched: int, kept: int = 0) -> None:
        instance.served += 1
        self.faults[instance.thread] = Faults(self.faults[instance.thread].pages + touched // PAGE, self.faults[instance.thread].start)
        self.level += kept

    def begin(self, instance: FakeInstance) -> None:
        self.fresh.begin(instance, self.level, self.now)

    def settle(self, instance: FakeInstance, size: int, known: int = 0) -> None:
        self.fresh.settle(instance, size, known, self.level, self.now)

    def goes_on(self, seconds: int, *grow: tuple[int, int]) -> None:
        """Have each instance touch and keep so much a second."""
        for _ in range(seconds):
            for instance, (touched, kept) in zip(self.made, grow, strict=True):
                self.serve(instance, touched, kept)
            self.tick()


@pytest.mark.parametrize("rate", [MIB, 6 * MIB])
def test_what_the_worker_grows_by_is_the_one_whose_threads_touch_fresh_pages(monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    worker = Worker(monkeypatch)
    worker.goes_on(10, (rate, rate), (4 * PAGE, 0))

    leaky, quiet = worker.made
    assert 0.95 * 10 * rate < leaky.grown <= 10 * rate
    assert quiet.grown <= 40 * PAGE


def test_what_threads_that_nobody_knows_grow_by_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    worker.goes_on(10, (2 * PAGE, 6 * MIB), (2 * PAGE, 0))

    assert [each.grown for each in worker.made] == [20 * PAGE] * 2


def test_a_little_up_and_down_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    for _ in range(20):
        worker.goes_on(1, (4 * MIB, 700_000), (4 * MIB, 0))
        worker.goes_on(1, (4 * MIB, -700_000), (4 * MIB, 0))
        assert [each.grown for each in worker.made] == [0, 0]


def test_a_slow_leak_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    worker.goes_on(30, (MIB // 4, MIB // 4), (0, 0))

    assert 6 * MIB < worker.made[0].grown < 8 * MIB


def test_what_was_touched_long_before_the_worker_grew_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    worker.goes_on(600, (MIB, 0), (8 * MIB, 0))
    worker.goes_on(10, (6 * MIB, 6 * MIB), (0, 0))

    assert worker.made[0].grown > 45 * MIB


def test_what_is_given_back_is_not_told_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    worker.goes_on(1, (50 * MIB, 50 * MIB), (0, 0))
    assert worker.made[0].grown == 50 * MIB

    worker.goes_on(1, (0, -50 * MIB), (0, 0))
    assert worker.made[0].grown == 0


@pytest.mark.parametrize("found_s", [0, 1, 2])
def test_what_a_look_finds_is_as_of_its_begin_or_its_end(monkeypatch: pytest.MonkeyPatch, found_s: int) -> None:
    """It lasts seconds: the list that grows is looked at at one moment of them, and nobody knows which."""
    worker = Worker(monkeypatch)
    leaky = worker.made[0]
    for _ in range(5):
        worker.goes_on(4, (6 * MIB, 6 * MIB), (4 * PAGE, 0))
        worker.begin(leaky)
        at_begin = worker.level - 300 * MIB
        worker.goes_on(2, (6 * MIB, 6 * MIB), (4 * PAGE, 0))
        worker.settle(leaky, 10 * MIB + at_begin + found_s * 6 * MIB)

        assert leaky.memory == 10 * MIB + at_begin + found_s * 6 * MIB
        grown = worker.level - 300 * MIB
        assert 0.93 * grown < leaky.memory + leaky.grown - 10 * MIB < 1.07 * grown
    worker.goes_on(1, (0, 0), (4 * PAGE, 0))
    worker.begin(leaky)
    worker.goes_on(2, (0, 0), (4 * PAGE, 0))
    worker.settle(leaky, 10 * MIB + grown)
    assert (leaky.memory, leaky.grown) == (10 * MIB + grown, 0)


def test_a_look_replaces_a_wrong_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    worker.goes_on(4, (6 * MIB, 6 * MIB), (6 * MIB, 0))
    leaky, other = worker.made
    assert leaky.grown == other.grown == 12 * MIB

    for instance, size in zip(worker.made, (34 * MIB, 10 * MIB), strict=True):
        worker.begin(instance)
        worker.settle(instance, size)
    assert [each.memory + each.grown for each in worker.made] == [34 * MIB, 10 * MIB]


def test_an_app_that_keeps_nothing_of_what_it_touches_is_known_after_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large buffers that are given back at once are fresh pages each time."""
    worker = Worker(monkeypatch)
    leaky, churns = worker.made
    worker.goes_on(4, (MIB, MIB), (30 * MIB, 0))
    assert leaky.grown + churns.grown <= 4 * MIB
    for instance, size in zip(worker.made, (14 * MIB, 10 * MIB), strict=True):
        worker.begin(instance)
        worker.settle(instance, size)

    worker.goes_on(10, (MIB, MIB), (30 * MIB, 0))
    assert leaky.grown > 9 * MIB
    assert churns.grown < MIB


def test_small_blocks_that_are_counted_in_the_midst_of_a_look_are_not_estimated_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    leaky = worker.made[0]
    worker.goes_on(5, (6 * MIB, 6 * MIB), (0, 0))
    worker.begin(leaky)
    for _ in range(3):
        worker.goes_on(1, (6 * MIB, 6 * MIB), (0, 0))
        worker.fresh.see(leaky, 10 * MIB + worker.level - 300 * MIB)
        assert leaky.memory + leaky.grown == 10 * MIB + worker.level - 300 * MIB
    worker.settle(leaky, leaky.memory, known=18 * MIB)
    assert leaky.grown == 0


def test_a_thread_with_the_number_of_one_that_has_ended_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    instance = worker.made[0]
    worker.faults[instance.thread] = Faults(900_000, start=8)
    worker.goes_on(1, (0, 50 * MIB), (0, 0))
    assert instance.grown == 0

    worker.goes_on(2, (MIB, MIB), (0, 0))
    assert instance.grown > MIB


def test_threads_that_have_not_served_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch, count=200)
    for _ in range(5):
        worker.tick()
    assert worker.readings == 200, "each once, when it was seen"

    worker.made[7].served += 1
    for _ in range(5):
        worker.tick()
    assert worker.readings == 201


def test_many_threads_are_read_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch, count=200)
    for _ in range(20):
        before = worker.readings
        worker.goes_on(1, *[(MIB, MIB)] * 200)
        assert worker.readings <= before + 64
    assert min(each.grown for each in worker.made) > 10 * MIB
    assert sum(each.grown for each in worker.made) <= 20 * 200 * MIB


def test_a_request_that_lasts_counts_while_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    instance = worker.made[0]
    instance.busy = True
    worker.serve(instance, 0)
    worker.tick()
    for _ in range(5):
        worker.serve(instance, 6 * MIB, 6 * MIB)
        instance.served -= 1
        worker.tick()
    assert instance.grown == 30 * MIB


def test_a_thread_that_begins_to_serve_late_counts_from_its_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch, count=1)
    instance = worker.made[0]
    worker.faults[1500] = Faults(10 * MIB // PAGE, start=9)
    worker.level += 10 * MIB
    instance.served += 1
    threads = [ServingThread(instance.thread, 0, False), ServingThread(1500, 1, False)]
    monkeypatch.setattr(instance, "serving_threads", lambda: threads)
    worker.tick()

    assert instance.grown == 10 * MIB


def test_the_kernel_counts_what_a_thread_touches_for_that_thread() -> None:
    found: list[Faults | None] = []

    def touch() -> None:
        kept = b"x" * (64 * MIB)
        found.extend([residentmemory.faults_of(), residentmemory.faults_of(threading.get_native_id())])
        del kept

    before = residentmemory.faults_of()
    thread = threading.Thread(target=touch)
    thread.start()
    thread.join()
    after = residentmemory.faults_of()

    assert before is not None
    assert after is not None
    assert after.start == before.start
    assert after.pages - before.pages < 8 * MIB // PAGE
    own, by_number = found
    assert own is not None
    assert by_number is not None
    assert own.start == by_number.start
    assert own.pages >= 32  # or 16,384, where the kernel makes no large pages of its own accord
    assert residentmemory.faults_of(2**22 + 1) is None
