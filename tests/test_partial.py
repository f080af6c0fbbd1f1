"""A config that is taken up in part: what stays is as it was, and the rest is as the new one says."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from isowsgi.configuration import App, Config, Control, Mount, partial


def mount(pattern: str, threads: int, group: str | None = None) -> Mount:
    return Mount(pattern=pattern, prefix=pattern, app=App(kind="module", target="m", call="app"), threads=threads, group=group)


def config(*mounts: Mount, **tables: Any) -> Config:
    return Config(path="/isowsgi.toml", mounts=mounts, **tables)


def of(config: Config) -> dict[str, int | None]:
    return {mount.pattern: mount.threads for mount in config.mounts}


def test_what_stays_is_as_it_was_or_absent_or_still_there() -> None:
    old = config(mount("/changed", 1), mount("/gone", 1), mount("/other", 1))
    new = config(mount("/new", 2), mount("/changed", 2), mount("/other", 2))

    assert of(partial.leave_out(new, old, frozenset())) == of(new)
    assert of(partial.leave_out(new, old, frozenset({"/new", "/changed"}))) == {"/changed": 1, "/other": 2}
    left = partial.leave_out(new, old, frozenset({"/gone"}))
    assert of(left) == {"/new": 2, "/changed": 2, "/other": 2, "/gone": 1}
    assert [each.number for each in left.mounts] == [0, 1, 2, 3]


def test_the_control_table_stays_by_its_name() -> None:
    old, new = config(control=Control(enabled=False)), config()
    stay = partial.staying(new, old, ["[control]", "/nothing"])

    assert stay == {"[control]"}
    assert partial.leave_out(new, old, stay).control == old.control


PATTERNS = ["/a", "/b", "/c", "/d", "/e"]
CONFIGS = st.dictionaries(st.sampled_from(PATTERNS), st.sampled_from([None, "g", "h"])).map(
    lambda groups: config(*(mount(pattern, 1, group) for pattern, group in groups.items()))
)


@given(old=CONFIGS, new=CONFIGS, names=st.sets(st.sampled_from(PATTERNS)))
def test_no_group_is_taken_up_by_halves(old: Config, new: Config, names: set[str]) -> None:
    stay = partial.staying(new, old, names)
    left = partial.leave_out(new, old, stay)

    def groups(config: Config) -> set[frozenset[str]]:
        found: dict[str, set[str]] = {}
        for each in config.mounts:
            found.setdefault(each.group or each.pattern, set()).add(each.pattern)
        return set(map(frozenset, found.values()))

    assert groups(left) <= groups(old) | groups(new)
    assert stay >= names & ({each.pattern for each in old.mounts} | {each.pattern for each in new.mounts})
    assert {each.pattern for each in left.mounts if each.pattern in stay} == {each.pattern for each in old.mounts if each.pattern in stay}
