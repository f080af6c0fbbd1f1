"""What differs between two config files is found by meaning, and no secret is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isowsgi import configuration
from isowsgi.configuration import differences
from isowsgi.configuration.costs import Cost
from isowsgi.configuration.differences import Difference, Setting, Summary, summary
from isowsgi.configuration.values import Certificate, Files
from isowsgi.shared import policies

SALT = "salt"


def said(folder: Path, content: str, salt: str = SALT) -> Summary:
    (folder / "isowsgi.toml").write_text(content)
    return summary(configuration.load(folder / "isowsgi.toml"), salt)


def between(folder: Path, old: str, new: str) -> list[Difference]:
    return differences.differences(said(folder, old), said(folder, new))


def test_each_mount_and_table_that_differs_is_told_with_what_it_was_and_will_be(tmp_path: Path) -> None:
    old = '[worker]\nmax_rss = 500\n[mounts]\n"/" = "a"\n"/b" = { app = "b", threads = 2 }\n"/c" = "c"\n"/r" = "r"\n'
    new = '[acceptor]\nhead_timeout = 5\n[mounts]\n"/s" = "r"\n"/" = "a"\n"/b" = { app = "b:app", lazy = true }\n"/c" = "c"\n'

    assert between(tmp_path, old, new) == [
        Difference(sign="~", name="[worker]", settings=(Setting(name="max_rss", old="500", new=None),), cost=Cost.IN_PLACE),
        Difference(sign="~", name="[acceptor]", settings=(Setting(name="head_timeout", old="20.0", new="5.0"),), cost=Cost.IN_PLACE),
        Difference(
            sign="+",
            name="/s",
            cost=Cost.LOAD,
            settings=(
                Setting(name="app", old=None, new='"r:application"'),
                Setting(name="pythonpath", old=None, new=f'["{tmp_path}"]'),
            ),
        ),
        Difference(
            sign="~",
            name="/b",
            cost=Cost.LOAD_LATER,
            settings=(
                Setting(name="app", old='"b:application"', new='"b:app"'),
                Setting(name="lazy", old=None, new="true"),
                Setting(name="threads", old="2", new=None),
            ),
        ),
        Difference(sign="-", name="/r", cost=Cost.END),
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"/" = "a"\n"/b" = "b"', '"/b" = "b"\n"/" = { app = "a:application" }'),
        ('"/" = { app = "a", threads = 3, env = { A = "1" } }', '"/" = "a"\n[defaults]\nthreads = 3\nenv = { A = "1" }'),
        ('"/" = { app = "a", policy = "warn" }', '"/" = "a"\n[defaults]\npolicy = "warn"'),
        ('"/" = { app = "a", policy = "allow" }', '"/" = "a"'),
        ('"/" = { app = "a", lazy = false, queue = 100 }', '"/" = "a"'),
    ],
    ids=["order", "defaults", "policy", "what is allowed anyway", "a default that is written"],
)
def test_what_means_the_same_is_no_difference(tmp_path: Path, old: str, new: str) -> None:
    assert between(tmp_path, f"[mounts]\n{old}\n", f"[mounts]\n{new}\n") == []


def test_a_variable_is_compared_and_not_told(tmp_path: Path) -> None:
    one = '[mounts]\n"/" = { app = "a", env = { KEY = "hunter2", SAME = "s" } }\n'
    [found] = between(tmp_path, one, one.replace("hunter2", "hunter3"))

    [setting] = found.settings
    assert (setting.name, setting.is_secret) == ("env.KEY", True)
    assert "hunter" not in str(found)
    assert said(tmp_path, one, "another salt").mounts["/"]["env.KEY"] != said(tmp_path, one).mounts["/"]["env.KEY"]


def test_limits_are_compared_one_by_one_as_the_file_writes_them(tmp_path: Path) -> None:
    old, new = 'limits = { memory = "1G", files = 100 }', 'limits = { memory = "512M", files = 100 }'
    [found] = between(tmp_path, f'[mounts]\n"/" = {{ app = "a", {old} }}\n', f'[mounts]\n"/" = {{ app = "a", {new} }}\n')
    [setting] = found.settings
    assert (setting.name, setting.old, setting.new, found.cost.value) == ("limits.memory", '"1G"', '"512M"', "load")


def test_a_sandbox_is_compared_word_by_word(tmp_path: Path) -> None:
    [found] = between(tmp_path, '[mounts]\n"/" = "a"\n', '[mounts]\n"/" = { app = "a", sandbox = { connect = [] } }\n')
    assert [(setting.name, setting.new) for setting in found.settings] == [("sandbox", "true"), ("sandbox.connect", "[]")]


def test_a_policy_is_one_setting_where_all_words_have_the_same_value_and_one_for_each_word_else(tmp_path: Path) -> None:
    words = ", ".join(f"{word} = 'warn'" for word in policies.WORDS[1:])

    def names(policy: str) -> dict[str, str | None]:
        [found] = between(tmp_path, '[mounts]\n"/" = "a"\n', f'[mounts]\n"/" = {{ app = "a", policy = {policy} }}\n')
        return {setting.name: setting.new for setting in found.settings}

    assert names('"warn"') == {"policy": '"warn"'}
    assert names("{ chdir = 'warn' }") == {"policy.chdir": '"warn"'}
    assert names(f"{{ {words} }}") == {f"policy.{word}": '"warn"' for word in policies.WORDS[1:]}
    assert names(f"{{ {policies.WORDS[0]} = 'deny', {words} }}") == {
        f"policy.{policies.WORDS[0]}": '"deny"',
        **{f"policy.{word}": '"warn"' for word in policies.WORDS[1:]},
    }


def test_the_files_that_are_included_are_a_setting_as_the_file_writes_it(tmp_path: Path) -> None:
    one = '[mounts]\n"/" = "a"\n'

    [found] = between(tmp_path, one, f'include = ["höfe.d/*.toml"]\n{one}')

    assert (found.name, found.settings) == ("[include]", (Setting(name="include", old=None, new='["höfe.d/*.toml"]'),))


TEXTS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), max_size=3)
SUMMARIES = st.builds(
    Summary,
    tables=st.fixed_dictionaries({"worker": TEXTS}),
    mounts=st.dictionaries(st.sampled_from(["/", "/a", "/b"]), TEXTS),
)


@given(old=SUMMARIES, new=SUMMARIES)
def test_the_old_with_all_differences_is_the_new(old: Summary, new: Summary) -> None:
    tables = {f"[{name}]": dict(settings) for name, settings in old.tables.items()}
    mounts = {name: dict(settings) for name, settings in old.mounts.items()}
    for found in differences.differences(old, new):
        if found.sign == "-":
            del mounts[found.name]
            continue
        settings = (tables if found.name in tables else mounts).setdefault(found.name, {})
        for each in found.settings:
            assert settings.pop(each.name, None) == each.old != each.new
            if each.new is not None:
                settings[each.name] = each.new

    assert (tables, mounts) == ({f"[{name}]": settings for name, settings in new.tables.items()}, new.mounts)


@pytest.mark.parametrize("part", ["mount", "limits", "control", "status", "log", "config"])
def test_every_setting_counts(tmp_path: Path, part: str) -> None:
    """One that is new in `Config` must be found here too."""
    (tmp_path / "isowsgi.toml").write_text('[mounts]\n"/" = "a"\n')
    config = configuration.load(tmp_path / "isowsgi.toml")
    table: Any = config if part == "config" else config.mounts[0] if part == "mount" else getattr(config, part)
    names = {field.name for field in attrs.fields(type(table))}
    parts = {"number", "path", "host", "prefix", "app", "pattern", "mounts", "limits", "control", "status", "log"}  # compared in other ways
    for name in names - parts - {"file", "include", "faults", "faulty"}:
        tables = {"files": Files(path="/files"), "tls": (Certificate(hosts=("a.example",), certificate="/a.pem", key="/a.pem"),)}
        value = tables[name] if name in tables else _other(getattr(table, name))
        other = attrs.evolve(table, **{name: value})
        if part != "config":
            other = attrs.evolve(config, **{"mounts": (other,)} if part == "mount" else {part: other})

        assert differences.differences(summary(config, SALT), summary(other, SALT)), name


def _other(value: object) -> object:
    """Return another value than one that a setting has."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, dict):
        return {"exit": "deny"}
    return (*value, "x") if isinstance(value, tuple) else "/other"
