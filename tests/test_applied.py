"""The text by which workers agree on a table: the first decides, and whoever finds another decision in force is told so."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from isowsgi import configuration
from isowsgi.configuration import stored
from isowsgi.shared.applied import MAX_BYTES, Applied, Deciding, LastApplied, Outvoted
from isowsgi.shared.controlmessages import Answer, Prepare, Switch, TableOutcome
from isowsgi.worker.control.applying import Applying
from isowsgi.worker.control.server import Errand


def table(serial: str, base: int = 1, config: Any = None) -> Applied:
    return Applied(base, serial, config)


def test_the_first_decides_and_the_others_follow() -> None:
    last = LastApplied()
    assert last.read() is None
    turn = last.turn()

    last.decide(table("a", config={"mounts": ["/caf\udc80"]}), before="")
    last.decide(table("a"), before="")  # another worker, told the same

    assert last.read() == table("a", config={"mounts": ["/caf\udc80"]})
    assert last.turn() != turn


def test_who_did_not_know_of_the_decision_in_force_is_outvoted() -> None:
    last = LastApplied()
    last.decide(table("a"), before="")

    with pytest.raises(Outvoted):
        last.decide(table("b"), before="")

    last.decide(table("b"), before="a")
    assert last.read() == table("b")


def test_a_decision_for_an_earlier_reading_of_the_file_binds_nobody() -> None:
    last = LastApplied()
    last.decide(table("a", base=1), before="")

    last.decide(table("b", base=2), before="")

    assert last.read() == table("b", base=2)


def test_a_table_that_is_too_long_changes_nothing() -> None:
    last = LastApplied()
    last.decide(table("a"), before="")

    with pytest.raises(ValueError, match="too long"):
        last.decide(table("b", config="x" * MAX_BYTES), before="a")

    assert last.read() == table("a")


def decided_in_the_end(last: LastApplied, wanted: Applied) -> None:
    while True:
        try:
            return last.decide(wanted, before="")
        except Deciding:
            time.sleep(0.001)


@contextlib.contextmanager
def another_is_deciding(last: LastApplied, byte: int = 0) -> Iterator[None]:
    """Hold the place of a worker that decides, as another process; or, with byte 1, of the one that watches."""
    code = "import fcntl, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX, 1, int(sys.argv[2])); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(last._fd), str(byte)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[last._fd]) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        yield
        holder.stdin.close()


def test_who_comes_while_another_decides_asks_again_and_the_same_decision_is_its_own() -> None:
    last = LastApplied()
    with another_is_deciding(last), pytest.raises(Deciding):
        last.decide(table("a"), before="")

    last.decide(table("a"), before="")

    assert last.read() == table("a")


def another_may_watch(last: LastApplied) -> bool:
    code = "import fcntl, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1)"
    command = [sys.executable, "-c", code, str(last._fd)]
    return subprocess.run(command, pass_fds=[last._fd], stderr=subprocess.DEVNULL, check=False).returncode == 0


def test_one_process_watches_also_once_it_has_decided_and_another_one_when_it_has_ended() -> None:
    last = LastApplied()
    with another_is_deciding(last, byte=1):
        assert not last.may_watch()
        last.decide(table("a"), before="")

    assert another_may_watch(last)
    assert last.may_watch()
    last.decide(table("b"), before="a")
    assert not another_may_watch(last)
    assert last.may_watch()


def test_a_worker_that_is_told_to_switch_while_another_decides_switches_a_moment_later(tmp_path: Any) -> None:
    """All workers are told at once; one that found another deciding answered an error, although the table was applied."""
    (tmp_path / "isowsgi.toml").write_text('[mounts]\n"/" = "a"\n')
    config = configuration.load(tmp_path / "isowsgi.toml")
    switched: list[float] = []
    change = SimpleNamespace(
        is_ready=lambda: True, added=[], changed=[], removed=[], adjusted=[], new=SimpleNamespace(mounts=[], config=config)
    )
    live: Any = SimpleNamespace(table=SimpleNamespace(config=config), prepare=lambda config, now: change, switch=switched.append)
    last = LastApplied()
    applying = Applying(live, last, base=1, serial="", log=logging.getLogger("test"))
    [*_, prepared] = steps(applying.prepare(Prepare(serial="a", config=stored.plain(config), hold_s=60.0)))
    assert isinstance(prepared, TableOutcome)

    switch = applying.switch(Switch(serial="a"))
    with another_is_deciding(last):
        assert next(switch) is None
        assert next(switch) is None
        assert switched == []

    [*_, answer] = steps(switch)
    assert isinstance(answer, TableOutcome)
    assert answer.outcome == "applied"
    assert len(switched) == 1


def steps(errand: Errand) -> Iterator[Answer | None]:
    answer = yield from errand
    yield answer


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # each child does one thing and ends
def test_of_many_processes_one_decides() -> None:
    last = LastApplied()
    start, go = os.pipe()
    children = []
    for number in range(8):
        pid = os.fork()
        if pid == 0:
            os.read(start, 1)
            try:
                decided_in_the_end(last, table(str(number)))
            except Outvoted:
                os._exit(1)
            except BaseException:
                os._exit(2)
            os._exit(0)
        children.append(pid)
    os.write(go, b"x" * 8)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    os.close(start)
    os.close(go)

    assert sorted(codes) == [0] + [1] * 7
    decided = last.read()
    assert decided is not None
    assert decided.serial == str(codes.index(0))


@pytest.mark.parametrize("text", [b"{", b"[]", b"7", b'{"base": 1}', b"[" * 100_000, b"\xff"])
def test_what_somebody_wrote_over_it_is_no_decision(text: bytes) -> None:
    last = LastApplied()
    last._text.write(text)

    assert last.read() is None


def test_a_config_comes_back_as_it_was(tmp_path: Any) -> None:
    settings = 'app = "b:make(1)", env = { A = "1" }, policy = { exit = "deny" }, threads = 3, max_age = 2.5, lazy = true'
    tables = '[worker]\nmax_rss = 9\n[status]\nallow = ["10.0.0.0/8"]\n'
    (tmp_path / "isowsgi.toml").write_text(f'{tables}[mounts]\n"/" = "a"\n"a.example/caf\u00e9" = {{ {settings} }}\n')
    config = configuration.load(tmp_path / "isowsgi.toml")

    restored = stored.restore(stored.plain(config))

    assert restored == config
    assert [mount.number for mount in restored.mounts] == [0, 1]
    assert isinstance(restored.mounts[0].pythonpath, tuple)


@pytest.mark.parametrize("facts", [None, [], "x", {}, {"path": "/x"}, {"path": "/x", "mounts": [{}]}, {"path": "", "mounts": [], "odd": 1}])
def test_what_is_no_config_is_refused(facts: Any) -> None:
    with pytest.raises(stored.NotAConfig):
        stored.restore(facts)


def test_numbers_are_not_taken_over_and_a_pattern_is_there_once(tmp_path: Any) -> None:
    """A table whose mounts all have the same number would send all requests to one app."""
    (tmp_path / "isowsgi.toml").write_text('[mounts]\n"/" = "a"\n"/b" = "b"\n')
    facts = stored.plain(configuration.load(tmp_path / "isowsgi.toml"))
    for mount in facts["mounts"]:
        mount["number"] = 7

    assert [mount.number for mount in stored.restore(facts).mounts] == [0, 1]

    facts["mounts"][1]["pattern"] = "/"
    with pytest.raises(stored.NotAConfig, match="the same pattern"):
        stored.restore(facts)


def test_a_decision_of_an_earlier_reading_does_not_replace_a_later_one() -> None:
    last = LastApplied()
    last.decide(table("b", base=2), before="")

    with pytest.raises(Outvoted):
        last.decide(table("a", base=1), before="")


def test_a_reader_does_not_wait_for_a_writer_that_never_pauses() -> None:
    last = LastApplied()
    last.decide(table("a"), before="")

    class Restless:
        def __init__(self) -> None:
            self.turn = 0

        def __getitem__(self, place: int) -> int:
            self.turn += 1
            return self.turn if place == 0 else 10

    last._text._head = Restless()  # type: ignore[assignment]

    assert last.read() is None
