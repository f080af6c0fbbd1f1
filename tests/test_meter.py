"""What is known of an interpreter's memory, and what is kept of it."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from isowsgi.inside import heap
from isowsgi.instances.lifecycle import State
from isowsgi.shared import pymalloc, residentmemory
from isowsgi.shared.messages import Measured, Ready
from isowsgi.worker import meter, processmemory
from isowsgi.worker.meter import Meter, Sharers, memory_of, size_of
from isowsgi.worker.processmemory import NEWS_BYTES
from isowsgi.worker.trend import Trend
from tests.fakes import FakeInstance

MIB = 2**20


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


class Party:
    """Instances that a meter measures; each has a mount of its own. Nobody waits: the test's clock is what passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *isolations: str, is_limited: bool = False) -> None:
        self.now, self.rss, self.log = 100.0, 300 * MIB, logging.getLogger("test")
        monkeypatch.setattr(meter, "rss_bytes", lambda: self.rss)
        self.made = [FakeInstance(isolation=isolation) for isolation in isolations]
        for instance in self.made:
            instance.takes_in(Ready(boot_s=0.25, objects=9, extensions=[], refused=[]))
        self.meter = Meter(self._deployments, lambda deployment: is_limited)
        self._asked, self._seen = dict.fromkeys(self.made, 0), dict.fromkeys(self.made, 0)
        self.meter.start(lambda delay_s, callback, /: None)

    def _deployments(self) -> list[Any]:
        slots = [SimpleNamespace(all=lambda one=instance: [one]) for instance in self.made]
        return [SimpleNamespace(slots=each, trend=Trend(), log=self.log) for each in slots]

    def answers(self, instance: FakeInstance, weight: int = 1000, **changes: Any) -> None:
        found = Measured(is_whole=True, took_s=0.003, objects=1, small=2**30, large=0, weight=weight)
        self.meter.on_measured(instance, found.replace(**changes), self.now)

    def passes(
        self,
        seconds: int,
        mute: Sequence[FakeInstance] = (),
        look_s: int = 1,
        grows: int = 0,
        serves: int = 5,
        looks_grow: int = 0,
        took_s: float = 0.003,
        loads: FakeInstance | None = None,
    ) -> None:
        """Have every instance serve, each second, the worker grow, and answer some seconds after it was asked; one is being loaded."""
        if loads is not None:
            loads.state = State.BOOTING
        for _ in range(seconds):
            self.now += 1
            self.rss += grows
            for _ in self.meter.look(self.now):
                continue
            for instance in self.made:
                instance.served += serves
                if instance.measures > self._seen[instance] and instance not in mute:
                    self._asked[instance] += 1
                    if self._asked[instance] >= look_s:
                        self._seen[instance], self._asked[instance] = instance.measures, 0
                        self.rss += looks_grow
                        self.answers(instance, int(self.now), grown=looks_grow, took_s=took_s)
        if loads is not None:
            loads.state = State.SERVING


def test_one_that_does_not_answer_costs_those_that_share_its_gil_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    party = Party(monkeypatch, *["shared-gil"] * 4)
    mute = party.made[0]
    mute.served = 1000  # so it comes first
    party.passes(60, mute=[mute])

    assert all(each.memory_at_boot >= 0 for each in party.made[1:])
    assert mute.measures <= 3, "less and less often"


def test_apps_that_grow_and_serve_while_they_are_measured_have_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    party = Party(monkeypatch, *["shared-gil"] * 3)
    party.passes(30, look_s=3, grows=4 * NEWS_BYTES)

    assert all(each.memory_at_boot >= 0 for each in party.made)


def test_a_load_that_hangs_keeps_no_other_app_from_being_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    party = Party(monkeypatch, "own-gil", "shared-gil", "shared-gil")
    party.made[2].state = State.BOOTING
    party.passes(25)
    assert party.made[0].memory_at_boot >= 0
    assert party.made[1].memory_at_boot < 0, "what those that load share is divided among all of them"

    party.passes(20)
    assert party.made[1].memory_at_boot >= 0


@pytest.mark.parametrize("isolation", ["own-gil", "shared-gil"])
def test_those_that_only_wait_for_requests_are_measured_once_and_not_while_others_start(
    monkeypatch: pytest.MonkeyPatch, isolation: str
) -> None:
    """Looks make the worker grow themselves: each was looked at twice and more after a start, a quarter of a core for 20 s."""
    party = Party(monkeypatch, *[isolation] * 4)
    party.passes(10, serves=0, grows=MIB, loads=party.made[3])
    party.passes(60, serves=0)
    assert [each.measures for each in party.made] == [0] * 4
    assert [each.memory > 0 for each in party.made] == [True] * 4, "a guess does for those that do nothing"

    party.passes(1)
    party.passes(60, serves=0, looks_grow=3 * NEWS_BYTES)
    assert [each.measures for each in party.made] == [1] * 4


def test_one_that_made_a_large_table_when_it_was_loaded_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    party = Party(monkeypatch, "own-gil")
    party.passes(10, serves=0, grows=20 * MIB, loads=party.made[0])
    party.passes(30, serves=0)

    assert party.made[0].memory_at_boot >= 0


def test_a_limit_of_memory_needs_to_know_at_once_what_an_app_has(monkeypatch: pytest.MonkeyPatch) -> None:
    party = Party(monkeypatch, "own-gil", is_limited=True)
    party.passes(2, serves=0)

    assert party.made[0].memory_at_boot >= 0


def test_one_that_has_grown_is_measured_again_after_a_pause_that_depends_on_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    party = Party(monkeypatch, "own-gil")
    party.passes(60, grows=2 * NEWS_BYTES, took_s=0.2)

    assert 5 <= party.made[0].measures <= 7


def test_idle_apps_of_which_one_has_grown_cost_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    party = Party(monkeypatch, *["own-gil"] * 10)
    party.passes(1)
    party.passes(30, serves=0, took_s=0.02)
    party.passes(30, serves=0, took_s=0.02, grows=2 * NEWS_BYTES)

    assert [each.measures for each in party.made if not 2 <= each.measures <= 5] == []


def test_idle_apps_are_not_measured_for_others_that_come_and_go_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each change of a table all idle mounts were measured again, which took a fifth of a core for minutes."""
    party = Party(monkeypatch, *["own-gil"] * 10)
    party.passes(1)
    party.passes(60, serves=0)
    before = [each.measures for each in party.made]
    added = FakeInstance(isolation="own-gil")
    added.takes_in(Ready(boot_s=0.25, objects=40_000, extensions=[], refused=[]))
    party.made.append(added)
    party.rss += 20 * MIB
    party._seen[added] = party._asked[added] = 0
    party.passes(10, serves=0)

    party.made.remove(added)
    added.state = State.CLOSED
    party.meter.departing = lambda: [added]
    party.passes(2, serves=0)
    party.rss -= 20 * MIB
    added.has_gone = True
    party.meter.departing = list
    party.passes(30, serves=0)

    assert [each.measures for each in party.made] == before


def test_idle_apps_are_measured_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    party = Party(monkeypatch, *["own-gil"] * 10)
    party.passes(1)
    party.passes(60, serves=0)
    before = [each.measures for each in party.made]
    party.rss += 4 * NEWS_BYTES
    for _ in range(3):
        party.passes(1, serves=0, mute=party.made)
        assert sum(each.measures for each in party.made) == sum(before) + 1


def test_a_process_is_counted_page_by_page_only_if_it_has_changed_and_is_not_large(monkeypatch: pytest.MonkeyPatch) -> None:
    party = Party(monkeypatch, "process")
    [process] = party.made
    process.pid, process.is_loaded = os.getpid(), True
    rss, counted = 100 * MIB, [0]

    def count(pid: int) -> int:
        counted[0] += 1
        return 50 * MIB

    monkeypatch.setattr(residentmemory, "bytes_of", lambda pid: rss)
    monkeypatch.setattr(processmemory, "pss_bytes", count)
    monkeypatch.setattr(processmemory, "_READING_PAUSES", 0)  # however long the machine takes
    party.passes(5)
    assert (process.memory, counted) == (50 * MIB, [1])

    rss += MIB
    party.passes(1)
    assert (process.memory, counted) == (51 * MIB, [1]), "its RSS says what has changed since it was counted"

    rss += 2 * NEWS_BYTES
    party.passes(5)
    assert counted == [2]

    monkeypatch.setattr(processmemory, "_READING_PAUSES", 10**12)
    rss += 2 * NEWS_BYTES
    party.passes(1)
    rss += 2 * NEWS_BYTES
    party.passes(5)
    assert counted == [3], "one that took long is not soon followed by the next one"

    rss = 2 << 30
    party.passes(5)
    assert (process.memory, counted) == (2 << 30, [3])


def test_what_cannot_be_measured_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    party = Party(monkeypatch, "shared-gil", "shared-gil")
    party.meter.sweep(party.now)
    odd, other = sorted(party.made, key=lambda each: -each.measures)
    party.answers(odd, problem="RuntimeError: no")
    party.passes(30)

    assert other.memory_at_boot >= 0
    assert odd.measures == 1
    said = "its memory cannot be measured, so no figure is shown for it and max_memory has no effect: RuntimeError: no"
    assert [said in record.getMessage() for record in caplog.records] == [True]


def test_a_look_at_small_blocks_leaves_no_class_behind() -> None:
    cfunc: Any = vars(ctypes)["_CFuncPtr"]
    gc.collect()
    pymalloc.bytes_in_use()
    before = len(type.__subclasses__(cfunc))
    gc.disable()
    try:
        for _ in range(5):
            pymalloc.bytes_in_use()
        assert len(type.__subclasses__(cfunc)) == before
    finally:
        gc.enable()


_REFUSES = """
import logging, sys
from isowsgi.inside import boot, policy
from isowsgi.inside.heap import Heap
policy.install({"ctypes": "deny"}, "/shop", logging.getLogger())
found = boot._measured(Heap())
assert not found.problem and found.small > 0, found
def hook(event, args):
    if event.startswith(("ctypes.", "gc.get_obj")):
        raise RuntimeError("no")
sys.addaudithook(hook)
assert boot._measured(Heap()).problem == "RuntimeError: no"
"""


def test_a_policy_says_nothing_of_isowsgis_own_calls_and_hooks_of_an_app_end_no_more_than_the_figure() -> None:
    done = subprocess.run([sys.executable, "-c", _REFUSES], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")


def test_what_an_app_grows_by_is_told_each_second_and_limits_wait_for_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    party = Party(monkeypatch, "own-gil", "shared-gil", "shared-gil")
    own, leaky, quiet = party.made
    faults = {1: 1000, 2: 1000, 3: 1000}
    for thread, instance in enumerate(party.made, 1):
        instance.thread = thread
    monkeypatch.setattr(residentmemory, "faults_of", lambda thread: residentmemory.Faults(faults[thread], start=1))
    party.passes(30)
    before = [size_of(each) for each in party.made]
    assert [each.memory_at_boot >= 0 for each in party.made] == [True] * 3

    for seconds in range(1, 5):
        faults[2] += 6 * MIB // os.sysconf("SC_PAGE_SIZE")
        party.passes(1, mute=party.made, grows=6 * MIB)
        sizes = [size_of(each) for each in party.made]
        assert [size - was for size, was in zip(sizes, before, strict=True) if size and was] == [0, seconds * 6 * MIB, 0]
    assert [each.memory for each in (own, leaky, quiet)] == before, "max_memory and max_rss replace nobody for an estimate"


def test_what_requests_left_before_the_first_look_is_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over max_rss, an app that was measured only then had grown by nothing: a neighbour was replaced, then the worker."""
    party = Party(monkeypatch, "own-gil", "own-gil")
    hoards, idle = party.made
    hoards.served = 3
    for _ in party.meter.look(party.now):
        continue
    party.meter.sweep(party.now)
    party.answers(hoards, small=90 * MIB)
    party.answers(idle, small=3 * MIB)

    assert hoards.memory - hoards.memory_at_boot > 89 * MIB
    assert idle.memory == idle.memory_at_boot == 3 * MIB


def shared(weight: int, small: int, large: int = 0) -> Measured:
    return Measured(is_whole=True, took_s=0.01, objects=1, small=small, large=large, weight=weight)


def divided(*weights: int, small: int) -> tuple[Sharers, list[Any]]:
    sharers, made = Sharers(), [FakeInstance(isolation="shared-gil") for _ in weights]
    sharers.note(0)
    for instance, weight in zip(made, weights, strict=True):
        sharers.take(instance, shared(weight, small))
    sharers.divide()
    return sharers, made


def test_what_a_neighbour_has_grown_by_is_not_given_to_the_one_that_was_looked_at() -> None:
    """All that the shared allocator had grown by was, if only one of two was looked at."""
    sharers, (leaky, quiet) = divided(10 * MIB, 10 * MIB, small=20 * MIB)
    sharers.take(quiet, shared(10 * MIB + 1000, 50 * MIB))
    assert sharers.divide()[quiet] < 11 * MIB

    sharers.take(leaky, shared(40 * MIB, 50 * MIB))
    sharers.take(quiet, shared(10 * MIB + 2000, 50 * MIB))
    sizes = sharers.divide()
    assert 39 * MIB < sizes[leaky] <= 40 * MIB
    assert sizes[quiet] < 11 * MIB


def test_who_is_looked_at_later_has_not_what_came_with_others_meanwhile() -> None:
    sharers, leaky, quiet = Sharers(), *[FakeInstance(isolation="shared-gil") for _ in range(2)]
    sharers.note(0)
    sharers.take(leaky, shared(10 * MIB, 20 * MIB))
    sharers.take(quiet, shared(10 * MIB, 50 * MIB))  # by then the first one had 30 MiB more
    assert sharers.divide() == {leaky: 10 * MIB, quiet: 10 * MIB}


def test_a_look_explains_no_more_of_the_workers_growth_than_its_thread_has_touched() -> None:
    """A neighbour that grew while a look lasted was taken for part of the look, and was not measured for it."""
    before, faults = residentmemory.bytes_of("self"), residentmemory.faults_of()
    kept: list[bytes] = []
    neighbour = threading.Thread(target=lambda: kept.append(b"x" * (64 * MIB)))
    neighbour.start()
    neighbour.join()
    after = residentmemory.bytes_of("self")

    assert before is not None
    assert after is not None
    assert after - before > 48 * MIB
    assert abs(heap._grown(before, faults)) < 16 * MIB


def test_a_process_has_a_figure_when_its_app_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had amid its boot was shown as its size, and was the begin of its course."""
    party = Party(monkeypatch, "process")
    [process] = party.made
    [deployment] = party.meter._deployments()
    monkeypatch.setattr(party.meter, "_deployments", lambda: [deployment])  # one that keeps its course
    monkeypatch.setattr(residentmemory, "bytes_of", lambda pid: 7 * MIB)
    monkeypatch.setattr(processmemory, "pss_bytes", lambda pid: 7 * MIB)
    process.pid, process.is_loaded = os.getpid(), False
    process.state = State.BOOTING
    party.passes(1)
    assert process.memory == 7 * MIB, "which counts for max_rss"
    assert (memory_of(deployment), deployment.trend.mib) == (None, [])

    monkeypatch.setattr(processmemory, "pss_bytes", lambda pid: 30 * MIB)
    process.is_loaded, process.state = True, State.SERVING
    assert memory_of(deployment) is None
    party.passes(1)
    assert memory_of(deployment) == 30 * MIB
    party.passes(6)
    assert deployment.trend.mib[0] == 30.0
