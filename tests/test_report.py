"""The report: what a worker says of itself, and what the main interpreter counts of its mounts."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from isowsgi.configuration import App, Mount
from isowsgi.shared.errorgroups import EXCEPTION
from isowsgi.shared.messages import Closed, Failed, Ready, Report, Stuck
from isowsgi.shared.rows import BOOT_FAILURES, BOOT_NS, BOOTS
from isowsgi.worker import pieces
from isowsgi.worker.acceptor import Acceptor
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.pieces import PAUSE_S
from isowsgi.worker.workerreport import Reporter
from tests.fakes import FakeInstance, FakeSurroundings
from tests.test_acceptor import Place as AcceptorPlace

MOUNT = Mount(pattern="/a", app=App(kind="module", target="shop.wsgi", call="application"), isolation="own-gil")

STACK = 'GET /a/x HTTP/1.1\n  File "/srv/shop/wsgi.py", line 7, in application\n    time.sleep(60)'


class Desk:
    """A reporter of one mount, whose instances are the test's."""

    def __init__(self, mount: Mount = MOUNT) -> None:
        self.text_takes_s = 0.0  # of CPU time, at least
        self.around = FakeSurroundings()
        self.board = self.around.board
        self.board.set_mounts(["/a"])
        self.place = AcceptorPlace()
        acceptor: Acceptor = self.place.acceptor
        acceptor.later = self._later  # the test is the loop
        self._planned: list[tuple[float, Callable[[], object]]] = []
        self.deployment = Deployment([mount], self.around, isolation="own-gil")
        orders: Any = SimpleNamespace(threads_of=lambda mount: 4)
        self.reporter = Reporter(self.board, [(mount, self.deployment)], lambda: [self.deployment], orders, acceptor, self._certificates)

    def _later(self, delay_s: float, callback: Callable[[], object], what: str = "") -> None:
        self._planned.append((delay_s, callback))

    def turn(self) -> bool:
        """Do the next step of what is under way; return whether there was one."""
        step = next((each for each in self._planned if each[0] <= PAUSE_S), None)
        if step is not None:
            self._planned.remove(step)
            step[1]()
        return step is not None

    def planned_come(self) -> None:
        """Let the time come of all that is planned."""
        planned, self._planned = self._planned, []
        for _, callback in planned:
            callback()

    def goes_on(self) -> dict[str, Any] | None:
        """Return what is published once all that is under way is done."""
        while self.turn():
            continue
        return self.board.report()

    def _certificates(self) -> list[Any]:
        until = time.thread_time() + self.text_takes_s
        while time.thread_time() < until:
            continue
        return []

    def start(self) -> FakeInstance:
        self.deployment.start(0.0)
        return self.around.made[-1]

    def reports(self, instance: FakeInstance, report: Report) -> None:
        instance.takes_in(report)
        self.deployment.reports.handle(instance, report, 0.0)

    def said(self) -> dict[str, Any]:
        self.reporter.publish(0.0)
        report = self.board.report()
        assert report is not None
        (mount,) = report["mounts"]
        return {**report, **mount}

    def close(self) -> None:
        self.place.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.close()


def test_a_mount_is_told_with_its_app_its_isolation_and_why(desk: Desk) -> None:
    said = desk.said()

    assert (said["pattern"], said["app"], said["threads"], said["state"]) == ("/a", "shop.wsgi:application", 4, "asleep")
    assert said["reason"] == desk.deployment.siting.why()
    assert said["pid"] == os.getpid()
    assert said["rss_bytes"] > 1 << 20


def test_a_boot_is_counted_with_its_time_and_a_failed_one_is_remembered(desk: Desk) -> None:
    instance = desk.start()
    assert desk.deployment.state() == "booting"

    desk.reports(instance, Failed(error="no module", traceback=""))
    assert desk.said()["boot_error"]["text"] == "/ #1: no module"
    assert desk.deployment.state() == "failed"

    desk.deployment.start(1.0)
    desk.reports(desk.around.made[-1], Ready(boot_s=1.5, objects=9, extensions=[], refused=[]))
    assert desk.deployment.state() == "serving"
    assert desk.said()["instances"][0]["objects"] == 9
    counters = desk.board.totals()["/a", ""]
    assert [counters.get(word) for word in (BOOTS, BOOT_FAILURES, BOOT_NS)] == [1, 1, 1_500_000_000]


def test_a_stuck_instance_is_told_with_its_stack_until_it_ends(desk: Desk) -> None:
    instance = desk.start()
    desk.reports(instance, Ready(boot_s=0.5, objects=9, extensions=[], refused=[]))
    desk.reports(instance, Stuck(stack=STACK))

    (_, told) = desk.said()["instances"]
    assert told["stuck_since"] is not None
    assert "time.sleep(60)" in told["stack"]

    desk.reports(instance, Closed(threads=0))
    assert [each["stack"] for each in desk.said()["instances"]] == [None]


def test_a_report_too_long_for_the_board_leaves_the_mounts_out_and_says_so() -> None:
    app = App(kind="module", target="shop", call="create('" + "x" * (9 << 20) + "')")
    desk = Desk(Mount(pattern="/a", app=app))
    desk.reporter.publish(0.0)

    report = desk.board.report()
    desk.close()

    assert report is not None
    assert (report["mounts"], "too long" in report["error"]) == ([], True)


def test_a_report_that_was_too_long_is_not_encoded_in_vain_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one was encoded twice, as long as thousands of mounts had that much to say."""
    desk = Desk()
    tried: list[bool] = []
    publish = desk.board.publish

    def publish_or_not(report: Mapping[str, Any], mounts: Sequence[str]) -> None:
        is_whole = bool(json.loads(mounts[0])["instances"])
        tried.append(is_whole)
        if is_whole and is_short_of_room:
            raise ValueError("too long")
        publish(report, mounts)

    monkeypatch.setattr(desk.board, "publish", publish_or_not)
    desk.reports(desk.start(), Ready(boot_s=0.5, objects=9, extensions=[], refused=[]))
    is_short_of_room = True
    for now in (0.0, 1.0, 2.0):
        desk.reporter.publish(now)
    is_short_of_room = False
    desk.reporter.publish(60.0)
    desk.close()

    assert tried == [True, False, False, False, True]


def test_a_mount_of_which_something_has_changed_is_told_as_it_is_now(desk: Desk) -> None:
    """What has not changed is not encoded again; what is told must not change along with what is compared with it."""
    desk.reports(desk.start(), Ready(boot_s=0.5, objects=9, extensions=[], refused=[]))
    before = desk.said()
    desk.deployment.reports.incidents.count("/a", 1, (EXCEPTION, "KeyError", "shop.py:7"), "GET /", "KeyError: 1")
    after, desk.deployment.trend.mib = desk.said(), [1.5]

    assert (before["error_types"], after["error_types"], desk.said()["memory_trend"]["mib"]) == ({}, {"KeyError": 1}, [1.5])


def test_texts_that_follow_each_other_closely_wait_for_the_next_tick(desk: Desk) -> None:
    """A hundred mounts that come up at once must not keep the acceptor from its work."""
    desk.text_takes_s = 0.01  # one that takes less may come again after no more than a pause between two steps
    now = time.monotonic()
    desk.reporter.publish(now)
    desk.deployment.generation = 7

    desk.reporter.publish_soon(now)
    before = desk.goes_on()
    desk.reporter.publish_soon(now + 60)
    after = desk.goes_on()

    assert before is not None
    assert after is not None
    assert (before["mounts"][0]["generation"], after["mounts"][0]["generation"]) == (0, 7)


def test_a_text_that_took_long_is_not_made_anew_at_each_tick_but_never_gets_old(desk: Desk) -> None:
    """With a thousand mounts each second of the worker began with one, which takes long."""
    desk.text_takes_s = 0.1
    desk.reporter.publish(0.0)
    desk.deployment.generation = 7

    desk.reporter.tick(1.0)
    before = desk.goes_on()
    desk.reporter.tick(5.0)
    after = desk.goes_on()

    assert before is not None
    assert after is not None
    assert (before["mounts"][0]["generation"], after["mounts"][0]["generation"]) == (0, 7)


@pytest.mark.parametrize(("number", "pattern"), [(1, "/1"), (77, "/0")])  # a child process may say any number
def test_a_stuck_thread_is_an_error_of_the_mount_that_its_request_was_for(number: int, pattern: str) -> None:
    """It was charged to the first of a group."""
    around = FakeSurroundings()
    deployment = Deployment([attrs.evolve(MOUNT, pattern=f"/{each}", number=each) for each in range(2)], around, isolation="own-gil")
    deployment.start(0.0)
    [instance] = around.made
    for report in (Ready(boot_s=0.2, objects=1, extensions=[], refused=[]), Stuck(stack="GET /1/x HTTP/1.1\n  a stack", mount=number)):
        instance.takes_in(report)
        deployment.reports.handle(instance, report, 0.0)

    assert [each.tag for each in deployment.reports.incidents.of_requests()] == [f"{pattern} #1"]


def test_a_report_that_is_too_long_still_says_how_each_mount_is(desk: Desk) -> None:
    """It had no mounts at all, and the worker passed for one that has nothing which is not ready."""
    instance = desk.start()
    desk.reports(instance, Ready(boot_s=0.2, objects=1, extensions=[], refused=[]))
    desk.reports(instance, Stuck(stack=STACK))
    desk.deployment.reports.stacks[instance] = "x" * 20_000_000

    said = desk.said()

    assert (said["pattern"], said["state"], said["instances"], "error" in said) == ("/a", desk.deployment.state(), [], False)


def test_the_text_of_many_mounts_is_made_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of 200 mounts kept the acceptor for 6 ms, several times while a table was applied: its neighbours' p99."""
    monkeypatch.setattr(pieces, "STEP_S", 0.0)
    desk = Desk()
    desk.reporter.mounts = [(MOUNT, desk.deployment)] * 40
    desk.reporter.publish_soon(time.monotonic())
    told = [desk.board.report()]
    while desk.turn():
        told.append(desk.board.report())
    desk.close()

    assert [report and len(report["mounts"]) for report in told] == [None] * 5 + [40]


def test_what_happens_while_a_text_is_made_is_in_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mount may be in the text already, as it was before."""
    monkeypatch.setattr(pieces, "STEP_S", 0.0)
    desk = Desk()
    desk.reporter.mounts = [(MOUNT, desk.deployment)] * 40
    now = time.monotonic() - 60
    desk.reporter.publish_soon(now)
    desk.turn()
    desk.turn()
    desk.deployment.generation = 7
    desk.reporter.publish_soon(now)
    first = desk.goes_on()
    desk.planned_come()
    second = desk.goes_on()
    desk.close()

    assert first is not None
    assert second is not None
    assert (first["mounts"][0]["generation"], second["mounts"][0]["generation"]) == (0, 7)


def test_a_text_that_fails_in_the_midst_costs_no_other_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "STEP_S", 0.0)
    desk = Desk()
    desk.reporter.mounts = [(MOUNT, desk.deployment)] * 40
    desk.reporter.tick(0.0)
    with monkeypatch.context() as broken:
        broken.setattr(desk.deployment, "state", lambda: 1 / 0)
        desk.turn()
        with pytest.raises(ZeroDivisionError):
            desk.turn()
    assert not desk.turn()

    desk.reporter.tick(1.0)
    said = desk.goes_on()
    desk.close()

    assert said is not None
    assert len(said["mounts"]) == 40
