"""Tenants come with their first request and go when others need their place; strangers leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isowsgi.configuration import App, Config, Mount, tenants
from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.shared.messages import Closed, Failed, Ready
from isowsgi.shared.routing import Router
from isowsgi.shared.rows import TENANT_EVICTIONS, TENANT_STARTS
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.dispatcher import NotServing
from isowsgi.worker.livetable import LiveTable
from isowsgi.worker.tenants import NoTenant, Template
from tests.conftest import examples
from tests.fakes import FakeInstance, FakeSurroundings

NOW = 1000.0
APP = App(kind="module", target="m", call="app")


def mount(pattern: str, **settings: Any) -> Mount:
    host, _, path = pattern.partition("/")
    return Mount(pattern=pattern, host=host, prefix=("/" + path).rstrip("/"), **{"app": APP, "isolation": "own-gil", **settings})


class House:
    """A worker's table with fake instances, of which the first mount is a template."""

    def __init__(self, *mounts: Mount) -> None:
        self.around = FakeSurroundings()
        self.around.board.set_mounts([each.pattern for each in mounts])
        self.by_number: dict[int, Deployment] = {}
        self.stopped: set[str] = set()
        numbered = tuple(attrs.evolve(each, number=number) for number, each in enumerate(mounts))
        self.live = LiveTable(
            Config(path="/isowsgi.toml", mounts=numbered),
            self.around.board,
            self.around.containment,
            self._make,
            lambda deployment: None,
            lambda table: None,
        )
        template = self.live.table.deployments[0]
        assert isinstance(template, Template)
        self.template = template

    def _make(self, members: Sequence[Mount]) -> Deployment:
        if not members[0].max_live:
            return Deployment(members, self.around, isolation="own-gil")

        def make(tenant: Mount) -> Deployment:
            return Deployment([tenant], self.around, isolation="own-gil")

        return Template(members, self.around, make, self.by_number, lambda pattern: pattern in self.stopped, isolation="own-gil")

    def ask(self, host: str, now: float = NOW, **asked: Any) -> FakeInstance | NotServing | None:
        """Ask for a tenant as the dispatcher does; its instance, if it has one, serves the request at once."""
        found = self.template.tenant(host, now, **asked)
        if not isinstance(found, Deployment):
            return found
        found.choose(now)
        for instance in found.slots.all():
            if instance.state is State.BOOTING:
                _says(found, instance, Ready(boot_s=0.0, objects=0, extensions=[], refused=[]))
        chosen = found.choose(now)
        if isinstance(chosen, FakeInstance):
            chosen.served += 1
        assert isinstance(chosen, (FakeInstance, NotServing))
        return chosen

    def prepare(self, wanted: Config) -> None:
        self.live.plan(wanted)
        self.live.begin(NOW)

    def all_end(self) -> None:
        for deployment in self.live.all():
            for instance in deployment.slots.all():
                assert isinstance(instance, FakeInstance)
                if instance.stopped and instance.state not in ENDS:
                    _says(deployment, instance, Closed(threads=0))
        self.live.look_at_tenants(NOW, True)
        self.live.tick()

    def labels(self) -> list[str]:
        return sorted(each.mount.host.partition(".")[0] for each in self.template.live())


def _says(deployment: Deployment, instance: Any, report: Any) -> None:
    instance.said.append(report)
    deployment.reports.read(instance, NOW)


def template(**settings: Any) -> Mount:
    return mount("*.example/", **{"max_live": 3, "lazy": True, "env": {"TENANT": "{1}"}, "queue": 2, "queue_timeout": 10.0, **settings})


def test_each_tenant_has_a_deployment_of_its_own_from_its_first_request_on() -> None:
    house = House(template(pythonpath=("/srv/{1}",), app=App(kind="script", target="/srv/{1}/app.wsgi", call="app")))

    one, again, other = house.ask("a.example"), house.ask("A.Example.:80"), house.ask("b.example")

    assert isinstance(one, FakeInstance)
    assert one is again is not other
    tenant = house.template.live()[0].mount
    assert (tenant.pattern, tenant.env, tenant.pythonpath, tenant.app.target) == (
        "a.example/",
        {"TENANT": "a"},
        ("/srv/a",),
        "/srv/a/app.wsgi",
    )


def test_for_one_more_the_least_recently_used_quiet_one_ends() -> None:
    house = House(template())
    for name in ("a", "b", "c", "a"):
        house.ask(f"{name}.example")

    house.ask("d.example")
    house.all_end()

    assert house.labels() == ["a", "c", "d"]
    first, second = house.template.live()[:2]
    kept = first.slots.serving()[0]
    assert isinstance(kept, FakeInstance)
    kept.served += 1  # on a connection that is kept, of which the acceptor hears nothing

    house.ask("e.example")

    assert first in house.template.live()
    assert second not in house.template.live()
    assert house.template.evictions == 2


def test_while_none_is_quiet_newcomers_wait() -> None:
    house = House(template())
    busy = [house.ask(f"{name}.example") for name in "abc"]
    for instance in busy:
        assert isinstance(instance, FakeInstance)
        instance.busy = True

    assert [house.ask(f"{name}.example") for name in ("d", "e")] == [NotServing.FULL] * 2
    assert house.labels() == ["a", "b", "c"]
    busy[1].busy = False  # type: ignore[union-attr]
    assert house.ask("e.example", NOW + 5, may_enter=False) is NotServing.FULL, "others were before it"
    assert isinstance(house.ask("e.example", NOW + 5), FakeInstance)
    assert house.labels() == ["a", "c", "e"]


def test_one_that_was_loaded_or_used_a_moment_ago_keeps_its_place() -> None:
    """Two clients of two tenants with one place had an app loaded for each of their requests."""
    house = House(template(max_live=1))
    house.ask("a.example", NOW - 2.0)  # it serves at NOW
    house.ask("a.example")

    assert house.ask("b.example", NOW + 3.9) is NotServing.FULL
    house.ask("a.example", NOW + 3.9)
    assert house.ask("b.example", NOW + 7) is NotServing.FULL
    assert isinstance(house.ask("b.example", NOW + 7, waited_s=5.1), FakeInstance), "half of queue_timeout"
    house.all_end()
    assert isinstance(house.ask("a.example", NOW + 30), FakeInstance)


def test_that_nobody_may_go_is_looked_up_a_few_times_a_second() -> None:
    """With 1000 busy tenants each look took 10 ms of the acceptor's thread, for each request that waited."""
    house = House(template(max_live=1))
    instance = house.ask("a.example")
    assert isinstance(instance, FakeInstance)
    instance.busy = True
    assert house.ask("b.example") is NotServing.FULL
    instance.busy = False

    assert house.ask("b.example", NOW + 0.1) is NotServing.FULL
    assert isinstance(house.ask("b.example", NOW + 0.3), FakeInstance)


def test_a_flood_of_names_takes_no_more_numbers_and_rows_than_live_at_a_time() -> None:
    house = House(template())
    for number in range(500):
        assert isinstance(house.ask(f"t{number}.example"), FakeInstance)
        house.all_end()

    assert len(house.labels()) == 3
    assert len(house.by_number) == 3
    assert house.around.board.rows_used() < 20
    assert len(house.around.board._names_of_mounts()) < 8
    assert {pattern for pattern, _ in house.around.board.totals()} <= {"", "*.example/"}


def test_those_that_leave_count_until_their_requests_are_answered() -> None:
    house = House(template())
    for number in range(20):
        house.ask(f"t{number}.example")

    assert (len(house.template.live()), len(house.template.tenants())) == (3, 7), "a few leave, then newcomers wait"
    assert [house.ask(f"t{number}.example") for number in (7, 8, 9)] == [NotServing.FULL] * 3
    house.all_end()
    assert isinstance(house.ask("t9.example"), FakeInstance)


def test_slow_ends_keep_nobody_from_a_free_place() -> None:
    house = House(template())
    for name in "abc":
        house.ask(f"{name}.example")
    house.template.sleep(NOW)
    house.ask("d.example")
    house.template.sleep(NOW)

    assert (house.labels(), len(house.template.tenants())) == ([], 4)
    assert isinstance(house.ask("e.example"), FakeInstance)


def test_what_must_not_be_loaded_beside_itself_waits_for_its_own_end() -> None:
    house = House(template(replace="stop-first", max_live=1))
    house.ask("a.example")
    house.ask("b.example")

    assert house.ask("a.example") is NotServing.BOOTING
    house.all_end()
    assert isinstance(house.ask("a.example"), FakeInstance)


@pytest.mark.parametrize("label", ["-a", "a-", "a_b", "a" * 64, "é", "", "..", "a%2f", "a/b", "a b", "*", "a\0"])
def test_what_no_host_is_called_is_no_tenant(label: str) -> None:
    house = House(template())

    assert house.ask(f"{label}.example") is None
    assert house.labels() == []


def test_only_what_exists_is_a_tenant_and_only_while_it_does(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    house = House(template(exists=str(tmp_path / "{1}")))

    assert isinstance(house.ask("a.example"), FakeInstance)
    assert [house.ask(f"{name}.example") for name in ("b", "..", ".", "")] == [None] * 4
    assert house.template.unknown == 4
    (tmp_path / "a").rmdir()
    house.all_end()
    house.all_end()
    assert (house.labels(), house.template.tenants(), house.ask("a.example")) == ([], [], None)


def test_while_it_cannot_be_looked_up_what_lives_keeps_serving(tmp_path: Path) -> None:
    """A network file system that was away for a moment ended all tenants, and their customers got 404."""
    folder = tmp_path / "tenants"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    house = House(template(exists=str(folder / "{1}")))
    instance = house.ask("a.example")
    folder.rename(tmp_path / "away")
    folder.symlink_to(folder)  # whatever is looked up below it is an error

    house.all_end()

    assert house.ask("a.example") is instance
    assert house.ask("b.example") is NotServing.FAILED
    folder.unlink()
    (tmp_path / "away").rename(folder)
    assert isinstance(house.ask("b.example"), FakeInstance)


def tick(house: House, now: float) -> None:
    """Let a second pass for all deployments, as the supervisor does."""
    for deployment in house.live.all():
        deployment.upkeep.tick(now)
    house.live.look_at_tenants(now, True)


def test_one_that_fell_asleep_makes_room_and_others_are_left_alone() -> None:
    """The template itself, which has no request ever, had all its tenants end each second."""
    house = House(template(idle_timeout=5.0))
    house.ask("a.example")
    tick(house, NOW + 1)
    house.ask("b.example", NOW + 4)
    tick(house, NOW + 4)
    tick(house, NOW + 7)
    house.all_end()

    assert house.labels() == ["b"]
    tick(house, NOW + 10)
    house.all_end()
    house.all_end()

    assert house.template.tenants() == []


def test_a_touched_file_reloads_each_tenant_once(tmp_path: Path) -> None:
    (tmp_path / "touch").touch()
    house = House(template(touch=str(tmp_path / "touch")))
    house.ask("a.example")
    os.utime(tmp_path / "touch", (1, 1))

    tick(house, NOW + 1)

    (tenant,) = house.template.live()
    assert (tenant.generation, tenant.wanted) == (2, "")


def fails(house: House, host: str, now: float = NOW) -> Deployment:
    deployment = house.template.tenant(host, now)
    assert isinstance(deployment, Deployment)
    deployment.choose(now)
    for instance in deployment.slots.all():
        _says(deployment, instance, Failed(error="x", traceback="t"))
    return deployment


def test_one_that_failed_is_not_loaded_at_each_request_though_others_take_its_place() -> None:
    house = House(template(max_live=1))
    failed = fails(house, "bad.example")
    retry_at = failed.backoff.retry_at
    assert retry_at is not None
    house.all_end()
    house.ask("b.example")
    house.all_end()

    assert house.ask("bad.example") is NotServing.FAILED
    assert house.labels() == ["b"], "and nobody had to go for it"
    absent = house.live.find_tenant("bad.example/")
    assert absent is not None
    assert absent.reports.incidents.last_boot is not None, "why is still told"
    again = fails(house, "bad.example", retry_at + 0.1)
    assert (again.generation, again.backoff is failed.backoff) == (2, True)


def test_errors_of_tenants_are_their_templates_too() -> None:
    """The status page and the metrics showed none of them, and they were gone with the tenant."""
    house = House(template(max_live=1))
    for name in "ab":
        house.ask(f"{name}.example")
        house.template.live()[0].reports.refused(house.template.live()[0].mount.number, "GET /x", "busy")
        house.all_end()

    (group,) = house.template.reports.incidents.groups_of("*.example/")

    assert (group.count, group.request) == (2, "GET /x (b.example/)")


def test_the_log_says_once_that_more_are_in_use_than_may_be_loaded(caplog: pytest.LogCaptureFixture) -> None:
    house = House(template(max_live=1))
    instance = house.ask("a.example")
    assert isinstance(instance, FakeInstance)
    instance.busy = True

    for second in range(30):
        house.ask("b.example", NOW + second, waited_s=float(second))

    assert [record.getMessage() for record in caplog.records].count(
        "*.example/: as many tenants are in use as may be loaded (1); requests for others wait; raise max_live"
    ) == 1


def test_one_that_failed_and_that_nobody_asks_for_ends_too() -> None:
    house = House(template(idle_timeout=5.0))
    fails(house, "bad.example")
    house.all_end()
    house.live.look_at_tenants(NOW + 4, True)
    assert house.labels() == ["bad"]

    house.live.look_at_tenants(NOW + 6, True)

    assert house.labels() == []


def test_a_question_of_the_operator_loads_nothing_and_ends_nobody() -> None:
    house = House(template())
    for name in "abc":
        house.ask(f"{name}.example")

    absent = house.live.find_tenant("d.example/")

    assert absent is not None
    absent.start(NOW)
    absent.choose(NOW)
    assert (absent.state(), absent.slots.all()) == ("asleep", [])
    assert (house.labels(), house.template.births, house.template.evictions) == (["a", "b", "c"], 3, 0)
    totals = house.around.board.totals()["*.example/", ""]
    assert (totals.get(TENANT_STARTS), totals.get(TENANT_EVICTIONS)) == (3, 0), "as the metrics have them"
    house.stopped.add("d.example/")
    again = house.live.find_tenant("d.example/")
    assert again is not None
    assert again.state() == "stopped"
    with pytest.raises(NoTenant):
        house.live.find_tenant("-d.example/")


def test_one_that_comes_while_the_worker_stops_knows_that() -> None:
    house = House(template())
    for deployment in house.live.all():
        deployment.finish()
    found = house.template.tenant("a.example", NOW)

    assert isinstance(found, Deployment)
    assert found.is_ending


def test_the_operator_stops_a_tenant_or_all_of_them() -> None:
    house = House(template())
    house.ask("a.example")
    (tenant,) = house.template.live()
    assert house.live.find_tenant("a.example/") is tenant
    assert house.live.find_tenant("a.other/") is None

    tenant.halt(NOW)
    assert house.ask("a.example") is NotServing.FAILED
    for name in "bcde":
        house.ask(f"{name}.example")
        house.all_end()
    assert house.labels() == ["a", "c", "d", "e"], "what is stopped stays so, and takes nobody's place"
    house.stopped.add("f.example/")
    assert house.ask("f.example") is NotServing.FAILED, "in a worker that begins later, too"

    house.template.halt(NOW)
    assert house.ask("c.example") is NotServing.FAILED
    house.template.resume(NOW)
    assert isinstance(house.ask("c.example"), FakeInstance)


def test_other_settings_reach_the_tenants_that_live_and_a_template_that_goes_takes_them_along() -> None:
    house = House(template(), mount("/"))
    instance = house.ask("a.example")
    (tenant,) = house.template.live()

    house.prepare(Config(path="/isowsgi.toml", mounts=(template(queue=7, max_live=5), mount("/"))))
    house.live.switch(NOW)

    assert (tenant.mount.queue, tenant.mount.pattern, house.template.mount.max_live) == (7, "a.example/", 5)
    assert house.ask("a.example") is instance

    house.prepare(Config(path="/isowsgi.toml", mounts=(mount("/"),)))
    house.live.switch(NOW)
    assert tenant.is_ending
    house.all_end()
    house.all_end()
    assert house.live.all() == house.live.table.deployments
    assert house.by_number == {}


@pytest.mark.parametrize("after", [template(replace="stop-first", env={"X": "1"}), mount("*.example/", replace="stop-first")])
def test_with_stop_first_nothing_of_the_next_table_is_loaded_beside_a_tenant(after: Mount) -> None:
    house = House(template(replace="stop-first"))
    old = house.ask("a.example")
    assert isinstance(old, FakeInstance)
    house.prepare(Config(path="/isowsgi.toml", mounts=(after,)))
    house.live.switch(NOW)
    (deployment,) = house.live.table.deployments

    def asked() -> Any:
        found = deployment.tenant("a.example", NOW) if isinstance(deployment, Template) else deployment.choose(NOW)
        return found.choose(NOW) if isinstance(found, Deployment) else found

    made = len(house.around.made)
    assert (asked(), len(house.around.made)) == (NotServing.BOOTING, made)
    house.all_end()
    old.has_gone = True
    tick(house, NOW + 1)
    assert asked() is NotServing.BOOTING
    assert len(house.around.made) == made + 1


HOSTS = ["", "*.example", "*.a.example", "a.example", "b.example", "b.a.example"]
PREFIXES = ["", "/x", "/x/y", "/z"]


@examples(150)
@given(
    st.lists(st.tuples(st.sampled_from(HOSTS), st.sampled_from(PREFIXES)), min_size=1, max_size=8, unique=True),
    st.sampled_from(PREFIXES),
    st.sampled_from(["a", "b", "c"]),
    st.lists(
        st.tuples(
            st.sampled_from(["a.example", "b.example", "c.example", "b.a.example", "x"]), st.sampled_from([*PREFIXES, "/x/y/z", "/xy"])
        ),
        min_size=1,
    ),
)
def test_a_tenant_takes_the_requests_of_its_host_that_its_template_would_get_and_no_others(
    others: list[tuple[str, str]], prefix: str, label: str, requests: list[tuple[str, str]]
) -> None:
    """An instance decides whose the next request on a connection is; the acceptor and it must agree."""
    patterns = [("*.example", prefix), *(each for each in others if each != ("*.example", prefix))]
    mounts = [
        mount(f"{host}{path or '/'}", **({} if number else {"max_live": 2, "lazy": True})) for number, (host, path) in enumerate(patterns)
    ]
    house = House(*mounts)
    tenant = house.template.tenant(f"{label}.example", NOW)
    assert isinstance(tenant, Deployment)
    own, full = Router(tenant.routes), house.live.table.router

    for host, path in requests:
        is_ours = full.match(host, path) == 0 and host == f"{label}.example"
        assert (own.match(host, path) == tenant.mount.number) == is_ours


def test_a_change_of_the_table_reaches_a_tenant() -> None:
    house = House(template())
    house.ask("a.example")
    (tenant,) = house.template.live()

    house.prepare(Config(path="/isowsgi.toml", mounts=(template(), mount("a.example/x"))))
    for deployment in house.live.all():
        for instance in deployment.slots.all():
            if instance.state is State.BOOTING:
                _says(deployment, instance, Ready(boot_s=0.0, objects=0, extensions=[], refused=[]))
    house.live.switch(NOW)

    assert Router(tenant.routes).match("a.example", "/x") != tenant.mount.number
    assert Router(tenant.routes).match("a.example", "/y") == tenant.mount.number


def test_a_label_stands_in_paths_as_one_part() -> None:
    """In a sandbox it stayed as it was written, so a tenant's process could not write to its own folder."""
    paths = {"touch": "/srv/{1}/touch", "working_directory": "/srv/{1}", "sandbox": {"write": ("/srv/{1}/data", "/srv/shared")}}
    found = tenants.tenant_of(template(**paths), "a-b", 7)

    assert (found.touch, found.number, found.max_live) == ("/srv/a-b/touch", 7, 0)
    assert (found.working_directory, found.sandbox) == ("/srv/a-b", {"write": ("/srv/a-b/data", "/srv/shared")})


def test_a_check_looks_at_a_tenant_that_exists(tmp_path: Path) -> None:
    for name in ("-none", "b", "a.b"):
        (tmp_path / name).mkdir()
    found = tenants.example(template(exists=str(tmp_path / "{1}"), pythonpath=(str(tmp_path / "{1}" / "code"),)))

    assert (found.pattern, found.pythonpath, found.env) == ("*.example/", (str(tmp_path / "b" / "code"),), {"TENANT": "b"})
    assert tenants.example(template()).env == {"TENANT": "tenant"}
