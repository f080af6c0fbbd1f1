"""The fuzzers, for a moment each; they fail when they should; and every case that ever failed is tried again."""

from __future__ import annotations

import ast
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gunicorn.http import message

from isowsgi.shared.peek import Peeker
from isowsgi.shared.routing import Router
from isowsgi.worker.control.server import ControlServer
from tests.conftest import ROOT, any_seed
from tests.fuzz import engine
from tests.fuzz.__main__ import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_failed_once_does_not_fail_again(name: str) -> None:
    target = TARGETS[name](random.Random(0))
    try:
        for path in sorted(engine.FOUND.glob(f"{name}-*.case")):
            print(path)  # shown with a failure
            engine.replay(target, path)
    finally:
        target.close()


def fuzz(name: str, seconds: float = 30.0, most: int | None = None, seed: int | None = None) -> engine.Figures:
    rng = random.Random(any_seed() if seed is None else seed)
    target = TARGETS[name](rng)
    try:
        return engine.run(target, rng, seconds=seconds, most=most)
    finally:
        target.close()


@pytest.mark.parametrize("name", TARGETS)
def test_a_moment_of_fuzzing_finds_nothing(name: str) -> None:
    figures = fuzz(name, most=300)

    assert figures.failure is None, "\n".join(map(str, figures.failure or ()))
    assert figures.inputs == 300
    assert len(figures.kinds) > 1, figures


def always_2(*args: Any) -> int:
    return 2


def slow_match(self: Router, host: str, path: str) -> int | None:
    began = time.thread_time()
    while time.thread_time() - began < 0.12:
        pass
    return None


@pytest.mark.parametrize(
    ("name", "place", "attribute", "mistake", "said"),
    [
        ("plain", message.Request, "should_close", lambda request: True, "request_closes: False, gunicorn has True"),
        ("peeker", Router, "match", always_2, "expected length and mount"),
        ("peeker", Peeker, "look", lambda *args: 1 / 0, "ZeroDivisionError"),
        ("router", Router, "match", always_2, "expected mount"),
        ("router", Router, "match", slow_match, "Slow"),
        ("control", ControlServer, "_step", lambda *args: None, "a whole frame was not answered"),
        ("control", ControlServer, "_go_on", lambda *args: None, "a proper client was not answered"),
    ],
)
def test_a_mistake_is_found(monkeypatch: pytest.MonkeyPatch, name: str, place: Any, attribute: str, mistake: Any, said: str) -> None:
    """A proof that cannot fail proves nothing."""
    monkeypatch.setattr(engine, "SLOW_S", 0.1)
    monkeypatch.setattr(engine, "HANG_S", 120)  # beside many others a slow case may take 10 s
    monkeypatch.setattr(place, attribute, mistake)

    figures = fuzz(name, seed=1)

    assert figures.failure is not None, figures
    assert said in figures.failure[1]


def test_a_case_that_hangs_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: Any) -> None:
        while True:
            pass

    monkeypatch.setattr(engine, "HANG_S", 0)
    monkeypatch.setattr(Router, "match", hang)

    figures = fuzz("router")

    assert figures.failure is not None
    assert "Hang" in figures.failure[1]


@pytest.mark.parametrize("name", TARGETS)
def test_a_case_survives_being_written_down(name: str, tmp_path: Path) -> None:
    rng = random.Random(3)
    target = TARGETS[name](rng)
    try:
        for _ in range(20):
            case = target.change(target.draw(rng), rng)
            path = engine.save(target, case, "Traceback\nAssertionError: why", tmp_path)

            assert path.read_text().startswith("# AssertionError: why\n")
            assert ast.literal_eval(path.read_text()) == case
            engine.replay(target, path)
    finally:
        target.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is new in Python 3.12")
def test_cases_that_reach_new_code_are_kept() -> None:
    assert fuzz("peeker", most=50).kept > 1


def test_the_command_says_what_it_did() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", "0.005", "--jobs", "1", "router", "plain"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "router: " in done.stdout
    assert done.stdout.count("no failure") == 2
