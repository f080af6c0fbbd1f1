"""Long slices of a processor's time: of the thread that asks, and of nobody whom it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from isowsgi.instances import sliceprobe
from isowsgi.shared import slices
from tests.apps.slices import slice_ns
from tests.conftest import ROOT

has_slices = pytest.mark.skipif(not slice_ns() or not sliceprobe.may_change(), reason="this kernel has no slices, or lets nobody set them")

ASK = "import os; from tests.apps.slices import slice_ns; os.write(1, b'%d ' % slice_ns())"


def in_a_thread(function: Callable[[], list[int]]) -> list[int]:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(function()))
    thread.start()
    thread.join()
    return found


@has_slices
def test_a_thread_gets_long_slices_and_ordinary_ones_again() -> None:
    def change() -> list[int]:
        slices.lengthen()
        long = slice_ns()
        slices.restore()
        return [long, slice_ns()]

    long, after = in_a_thread(change)

    assert (long > 10 * after, after) == (True, slice_ns())


@has_slices
def test_threads_that_it_starts_have_ordinary_ones() -> None:
    def start() -> list[int]:
        slices.lengthen()
        return in_a_thread(lambda: [slice_ns()])

    assert in_a_thread(start) == [slice_ns()]


@has_slices
def test_under_a_filter_of_system_calls_another_process_tries_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hardened unit of systemd's may kill for the calls of @resources, of which this is one."""
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -SYS $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(slices, "is_filtered", lambda: True)

    assert sliceprobe.may_change.__wrapped__()
    monkeypatch.setattr(sys, "executable", str(killed))
    assert not sliceprobe.may_change.__wrapped__()


@has_slices
def test_the_command_gives_way_and_what_it_executes_does_not(tmp_path: Path) -> None:
    (tmp_path / "isowsgi.toml").write_text(f'[mounts]\n"/" = {{ app = "plain", pythonpath = "{ROOT}" }}\n')
    code = f"{ASK}; from isowsgi.cli import entry; import isowsgi.cli.run as run, os; real = os.execve\n"
    code += f"def execve(*args):\n    {ASK}\n    real(*args)\n"
    code += f"import isowsgi.shared.slices as s; lengthen = s.lengthen\ndef long():\n    lengthen()\n    {ASK}\n"
    code += "os.execve, s.lengthen = execve, long\nentry.main()"
    command = [sys.executable, "-c", code, "run", "/", sys.executable, "-c", ASK]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    before, long, at_exec, after = map(int, done.stdout.split())

    assert long > 10 * before
    assert (at_exec, after) == (before, before)
