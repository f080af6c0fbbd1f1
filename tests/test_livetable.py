"""A change of the table: what did not change is left alone, what did is loaded first, and nothing is taken up by halves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from isowsgi.configuration import App, Config, Control, Mount, Status
from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.shared.messages import Closed, Failed, Ready, Reroute
from isowsgi.shared.routing import Route
from isowsgi.shared.rows import RELOADS
from isowsgi.worker.change import Change, Unchangeable
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.dispatcher import NotServing
from isowsgi.worker.livetable import LiveTable
from isowsgi.worker.reloadqueue import Turns
from isowsgi.worker.table import Table
from tests.fakes import FakeInstance, FakeSurroundings

NOW = 1000.0


def mount(pattern: str, **settings: Any) -> Mount:
    app = App(kind="module", target="m", call="app")
    return Mount(pattern=pattern, prefix=pattern.rstrip("/"), **{"app": app, "isolation": "own-gil", **settings})


def config(*mounts: Mount, **tables: Any) -> Config:
    return Config(path="/isowsgi.toml", mounts=mounts, **tables)


class Site:
    """A worker's table with fake instances."""

    def __init__(self, *mounts: Mount, **tables: Any) -> None:
        self.around = FakeSurroundings()
        self.around.board.set_mounts([each.pattern for each in mounts])
        numbered = [attrs.evolve(each, number=number) for number, each in enumerate(mounts)]
        self.switched: list[Table] = []
        self.live = LiveTable(
            config(*numbered, **tables),
            self.around.board,
            self.around.containment,
            self._make,
            lambda deployment: None,
            self.switched.append,
        )
        for deployment in self.live.table.deployments:
            deployment.start(NOW)
        self.all_load()

    def _make(self, members: Sequence[Mount]) -> Deployment:
        return Deployment(members, self.around, isolation=members[0].isolation)

    def all_load(self) -> None:
        for deployment in self.live.all():
            for instance in deployment.slots.all():
                if instance.state is State.BOOTING:
                    says(deployment, instance, Ready(boot_s=0.0, objects=0, extensions=[], refused=[]))

    def all_end(self) -> None:
        for deployment in self.live.all():
            for instance in deployment.slots.all():
                assert isinstance(instance, FakeInstance)
                if instance.stopped and instance.state not in ENDS:
                    says(deployment, instance, Closed(threads=0))
        self.live.tick()

    def prepare(self, wanted: Config) -> Change:
        change = self.live.plan(wanted)
        self.live.begin(NOW)
        return change

    def apply(self, *mounts: Mount, **tables: Any) -> None:
        self.prepare(config(*mounts, **tables))
        self.all_load()
        self.live.switch(NOW)
        self.all_end()

    def of(self, pattern: str) -> Deployment:
        return next(deployment for each, deployment in self.live.table.mounts if each.pattern == pattern)


def says(deployment: Deployment, instance: Any, report: Any) -> None:
    instance.said.append(report)
    deployment.reports.read(instance, NOW)


def serves(deployment: Deployment) -> Any:
    chosen = deployment.choose(NOW)
    assert not isinstance(chosen, NotServing)
    return chosen


def test_what_did_not_change_goes_on_as_it_is_and_the_rest_is_loaded_before_the_switch() -> None:
    site = Site(mount("/a"), mount("/b"), mount("/c"))
    kept, before, gone = site.of("/a"), site.of("/b"), site.of("/c")
    old = [serves(each) for each in (kept, before, gone)]

    change = site.prepare(config(mount("/d"), mount("/b", threads=2), mount("/a")))

    assert not change.is_ready()
    assert [each.name for each in change.fresh] == ["/d", "/b"]
    assert (change.added, change.changed, change.removed) == (["/d"], ["/b"], ["/c"])
    assert [serves(each) for each in (kept, before, gone)] == old, "nobody notices"

    site.all_load()
    assert change.is_ready()
    site.live.switch(NOW)

    assert site.of("/a") is kept
    assert serves(kept) is old[0]
    assert [serves(site.of(each)).generation for each in ("/a", "/b", "/d")] == [1, 2, 1]
    assert [each.pattern for each, _ in site.live.table.mounts] == ["/d", "/b", "/a"]
    assert site.switched == [site.live.table]
    assert all(isinstance(each, FakeInstance) and each.drained and each.stopped for each in old[1:])
    assert not old[0].drained
    assert before in site.live.all(), "it is looked after until it has ended"

    site.all_end()
    assert site.live.all() == site.live.table.deployments


def test_one_app_that_cannot_be_loaded_leaves_all_as_it_was() -> None:
    site = Site(mount("/a"), mount("/b"))
    table, serving = site.live.table, serves(site.of("/b"))
    change = site.prepare(config(mount("/a", threads=2), mount("/b", threads=2), mount("/new")))
    made = site.around.made[2:]
    says(change.fresh[0], made[0], Ready(boot_s=0.0, objects=0, extensions=[], refused=[]))
    says(change.fresh[2], made[2], Failed(error="E: x", traceback="Traceback"))

    [problem] = change.problems()
    assert problem == (["/new"], "/ #1: E: x", "Traceback")
    assert not change.is_ready()
    site.live.drop(NOW)

    assert site.live.table is table
    assert serves(site.of("/b")) is serving
    assert not site.switched
    for each in made:
        assert each.stopped or each.state in ENDS
    site.all_load()
    site.all_end()
    assert site.live.all() == table.deployments


def test_what_cannot_be_loaded_stays_as_it_was_and_the_rest_is_changed() -> None:
    site = Site(mount("/a"), mount("/b", group="g"), mount("/c", group="g"), mount("/gone"))
    group = site.of("/b")
    new = config(mount("/a", threads=2), mount("/b", threads=2, group="g"), mount("/new"), mount("/c", threads=2))
    change = site.prepare(new)
    dropped = site.around.made[3:][1]
    says(change.fresh[1], dropped, Failed(error="E: x", traceback="Traceback"))
    [problem] = change.problems()
    assert problem.patterns == ["/b"]

    site.live.narrow(problem.patterns, NOW)
    assert change.problems() == []
    site.all_load()
    assert change.is_ready()
    site.live.switch(NOW)
    site.all_end()

    assert site.of("/b") is site.of("/c") is group, "who shares an instance stays with it"
    assert [each.pattern for each, _ in site.live.table.mounts] == ["/a", "/b", "/new", "/c"]
    assert [mount.threads for mount in site.live.table.config.mounts] == [2, None, None, None]
    assert site.live.all() == site.live.table.deployments
    site.apply(*new.mounts)
    assert len({each.number for each, _ in site.live.table.mounts}) == 4


def test_the_order_in_which_a_file_has_those_of_a_group_is_no_change() -> None:
    site = Site(
        mount("/a", group="g"), mount("/b", group="g"), mount("/m", isolation="main", group="m"), mount("/n", isolation="main", group="m")
    )
    before = site.live.table.deployments

    change = site.prepare(
        config(
            mount("/n", isolation="main", group="m"),
            mount("/b", group="g", queue=3),
            mount("/a", group="g"),
            mount("/m", isolation="main", group="m"),
        )
    )
    assert (change.fresh, change.gone) == ([], [])
    site.live.switch(NOW)

    assert sorted(each.name for each in site.live.table.deployments) == sorted(each.name for each in before)
    group = site.of("/a")
    assert group is site.of("/b") is before[0]
    assert [(each.pattern, each.number, each.queue) for each in group.members] == [("/a", 0, 100), ("/b", 1, 3)], (
        "as its instances know them"
    )
    assert [each.pattern for each, _ in site.live.table.mounts] == ["/n", "/b", "/a", "/m"]


def test_a_group_stays_as_it_was_whatever_order_the_new_file_has_it_in() -> None:
    """It was found under no name: what had been loaded for it was never ended, again with each try."""
    site = Site(mount("/a", group="g"), mount("/b", group="g"), mount("/c"))
    group = site.of("/a")
    change = site.prepare(config(mount("/b", group="g", threads=2), mount("/c", threads=2)))
    says(change.fresh[0], site.around.made[2], Failed(error="E: x", traceback="Traceback"))

    site.live.narrow(["/b"], NOW)
    site.all_load()
    site.live.switch(NOW)
    site.all_end()

    assert site.of("/a") is site.of("/b") is group
    assert [each.number for each in group.members] == [0, 1]
    assert site.of("/c").mount.threads == 2
    assert site.live.all() == site.live.table.deployments


def test_a_boot_that_takes_too_long_is_a_problem() -> None:
    site = Site(mount("/a"))
    change = site.prepare(config(mount("/a"), mount("/b", boot_timeout=5.0)))

    change.fresh[0].upkeep.tick(NOW + 6)

    assert [problem.patterns for problem in change.problems()] == [["/b"]]


def test_a_mount_that_is_lazy_or_stopped_needs_no_load() -> None:
    site = Site(mount("/a"), mount("/b"))
    site.of("/b").halt(NOW)
    change = site.prepare(config(mount("/a", lazy=True, threads=3), mount("/b", threads=3)))

    assert change.is_ready()
    site.live.switch(NOW)

    assert site.of("/a").state() == "asleep"
    assert site.of("/b").state() == "stopped"


def test_the_numbers_of_mounts_that_come_and_go_are_used_again() -> None:
    site = Site(mount("/a"), mount("/b"))
    numbers: set[int] = set()
    for threads in range(1, 50):
        site.apply(mount("/a"), mount("/b", threads=threads), *([mount("/c")] if threads % 2 else []))
        numbers.update(each.number for each, _ in site.live.table.mounts)

    assert numbers == {0, 1, 2, 3}
    assert site.of("/b").generation == 50


def test_what_is_counted_of_a_pattern_stays_its_own() -> None:
    site = Site(mount("/a"), mount("/b"))
    board = site.around.board
    board.mount_row(1).words[RELOADS] = 7
    site.apply(mount("/a"))
    site.apply(mount("/a"), mount("/c"))
    board.mount_row(site.of("/c").mount.number).words[RELOADS] = 1
    site.apply(mount("/a"), mount("/b", threads=2))

    assert site.of("/b").mount.number == 1
    assert {pattern: counters.get(RELOADS) for (pattern, _), counters in board.totals().items()} == {"": 0, "/a": 0, "/b": 7, "/c": 1}


def test_who_keeps_connections_is_told_which_requests_are_no_longer_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, Any]] = []

    def tell(instance: FakeInstance, order: Any) -> bool:
        told.append((instance.tag, order))
        return True

    monkeypatch.setattr(FakeInstance, "tell", tell)
    site = Site(mount("/a"), mount("/b"))

    site.apply(mount("/a"), mount("/b"), mount("/a/new"))

    number = site.of("/a/new").mount.number
    order = Reroute(routes=[Route(0, "", "/a"), Route(number, "", "/a/new")], is_first=True, is_last=True)
    assert told == [("/ #1", order)], "/b has no new rival"
    assert site.of("/a/new").routes == [Route(number, "", "/a/new")]


def test_a_mount_takes_up_other_hosts_and_keeps_running(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def tell(instance: FakeInstance, order: Any) -> bool:
        told.append(order)
        return True

    monkeypatch.setattr(FakeInstance, "tell", tell)
    site = Site(mount("/x", host="a.example", hosts=("b.example",)), mount("/y"))
    before = site.live.table.deployments

    site.apply(mount("/x", host="a.example", hosts=("c.example",)), mount("/y"))

    assert site.live.table.deployments == before
    assert [site.live.table.router.match(host, "/x") for host in ("a.example", "b.example", "c.example")] == [0, None, 0]
    assert told == [Reroute(routes=[Route(0, "a.example", "/x"), Route(0, "c.example", "/x")], is_first=True, is_last=True)]


def test_a_group_changes_as_one() -> None:
    site = Site(mount("/a", group="g"), mount("/b", group="g"), mount("/c"))
    kept = site.of("/c")

    site.apply(mount("/a", group="g"), mount("/b", group="g"), mount("/d", group="g"), mount("/c"))

    assert site.of("/c") is kept
    assert [each.pattern for each in site.of("/a").members] == ["/a", "/b", "/d"]
    assert site.of("/a") is site.of("/d")


def test_the_status_page_is_loaded_again_for_those_who_may_see_it() -> None:
    page = mount("/status", app=App(kind="module", target="isowsgi.status", call="application"))
    site = Site(page, mount("/a"))
    before, kept = site.of("/status"), site.of("/a")

    site.apply(page, mount("/a"), status=Status(allow=("10.0.0.0/8",)))

    assert site.of("/status") is not before
    assert site.of("/a") is kept


@pytest.mark.parametrize(
    ("before", "after", "tables", "text"),
    [
        (mount("/a"), mount("/a"), {"control": Control(enabled=False)}, "[control] differs"),
        (mount("/a", isolation="main"), mount("/a", isolation="main", threads=2), {}, "/a: runs in the main interpreter"),
        (mount("/a"), mount("/a", isolation="main"), {}, "/a: only a new worker can load an app in the main interpreter"),
    ],
)
def test_what_only_a_new_worker_can_do_is_refused_before_anything_is_loaded(before: Mount, after: Mount, tables: Any, text: str) -> None:
    site = Site(before, mount("/b"))
    made = len(site.around.made)

    with pytest.raises(Unchangeable) as refused:
        site.prepare(config(after, mount("/b", threads=2), **tables))

    assert text in str(refused.value)
    assert "SIGHUP" in str(refused.value)
    assert len(site.around.made) == made
    site.apply(before, mount("/b", threads=2))
    assert site.of("/b").mount.threads == 2


def told_by(monkeypatch: pytest.MonkeyPatch, works: list[bool]) -> list[Any]:
    """Return what instances will be told; works[0] says whether they take it."""
    told: list[Any] = []

    def tell(instance: FakeInstance, order: Any) -> bool:
        told.append(order)
        return works[0]

    monkeypatch.setattr(FakeInstance, "tell", tell)
    return told


def test_settings_that_need_no_new_app_are_taken_up_by_the_one_that_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = Site(mount("/a"), mount("/b", max_requests=5))
    a, b = site.of("/a"), site.of("/b")
    serving = [serves(a), serves(b)]
    touched = tmp_path / "touched"
    touched.touch()
    told = told_by(monkeypatch, works := [True])

    change = site.prepare(config(mount("/a", queue=7), mount("/b", max_requests=9, touch=str(touched), max_age=60.0)))

    assert (change.fresh, change.is_ready()) == ([], True)
    assert (a.mount.queue, b.mount.max_requests, told) == (100, 5, []), "not before the switch"
    site.live.switch(NOW)
    b.upkeep.tick(NOW)

    assert [serves(site.of(each)) for each in ("/a", "/b")] == serving
    assert [each.number for each, _ in site.live.table.mounts] == [0, 1]
    assert [(order.queue, order.request_timeout_s) for order in told] == [(7, 60.0)], "what the worker does needs no order"
    assert list(b.quotas.values()) == [9]
    assert b.generation == 1, "a file that is watched from now on was not touched yet"

    works[0] = False
    site.apply(mount("/a"), mount("/b"))
    assert (list(b.quotas), b.generation, a.owes_limits) == ([], 1, True)
    works[0] = True
    site.live.tick()
    site.live.tick()
    assert [order.queue for order in told] == [7, 100, 100, 100], "told until it was taken"
    assert not a.owes_limits


def test_what_is_owed_to_an_instance_is_owed_after_the_next_change_too(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(mount("/a"))
    told = told_by(monkeypatch, works := [False])
    site.apply(mount("/a", queue=7))
    site.apply(mount("/a", queue=7, max_age=60.0))
    works[0] = True
    told.clear()

    site.live.tick()

    assert [order.queue for order in told] == [7]


def test_one_that_is_being_replaced_for_its_requests_is_not_replaced_again_for_a_new_limit() -> None:
    site = Site(mount("/a", max_requests=5))
    site.apply(mount("/a", max_requests=4))
    deployment = site.of("/a")
    instance = serves(deployment)
    instance.served = 4
    deployment.upkeep.tick(NOW)
    assert deployment.generation == 2

    site.prepare(config(mount("/a", max_requests=3)))
    site.live.switch(NOW)
    deployment.upkeep.tick(NOW)

    assert (deployment.generation, deployment.wanted) == (2, "")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (mount("/a", lazy=True), mount("/a")),
        (mount("/a", request_timeout=0.0), mount("/a")),
        (mount("/a"), mount("/a", queue=1, threads=2)),
    ],
)
def test_what_a_loaded_app_may_not_be_able_to_take_up_loads_a_new_generation(before: Mount, after: Mount) -> None:
    site = Site(before)

    change = site.prepare(config(after))

    assert [each.name for each in change.fresh] == ["/a"]
    assert change.adjusted == []


def test_a_full_scoreboard_refuses_the_change_and_gives_back_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(mount("/a"))
    monkeypatch.setattr("isowsgi.shared.scoreboard.ROWS", site.around.board._used + 1)

    with pytest.raises(MemoryError):
        site.prepare(config(mount("/a"), mount("/b"), mount("/c")))

    site.prepare(config(mount("/a"), mount("/b")))
    assert [each.pattern for each, _ in site.live.table.mounts] == ["/a"]


def test_reloads_are_counted_once_whatever_row_they_stand_in() -> None:
    site = Site(mount("/a"), mount("/b"))
    board = site.around.board

    def counted() -> int:
        for deployment in site.live.all():
            more = deployment.reloads - deployment.told[0]
            deployment.told = deployment.reloads, deployment.stuck
            board.mount_row(deployment.mount.number).words[RELOADS] += more
        return board.totals()["/b", ""].get(RELOADS)

    for threads in range(1, 7):
        site.apply(mount("/a"), mount("/b", threads=threads))
        assert counted() == site.of("/b").reloads == threads


def test_what_the_operator_stops_or_starts_meanwhile_counts() -> None:
    site = Site(mount("/a"), mount("/b"))
    site.of("/b").halt(NOW)
    site.prepare(config(mount("/a", threads=2), mount("/b", threads=2)))
    site.all_load()
    site.of("/a").halt(NOW)
    site.of("/b").resume(NOW)

    site.live.switch(NOW)
    site.all_load()

    assert (site.of("/a").state(), site.of("/b").state()) == ("stopped", "serving")


def test_a_stop_first_mount_is_changed_while_it_is_stopped() -> None:
    site = Site(mount("/a", replace="stop-first"))
    site.of("/a").halt(NOW)
    site.all_end()

    site.apply(mount("/a", replace="stop-first", threads=2))

    assert site.of("/a").state() == "stopped"
    assert site.of("/a").mount.threads == 2


def test_a_new_status_page_knows_at_its_boot_who_may_see_it() -> None:
    page = mount("/status", app=App(kind="module", target="isowsgi.status", call="application"))
    site = Site(page)

    change = site.prepare(config(page, status=Status(allow=("10.0.0.0/8",))))

    assert change.fresh[0].status.allow == ("10.0.0.0/8",)


def test_a_mount_that_is_prepared_does_not_fall_asleep() -> None:
    site = Site(mount("/a"))
    change = site.prepare(config(mount("/a"), mount("/b", idle_timeout=5.0)))
    site.all_load()

    change.fresh[0].upkeep.tick(NOW + 60)

    assert change.is_ready()


def test_who_could_not_be_told_new_routes_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    is_full = True

    def tell(instance: FakeInstance, order: Any) -> bool:
        if not is_full:
            told.append(order)
        return not is_full

    monkeypatch.setattr(FakeInstance, "tell", tell)
    site = Site(mount("/a"))

    site.apply(mount("/a"), mount("/a/new"))
    assert not told
    is_full = False
    site.live.tick()
    site.live.tick()

    [order] = told
    assert [route.prefix for route in order.routes] == ["/a", "/a/new"]


def test_a_change_that_cannot_begin_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(mount("/a"))
    with monkeypatch.context() as broken:
        broken.setattr("isowsgi.worker.change.Change.begin", lambda change, now: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            site.prepare(config(mount("/a"), mount("/b")))

    site.apply(mount("/a"), mount("/b"))


def test_what_is_prepared_is_loaded_in_turn_and_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an apply loaded was not paced as a reload is: the neighbours' p99 was four times as long."""
    site = Site(mount("/old"))
    turns = Turns()
    monkeypatch.setattr(site.around, "may_boot", lambda deployment, now: not deployment.is_prepared or turns.take(deployment, now))
    change = site.prepare(config(mount("/old"), mount("/a"), mount("/b", instances=2)))
    a, b = change.fresh
    counts = [(len(a.slots.all()), len(b.slots.all()))]

    for _ in range(3):
        site.all_load()
        turns.pass_on(NOW)
        counts.append((len(a.slots.all()), len(b.slots.all())))

    assert counts == [(1, 0), (1, 1), (1, 2), (1, 2)]
    assert change.is_ready()


@pytest.mark.parametrize("orders", [("stop-first", "stop-first"), ("stop-first", "load-first"), ("load-first", "stop-first")])
def test_a_stop_first_mount_is_loaded_with_its_new_settings_when_the_one_before_it_has_gone(orders: tuple[str, str]) -> None:
    """Its two generations must not be loaded side by side; it had to be stopped by hand before."""
    site = Site(mount("/a", replace=orders[0]), mount("/b"))
    old, [before] = site.of("/a"), site.of("/a").slots.serving()
    change = site.prepare(config(mount("/a", replace=orders[1], threads=2), mount("/b")))
    [new] = change.fresh
    assert (new.slots.all(), change.is_ready()) == ([], True)

    site.live.switch(NOW)
    assert site.of("/a") is new
    assert new.choose(NOW) is NotServing.BOOTING
    new.upkeep.tick(NOW + 1)
    assert new.slots.all() == []

    says(old, before, Closed(threads=0))
    before.has_gone = True
    new.upkeep.tick(NOW + 2)
    assert len(new.slots.all()) == 1
    site.all_load()
    assert site.of("/a").state() == "serving"


def test_a_stop_first_mount_that_was_not_loaded_is_loaded_at_the_switch() -> None:
    site = Site(mount("/a", replace="stop-first"), mount("/b"))
    site.of("/a").sleep(NOW)
    site.all_end()
    for instance in site.around.made:
        instance.has_gone = True
    site.apply(mount("/a", replace="stop-first", threads=2), mount("/b"))

    site.of("/a").upkeep.tick(NOW + 1)
    site.all_load()

    assert site.of("/a").state() == "serving"


def test_whether_the_files_are_watched_is_taken_up() -> None:
    """It needed SIGHUP, which loads every app again."""
    site = Site(mount("/a"))
    kept = site.of("/a")

    site.apply(mount("/a"), control=Control(watch=True))

    assert (site.of("/a"), site.live.table.config.control.watch) == (kept, True)
