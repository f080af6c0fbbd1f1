"""Random tables, one after the other by `isowsgi apply`: the server must be what a freshly started one with the last table is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
import requests
from click.testing import CliRunner
from hypothesis import given

from isowsgi.cli import client
from isowsgi.cli.main import main
from isowsgi.shared import controlmessages
from tests.conftest import DEADLINE_S, Server, eventually, examples, running_server

APP = """
import json, os
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    names = ("isowsgi.mount", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "isowsgi.isolation")
    return [json.dumps({name: environ[name] for name in names} | {name: os.environ.get(name) for name in ("KEY", "COMMON")}).encode()]
"""
PATTERNS = ("/", "/a", "/a/b", "/c", "example.org/", "example.org/a", "other.example.org/c")
STOPPED = "/stopped"  # is in every table, and was stopped by the operator
HOSTS = ("localhost", "example.org", "other.example.org")
PATHS = ("/", "/a", "/a/x", "/ab", "/a/b", "/a/b/y?q=1", "/c/%2e%2e/a", "/c//z", "/stopped", "/A")
FILES = ("isowsgi.toml", "sites.d/one.toml", "sites.d/two.toml")


class Entry(NamedTuple):
    """A mount as one table has it."""

    key: int
    threads: int | None
    lazy: bool
    isolation: str | None
    file: int
    queue: int | None = None  # is taken up in place

    def line(self, pattern: str) -> str:
        settings = {"threads": self.threads, "lazy": self.lazy or None, "isolation": self.isolation, "queue": self.queue}
        values = [f"{name} = {json.dumps(value)}" for name, value in settings.items() if value is not None]
        return f'"{pattern}" = {{ app = "tells", env = {{ KEY = "{self.key}" }}, {", ".join(values) or "lazy = false"} }}'


class Drawn(NamedTuple):
    """A table.

    Attributes:
        grouped: patterns that share an instance besides the mounts of their own.
        commons: what each file's `[defaults]` has as COMMON.
    """

    mounts: dict[str, Entry]
    grouped: tuple[str, ...]
    commons: tuple[int, ...]

    def texts(self) -> dict[str, str]:
        """Return the files; one that would have no mounts is not there."""
        texts = {}
        for number, name in enumerate(FILES):
            if number and all(entry.file != number for entry in self.mounts.values()):
                continue
            lines = ['include = "sites.d/*.toml"', "[control]", 'folder = "control"'] if not number else []
            lines += ["[defaults]", f'pythonpath = ["{".." if number else "."}"]', f'env = {{ COMMON = "{self.commons[number]}" }}']
            lines += ["[mounts]", *(entry.line(pattern) for pattern, entry in self.mounts.items() if entry.file == number)]
            if not number:
                lines += [f'"{pattern}" = {{ app = "tells", group = "g" }}' for pattern in self.grouped]
            texts[name] = "\n".join(lines) + "\n"
        return texts

    def awake(self) -> int:
        """Return how many instances are loaded at a start."""
        return sum(not entry.lazy for entry in self.mounts.values()) + bool(self.grouped)

    def everything(self, pattern: str) -> object:
        """Return all that decides on a mount's app."""
        if pattern in self.grouped:
            return sorted(self.grouped), self.commons[0]
        entry = self.mounts[pattern]
        return entry._replace(file=0, queue=None), self.commons[entry.file]


entries = st.builds(
    Entry,
    key=st.integers(1, 2),
    threads=st.sampled_from([None, 1, 3]),
    lazy=st.booleans(),
    isolation=st.sampled_from([None, None, None, "shared-gil", "process"]),
    file=st.integers(0, 2),
    queue=st.sampled_from([None, 7]),
)


@st.composite
def tables(draw: st.DrawFn) -> Drawn:
    mounts = draw(st.dictionaries(st.sampled_from(PATTERNS), entries, max_size=5))
    mounts[STOPPED] = draw(entries)._replace(lazy=False)
    grouped = [pattern for pattern in draw(st.lists(st.sampled_from(PATTERNS), max_size=3, unique=True)) if pattern not in mounts]
    commons = draw(st.tuples(*[st.integers(1, 2)] * len(FILES)))
    return Drawn(mounts, tuple(grouped), commons)


FIRST = Drawn({STOPPED: Entry(1, None, False, None, 0)}, (), (1, 1, 1))


class Living:
    """The server whose table changes, for all examples."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.table = FIRST
        self.kept = requests.Session()
        stop(server)

    def apply(self, table: Drawn) -> None:
        before = generations(self.server)
        texts = table.texts()
        for name in FILES:
            (self.server.folder / name).write_text(texts[name]) if name in texts else (self.server.folder / name).unlink(missing_ok=True)
        shown = CliRunner().invoke(main, ["apply", "--config", str(self.server.folder / "isowsgi.toml")])
        assert shown.exit_code == 0, shown.output
        after = generations(self.server)
        for pattern in before.keys() & after.keys():
            if self.table.everything(pattern) == table.everything(pattern):
                assert before[pattern] == after[pattern], f"{pattern} did not change"
        self.table = table


def stop(server: Server) -> None:
    shown = CliRunner().invoke(main, ["stop", STOPPED, "--config", str(server.folder / "isowsgi.toml")])
    assert shown.exit_code == 0, shown.output


def generations(server: Server) -> dict[str, int]:
    return {mount.mount: mount.generation for mount in status(server)}


def status(server: Server) -> list[Any]:
    [told] = client.ask(client.find(str(server.folder / "isowsgi.toml"), None), controlmessages.Status(), DEADLINE_S)
    assert isinstance(told.answer, controlmessages.WorkerStatus), told.answer
    return list(told.answer.mounts)


def answers(server: Server, session: requests.Session) -> dict[tuple[str, str], object]:
    """Return what is answered to each path on each host."""
    found: dict[tuple[str, str], object] = {}
    for host in HOSTS:
        for path in PATHS:
            answer = session.get(server.url + path, headers={"Host": host}, timeout=DEADLINE_S)
            found[host, path] = answer.json() if answer.status_code == 200 else answer.status_code
    return found


def states(server: Server) -> dict[str, tuple[object, ...]]:
    """Return what each mount is like, but for its generation."""
    return {
        mount.mount: (mount.app, mount.isolation, mount.group, mount.state, [(each.state, each.threads) for each in mount.instances])
        for mount in status(server)
    }


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    with started(tmp_path_factory.mktemp("living"), FIRST) as server:
        yield Living(server)


def started(folder: Path, table: Drawn) -> Any:
    texts = table.texts()
    return running_server(folder, texts.pop("isowsgi.toml"), files={"tells.py": APP, "sites.d/.keep": "", **texts}, wait_for=table.awake())


@examples(12)
@given(sequence=st.lists(tables(), min_size=1, max_size=4))
def test_what_was_changed_step_by_step_is_as_if_it_had_been_started_so(living: Living, sequence: list[Drawn]) -> None:
    for table in sequence:
        living.apply(table)

    with tempfile.TemporaryDirectory(prefix="isowsgi-tests-") as folder, started(Path(folder), sequence[-1]) as fresh:
        stop(fresh)
        with requests.Session() as one, requests.Session() as other:
            expected = answers(fresh, one)
            assert answers(living.server, other) == expected
        # An instance that has a connection of before is told its new routes within a moment.
        eventually(lambda: answers(living.server, living.kept) == expected, "the same answers on a connection that was kept")
        eventually(lambda: states(living.server) == states(fresh), "the same states")
