"""What a change costs: what `plan` says from a worker's words is what the worker does with the settings themselves."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from isowsgi.configuration import App, Config, Control, Mount, Status, costs
from isowsgi.configuration.costs import Cost
from isowsgi.configuration.differences import differences, summary
from isowsgi.configuration.values import Files

APP = App(kind="module", target="m", call="app")


def mount(pattern: str, **settings: Any) -> Mount:
    return Mount(pattern=pattern, prefix=pattern, **{"app": APP, **settings})


def config(*mounts: Mount, **tables: Any) -> Config:
    return Config(path="/isowsgi.toml", mounts=mounts, **tables)


def told(old: Config, new: Config) -> dict[str, Cost]:
    return {each.name: each.cost for each in differences(summary(old, "salt"), summary(new, "salt"))}


def other(name: str, value: object) -> Any:
    if name == "files":
        return Files(path="/files")
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return {"exit": "deny"} if isinstance(value, dict) else (*value, "x") if isinstance(value, tuple) else "/other"


@pytest.mark.parametrize("name", [each.name for each in attrs.fields(Mount) if each.eq and each.name not in ("pattern", "host", "prefix")])
def test_the_plan_says_what_the_worker_does(name: str) -> None:
    before = mount("/a")
    value: Any = attrs.evolve(APP, call="other") if name == "app" else other(name, getattr(before, name))
    for old, new in ((before, attrs.evolve(before, **{name: value})), (attrs.evolve(before, **{name: value}), before)):
        goes_on = told(config(old), config(new))["/a"] is Cost.IN_PLACE

        assert goes_on == costs.is_in_place(old, new)


def test_each_setting_in_place_is_one_of_a_mount() -> None:
    assert {each.name for each in attrs.fields(Mount)} >= costs.IN_PLACE


G, H = mount("/g", group="g"), mount("/h", group="g")
PAGE = mount("/status", app=App(kind="module", target="isowsgi.status", call="application"))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (config(), config(mount("/a"), mount("/b", lazy=True)), {"/a": Cost.LOAD, "/b": Cost.LOAD_LATER}),
        (config(mount("/a")), config(), {"/a": Cost.END}),
        (config(mount("/a", request_timeout=0.0)), config(mount("/a")), {"/a": Cost.LOAD}),
        (config(mount("/a", lazy=True)), config(mount("/a")), {"/a": Cost.LOAD}),
        (config(mount("/a", isolation="main")), config(mount("/a", isolation="main", queue=1)), {"/a": Cost.IN_PLACE}),
        (config(mount("/a", isolation="main")), config(mount("/a", isolation="main", threads=1)), {"/a": Cost.SIGHUP}),
        (config(mount("/a", isolation="main")), config(), {"/a": Cost.SIGHUP}),
        (config(mount("/a", replace="stop-first")), config(mount("/a", threads=1)), {"/a": Cost.STOP_FIRST}),
        (config(mount("/a")), config(mount("/a", threads=1, replace="stop-first")), {"/a": Cost.STOP_FIRST}),
        (config(), config(mount("/a", replace="stop-first")), {"/a": Cost.LOAD}),
        (config(), config(mount("/a", user="shop")), {"/a": Cost.SIGHUP}),
        (config(mount("/a", user="shop")), config(mount("/a", user="shop", queue=1)), {"/a": Cost.IN_PLACE}),
        (config(mount("/a", user="shop")), config(mount("/a", user="shop", threads=1)), {"/a": Cost.SIGHUP}),
        (config(mount("/a", user="shop")), config(mount("/a", user="blog", lazy=True)), {"/a": Cost.SIGHUP}),
        (config(mount("/a", user="shop")), config(mount("/a")), {"/a": Cost.LOAD}),
        (config(), config(control=Control(watch=True)), {"[control]": Cost.IN_PLACE}),
        (config(), config(control=Control(watch=True, enabled=False)), {"[control]": Cost.SIGHUP}),
        (config(mount("/a", replace="stop-first")), config(mount("/a")), {"/a": Cost.IN_PLACE}),
        (config(mount("/a", group="g")), config(mount("/a", group="g"), mount("/b", group="g")), {"/b": Cost.LOAD}),
        (config(mount("/a", group="g"), mount("/b", group="g")), config(mount("/a", group="g")), {"/b": Cost.LOAD}),
        (config(G, H), config(H, attrs.evolve(G, queue=1)), {"/g": Cost.IN_PLACE}),
        (config(), config(status=Status(hosts=("x",))), {"[status]": Cost.IN_PLACE}),
        (config(PAGE), config(PAGE, status=Status(hosts=("x",))), {"[status]": Cost.LOAD}),
    ],
)
def test_what_comes_changes_and_goes_has_its_cost(old: Config, new: Config, expected: dict[str, Cost]) -> None:
    assert told(old, new) == expected


def test_costs_are_said_in_words() -> None:
    assert costs.text_of(Cost.LOAD, "+", "/a", None) == "loads it"
    assert costs.text_of(Cost.LOAD, "~", "/a", None) == "loads a new generation"
    assert costs.text_of(Cost.LOAD, "+", "/a", '"g"') == 'loads a new generation of group "g"'
    assert costs.text_of(Cost.STOP_FIRST, "~", "/a", None) == "ends, then loads a new generation; requests wait"


def test_an_app_that_becomes_a_redirect_ends_and_the_other_way_it_is_loaded() -> None:
    """The plan said "in place"."""
    app, redirect, other = mount("/a"), mount("/a", redirect="/new", lazy=True), mount("/a", redirect="/other", lazy=True)

    assert told(config(app), config(redirect))["/a"] is Cost.END
    assert told(config(redirect), config(app))["/a"] is Cost.LOAD
    assert told(config(redirect), config(other))["/a"] is Cost.IN_PLACE
