"""The operator's console inside an app: what it executes, prints and leaves alone, and that its end is one."""

from __future__ import annotations

import builtins
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from isowsgi.inside.console import Consoles
from isowsgi.shared.messages import EndShell, OpenShell, ShellInput
from tests.conftest import DEADLINE_S, eventually


class Desk:
    """The consoles of an instance with one app.

    Attributes:
        app: what the code finds as `app`.
    """

    def __init__(self) -> None:
        self.app: dict[str, Any] = {}
        self.said: list[str] = []
        self.answers: SimpleQueue[tuple[int, int, str, bool, str]] = SimpleQueue()
        self.consoles = Consoles(lambda: {0: self.app}, lambda *answer: self.answers.put(answer), self.said.append)
        self.number = 0

    def open(self, ask: int = 1) -> None:
        self.consoles.open(OpenShell(ask=ask, mount=0))

    def type(self, source: str, ask: int = 1) -> None:
        self.number += 1
        self.consoles.put(ShellInput(ask=ask, number=self.number, source=source))

    def answer(self, source: str) -> tuple[str, bool, str]:
        """Type some lines and return the answer."""
        self.type(source)
        return self.answers.get(timeout=DEADLINE_S)[2:]


def consoles() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "isowsgi-shell"]


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    desk.open()
    yield desk
    desk.consoles.end_all()
    eventually(lambda: not consoles(), "the end of the console's thread")


def test_a_value_that_is_typed_is_the_consoles_own_underscore(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gettext.install` has its function in `builtins._`, and each view of the app would call the value instead."""
    monkeypatch.setattr(builtins, "_", "gettext's", raising=False)

    assert desk.answer("6 * 7") == ("42\n", False, "done")
    assert desk.answer("_ + 1")[0] == "43\n"
    assert vars(builtins)["_"] == "gettext's"
    assert sys.displayhook is sys.__displayhook__


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("sys.stdout.write(b'x')", "must be str, not bytes"),
        ("1 / 0", "ZeroDivisionError"),
        ("broken syntax", "SyntaxError"),
        ("app['odd']", "RuntimeError: no repr"),
        ("print('\\udc80')", ""),
        ("raise BaseException('odd')", "odd"),
        ("sys.exit(3)", "SystemExit: 3"),
    ],
)
def test_each_input_is_answered(desk: Desk, source: str, said: str) -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    desk.app["odd"] = Odd()
    desk.answer("import sys")

    text, is_more, outcome = desk.answer(source)

    assert said in text
    assert (is_more, outcome) == (False, "done" if not said else "failed")
    assert desk.answer("1")[0] == "1\n"


def test_an_input_is_answered_in_an_app_without_streams(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys, "stdout")

    assert desk.answer("print('yes')") == ("yes\n", False, "done")


def test_what_waits_when_a_session_ends_is_not_executed(desk: Desk) -> None:
    desk.type("while True: app['begun'] = True\n")
    desk.type("app['second'] = True")
    eventually(lambda: "begun" in desk.app, "the first input")

    desk.consoles.end(EndShell(ask=1))

    eventually(lambda: not consoles(), "the end of the console's thread")
    assert "second" not in desk.app
    assert desk.answers.empty()
    assert desk.said[-1] == "the operator's shell has ended"


def test_exit_leaves_the_apps_input_alone_and_reading_finds_nothing(desk: Desk) -> None:
    assert desk.answer("exit()") == ("", False, "exit")
    assert "EOFError" in desk.answer("input()")[0]
    assert not sys.stdin.closed


def test_the_apps_streams_are_there_again_whichever_session_ends_first(desk: Desk) -> None:
    """A session that is in C code when it ends comes out of it while the next one executes something."""
    before = sys.stdout, sys.stderr, sys.stdin
    first, second = threading.Lock(), threading.Lock()
    desk.app.update(first=first, second=second)
    with second:
        with first:
            desk.type("app['in first'] = True; app['first'].acquire(); app['first'].release()")
            eventually(lambda: "in first" in desk.app, "the first session's input")
            desk.open(2)
            desk.type("app['in second'] = True; app['second'].acquire(); app['second'].release()", ask=2)
            eventually(lambda: "in second" in desk.app, "the second session's input")
        eventually(lambda: len(consoles()) == 1, "the end of the first session's thread")
    assert desk.answers.get(timeout=DEADLINE_S)[0] == 2

    assert (sys.stdout, sys.stderr, sys.stdin) == before


def test_the_log_has_the_whole_of_an_input(desk: Desk) -> None:
    source = f"len('{'x' * 5000}')"
    desk.answer(source)

    assert f"the operator's shell executes: {source}" in desk.said


def test_an_input_without_a_console_is_answered(desk: Desk) -> None:
    desk.type("1", ask=9)

    assert desk.answers.get(timeout=DEADLINE_S) == (9, 1, "there is no console in the instance; its log may say why", False, "lost")
