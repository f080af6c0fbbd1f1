"""What was found out once is not tried again, unless what it rests on has changed; and nothing of it is ever an error."""

from __future__ import annotations

import multiprocessing
import os
import pwd
import tempfile
import time
from pathlib import Path

import pytest

from isowsgi.inside.extensions import stamp_of
from isowsgi.isolation import verdicts
from isowsgi.isolation.decision import Verdict
from isowsgi.isolation.verdicts import Verdicts, key_of
from isowsgi.shared import cachefolder
from tests.orders import order_for, with_member, with_values


def verdict_on(*paths: Path) -> Verdict:
    stamps = {str(path): tuple(stamp_of(str(path)) or ()) for path in paths}
    return Verdict(isolation="shared-gil", reason="x refuses an own GIL", extensions=stamps)  # type: ignore[arg-type]


@pytest.fixture
def extension(tmp_path: Path) -> Path:
    (tmp_path / "x.so").write_text("code")
    return tmp_path / "x.so"


@pytest.fixture
def memory(tmp_path: Path) -> Verdicts:
    return Verdicts(str(tmp_path / "cache"))


def test_it_is_remembered(memory: Verdicts, extension: Path, tmp_path: Path) -> None:
    assert memory.recall("a") is None

    assert memory.remember("a", verdict_on(extension))

    assert Verdicts(str(tmp_path / "cache")).recall("a") == verdict_on(extension)
    assert memory.recall("b") is None


def test_only_its_user_may_see_it(memory: Verdicts, extension: Path, tmp_path: Path) -> None:
    memory.remember("a", verdict_on(extension))

    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "cache", *(tmp_path / "cache").iterdir())]
    assert modes == [0o700, 0o600]


@pytest.mark.parametrize("change", ["touched", "rewritten", "gone"])
def test_a_changed_extension_file_ends_it(memory: Verdicts, extension: Path, change: str) -> None:
    memory.remember("a", verdict_on(extension))
    if change == "touched":
        os.utime(extension, ns=(1, 1))
    elif change == "rewritten":
        extension.write_text("more code")
    else:
        extension.unlink()

    assert memory.recall("a") is None


def test_an_app_without_an_isolation_is_tried_again(memory: Verdicts) -> None:
    assert not memory.remember("a", Verdict(isolation=None, reason="cannot be loaded"))
    assert memory.recall("a") is None


def test_it_can_be_forgotten(memory: Verdicts, extension: Path) -> None:
    memory.remember("a", verdict_on(extension))
    memory.forget("a")
    memory.forget("a")

    assert memory.recall("a") is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"isolation": 1}', '{"isolation": "a", "reason": "b", "extensions": {"/x": 1}}'])
def test_a_damaged_file_is_no_verdict(memory: Verdicts, extension: Path, tmp_path: Path, content: str) -> None:
    memory.remember("a", verdict_on(extension))
    [file] = (tmp_path / "cache").iterdir()
    file.write_text(content)

    assert memory.recall("a") is None
    assert memory.remember("a", verdict_on(extension))
    assert memory.recall("a") == verdict_on(extension)


@pytest.mark.parametrize("folder", ["/proc/none/such", "/dev/null/x", "/dev/null"])
def test_it_goes_without_a_folder_it_cannot_have(folder: str, extension: Path) -> None:
    memory = Verdicts(folder)

    assert not memory.remember("a", verdict_on(extension))
    assert memory.recall("a") is None


def test_it_trusts_no_folder_that_others_may_write_to(memory: Verdicts, extension: Path, tmp_path: Path) -> None:
    memory.remember("a", verdict_on(extension))
    (tmp_path / "cache").chmod(0o777)

    assert memory.recall("a") is None
    assert not memory.remember("b", verdict_on(extension))


@pytest.fixture
def baked(tmp_path: Path, extension: Path) -> Path:
    """What a build of an image leaves, read by a user that has nothing yet."""
    assert Verdicts(str(tmp_path / "baked")).remember("a", verdict_on(extension))
    return tmp_path / "baked"


def test_what_came_with_an_image_counts_as_long_as_nothing_newer_is_known(baked: Path, extension: Path, tmp_path: Path) -> None:
    memory = Verdicts(str(tmp_path / "cache"), str(baked))
    assert memory.recall("a") == verdict_on(extension)
    assert memory.recall("b") is None

    memory.forget("a")
    assert memory.recall("a") is None
    assert Verdicts(str(tmp_path / "cache"), str(baked)).recall("a") is None

    newer = Verdict(isolation="process", reason="", extensions={})
    assert memory.remember("a", newer)
    assert memory.recall("a") == newer
    assert os.listdir(baked) == ["a.verdict"]


def test_it_may_be_root_s_and_nobody_else_s(baked: Path, extension: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Verdicts(str(tmp_path / "cache"), str(baked))
    owner = baked.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 10001)
    assert (memory.recall("a") is not None) == (owner == 0)
    monkeypatch.undo()

    baked.chmod(0o777)
    assert memory.recall("a") is None


@pytest.mark.parametrize("seconds", [7, 8])
def test_the_layers_of_an_image_keep_whole_seconds(extension: Path, tmp_path: Path, seconds: int) -> None:
    """Each verdict that was baked in was void: its extension modules had lost the fraction of a second, or got the rest of it."""
    os.utime(extension, ns=(0, 7_812_088_553))
    memory = Verdicts(str(tmp_path / "cache"))
    memory.remember("a", verdict_on(extension))

    os.utime(extension, (0, seconds))
    assert memory.recall("a") == verdict_on(extension), "with the stamps that the files have now: the guard compares them"

    for other_ns in (seconds * 1_000_000_000 + 1, 6_000_000_000, 9_000_000_000):
        os.utime(extension, ns=(0, other_ns))
        assert memory.recall("a") is None


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, extension: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(cachefolder.FOLDER_VARIABLE, raising=False)
    Verdicts().remember("a", verdict_on(extension))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    Verdicts().remember("a", verdict_on(extension))
    monkeypatch.setenv(cachefolder.FOLDER_VARIABLE, str(tmp_path / "named"))
    Verdicts().remember("a", verdict_on(extension))

    for folder in ("home/.cache/isowsgi", "xdg/isowsgi", "named"):
        assert os.listdir(tmp_path / folder) == ["a.verdict"]


def test_a_user_without_a_home_has_it_in_the_temporary_folder(monkeypatch: pytest.MonkeyPatch, extension: Path, tmp_path: Path) -> None:
    """In containers: a folder named "~" appeared where gunicorn was started. A relative XDG_CACHE_HOME is to be ignored, says its
    specification."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", cachefolder.FOLDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    Verdicts().remember("a", verdict_on(extension))

    assert os.listdir(tmp_path / "temporary" / f"isowsgi-cache-{os.geteuid()}") == ["a.verdict"]
    assert not {"~", "cache"} & set(os.listdir(tmp_path))


def test_it_does_not_grow_for_ever(memory: Verdicts, extension: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "_MAX_FILES", 10)
    for number in range(100):
        memory.remember(f"{number}", verdict_on(extension))

    assert len(os.listdir(tmp_path / "cache")) <= 10
    assert memory.recall("99") is not None


def test_what_is_too_long_is_not_remembered(memory: Verdicts) -> None:
    stamps = {f"/{number}" * 100: (1, 1) for number in range(10_000)}

    assert not memory.remember("a", Verdict(isolation="process", reason="", extensions=stamps))


def write_often(folder: str, extension: Path) -> None:
    for _ in range(200):
        assert Verdicts(folder).remember("a", verdict_on(extension))


def test_several_processes_may_write_while_others_read(memory: Verdicts, extension: Path, tmp_path: Path) -> None:
    memory.remember("a", verdict_on(extension))
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_often, args=(str(tmp_path / "cache"), extension)) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert memory.recall("a") is not None
    for writer in writers:
        writer.join()

    assert [writer.exitcode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path / "cache") == ["a.verdict"]


def test_five_hundred_are_read_in_a_moment(memory: Verdicts, extension: Path) -> None:
    for number in range(500):
        memory.remember(str(number), verdict_on(extension))
    started = time.process_time()

    assert all(memory.recall(str(number)) for number in range(500))

    assert time.process_time() - started < 2  # 0.03 s, and two or three times that where the core is shared


def test_the_key_is_made_of_all_that_a_verdict_depends_on(tmp_path: Path) -> None:
    order = order_for(tmp_path, "")
    changes = [
        with_values(order, pythonpath=["/other"]),
        with_values(order, venv="/other"),
        with_values(order, python="/other"),
        with_values(order, env={"A": "1"}),
        with_values(order, policy={"chdir": "deny"}),
        with_values(order, lazy_imports="all"),
        with_values(order, eager=["a"]),
        with_values(order, release="0"),
        with_member(order, target="other"),
        with_member(order, warmup="/"),
        order.replace(members=order.members * 2),
    ]
    keys = {key_of(order), *(key_of(changed) for changed in changes)}
    assert len(keys) == 1 + len(changes)

    assert key_of(with_values(order, generation=7, threads=9, tag="x")) == key_of(order)
