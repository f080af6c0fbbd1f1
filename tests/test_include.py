"""`include`: a file for each site. Faults in one cost its own mounts, and no mount gets another one's requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isowsgi import configuration
from isowsgi.configuration import Config, ConfigError, Mount
from isowsgi.configuration.differences import differences, summary
from isowsgi.configuration.included import keep_faulty


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sites.d").mkdir()
    write(
        tmp_path,
        "isowsgi.toml",
        'include = "sites.d/*.toml"\n[defaults]\nthreads = 2\nenv = { A = "1", B = "1" }\n[mounts]\n"/" = "main"\n',
    )
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def load(folder: Path) -> Config:
    return configuration.load(folder / "isowsgi.toml")


def mounts(config: Config) -> dict[str, Mount]:
    return {mount.pattern: mount for mount in config.mounts}


def test_the_mounts_of_each_file_follow_in_the_order_of_their_names(folder: Path) -> None:
    write(folder, "sites.d/b.toml", '[mounts]\n"/b" = "b"\n')
    write(folder, "sites.d/a.toml", '[mounts]\n"/z" = "z"\n"/a" = "a"\n')
    write(folder, "sites.d/a.txt", "no config")

    config = load(folder)

    assert [(mount.number, mount.pattern) for mount in config.mounts] == [(0, "/"), (1, "/z"), (2, "/a"), (3, "/b")]
    assert [mount.file and Path(mount.file).name for mount in config.mounts] == [None, "a.toml", "a.toml", "b.toml"]
    assert config.faults == ()


def test_a_files_defaults_hold_for_that_file_and_lie_over_the_main_ones(folder: Path) -> None:
    write(
        folder, "sites.d/a.toml", '[defaults]\nthreads = 7\nenv = { B = "2", C = "2" }\n[mounts]\n"/a" = { app = "a", env = { C = "3" } }\n'
    )
    write(folder, "sites.d/b.toml", '[mounts]\n"/b" = "b"\n')

    found = mounts(load(folder))

    assert (found["/a"].threads, found["/a"].env) == (7, {"A": "1", "B": "2", "C": "3"})
    assert (found["/b"].threads, found["/b"].env) == (2, {"A": "1", "B": "1"})


def test_relative_paths_begin_at_the_folder_of_the_file_that_has_them(folder: Path) -> None:
    write(folder, "sites.d/app.wsgi", "")
    write(folder, "sites.d/a.toml", '[mounts]\n"/a" = "app.wsgi"\n')

    found = mounts(load(folder))

    assert found["/a"].app.target == str(folder / "sites.d/app.wsgi")
    assert found["/a"].pythonpath == (str(folder / "sites.d"),)


def test_a_main_file_needs_no_mounts_of_its_own_if_others_have_some(folder: Path) -> None:
    write(folder, "isowsgi.toml", 'include = ["sites.d/*.toml"]\n')
    with pytest.raises(ConfigError, match="include: no file with a mount"):
        load(folder)

    write(folder, "sites.d/a.toml", '[mounts]\n"/a" = "a"\n')

    assert [*mounts(load(folder))] == ["/a"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[mounts]\n"/a" = "a"\n"/b" = { app = "b", thread = 2 }\n', 'mounts."/b".thread: unknown key'),
        ('[mounts]\n"/a" = "a"\n"/b" = "b"\n[worker]\ncrashes = 3\n', "worker: unknown key"),
        ('include = "x"\n[mounts]\n"/a" = "a"\n"/b" = "b"\n', "include: unknown key"),
    ],
)
def test_a_fault_costs_all_mounts_of_its_file_and_no_other(folder: Path, text: str, fault: str) -> None:
    write(folder, "sites.d/a.toml", text)
    write(folder, "sites.d/b.toml", '[mounts]\n"/c" = "c"\n')

    config = load(folder)

    [told] = config.faults
    assert told.startswith(f"{folder}/sites.d/a.toml: {fault}")
    assert {name: bool(mount.fault) for name, mount in mounts(config).items()} == {"/": False, "/a": True, "/b": True, "/c": False}
    assert mounts(config)["/a"].fault == told


def test_a_pattern_in_two_files_names_both_and_stays_with_the_first(folder: Path) -> None:
    write(folder, "sites.d/a.toml", '[mounts]\n"/a" = "a"\n')
    write(folder, "sites.d/b.toml", '[mounts]\n"/a/" = "other"\n"/b" = "b"\n')

    config = load(folder)

    assert config.faults == (
        f'{folder}/sites.d/b.toml: mounts."/a/": the same pattern as "/a" in {folder}/sites.d/a.toml; keep one of them',
    )
    assert {name: (mount.app.target, bool(mount.fault)) for name, mount in mounts(config).items()} == {
        "/": ("main", False),
        "/a": ("a", False),
        "/b": ("", True),
    }


def test_a_group_is_in_one_file(folder: Path) -> None:
    for name in "ab":
        write(folder, f"sites.d/{name}.toml", f'[mounts]\n"/{name}" = {{ app = "{name}", group = "g" }}\n')

    [fault] = load(folder).faults

    assert "another file has mounts in the group 'g'" in fault
    assert "sites.d/b.toml" in fault


def test_a_file_that_is_no_toml_has_no_patterns_of_its_own(folder: Path) -> None:
    write(folder, "sites.d/a.toml", "[mounts\n")

    config = load(folder)

    assert [*mounts(config)] == ["/"]
    assert config.faulty == (str(folder / "sites.d/a.toml"),)
    assert "line 1" in config.faults[0]


def test_mounts_of_a_file_that_became_faulty_stay_as_they_were(folder: Path) -> None:
    for name in "abc":
        write(folder, f"sites.d/{name}.toml", f'[mounts]\n"/{name}" = "{name}"\n')
    before = load(folder)
    write(folder, "sites.d/a.toml", '[mounts]\n"/a" = { app = "new", odd = 1 }\n"/a2" = "a"\n')
    write(folder, "sites.d/b.toml", "[broken")
    (folder / "sites.d/c.toml").unlink()
    after = load(folder)

    kept = mounts(keep_faulty(after, before))

    assert {name: (mount.app.target, bool(mount.fault)) for name, mount in kept.items()} == {
        "/": ("main", False),
        "/a": ("a", False),
        "/a2": ("", True),
        "/b": ("b", False),
    }
    assert [mount.number for mount in kept.values()] == [0, 1, 2, 3]


@pytest.mark.parametrize("value", ["7", '""', "[7]"])
def test_an_include_that_is_no_glob_is_a_fault_of_the_main_file(folder: Path, value: Any) -> None:
    write(folder, "isowsgi.toml", f'include = {value}\n[mounts]\n"/" = "main"\n')

    with pytest.raises(ConfigError, match="include"):
        load(folder)


@pytest.mark.parametrize(
    "text", ["", "[defaults]\n", '[mounts]\n"/a" = { app = "a", odd = 1 }\n'], ids=["empty", "no mounts", "one is left"]
)
def test_what_a_faulty_file_no_longer_names_stays_too(folder: Path, text: str) -> None:
    """A file is empty for a moment while an editor writes it."""
    write(folder, "sites.d/a.toml", '[mounts]\n"/a" = "a"\n"/b" = "b"\n')
    before = load(folder)
    write(folder, "sites.d/a.toml", text)

    kept = mounts(keep_faulty(load(folder), before))

    assert {name: mount.app.target for name, mount in kept.items()} == {"/": "main", "/a": "a", "/b": "b"}


def test_a_mount_that_moves_to_another_file_and_a_new_include_are_differences_that_load_nothing(folder: Path) -> None:
    write(folder, "sites.d/a.toml", '[mounts]\n"/a" = "a"\n')
    before = load(folder)
    (folder / "sites.d/a.toml").rename(folder / "sites.d/b.toml")
    moved = load(folder)
    write(folder, "isowsgi.toml", (folder / "isowsgi.toml").read_text().replace("sites.d/*.toml", "sites.d/b*.toml"))
    narrower = load(folder)

    assert before.mounts == moved.mounts == narrower.mounts
    assert [each.name for each in differences(summary(before, ""), summary(moved, ""))] == ["/a"]
    assert [each.name for each in differences(summary(moved, ""), summary(narrower, ""))] == ["[include]"]


def test_an_empty_included_file_is_one_that_is_not_written_yet_and_one_may_have_no_mounts(folder: Path) -> None:
    """A file that was dropped empty was a fault, in the log and by exit code 1."""
    write(folder, "sites.d/a.toml", '[mounts]\n"/a" = "a"\n')
    before = load(folder)

    write(folder, "sites.d/a.toml", "# soon\n")
    unwritten = load(folder)
    assert (unwritten.faults, [*mounts(keep_faulty(unwritten, before))]) == ((), ["/", "/a"])

    write(folder, "sites.d/a.toml", "[mounts]\n")
    without = load(folder)
    assert (without.faults, [*mounts(keep_faulty(without, before))]) == ((), ["/"])
