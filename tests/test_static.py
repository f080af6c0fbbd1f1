"""Files below a folder: what is opened, whoever changes the folder meanwhile, and what a request gets of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.http.wsgi import FileWrapper
from hypothesis import given
from hypothesis import strategies as st

from isowsgi.configuration import ConfigError, load
from isowsgi.files import app, conditions, folder, memory, tree
from isowsgi.files.tree import Forbidden, IsFolder, Missing, Tree, is_served
from tests.conftest import examples

LONG_AGO = 1606420800


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    (site / "sub").mkdir(parents=True)
    (site / "sub/a.txt").write_text("inside")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/a.txt").write_text("outside")
    return site


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def opened(site: Path, *names: str, follows: bool = False) -> bytes:
    found = Tree(str(site), follows)
    with found.folder([os.fsencode(name) for name in names[:-1]]) as fd:
        file = found.file(fd, os.fsencode(names[-1]))
        try:
            return os.read(file.fd, 100)
        finally:
            os.close(file.fd)


def ask(files: Any, path: str, **environ: str) -> tuple[str, dict[str, str], bytes]:
    given: list[Any] = []
    facts = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "/m", "PATH_INFO": path, "wsgi.file_wrapper": FileWrapper, **environ}
    body = files(facts, lambda status, headers: given.extend((status, dict(headers))))
    found = b"".join(body)
    if hasattr(body, "close"):
        body.close()
    return given[0], given[1], found


def test_a_folder_that_becomes_a_link_while_it_is_walked_is_not_followed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk holds the folder that it has checked, by its descriptor; what has its name later is nothing to it."""
    found = Tree(str(site), follows=False)
    with found.folder([b"sub"]) as fd:
        (site / "sub").rename(site / "gone")
        (site / "sub").symlink_to("../secret")
        file = found.file(fd, b"a.txt")
        assert os.read(file.fd, 100) == b"inside"
        os.close(file.fd)

    with pytest.raises(Forbidden):
        opened(site, "sub", "a.txt")
    assert opened(site, "sub", "a.txt", follows=True) == b"outside"


def test_a_link_that_changes_while_it_is_followed_leads_to_what_was_checked(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "link").symlink_to("sub/a.txt")
    checked = tree._check_kind

    def swap(facts: os.stat_result) -> None:
        checked(facts)
        (site / "new").symlink_to("../secret/a.txt")
        (site / "new").rename(site / "link")
        monkeypatch.setattr(tree, "_check_kind", checked)

    monkeypatch.setattr(tree, "_check_kind", swap)

    assert opened(site, "link") == b"inside"
    with pytest.raises(Forbidden):
        opened(site, "link")


def test_what_is_no_file_is_not_opened(site: Path) -> None:
    os.mkfifo(site / "fifo")
    (site / "to-fifo").symlink_to("fifo")
    (site / "null").symlink_to("/dev/null")
    (site / "loop").symlink_to("loop")

    for name, error in {
        "fifo": Missing,
        "to-fifo": Missing,
        "null": Forbidden,
        "loop": Forbidden,
        "sub": IsFolder,
        "none": Missing,
    }.items():
        with pytest.raises(error):
            opened(site, name)
    with pytest.raises(Missing):
        opened(site, "null", follows=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all files")
def test_what_may_not_be_read_is_forbidden(site: Path) -> None:
    (site / "sub/a.txt").chmod(0)

    with pytest.raises(Forbidden):
        opened(site, "sub", "a.txt")


def test_a_full_table_of_descriptors_is_no_missing_file(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> int:
        raise OSError(24, "too many open files")

    monkeypatch.setattr("isowsgi.files.tree.os.open", fail)

    with pytest.raises(OSError, match="too many"):
        ask(folder(str(site)), "/sub/a.txt")


def test_the_root_may_be_a_link_that_is_switched(site: Path) -> None:
    current = site.parent / "current"
    current.symlink_to("site")
    files = folder(str(current))
    first = ask(files, "/sub/a.txt")
    current.unlink()
    (site.parent / "next/sub").mkdir(parents=True)
    (site.parent / "next/sub/a.txt").write_text("next")
    current.symlink_to("next")

    assert (first[2], ask(files, "/sub/a.txt")[2]) == (b"inside", b"next")


@given(st.lists(st.sampled_from([b"..", b".", b".git", b"a", b"..a", b".well-known", b"b."]), max_size=4))
@examples(50)
def test_no_name_that_begins_with_a_dot_is_served(names: list[bytes]) -> None:
    hidden = [number for number, name in enumerate(names) if name.startswith(b".") and not (number == 0 and name == b".well-known")]

    assert is_served(names) == (not hidden)


@given(st.text(alphabet="bytes=-, 0123459x", max_size=14), st.integers(0, 12))
@examples(300)
def test_a_range_is_within_the_file_or_none(value: str, size: int) -> None:
    try:
        found = conditions.ranged(f"bytes={value}", size)
    except conditions.Unsatisfiable:
        return
    assert found is None or 0 <= found[0] < found[1] <= size


def test_a_remembered_file_is_sent_while_it_is_the_same_and_never_after_it_changed(site: Path) -> None:
    files, path = folder(str(site)), site / "sub/a.txt"
    os.utime(path, (LONG_AGO, LONG_AGO))
    answers = []
    for change in (lambda: None, lambda: path.write_text("longer"), path.unlink, lambda: path.symlink_to("../../secret/a.txt")):
        change()
        answers += [ask(files, "/sub/a.txt")[::2], ask(files, "/sub/a.txt")[::2]]

    ok = "200 OK"
    assert (
        answers
        == [(ok, b"inside")] * 2
        + [(ok, b"longer")] * 2
        + [("404 Not Found", b"404 Not Found\n")] * 2
        + [("403 Forbidden", b"403 Forbidden\n")] * 2
    )


def test_what_is_remembered_is_bounded_and_no_file_that_may_still_change_within_a_tick_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_MOST_BYTES", 100)
    path = tmp_path / "a"
    path.write_text("x")
    known = memory.Memory()
    known.note((1, "young", None), b"", path.stat(), [], b"x")
    assert known.find((1, "young", None)) is None

    monkeypatch.setattr(memory, "_RECENT_NS", -(10**18))
    for number in range(10):
        known.note((1, str(number), None), os.fsencode(path), path.stat(), [], b"x" * 30)
    known.note((1, "n" * 1000, None), os.fsencode(path), path.stat(), [], b"x")

    assert [number for number in range(10) if known.find((1, str(number), None))] == [9]
    assert known.find((1, "n" * 1000, None)) is None
    monkeypatch.setattr(memory, "_KEPT_S", -1.0)
    known.note((1, "old", None), os.fsencode(path), path.stat(), [], b"x")
    assert known.find((1, "old", None)) is None


def test_the_smallest_form_that_a_client_takes_is_sent(site: Path) -> None:
    for name, content in {"a.js": "x" * 50, "a.js.gz": "g" * 20, "a.js.zst": "z" * 15, "a.js.br": "b" * 10}.items():
        (site / name).write_text(content)
        os.utime(site / name, (LONG_AGO, LONG_AGO))
    files = folder(str(site))

    for accepted, body in {"gzip, br, zstd": b"b" * 10, "gzip, zstd": b"z" * 15, "gzip;q=1, br;q=0": b"g" * 20, "": b"x" * 50}.items():
        for _ in range(2):  # the second from memory
            _, headers, found = ask(files, "/a.js", HTTP_ACCEPT_ENCODING=accepted)
            assert (found, headers["Vary"], headers["Content-Type"]) == (body, "Accept-Encoding", 'text/javascript; charset="utf-8"')


FAULTS = [
    ('"/" = { static = "none" }', "\"/\".static: expected an existing folder or file, got 'none'"),
    ('"/" = { static = { "/a" = "site" } }', '"/".static: without an app all of the mount is files'),
    ('"/" = { app = "a", static = "site" }', '"/".static: expected a table of folders by their paths below the mount'),
    ('"/" = { app = "a", static = { "a" = "site" } }', "\"/\".static.a: expected a path below the mount, as in '/static', got 'a'"),
    ('"/" = { app = "a", static = { "/" = "site" } }', '"/".static."/": expected a path below the mount'),
    ('"/" = { app = "a", static = { "/a/../b" = "site" } }', "\"/\".static.\"/a/../b\": expected no '//', '.' or '..'"),
    ('"/" = { app = "a", static = { "/a" = "site" } }\n"/a" = "b"', '"/a": the same pattern as "/a" in static of "/"; keep one of them'),
    ('"/a" = "b"\n"/" = { app = "a", static = { "/a" = "site" } }', '"/".static."/a": "/a" is the same pattern as "/a"; keep one of them'),
    ('"/" = { app = "a", static = { "/a" = 3 } }', '"/".static."/a": expected a folder or file (a string), or a table, got 3'),
    ('"/" = { app = "a", static = { "/a" = { path = "none" } } }', '"/".static."/a".path: expected an existing folder or file'),
    ('"/" = { static = "site", threads = 2 }', '"/".threads: unknown key; expected one of expires, fallback, follow_symlinks, hosts'),
    ('"/" = { static = "site", index = "a/b" }', '"/".index: expected the name of a file in each folder'),
    ('"/" = { static = "site", fallback = "../x" }', '"/".fallback: expected a file below the folder'),
    ('"/" = { redirect = "/x", static = "site" }', '"/".static: a mount is a redirect or files, not both'),
    (
        '"*.a.example/" = { app = "a", max_live = 2, static = { "/a" = "site" } }',
        '"*.a.example/".static: a template of tenants has no files',
    ),
]


@pytest.mark.parametrize(("text", "fault"), FAULTS)
def test_what_is_wrong_with_files_in_a_config_is_told(site: Path, text: str, fault: str) -> None:
    path = site.parent / "isowsgi.toml"
    path.write_text(f"[mounts]\n{text}\n")

    with pytest.raises(ConfigError) as caught:
        load(path)
    assert [each for each in caught.value.faults if f"mounts.{fault}" in each], caught.value.faults


def test_files_below_a_mount_have_its_hosts_and_its_https_only_and_come_after_all_mounts(site: Path) -> None:
    path = site.parent / "isowsgi.toml"
    path.write_text(
        '[mounts]\n"a.example/x" = { app = "a", hosts = "b.example", https_only = true, static = { "/s/" = "site" } }\n"/" = "b"\n'
    )

    _, other, files = load(path).mounts

    assert (other.pattern, files.pattern, files.hosts, files.prefix, files.number) == ("/", "a.example/x/s", ("b.example",), "/x/s", 2)
    assert (files.https_only, files.group, files.files and files.files.path) == (True, "static files", str(site))


def test_an_app_made_of_literals_is_the_one_of_the_config(site: Path) -> None:
    path = site.parent / "isowsgi.toml"
    path.write_text('[mounts]\n"/" = { static = "site/sub", index = "a.txt", fallback = "/a.txt", expires = 5 }\n')
    call = load(path).mounts[0].app.call
    made = eval(call, {"folder": app.folder})

    assert [ask(made, each)[2] for each in ("/", "/none")] == [b"inside", b"inside"]
    assert ask(made, "/")[1]["Cache-Control"] == "max-age=5, public"
