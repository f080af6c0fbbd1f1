"""A deployment: replacing, retrying, sleeping and giving up never lose an instance and never leave a gap."""

from __future__ import annotations

import logging
import subprocess
import sys
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from isowsgi.configuration import Config
from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.isolation.decision import Verdict
from isowsgi.shared.applied import LastApplied
from isowsgi.shared.messages import Broken, Closed, Failed, Known, Measured, Ready, Refused, Stuck, Unknown
from isowsgi.worker.backoff import Backoff
from isowsgi.worker.bootqueue import Boots
from isowsgi.worker.dispatcher import NotServing
from isowsgi.worker.memorylimit import MemoryWatch
from isowsgi.worker.meter import Meter
from isowsgi.worker.reloadqueue import TURN_S, Places, Turns
from isowsgi.worker.supervisor import Supervisor
from tests.conftest import examples
from tests.fakes import FakeInstance, Site, up


def test_a_mount_that_fails_for_days_is_still_tried_again_every_minute() -> None:
    """2.0 ** 1024 is an OverflowError: after 17 hours of failures nothing was planned any more, and who waited was not answered."""
    backoff = Backoff()

    assert {backoff.plan(0.0) for _ in range(2000)} == {1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0}
    assert {backoff.after_end(0.0, 0.0) for _ in range(2000)} == {0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0}


def test_requests_wait_out_a_moment_in_which_no_app_can_be_loaded_for_lack_of_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    """An app that took all of them for a fifth of a second cost a neighbour that was just being loaded its requests: they were 503."""
    site = Site()
    site.deployment.start(site.now)
    site.failed(site.made[0], traceback="OSError: [Errno 24] Too many open files: 'shop.py'")
    assert site.chosen() is NotServing.BOOTING
    assert "requests wait" in caplog.text

    site.around.shortage = OSError(24, "Too many open files")
    site.wait(1)
    assert site.chosen() is NotServing.BOOTING

    site.around.shortage = None
    site.wait(1)
    site.ready(site.made[1])
    assert site.chosen() is site.made[1]


def test_so_do_those_that_a_worker_has_accepted_that_stops() -> None:
    """A mount that was loaded at the same moment as its worker was told to stop cost twenty clients that waited for it a 503."""
    site = Site()
    site.deployment.start(site.now)
    site.deployment.finish()
    site.failed(site.made[0], traceback="OSError: [Errno 24] Too many open files: 'shop.py'")
    assert site.chosen() is NotServing.BOOTING

    site.wait(1)
    site.ready(site.made[1])
    assert site.chosen() is site.made[1]


def test_a_mount_that_leaves_the_table_is_not_tried_again_for_lack_of_descriptors() -> None:
    site = Site()
    site.deployment.start(site.now)
    site.failed(site.made[0], traceback="OSError: [Errno 24] Too many open files: 'shop.py'")
    site.deployment.leave(site.now)
    site.wait(12)

    assert len(site.made) == 1


def test_a_lack_that_lasts_is_answered_503_and_tried_again_less_often() -> None:
    site = Site()
    site.around.shortage = RuntimeError("can't start new thread")
    site.deployment.start(site.now)
    for _ in range(12):
        site.wait(1)

    assert site.chosen() is NotServing.FAILED
    assert site.deployment.backoff.left_s(site.now)
    before = site.around.releases
    site.wait(2)
    assert site.around.releases == before + 1, "who still waited is answered"


def test_no_trial_is_made_for_lack_of_descriptors() -> None:
    """Whether an app loads elsewhere says nothing about it."""
    site = Site(isolation="auto")
    site.deployment.start(site.now)
    site.failed(site.made[0], "cannot create an interpreter: InterpreterError: interpreter creation failed", "")

    assert (site.around.trials, site.chosen()) == (0, NotServing.BOOTING)


def test_who_waits_is_looked_at_again_even_if_the_next_try_cannot_be_planned() -> None:
    class Broke(Backoff):
        def plan(self, now: float, lacks: bool = False) -> float:
            raise OverflowError

    site = Site()
    site.deployment.start(site.now)
    site.deployment.backoff = Broke()

    with pytest.raises(OverflowError):
        site.failed(site.made[0])

    assert site.around.releases == 1


def test_boots_that_leave_threads_behind_are_not_repeated_for_ever_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """The log promised another try in two seconds, which never came."""
    caplog.set_level(logging.INFO)
    site = Site()
    site.deployment.start(site.now)
    for _ in range(2):
        site.failed(site.made[-1])
        site.reports(site.made[-1], Closed(threads=1))
        site.wait(61)
        site.wait(1)

    assert len(site.made) == 2
    said = "/: no more retries: threads of 2 failed boots are still running; run `isowsgi start /`, or reload gunicorn (SIGHUP)"
    assert [record.getMessage() for record in caplog.records].count(said) == 1

    site.deployment.resume(site.now)
    site.ready(site.made[2])
    assert site.chosen() is site.made[2]


def test_over_max_rss_the_mount_that_grew_most_is_replaced_once_all_are_measured() -> None:
    """Anyone can send figures that nobody asked for; and an answer that came late replaced a mount twice."""
    site = up()
    meter = Meter(lambda: [site.deployment])
    watch = MemoryWatch(lambda: [site.deployment], lambda: 1, meter)  # we have more
    found = Measured(is_whole=True, took_s=0.001, objects=50, small=2**20, large=2**20, weight=0)
    meter.on_measured(site.made[0], found, site.now)
    assert (len(site.made), site.made[0].memory) == (1, -1)

    watch.tick(site.now)
    watch.tick(site.now)
    assert (len(site.made), site.made[0].measures) == (1, 1)
    meter.on_measured(site.made[0], found, site.now)
    watch.tick(site.now)
    assert len(site.made) == 2

    site.ready(site.made[1])
    meter.on_measured(site.made[0], found, site.now)
    watch.tick(site.now)
    assert len(site.made) == 2


def test_over_max_rss_a_mount_that_cannot_be_measured_is_replaced_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """A heap that grew faster than it was looked at was never measured: nothing was replaced, and 30 s later the worker was."""
    caplog.set_level(logging.INFO)
    site = up()
    watch = MemoryWatch(lambda: [site.deployment], lambda: 1, Meter(lambda: [site.deployment]))
    watch.tick(site.now)
    watch.tick(site.now + 14)
    assert len(site.made) == 1

    watch.tick(site.now + 16)

    assert len(site.made) == 2
    assert "of the mounts whose memory could not be measured within 15 s this one has served most" in caplog.text


def test_over_max_rss_a_neighbour_that_has_hardly_grown_is_not_replaced_for_one_that_cannot_be_measured() -> None:
    leaks, neighbour = up(), up()
    deployments = [leaks.deployment, neighbour.deployment]
    watch = MemoryWatch(lambda: deployments, lambda: 1, Meter(lambda: deployments))
    neighbour.made[0].memory_at_boot, neighbour.made[0].memory = 2**20, 2**20 + 4096
    watch.tick(leaks.now)
    watch.tick(leaks.now + 16)

    assert (len(leaks.made), len(neighbour.made)) == (2, 1)


def test_an_instance_over_its_max_memory_is_replaced_once() -> None:
    site = up(max_memory=2**20)
    site.made[0].memory_at_boot, site.made[0].memory = 2**19, 2**21
    site.wait(1)
    assert len(site.made) == 1, "not in its first seconds"
    site.wait(10)
    site.wait(1)
    assert len(site.made) == 2

    site.ready(site.made[1])
    site.closed(site.made[0])
    site.wait(30)
    assert len(site.made) == 2


def test_an_app_that_needs_its_max_memory_from_the_start_is_loaded_again_less_and_less_often(caplog: pytest.LogCaptureFixture) -> None:
    site = up(max_memory=2**20)
    for _ in range(20):
        site.made[-1].memory = site.made[-1].memory_at_boot = 2**21
        site.wait(15)
        if site.made[-1].state is State.BOOTING:
            site.ready(site.made[-1])
            site.closed(site.made[-2])

    assert len(site.made) == 5, "after 10, 20, 40, 80 s"
    said = "/ #1: used 2 MiB soon after it was loaded, and max_memory is 1M; raise max_memory; not replacing it for that again within 20 s"
    assert [record.getMessage() for record in caplog.records].count(said) == 1


def test_a_replacement_for_memory_that_fails_to_load_is_tried_again_less_and_less_often() -> None:
    site = up(max_memory=2**20)
    site.made[0].memory_at_boot, site.made[0].memory = 2**19, 2**21
    for _ in range(30):
        site.wait(11)
        if site.made[-1].state is State.BOOTING:
            site.failed(site.made[-1])

    assert len(site.made) - 1 == 5, "after 10 s, and 10, 20, 40, 80 and more after that"


def test_a_new_worker_is_no_way_out_for_an_app_that_needs_its_max_memory(caplog: pytest.LogCaptureFixture) -> None:
    site = up(max_memory=2**20)
    site.deployment.siting.isolation = "main"
    site.made[0].memory = site.made[0].memory_at_boot = 2**21
    for _ in range(10):
        site.wait(60)

    assert not site.deployment.restart_reason
    said = "/ #1: used 2 MiB soon after it was loaded, and max_memory is 1M; raise max_memory; not starting a new worker for that"
    assert [record.getMessage() for record in caplog.records].count(said) == 1

    site.made[0].memory_at_boot = 2**19
    for _ in range(15):
        site.wait(60)
    assert "uses 2 MiB" in site.deployment.restart_reason


def test_over_max_memory_an_instance_does_not_outlive_its_max_age() -> None:
    site = up(max_memory=2**20, max_age=60.0)
    for _ in range(100):
        site.made[-1].memory = site.made[-1].memory_at_boot = 2**21
        site.wait(7)
        if site.made[-1].state is State.BOOTING:
            site.ready(site.made[-1])
            site.closed(site.made[-2])

    assert len(site.made) > 10


def test_the_request_that_wakes_a_mount_puts_it_before_those_that_nobody_waits_for() -> None:
    site = Site(lazy=True)
    site.around.is_crowded = True

    assert site.chosen() is NotServing.BOOTING
    assert site.around.hurried == [site.deployment]


def in_turn(**changes: Any) -> Site:
    """Return a site whose instances are loaded one after the other."""
    site = Site(**changes)
    boots = Boots(1, logging.getLogger("test"), lambda what, function, now: function(now), lambda: (0, 0))
    vars(site.around).update(may_boot=boots.take, leave_line=boots.leave, boots=boots)
    site.deployment.start(site.now)
    return site


def test_instances_of_one_mount_are_loaded_in_turn_as_one_generation() -> None:
    site = in_turn(instances=3)
    boots = vars(site.around)["boots"]
    for count in (1, 2, 3):
        assert len(site.made) == count
        assert not site.deployment.has_arrived(1)
        assert site.deployment.is_under_way()
        site.ready(site.made[-1])
        boots.pass_on(site.now)

    assert [instance.generation for instance in site.made] == [1, 1, 1]
    assert site.deployment.has_arrived(1)
    assert not site.deployment.is_under_way()


def test_a_mount_that_is_replaced_before_all_its_instances_had_their_turn_numbers_what_it_starts_later() -> None:
    """An instance that was started after that had the number of the generation before it."""
    site = in_turn(instances=3)
    site.ready(site.made[0])
    site.deployment.replace("test", site.now)
    for instance in site.made[1:]:
        site.ready(instance)
    vars(site.around)["boots"].pass_on(site.now)
    assert [instance.generation for instance in site.made] == [1, 2, 2, 2]

    site.deployment.slots.live[0] = None  # as after an end
    site.deployment.start(site.now)

    assert site.made[-1].generation == 3


def test_an_app_that_cannot_be_loaded_is_not_tried_again_at_once_in_the_turn_of_its_next_instance() -> None:
    site = in_turn(instances=3)
    site.failed(site.made[0])

    vars(site.around)["boots"].pass_on(site.now)
    assert len(site.made) == 1
    site.wait(1.5)

    assert len(site.made) == 2
    assert site.deployment.generation == 2


def test_once_the_worker_has_answered_all_that_it_accepted_nothing_is_handed_over_any_more() -> None:
    """Who waited because the mount had as many unanswered requests as it may was not answered when the worker stopped."""
    site = up()
    assert site.chosen() is site.made[0]

    site.deployment.stop()

    assert site.made[0].state is State.SERVING
    assert site.chosen() is NotServing.FAILED


def test_a_stop_first_reload_is_loaded_before_those_that_nobody_waits_for() -> None:
    site = up(replace="stop-first")
    site.around.is_crowded = True

    site.deployment.replace("test", site.now)
    site.closed(site.made[0])
    site.made[0].has_gone = True
    site.wait(1)

    assert site.around.hurried == [site.deployment]


def test_a_request_that_the_old_generation_gives_back_loads_nothing_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It found the mount asleep: an app that locks its data was loaded while it still held them."""
    site = up(replace="stop-first")
    found: list[Any] = []
    monkeypatch.setattr(site.made[0], "stop", lambda frees=True: found.append(site.chosen()))

    site.deployment.replace("test", site.now)

    assert (found, len(site.made)) == ([NotServing.BOOTING], 1)


def test_a_trial_that_cannot_be_begun_is_tried_again() -> None:
    """The mount counted as on trial for ever, and its clients waited."""
    site = Site(isolation="auto")
    site.around.trial_shortage = OSError(24, "Too many open files")
    site.deployment.start(site.now)
    site.made[0].unknown_extension = "/x.so"
    site.failed(site.made[0])
    assert site.chosen() is NotServing.BOOTING, "for a moment"
    site.around.trial_shortage = None
    site.wait(61)
    site.made[1].unknown_extension = "/x.so"
    site.failed(site.made[1])
    assert (site.around.trials, site.chosen()) == (1, NotServing.BOOTING)


def test_a_suspect_is_not_loaded_without_the_trial_that_could_not_be_begun() -> None:
    site = Site()
    site.deployment.siting._is_suspect = True
    site.around.trial_shortage = OSError(24, "Too many open files")
    site.deployment.start(site.now)
    assert (site.made, site.deployment.siting.is_on_trial) == ([], False)

    site.around.trial_shortage = None
    site.wait(61)
    assert (site.made, site.around.trials) == ([], 1)


def test_an_import_that_was_refused_is_told_of_again_if_no_trial_could_be_begun() -> None:
    site = up(isolation="auto")
    refused = Refused(name="lxml.etree", path="/lxml.so", error="ImportError: no")
    site.around.trial_shortage = OSError(24, "Too many open files")
    site.reports(site.made[0], refused)

    site.around.trial_shortage = None
    site.reports(site.made[0], refused)
    assert site.around.trials == 1


def test_a_boot_that_was_given_up_and_fails_later_begins_no_trial() -> None:
    site = Site(isolation="auto", boot_timeout=5)
    site.deployment.start(site.now)
    site.wait(6)

    site.made[0].unknown_extension = "/x.so"
    site.failed(site.made[0])

    assert site.around.trials == 0


def test_one_that_fails_in_its_turn_does_not_keep_the_turn() -> None:
    """Whoever failed so went before all others from then on."""
    turns = Turns()
    first, second = up(turns), up(turns)
    first.deployment.replace("test", 0.0)
    broken = SimpleNamespace(is_replacing=lambda: False, go_on=lambda now: 1 / 0)
    assert not turns.take(broken, 0.0)
    assert not turns.take(second.deployment, 0.0)
    first.ready(first.made[1])
    with pytest.raises(ZeroDivisionError):
        turns.pass_on(1.0)

    assert not turns.take(broken, 1.0)


def test_who_waits_for_a_mount_when_the_worker_leaves_is_answered() -> None:
    site = Site()
    site.deployment.start(site.now)
    assert site.chosen() is NotServing.BOOTING
    site.deployment.finish()
    assert site.chosen() is NotServing.BOOTING

    releases = site.around.releases
    site.deployment.stop()
    assert (site.chosen(), site.around.releases) == (NotServing.FAILED, releases + 1)


def test_a_worker_that_stops_still_does_what_those_who_wait_need() -> None:
    """A stop-first reload, and a boot that hangs, kept their clients waiting until the worker had left."""
    site = Site(boot_timeout=5)
    orders: Any = SimpleNamespace(packages={}, workers=1)
    config = Config(path="/isowsgi.toml", mounts=())
    around = site.around
    parts = {"config": config, "orders": orders, "board": around.board, "log": around.log, "containment": around.containment}
    supervisor = Supervisor(**parts, drain_s=30, on_files=None)
    supervisor.table.deployments.append(site.deployment)
    site.deployment.start(-1000.0)  # longer ago than its boot may take, whatever the clock says
    supervisor.finish()

    supervisor.rounds.tick()

    assert site.chosen() is NotServing.FAILED
    assert site.around.releases == 1


def test_a_replacement_serves_before_the_old_one_drains() -> None:
    site = up()
    old = site.made[0]

    site.deployment.replace("test", site.now)
    assert site.chosen() is old
    assert not old.drained

    site.ready(site.made[1])
    assert site.chosen() is site.made[1]
    assert old.drained
    assert old.stopped
    assert old.generation < site.made[1].generation


def test_a_replacement_that_fails_leaves_the_old_one_serving() -> None:
    site = up()

    site.deployment.replace("test", site.now)
    site.failed(site.made[1])

    assert site.chosen() is site.made[0]
    assert not site.made[0].drained


def test_a_reload_asked_for_during_another_is_done_after_it() -> None:
    """What the first one loaded may be out of date already."""
    site = up()

    site.deployment.replace("first", site.now)
    site.deployment.replace("second", site.now)
    assert len(site.made) == 2
    site.ready(site.made[1])

    assert len(site.made) == 3
    site.ready(site.made[2])
    assert site.chosen() is site.made[2]
    assert len(site.made) == 3


def test_mounts_are_replaced_one_after_the_other_in_the_order_in_which_they_asked() -> None:
    turns = Turns()
    first, second, third = sites = [up(turns) for _ in range(3)]

    for site in (*sites, first):
        site.deployment.replace("test", site.now)
    assert [len(site.made) for site in sites] == [2, 1, 1]
    assert [site.deployment.is_under_way() for site in sites] == [True, True, True]
    assert not second.deployment.has_arrived(1)

    first.ready(first.made[1])
    turns.pass_on(first.now)
    assert [len(site.made) for site in sites] == [2, 2, 1]

    second.failed(second.made[1])
    turns.pass_on(first.now)
    assert [len(site.made) for site in sites] == [2, 2, 2]

    third.ready(third.made[1])
    turns.pass_on(first.now)
    assert [len(site.made) for site in sites] == [3, 2, 2]
    first.ready(first.made[2])
    turns.pass_on(first.now)
    assert [len(site.made) for site in sites] == [3, 2, 2]


def test_a_replacement_that_takes_long_keeps_nobody_from_theirs_for_ever() -> None:
    turns = Turns()
    slow, quick = up(turns), up(turns)
    slow.deployment.replace("test", slow.now)
    quick.deployment.replace("test", quick.now)

    turns.pass_on(slow.now + TURN_S - 1)
    assert len(quick.made) == 1
    turns.pass_on(slow.now + TURN_S)
    assert len(quick.made) == 2


def test_workers_load_one_after_the_other_beside_what_serves() -> None:
    """Three workers that loaded one mount each kept two cores busy; their neighbours' p99 was twice as long."""
    shared = LastApplied()
    # A worker of its own: the locks are those of a process.
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLDS_A_PLACE, str(shared.fileno())], pass_fds=[shared.fileno()], stdin=PIPE, stdout=PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        looks: list[float] = []
        turns = Turns(Places(shared), lambda: looks.append(0.0))
        site = up(turns)
        site.deployment.replace("test", 0.0)
        turns.pass_on(1.0)
        assert (len(site.made), len(looks)) == (1, 2)

        other.kill()  # the kernel frees what it has
    turns.pass_on(2.0)
    assert len(site.made) == 2


_HOLDS_A_PLACE = """
import fcntl, sys
fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX, 1, 2)
print("held", flush=True)
sys.stdin.read()
"""


def test_no_worker_waits_for_the_others_for_ever() -> None:
    class Full(Places):
        def take(self) -> bool:
            return False

    turns = Turns(Full())
    site = up(turns)
    site.deployment.replace("test", 0.0)
    turns.pass_on(29.0)
    assert len(site.made) == 1

    turns.pass_on(31.0)
    assert len(site.made) == 2


def test_a_place_is_given_back_between_two_loads_and_at_the_end() -> None:
    class Counted(Places):
        are_shared = True
        held = given = 0

        def take(self) -> bool:
            self.held = 1
            return True

        def give_back(self) -> None:
            self.given += self.held
            self.held = 0

    places = Counted()
    turns = Turns(places)
    first, second = up(turns), up(turns)
    for site in (first, second):
        site.deployment.replace("test", 0.0)
    first.ready(first.made[1])
    turns.pass_on(1.0)
    assert (places.given, len(second.made)) == (1, 1)

    turns.pass_on(1.05)
    assert len(second.made) == 2
    turns.end()
    assert places.given == 2


@pytest.mark.parametrize("loses_interest", ["sleep", "halt"])
def test_who_has_no_use_for_its_turn_any_more_keeps_nobody_waiting(loses_interest: str) -> None:
    turns = Turns()
    first, second, third = (up(turns) for _ in range(3))
    for site in (first, second, third):
        site.deployment.replace("test", site.now)

    getattr(second.deployment, loses_interest)(second.now)
    first.ready(first.made[1])
    turns.pass_on(first.now)

    assert [len(site.made) for site in (first, second, third)] == [2, 1, 2]


def test_an_instance_with_a_stuck_thread_waits_for_nobodys_turn() -> None:
    turns = Turns()
    first, second = up(turns), up(turns)
    first.deployment.replace("test", first.now)

    second.stuck(second.made[0])

    assert len(second.made) == 2


def test_what_ends_while_its_replacement_is_loaded_is_not_started_again_itself() -> None:
    """It was, as a later generation than the replacement's, which then took the place from it."""
    site = up()

    site.deployment.replace("test", site.now)
    site.closed(site.made[0])
    assert site.chosen() is NotServing.BOOTING
    assert not site.deployment.has_arrived(2)

    site.ready(site.made[1])
    assert len(site.made) == 2
    assert site.chosen() is site.made[1]
    assert site.deployment.has_arrived(site.deployment.generation)


def test_a_replacement_that_fails_when_nothing_serves_any_more_is_tried_again() -> None:
    site = up()

    site.deployment.replace("test", site.now)
    site.closed(site.made[0])
    site.failed(site.made[1])
    assert site.chosen() is NotServing.FAILED

    site.wait(1.0)
    site.ready(site.made[2])
    assert site.chosen() is site.made[2]


def test_a_crash_soon_after_a_start_has_to_do_with_the_one_before_only_if_nothing_lived_for_long_in_between() -> None:
    """Two crashes hours apart, with a good life and a reload in between, once made the mount wait as if it crashed again and again."""
    site = up()
    site.closed(site.made[0])
    site.ready(site.made[1])
    site.wait(3600.0)
    site.deployment.replace("test", site.now)
    site.ready(site.made[2])

    site.closed(site.made[2])
    assert site.chosen() is NotServing.BOOTING
    site.ready(site.made[3])
    site.closed(site.made[3])
    assert site.chosen() is NotServing.FAILED


def test_a_mount_that_fails_is_tried_again_with_growing_pauses() -> None:
    site = Site()
    site.deployment.start(site.now)
    pauses = []
    for attempt in range(8):
        site.failed(site.made[attempt])
        assert site.chosen() is NotServing.FAILED
        began = site.now
        while len(site.made) == attempt + 1:
            site.wait(0.5)
        pauses.append(site.now - began)

    assert pauses == sorted(pauses)
    assert pauses[0] <= 1
    assert pauses[-1] == 60


def test_a_lazy_mount_starts_at_its_first_request_and_sleeps_again_when_idle() -> None:
    site = Site(lazy=True, idle_timeout=10.0)
    assert site.made == []
    assert site.deployment.is_asleep()

    assert site.chosen() is NotServing.BOOTING
    assert site.chosen() is NotServing.BOOTING
    assert len(site.made) == 1
    site.ready(site.made[0])
    assert site.chosen() is site.made[0]

    site.wait(9)
    site.made[0].served += 1
    site.wait(9)
    assert not site.deployment.is_asleep()
    site.wait(11)
    assert site.deployment.is_asleep()
    assert site.made[0].drained
    assert site.chosen() is NotServing.BOOTING


def test_a_busy_instance_is_not_idle() -> None:
    site = up(idle_timeout=10.0)
    site.made[0].busy = True

    site.wait(60)

    assert not site.deployment.is_asleep()


def test_an_instance_with_a_stuck_thread_is_replaced_and_serves_until_then() -> None:
    site = up()

    site.stuck(site.made[0])
    assert site.chosen() is site.made[0]
    assert site.made[0].state is State.STUCK
    site.ready(site.made[1])

    assert site.chosen() is site.made[1]
    assert site.deployment.stuck == 1


def test_c_code_that_holds_the_gil_has_its_instance_replaced() -> None:
    site = up(request_timeout=5.0)
    site.made[0].holds_gil = True

    site.wait(1)
    site.wait(1)

    assert len(site.made) == 2
    assert site.made[0].state is State.STUCK


def test_a_request_that_is_cut_off_from_outside_is_an_error_of_its_mount() -> None:
    """The client got a 504, and `isowsgi errors` knew of none."""
    site = up(request_timeout=5.0)
    instance, deployment = site.made[0], site.deployment
    instance.holds_gil, instance.mounts_cut = True, [deployment.members[0].number]

    deployment.upkeep.tick(site.now)

    [group] = deployment.reports.incidents.groups_of(deployment.mount.pattern)
    assert (group.kind, group.type, group.count, group.request) == ("timeout", "504 Gateway Timeout", 1, "GET /slow")


def test_an_app_that_is_not_loaded_in_time_is_left_behind_and_tried_again() -> None:
    site = Site(boot_timeout=5.0)
    site.deployment.start(site.now)

    site.wait(6)
    assert site.made[0].state is State.STUCK
    assert site.chosen() is NotServing.FAILED
    site.wait(2)
    site.ready(site.made[1])

    assert site.chosen() is site.made[1]


def test_a_mount_whose_boots_hang_does_not_pile_them_up() -> None:
    """Each keeps an interpreter and a thread; one that ends makes room for another try."""
    site = Site(boot_timeout=5.0)
    site.deployment.start(site.now)

    for _ in range(600):
        site.wait(1)
    assert len(site.made) == 2

    site.failed(site.made[0])
    site.closed(site.made[0])
    site.wait(1)
    assert len(site.made) == 3


def test_the_same_failure_is_told_in_full_once(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    site.deployment.start(site.now)
    for number, traceback in enumerate(["a", "a", "b"]):
        site.failed(site.made[number], traceback=traceback)
        while len(site.made) == number + 1:
            site.wait(1)

    told = [record.getMessage() for record in caplog.records if "cannot load" in record.message]
    assert [line.partition("NameError: x")[2] for line in told] == ["\na", ", as before", "\nb"]


def test_a_boot_that_ends_after_it_was_given_up_does_not_serve() -> None:
    site = Site(boot_timeout=5.0)
    site.deployment.start(site.now)
    site.wait(6)

    site.ready(site.made[0])

    assert site.made[0].drained
    assert site.chosen() is NotServing.FAILED


def test_an_instance_is_replaced_after_its_requests_or_its_time() -> None:
    site = up(max_requests=10)
    site.made[0].served = 9
    site.wait(1)
    assert len(site.made) == 1
    site.made[0].served = 10
    site.wait(1)
    site.wait(1)
    assert len(site.made) == 2

    site = up(max_age=60.0)
    site.wait(59)
    assert len(site.made) == 1
    site.wait(2)
    site.wait(2)
    assert len(site.made) == 2


def test_a_touched_file_replaces_the_mount(tmp_path: Any) -> None:
    file = tmp_path / "touched"
    site = up(touch=str(file))
    site.wait(1)
    assert len(site.made) == 1

    file.write_text("")
    site.wait(1)

    assert len(site.made) == 2


def test_a_drain_that_takes_too_long_leaves_the_instance_behind() -> None:
    site = up()
    site.deployment.replace("test", site.now)
    site.ready(site.made[1])

    site.wait(31)
    assert site.made[0].state is State.STUCK

    site.closed(site.made[0])
    assert site.made[0] not in site.deployment.slots.all()


def test_a_worker_may_stop_while_a_replaced_instance_still_drains() -> None:
    """A second order to drain was no event of that state once, and a SIGTERM soon after a reload ended the worker with a traceback."""
    site = up()
    site.deployment.replace("test", site.now)
    site.ready(site.made[1])

    site.deployment.finish()
    site.deployment.stop()

    assert [instance.state for instance in site.made] == [State.DRAINING, State.DRAINING]
    assert all(instance.stopped for instance in site.made)


def test_a_stopping_worker_still_serves_what_it_has_accepted() -> None:
    site = up()

    site.deployment.finish()

    assert site.chosen() is site.made[0]


def test_what_dies_in_a_stopping_worker_is_started_again_for_a_request_that_was_accepted() -> None:
    """Requests that waited for a process that was killed then were answered 503."""
    site = up()
    site.deployment.finish()

    site.closed(site.made[0])
    assert len(site.made) == 1
    assert site.chosen() is NotServing.BOOTING
    site.ready(site.made[1])
    assert site.chosen() is site.made[1]

    site.deployment.stop()
    site.closed(site.made[1])
    assert site.chosen() is NotServing.FAILED
    assert len(site.made) == 2


def test_a_worker_that_stops_while_an_app_is_loaded_lets_its_clients_wait_for_that() -> None:
    """A connection given to an instance that then fails would be lost without an answer."""
    site = Site()
    site.deployment.start(site.now)

    site.deployment.finish()

    assert site.chosen() is NotServing.BOOTING


def test_a_stopping_worker_replaces_nothing_any_more() -> None:
    """Nobody would tell the new instance to end, and the worker waited for it until graceful_timeout."""
    site = up()
    site.deployment.replace("test", site.now)
    site.deployment.replace("asked for meanwhile", site.now)
    site.deployment.finish()

    site.ready(site.made[1])
    site.deployment.replace("a file has changed", site.now)
    site.stuck(site.made[1])

    assert len(site.made) == 2


def test_each_of_several_instances_gets_its_turn() -> None:
    site = up(instances=3)

    assert {id(site.chosen()) for _ in range(3)} == {id(instance) for instance in site.made}


def test_a_quarantined_mount_is_never_started() -> None:
    site = Site()
    site.deployment.is_quarantined = True

    site.deployment.start(site.now)
    site.deployment.replace("test", site.now)

    assert site.made == []
    assert site.chosen() is NotServing.FAILED


def test_what_the_operator_stopped_is_not_started_by_anything_else(tmp_path: Any) -> None:
    file = tmp_path / "touched"
    site = up(touch=str(file), lazy=True)
    site.deployment.replace("test", site.now)

    site.deployment.halt(site.now)
    assert [instance.stopped for instance in site.made] == [True, True]
    assert site.around.releases > 0, "who waits for the one that was being loaded is answered"
    file.write_text("")
    site.ready(site.made[1])
    site.wait(100)
    site.deployment.replace("test", site.now)
    assert site.chosen() is NotServing.FAILED
    assert site.deployment.state() == "stopped"
    assert len(site.made) == 2

    site.deployment.resume(site.now)
    site.ready(site.made[2])
    assert site.chosen() is site.made[2]
    assert site.deployment.state() == "serving"


def test_a_mount_has_arrived_once_every_slot_serves_what_was_asked_for() -> None:
    site = up(instances=2)
    assert site.deployment.has_arrived(1)

    site.deployment.replace("test", site.now)
    assert site.deployment.state() == "reloading"
    site.ready(site.made[2])
    assert not site.deployment.has_arrived(2)
    assert site.deployment.is_under_way()
    site.ready(site.made[3])

    assert site.deployment.has_arrived(2)
    assert not site.deployment.is_under_way()


def test_reports_are_handled_one_by_one() -> None:
    """Both were taken in before either was handled: "stuck" met an instance that had ended, and that ended the worker."""
    site = up()
    site.made[0].said += [Stuck(stack="GET / HTTP/1.1\n  a stack"), Closed(threads=0)]

    site.deployment.reports.read(site.made[0], site.now)

    assert site.made[0].state is State.CLOSED
    site.ready(site.made[1])
    assert site.chosen() is site.made[1]


def test_last_words_that_come_after_the_end_change_nothing() -> None:
    site = up()
    site.deployment.replace("test", site.now)
    site.ready(site.made[1])
    site.closed(site.made[0])

    site.stuck(site.made[0])

    assert (site.made[0].state, site.deployment.stuck) == (State.CLOSED, 0)


BEYOND_BELIEF = [b"no JSON", Ready(boot_s=0, objects=0, extensions=[], refused=[]), Broken(thread="isowsgi-0", error="E", traceback="T")]


@pytest.mark.parametrize("said", BEYOND_BELIEF)
def test_an_instance_that_cannot_be_believed_is_replaced_and_its_mount_serves_on(said: Any) -> None:
    site = up()
    site.made[0].said.append(said)

    site.deployment.reports.read(site.made[0], site.now)
    assert site.made[0].state is State.STUCK
    assert site.chosen() is NotServing.BOOTING
    site.ready(site.made[1])

    assert site.chosen() is site.made[1]
    assert site.made[0].stopped


def test_a_walled_instance_that_cannot_be_believed_is_no_mistake_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """What it says is a stranger's word, so it could raise our count of internal errors, with a traceback each time."""
    site = up()
    site.made[0].is_walled = True
    site.made[0].said.append(b"no JSON")

    site.deployment.reports.read(site.made[0], site.now)

    assert site.made[0].state is State.STUCK
    assert f"{site.made[0].tag}: expected JSON" in caplog.messages
    assert "Traceback" not in caplog.text


def test_a_generation_that_does_not_serve_is_not_said_to(caplog: pytest.LogCaptureFixture) -> None:
    """The line before said that its mount answers 503."""
    site = up()
    site.made[0].said.append(b"no JSON")
    site.deployment.reports.read(site.made[0], site.now)
    site.failed(site.made[1])
    caplog.set_level("INFO")
    caplog.clear()

    site.deployment.replace("requested by the operator", site.now)

    assert caplog.messages == ["/: loading generation 3 (requested by the operator); requests wait for it"]


def test_an_instance_that_cannot_be_believed_while_it_boots_is_tried_again() -> None:
    site = Site()
    site.deployment.start(site.now)
    site.made[0].said.append(b"no JSON")

    site.deployment.reports.read(site.made[0], site.now)
    assert site.chosen() is NotServing.FAILED
    site.wait(1)
    site.ready(site.made[1])

    assert site.chosen() is site.made[1]


@pytest.mark.parametrize("is_replacement", [False, True])
def test_an_end_that_is_dealt_with_half_way_does_not_block_the_mount(is_replacement: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state had changed and what follows from it had not: a replacement that failed passed for one under way, and all later reloads
    waited for it."""

    def fail(*args: object) -> None:
        monkeypatch.undo()
        raise OSError("disk full")

    site = up() if is_replacement else Site()
    (site.deployment.replace if is_replacement else lambda reason, now: site.deployment.start(now))("test", site.now)
    monkeypatch.setattr(site.deployment.reports, "boot_failed", fail)
    site.made[-1].said.append(Failed(error="E", traceback="T"))

    site.deployment.reports.read(site.made[-1], site.now)
    assert not site.deployment.is_replacing()
    site.wait(1)
    site.deployment.replace("again", site.now)
    site.ready(site.made[-1])

    assert site.chosen() is site.made[-1]


def test_a_replacement_that_cannot_be_believed_as_it_comes_up_does_not_block_the_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had changed its state to "serving" and served nothing; no reload was begun any more, for one was under way."""

    def fail(*args: object) -> None:
        monkeypatch.undo()
        raise MemoryError

    site = up()
    site.deployment.replace("test", site.now)
    monkeypatch.setattr(site.deployment, "install", fail)
    site.made[1].said.append(Ready(boot_s=0, objects=0, extensions=[], refused=[]))

    site.deployment.reports.read(site.made[1], site.now)
    assert site.chosen() is site.made[0]
    site.deployment.replace("again", site.now)
    site.ready(site.made[2])

    assert site.chosen() is site.made[2]


def test_a_flood_of_reports_is_taken_in_turns() -> None:
    """A broken child that reports without end must not keep the loop from its neighbours."""
    site = up()
    site.made[0].said += [Stuck(stack="")] * 1000

    site.deployment.reports.read(site.made[0], site.now)

    assert 900 < len(site.made[0].said) < 1000


SHORTAGES = [RuntimeError("can't start new thread"), OSError(24, "Too many open files"), MemoryError("the scoreboard is full")]


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_a_mount_that_cannot_be_started_for_want_of_something_is_tried_again(shortage: Exception) -> None:
    """A keeper without a thread raised into the loop, and that ended the worker with all its mounts."""
    site = Site()
    site.around.shortage = shortage

    site.deployment.start(site.now)
    is_momentary = not isinstance(shortage, MemoryError)
    assert site.chosen() is (NotServing.BOOTING if is_momentary else NotServing.FAILED)
    assert site.deployment.state() == "failed"
    site.around.shortage = None
    site.wait(1)
    site.ready(site.made[0])

    assert site.chosen() is site.made[0]
    incident = site.deployment.reports.incidents.last_boot
    assert incident is not None
    assert str(shortage) in incident.error


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_a_replacement_that_cannot_be_started_is_tried_again_while_the_old_one_serves(
    shortage: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    site = up()
    site.around.shortage = shortage

    site.deployment.replace("test", site.now)
    assert site.chosen() is site.made[0]
    # It said that instances were missing, which is not so.
    assert caplog.records[-1].getMessage() == "/: generation 1 keeps serving; retrying in 1 s"
    site.around.shortage = None
    site.wait(1)
    site.ready(site.made[1])

    assert site.chosen() is site.made[1]
    assert site.deployment.state() == "serving"


def test_a_stuck_instance_whose_replacement_cannot_be_started_gets_it_later() -> None:
    site = up()
    site.around.shortage = SHORTAGES[0]

    site.stuck(site.made[0])
    assert site.chosen() is site.made[0]
    site.around.shortage = None
    site.wait(1)
    site.ready(site.made[1])

    assert site.chosen() is site.made[1]


def test_a_jitter_alone_replaces_nothing() -> None:
    """It was added to 0, which means never, and the mount was replaced after some requests."""
    site = up(max_requests_jitter=1000)
    site.made[0].served = 5000

    site.wait(1)

    assert len(site.made) == 1


def test_a_generation_that_cannot_be_freed_is_counted() -> None:
    """Nothing bounded them: 12 of them had 835 MiB, and the worker counted none as stuck."""
    site = up()
    site.deployment.replace("test", site.now)
    site.ready(site.made[1])

    site.reports(site.made[0], Closed(threads=1))

    assert site.deployment.slots.left == [site.made[0]]
    assert site.deployment.stuck == 1
    assert site.deployment.state() == "serving"


def test_boots_that_leave_threads_behind_do_not_pile_up() -> None:
    site = Site()
    site.deployment.start(site.now)
    for number in range(2):
        site.failed(site.made[number])
        site.reports(site.made[number], Closed(threads=1))
        site.wait(10)

    for _ in range(100):
        site.wait(10)

    assert len(site.made) == 2


def test_a_mount_whose_turn_has_not_come_waits_for_it() -> None:
    site = Site()
    site.around.is_crowded = True
    site.deployment.start(site.now)
    assert site.made == []
    assert site.deployment.state() == "booting"
    assert not site.deployment.is_asleep()
    assert site.chosen() is NotServing.BOOTING
    assert site.around.hurried == [site.deployment]

    site.around.is_crowded = False
    site.deployment.start(site.now)
    site.ready(site.made[0])
    assert site.chosen() is site.made[0]


def test_requests_wait_for_a_trial_no_longer_than_for_a_boot() -> None:
    """With a boot_timeout of 5 s some waited for 38, as a trial loads the app in up to three ways."""
    site = Site(isolation="auto", boot_timeout=5.0)
    site.deployment.start(site.now)
    site.failed(site.made[0], error="ImportError: module x does not support loading in subinterpreters")
    assert site.around.trials == 1
    site.wait(4)
    assert site.chosen() is NotServing.BOOTING
    releases = site.around.releases

    site.wait(2)

    assert site.chosen() is NotServing.FAILED
    assert site.around.releases == releases + 1


def asking(**changes: Any) -> Site:
    """Return a site whose app is being loaded, and has come to an extension module that nobody knows."""
    site = Site(isolation="auto", **changes)
    site.deployment.start(site.now)
    site.reports(site.made[0], Unknown(path="/x.so"))
    return site


def test_a_boot_goes_on_where_it_waits_for_a_verdict_if_it_may() -> None:
    """Each of twenty Flask apps was loaded up to its first extension module, and then once more."""
    site = asking(boot_timeout=5.0)
    assert (site.around.trials, site.deployment.slots.booting(), site.chosen()) == (1, 0, NotServing.BOOTING)
    site.wait(60)

    site.deployment.siting.on_verdict(Verdict(isolation="own-gil", reason="it loads", extensions={"/x.so": (1, 2)}), site.now)

    assert site.made[0].known == [Known(extensions={"/x.so": [1, 2]}, is_last=True)]
    site.wait(4)
    site.ready(site.made[0])
    assert (site.chosen(), len(site.made), site.deployment.generation) == (site.made[0], 1, 1)


def test_boots_that_may_go_on_wait_for_their_turn() -> None:
    """All of them at once would keep each other from being done in time."""
    site = asking()
    site.around.is_crowded = True
    site.deployment.siting.on_verdict(Verdict(isolation="own-gil", reason="it loads", extensions={}), site.now)
    assert (site.made[0].known, site.deployment.is_in_line) == ([], True)

    site.around.is_crowded = False
    site.deployment.start(site.now)

    assert site.made[0].known == [Known(extensions={}, is_last=True)]
    assert (site.deployment.slots.booting(), len(site.made)) == (1, 1)


@pytest.mark.parametrize("isolation", ["process", None])
def test_a_boot_that_waits_for_a_verdict_in_vain_fails_without_a_word(isolation: str | None, caplog: pytest.LogCaptureFixture) -> None:
    site = asking()

    site.deployment.siting.on_verdict(Verdict(isolation=isolation, reason="x loads once", error="as the trial says"), site.now)
    site.made[0].unknown_extension = "/x.so"
    site.failed(site.made[0])
    site.closed(site.made[0])

    assert site.made[0].known == [Known(extensions={}, is_last=True)]
    assert caplog.text.count("cannot load") == (isolation is None)
    assert [instance.isolation for instance in site.made[1:]] == ([isolation] if isolation else [])
    assert site.around.disposed == [site.made[0]]


def test_an_app_whose_own_thread_waits_for_a_verdict_serves_on_until_another_instance_does() -> None:
    """It was taken out of its place, though its boot was over, and nothing served until the next one was up."""
    site = asking()
    site.ready(site.made[0])

    site.deployment.siting.on_verdict(Verdict(isolation="process", reason="x loads once"), site.now)

    assert site.made[0].known == [Known(extensions={}, is_last=True)]
    assert site.chosen() is site.made[0]
    site.ready(site.made[1])
    assert (site.chosen(), site.made[1].isolation, site.made[0].drained) == (site.made[1], "process", True)


def test_a_boot_that_is_not_wanted_any_more_and_hangs_is_forgotten_once() -> None:
    """It was kept in two places, so `isowsgi stop` waited for it after its end."""
    site = asking(boot_timeout=5.0)
    site.deployment.siting.on_verdict(Verdict(isolation="process", reason="x loads once"), site.now)

    site.wait(30)
    site.closed(site.made[0])

    assert site.made[0] not in site.deployment.slots.all()


def test_an_instance_that_is_to_stay_where_it_is_gets_no_trial_for_what_it_loads() -> None:
    site = Site()
    site.deployment.start(site.now)

    site.reports(site.made[0], Unknown(path="/x.so"))

    assert (site.made[0].known, site.around.trials) == ([Known(extensions={}, is_last=True)], 0)


def test_more_files_than_fit_a_packet_are_told_in_several() -> None:
    site = asking()

    site.deployment.siting.on_verdict(
        Verdict(isolation="own-gil", reason="it loads", extensions={f"/{number}.so": (1, 2) for number in range(450)}), site.now
    )

    assert [(len(each.extensions), each.is_last) for each in site.made[0].known] == [(200, False), (200, False), (50, True)]


def test_an_answer_that_is_read_late_is_told_to_its_end() -> None:
    """Above some 1,000 files the last part did not fit the channel, and the boot waited for it until its time was over."""
    site = asking()
    boot = site.made[0]
    boot.most_unread = 2
    files = {f"/{number}.so": (1, 2) for number in range(450)}
    site.deployment.siting.on_verdict(Verdict(isolation="own-gil", reason="it loads", extensions=files), site.now)
    site.reports(boot, Unknown(path="/y.so"))  # from a thread of the app's: answered after what came before
    assert [len(each.extensions) for each in boot.known] == [200, 200]

    site.deployment.siting.on_verdict(Verdict(isolation="own-gil", reason="it loads", extensions={"/y.so": (3, 4)}), site.now)
    site.wait(1)
    assert len(boot.known) == 2
    boot.most_unread = None
    site.wait(1)

    assert [(len(each.extensions), each.is_last) for each in boot.known[2:]] == [(50, True), (1, True)]


def test_what_a_boot_that_has_ended_was_to_be_told_is_forgotten() -> None:
    site = asking()
    boot = site.made[0]
    boot.most_unread = 0
    site.deployment.siting.on_verdict(Verdict(isolation="own-gil", reason="it loads", extensions={"/x.so": (1, 2)}), site.now)
    site.failed(boot)
    boot.most_unread = None

    site.wait(1)

    assert boot.known == []


class AnyOrder(RuleBasedStateMachine):  # type: ignore[misc,unused-ignore] # hypothesis may be absent where types are checked
    """No sequence of events reaches an undefined state, loses an instance or leaves a gap in service."""

    def __init__(self) -> None:
        super().__init__()
        self.site = Site(
            isolation="auto",
            lazy=True,
            idle_timeout=120.0,
            boot_timeout=20.0,
            request_timeout=5.0,
            max_requests=50,
            max_age=600.0,
            instances=2,
        )
        self.is_stopping = False

    def pick(self, data: Any, *states: State) -> FakeInstance | None:
        found = [instance for instance in self.site.made if instance.state in states]
        return data.draw(st.sampled_from(found)) if found else None

    @rule()
    def request(self) -> None:
        chosen = self.site.chosen()
        if isinstance(chosen, FakeInstance):
            assert chosen.is_loaded
            assert chosen.state not in ENDS
            chosen.served += 1

    @rule(data=st.data())
    def becomes_ready(self, data: Any) -> None:
        instance = self.pick(data, State.BOOTING, State.STUCK, State.DRAINING)
        if instance is not None and not instance.is_loaded:
            self.site.ready(instance)

    @rule(data=st.data())
    def fails_to_boot(self, data: Any) -> None:
        instance = self.pick(data, State.BOOTING, State.STUCK, State.DRAINING)
        if instance is not None and not instance.is_loaded:
            self.site.failed(instance)

    @rule(data=st.data())
    def asks_for_an_extension_module(self, data: Any) -> None:
        instance = self.pick(data, State.BOOTING)
        if instance is not None:
            self.site.reports(instance, Unknown(path="/x.so"))

    @rule(isolation=st.sampled_from(["own-gil", "process", None]))
    def a_trial_ends(self, isolation: str | None) -> None:
        if self.site.deployment.siting.is_on_trial:
            self.site.deployment.siting.on_verdict(Verdict(isolation=isolation, reason="x", error="y"), self.site.now)

    @rule(data=st.data())
    def gets_stuck(self, data: Any) -> None:
        instance = self.pick(data, State.SERVING, State.DRAINING, State.STUCK)
        if instance is not None and instance.is_loaded:
            self.site.stuck(instance)

    @rule(data=st.data())
    def ends(self, data: Any) -> None:
        instance = self.pick(data, State.DRAINING, State.STUCK, State.FAILED)
        if instance is not None and (instance.stopped or instance.state is State.FAILED):
            self.site.closed(instance)

    @rule(data=st.data())
    def dies(self, data: Any) -> None:
        instance = self.pick(data, State.SERVING)
        if instance is not None:
            self.site.closed(instance)

    @rule(reason=st.just("asked"))
    def is_replaced(self, reason: str) -> None:
        self.site.deployment.replace(reason, self.site.now)

    @precondition(lambda self: not self.is_stopping)
    @rule()
    def operator_stops_it(self) -> None:
        self.site.deployment.halt(self.site.now)
        assert self.site.chosen() is NotServing.FAILED
        assert not any(instance.state in (State.BOOTING, State.SERVING) for instance in self.site.made)

    @precondition(lambda self: not self.is_stopping)
    @rule()
    def operator_starts_it(self) -> None:
        self.site.deployment.resume(self.site.now)
        assert not self.site.deployment.is_asleep()

    @rule()
    def worker_stops(self) -> None:
        self.is_stopping = True
        self.site.deployment.finish()
        self.site.deployment.stop()

    @precondition(lambda self: not self.is_stopping)
    @rule(seconds=st.sampled_from([0.5, 3.0, 25.0, 130.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.site.wait(seconds)

    @precondition(lambda self: self.site.made)
    @rule(data=st.data(), busy=st.booleans())
    def is_busy_or_not(self, data: Any, busy: bool) -> None:
        data.draw(st.sampled_from(self.site.made)).busy = busy

    @invariant()
    def nobody_is_lost(self) -> None:
        known = self.site.deployment.slots.all()
        for instance in self.site.made:
            assert instance.state in ENDS or instance in known, f"{instance.tag} is {instance.state} and nobody knows it"
        assert len(known) == len({id(instance) for instance in known}), "an instance is kept in two places"

    @invariant()
    def whoever_comes_is_newer(self) -> None:
        for live, coming in zip(self.site.deployment.slots.live, self.site.deployment.slots.coming, strict=True):
            assert live is None or coming is None or live.generation < coming.generation, f"{coming.tag} is to replace {live.tag}"

    @invariant()
    def whoever_is_up_is_chosen(self) -> None:
        deployment = self.site.deployment
        if deployment.is_serving():
            assert isinstance(deployment.choose(self.site.now), FakeInstance)

    @invariant()
    def at_most_one_generation_boots(self) -> None:
        booting = [instance for instance in self.site.made if instance.state is State.BOOTING]
        assert len(booting) <= 2 * self.site.deployment.mount.instances


TestAnyOrder = pytest.mark.filterwarnings("ignore")(AnyOrder.TestCase)
TestAnyOrder.settings = examples(200, stateful_step_count=40)


def test_with_stop_first_the_next_one_is_loaded_when_the_last_of_the_old_ones_has_gone() -> None:
    """An interpreter has ended before it is destroyed, and until then the app's files are open."""
    site = Site(replace="stop-first", instances=2)
    deployment = site.deployment
    deployment.start(site.now)
    for instance in site.made:
        site.ready(instance)

    deployment.replace("touched", site.now)
    assert [instance.drained for instance in site.made] == [True, True]
    assert (deployment.choose(site.now), deployment.state()) == (NotServing.BOOTING, "booting")
    deployment.replace("touched again", site.now)
    deployment.start(site.now)
    for instance in site.made[:2]:
        site.reports(instance, Closed(threads=0))
        deployment.upkeep.tick(site.now)
    assert len(site.made) == 2

    site.made[0].has_gone = True
    deployment.upkeep.tick(site.now)
    assert len(site.made) == 2
    site.made[1].is_overdue = True  # a `__del__` of its app does not return
    deployment.upkeep.tick(site.now)
    assert [instance.generation for instance in site.made] == [1, 1, 2, 2]
    for instance in site.made[2:]:
        site.ready(instance)
    assert deployment.is_serving()


def test_with_stop_first_an_operator_who_stops_the_mount_meanwhile_has_it_stay_so() -> None:
    site = Site(replace="stop-first")
    deployment = site.deployment
    deployment.start(site.now)
    site.ready(site.made[0])
    deployment.replace("touched", site.now)

    deployment.halt(site.now)
    site.made[0].has_gone = True
    deployment.upkeep.tick(site.now)
    assert (len(site.made), deployment.state()) == (1, "stopped")

    deployment.resume(site.now)
    assert len(site.made) == 2


def test_with_stop_first_an_interpreter_that_is_left_behind_is_waited_for_no_longer() -> None:
    site = Site(replace="stop-first")
    deployment = site.deployment
    deployment.start(site.now)
    site.ready(site.made[0])
    deployment.replace("touched", site.now)

    site.now += site.around.drain_s + 1
    deployment.upkeep.tick(site.now)
    deployment.upkeep.tick(site.now)

    assert [instance.generation for instance in site.made] == [1, 2]


def test_a_redirect_loads_nothing() -> None:
    site = Site(redirect="/new", lazy=True)

    site.deployment.start(site.now)

    assert (site.chosen(), site.made) == (NotServing.FAILED, [])
