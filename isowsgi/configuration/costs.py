"""What a change of the config costs: whether an app is loaded for it, keeps running with new settings, or needs a new worker."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import TYPE_CHECKING

import attrs

from isowsgi.configuration.values import Mount

if TYPE_CHECKING:
    from isowsgi.configuration.differences import Settings, Summary

# Settings of a mount that only the worker obeys; `warmup` and `boot_timeout` from the next load on.
_OF_THE_WORKER = frozenset({
    "boot_timeout", "exists", "hosts", "idle_timeout", "lazy", "max_age", "max_live", "max_memory",
    "max_requests", "max_requests_jitter", "on_crash", "redirect", "replace", "status", "touch", "warmup",
})  # fmt: skip

# Settings that the instances are told, by `messages.Limits`.
_OF_INSTANCES = frozenset({"body_timeout", "min_rate", "queue", "queue_timeout", "request_timeout", "send_timeout", "slow_request"})

# All that a mount takes up while its app keeps running. Not `threads`: an instance has its rows on the scoreboard for life, and the app was
# told whether it has several. Not `log`: its file is opened with the instance.
IN_PLACE = _OF_THE_WORKER | _OF_INSTANCES


class Cost(Enum):
    """What taking up a difference does."""

    LOAD = "load"  # an app, or a new generation of it
    LOAD_LATER = "load later"  # at the first request
    IN_PLACE = "in place"
    END = "end"
    SIGHUP = "sighup"
    STOP_FIRST = "stop first"  # what serves ends, then a new generation is loaded


def is_in_place(old: Mount, new: Mount) -> bool:
    """Whether a mount can go on with other settings."""
    if old == new:  # nearly all of a table, and a tenth of the time
        return True
    if new.user and old.exists != new.exists:
        return False  # who is a tenant is root's word then, as is what runs as whom
    if bool(old.max_live) != bool(new.max_live) or bool(old.redirect) != bool(new.redirect):
        return False  # one of them has no instance
    if (old.lazy and not new.lazy) or (not old.request_timeout and new.request_timeout):
        return False  # it may have to be loaded; what interrupts requests is there only if it was asked for when the app was loaded
    return attrs.evolve(old, **{name: getattr(new, name) for name in IN_PLACE}) == new


def of_mounts(old: Summary, new: Summary) -> dict[str, Cost]:
    """Return by pattern what becomes of the mounts of two configs, those that do not differ included."""
    befores, afters = _groups(old.mounts), _groups(new.mounts)
    costs: dict[str, Cost] = {}
    for group in afters:
        cost = Cost.IN_PLACE if group in befores and all(_goes_on(old.mounts[each], new.mounts[each]) for each in group) else Cost.LOAD
        settings = new.mounts[group[0]]
        replaced = [old.mounts[each] for each in group if each in old.mounts]
        if settings.get("redirect"):  # there is nothing to load
            cost = Cost.IN_PLACE if all("redirect" in each for each in replaced) else Cost.END
            if any(each.get("isolation") == '"main"' for each in replaced):
                cost = Cost.SIGHUP
        is_main = any(each.get("isolation") == '"main"' for each in [*replaced, settings])
        if cost is Cost.LOAD and (is_main or "user" in settings):  # what runs as another user is root's word, see `spawner.vouched`
            cost = Cost.SIGHUP
        elif cost is Cost.LOAD and replaced and any(each.get("replace") == '"stop-first"' for each in [*replaced, settings]):
            cost = Cost.STOP_FIRST
        elif cost is Cost.LOAD and settings.get("lazy") == "true":
            cost = Cost.LOAD_LATER
        costs |= dict.fromkeys(group, cost)
    for group in befores:
        gone = [each for each in group if each not in costs]
        left = [costs[each] for each in group if each in new.mounts and new.mounts[each].get("group") == old.mounts[each].get("group")]
        is_main = old.mounts[group[0]].get("isolation") == '"main"'
        costs |= dict.fromkeys(gone, Cost.SIGHUP if is_main else left[0] if left else Cost.END)
    return costs


def of_table(name: str, changed: Collection[str], new: Summary) -> Cost:
    """Return what it costs that a table differs.

    Args:
        changed: its settings that do.
    """
    if name == "control":
        return Cost.IN_PLACE if {*changed} <= {"watch"} else Cost.SIGHUP
    if name == "log":
        return Cost.SIGHUP
    has_page = any(settings.get("app", "").startswith('"isowsgi.status:') for settings in new.mounts.values())
    return Cost.LOAD if name == "status" and has_page else Cost.IN_PLACE


def _groups(mounts: Mapping[str, Settings]) -> list[tuple[str, ...]]:
    """Return the patterns of those that share an instance, for each instance; in one order, whatever that of the file is."""
    groups: dict[str, list[str]] = {}
    for pattern, settings in mounts.items():
        groups.setdefault(settings.get("group", pattern), []).append(pattern)  # a group's name is written in quotes here
    return [tuple(sorted(group)) for group in groups.values()]


def _goes_on(old: Settings, new: Settings) -> bool:
    """Whether a mount can go on; as `is_in_place`, from what is told of settings: those with their default are left out."""
    changed = {name for name in {*old, *new} - {"file"} if old.get(name) != new.get(name)}
    if (
        ("lazy" in changed and "lazy" not in new)
        or any((name in old) != (name in new) for name in ("max_live", "redirect"))
        or ("request_timeout" in changed and old.get("request_timeout") == "0.0")
        or ("exists" in changed and "user" in new)
    ):
        return False
    return changed <= IN_PLACE


def text_of(cost: Cost, sign: str, name: str, group: str | None) -> str:
    """Say for people what a difference costs.

    Args:
        sign, name: see `differences.Difference`.
        group: of the mount, if it has one.
    """
    if cost is Cost.LOAD and name == "[status]":
        return "loads a new generation of the status page"
    if cost is Cost.LOAD:
        return "loads it" if sign == "+" and group is None else "loads a new generation" + (f" of group {group}" if group else "")
    return _TEXTS[cost]


_TEXTS = {
    Cost.LOAD_LATER: "loaded at its first request",
    Cost.IN_PLACE: "in place",
    Cost.END: "ends when its requests are answered",
    Cost.STOP_FIRST: "ends, then loads a new generation; requests wait",
    Cost.SIGHUP: "needs SIGHUP to gunicorn",
}
