"""A trial says how an app loads, whatever the app does, and leaves nothing behind."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest

from isowsgi.isolation import trial
from isowsgi.shared import interpreters, policies
from isowsgi.shared.interpreters import PROCESS
from tests.conftest import DEADLINE_S, ROOT, eventually
from tests.orders import copy_extension, order_for, with_member, with_values

BEST = interpreters.best_isolation()
INTERPRETER_AND_PROCESS = [(BEST, 1), (PROCESS, 1)]
EACH_HOME = pytest.mark.parametrize(("isolation", "copies"), INTERPRETER_AND_PROCESS)


def other_python() -> str | None:
    """Return a Python of another version that runs here; a name on the path may be a shim for one that does not."""
    for version in ("3.11", "3.12", "3.13", "3.14", "3.15"):
        path = shutil.which(f"python{version}")
        if path and version != "{}.{}".format(*sys.version_info[:2]):
            done = subprocess.run([path, "-c", ""], capture_output=True, check=False)
            if done.returncode == 0:
                return path
    return None


@pytest.mark.parametrize(("isolation", "copies"), [*INTERPRETER_AND_PROCESS, ("shared-gil", 2)])
def test_a_sound_app_loads_and_is_measured(tmp_path: Path, isolation: str, copies: int) -> None:
    outcome = trial.run(order_for(tmp_path, "import json"), isolation, copies=copies, timeout_s=DEADLINE_S)

    assert (outcome.loaded, outcome.error, outcome.failed_copy) == (True, "", 0)
    assert outcome.python == interpreters.version_text()
    assert 1 < outcome.memory_mib < 200


def test_a_policy_is_not_about_what_a_trial_does_itself(tmp_path: Path) -> None:
    """It looks into the C variables of extension modules, by ctypes."""
    copy_extension("_testmultiphase", tmp_path)
    order = order_for(tmp_path, "import _testmultiphase", policy=dict.fromkeys(policies.WORDS, "deny"))

    outcome = trial.run(order, "shared-gil", copies=2, timeout_s=DEADLINE_S)

    assert (outcome.loaded, outcome.error) == (True, "")
    assert "policy" not in outcome.output


@EACH_HOME
def test_it_finds_its_environment(tmp_path: Path, isolation: str, copies: int) -> None:
    code = """
        import os, sys
        assert os.environ["COLOUR"] == "red"
        assert sys.argv == ["tried"]
        assert sys.stdin.read() == ""
        assert not [folder for folder in sys.path if folder.endswith("isowsgi")], sys.path
    """
    order = order_for(tmp_path, code, env={"COLOUR": "red"})

    assert trial.run(order, isolation, copies=copies, timeout_s=DEADLINE_S).error == ""


@EACH_HOME
def test_a_broken_app_brings_its_own_traceback(tmp_path: Path, isolation: str, copies: int) -> None:
    outcome = trial.run(order_for(tmp_path, "import nothing_of_that_name"), isolation, copies=copies, timeout_s=DEADLINE_S)

    assert outcome.error == "ModuleNotFoundError: No module named 'nothing_of_that_name'"
    assert 'tried.py", line 1' in outcome.traceback
    assert not outcome.has_died


@EACH_HOME
def test_a_crash_is_a_finding(tmp_path: Path, isolation: str, copies: int) -> None:
    outcome = trial.run(order_for(tmp_path, "import ctypes\nctypes.string_at(0)"), isolation, copies=copies, timeout_s=DEADLINE_S)

    assert (outcome.loaded, outcome.signal) == (False, "SIGSEGV")
    assert "Segmentation fault" in outcome.output
    assert not list(Path.cwd().glob("core*"))


@EACH_HOME
def test_an_exit_is_a_finding(tmp_path: Path, isolation: str, copies: int) -> None:
    outcome = trial.run(order_for(tmp_path, "import os\nos._exit(7)"), isolation, copies=copies, timeout_s=DEADLINE_S)

    assert (outcome.loaded, outcome.exit_code) == (False, 7)


@pytest.mark.parametrize(
    ("isolation", "copies", "crash_at", "when"),
    [
        (BEST, 1, 2, "it was loaded after a copy had been ended"),
        ("shared-gil", 2, 2, "a second copy was loaded"),
        ("shared-gil", 2, 3, "it was loaded after a copy had been ended"),
        ("shared-gil", 2, 4, "it was loaded after a copy had been ended"),
    ],
)
def test_a_crash_that_comes_with_a_later_copy_is_found(tmp_path: Path, isolation: str, copies: int, crash_at: int, when: str) -> None:
    """So does orjson: it keeps objects of its first interpreter, and the next one to load it after that has ended crashes the process."""
    loads = tmp_path / "loads"
    code = f"import ctypes\nwith open({str(loads)!r}, 'a') as file:\n    file.write('x')\n    if file.tell() == {crash_at}:\n"
    code += "        ctypes.string_at(0)"

    outcome = trial.run(order_for(tmp_path, code), isolation, copies=copies, timeout_s=DEADLINE_S)

    assert (outcome.error, outcome.failed_copy) == (f"it crashed the process by SIGSEGV when {when}", crash_at)


@pytest.mark.parametrize(
    ("crash", "error", "failed_copy"),
    [
        ("loads == 6", "it crashed the process by SIGSEGV when it was loaded after a copy had been ended", 6),
        ("loads == 6 and atexit.register(ctypes.string_at, 0)", "it crashed the process by SIGSEGV when a copy of it was ended", 6),
        ("'PYTHONMALLOC' in os.environ", "it crashed the process by SIGSEGV when it was loaded", 1),
    ],
)
def test_an_app_with_extension_modules_under_a_shared_gil_is_tried_for_longer_and_with_the_debug_allocator(
    tmp_path: Path, crash: str, error: str, failed_copy: int
) -> None:
    """One in six trials of orjson went well by chance, the verdict was remembered, and the next reload of the mount ended the worker."""
    copy_extension("xxlimited", tmp_path)
    loads = tmp_path / "loads"
    code = f"""
        import atexit, ctypes, os, xxlimited
        with open({str(loads)!r}, 'a') as file:
            file.write('x')
            loads = file.tell()
        if ({crash}) is True:
            ctypes.string_at(0)
        """

    outcome = trial.run(order_for(tmp_path, textwrap.dedent(code)), "shared-gil", copies=2, timeout_s=DEADLINE_S)

    assert (outcome.error, outcome.failed_copy) == (error, failed_copy)


def test_a_copy_that_does_not_end_is_left_alone(tmp_path: Path) -> None:
    """As a worker leaves it: an interpreter with a thread inside must not be destroyed."""
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()"

    assert trial.run(order_for(tmp_path, code), BEST, timeout_s=DEADLINE_S).loaded


def test_an_exit_of_zero_is_one_too(tmp_path: Path) -> None:
    outcome = trial.run(order_for(tmp_path, "import os\nos._exit(0)"), PROCESS, timeout_s=DEADLINE_S)

    assert (outcome.loaded, outcome.exit_code) == (False, 0)


@EACH_HOME
def test_an_app_that_hangs_is_given_up_in_time(tmp_path: Path, isolation: str, copies: int) -> None:
    outcome = trial.run(order_for(tmp_path, "import time\ntime.sleep(1000)"), isolation, copies=copies, timeout_s=2)

    assert (outcome.loaded, outcome.timed_out, outcome.has_died) == (False, True, False)
    assert "2 s" in outcome.error
    if isolation == PROCESS:
        assert "time.sleep(1000)" in outcome.traceback


def test_so_is_one_that_never_gives_up_the_gil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own process cannot say a word."""
    monkeypatch.setattr(trial, "_MARGIN_S", 0.5)
    code = "import re\nre.match('(a*)*b', 'a' * 40)"

    outcome = trial.run(order_for(tmp_path, code), PROCESS, timeout_s=0.5)

    assert (outcome.loaded, outcome.timed_out) == (False, True)


@EACH_HOME
def test_of_ten_megabytes_the_end_is_kept(tmp_path: Path, isolation: str, copies: int) -> None:
    code = "for number in range(10_000):\n    print('x' * 1000)\nimport os\nos.write(1, b'y' * 1_000_000 + b'the end')"

    outcome = trial.run(order_for(tmp_path, code), isolation, copies=copies, timeout_s=DEADLINE_S)

    assert outcome.loaded
    assert len(outcome.output) <= 16 * 1024
    assert "the end" in outcome.output


def test_the_warm_up_request_is_part_of_it(tmp_path: Path) -> None:
    """Also where no listener has a TCP address; that was a TypeError once."""
    outcome = trial.run(order_for(tmp_path, "", warmup="/tried/"), BEST, timeout_s=DEADLINE_S)
    assert outcome.loaded

    code = "def application(environ, start_response):\n    raise ValueError\nfailing = application"
    order = order_for(tmp_path, code, warmup="/tried/")
    failed = trial.run(with_member(order, call="failing"), BEST, timeout_s=DEADLINE_S)
    assert failed.error == "ValueError"


def test_it_names_the_extension_modules(tmp_path: Path) -> None:
    path = copy_extension("xxlimited", tmp_path)

    outcome = trial.run(order_for(tmp_path, "import xxlimited, sqlite3"), PROCESS, timeout_s=DEADLINE_S)

    assert outcome.extensions == (("xxlimited", str(path)),)


@pytest.mark.skipif(interpreters.own_gil_error() is not None, reason="needs an own GIL")
def test_and_the_one_that_refuses(tmp_path: Path) -> None:
    path = copy_extension("xxlimited_35", tmp_path)

    outcome = trial.run(order_for(tmp_path, "import xxlimited_35"), "own-gil", timeout_s=DEADLINE_S)

    [(name, refused, error)] = outcome.refused
    assert (name, refused) == ("xxlimited_35", str(path))
    assert "does not support loading in subinterpreters" in error
    assert outcome.failure.module == "xxlimited_35"


def test_a_python_that_does_not_start_is_a_finding(tmp_path: Path) -> None:
    outcome = trial.run(order_for(tmp_path, "", python=str(tmp_path / "python")), PROCESS, timeout_s=DEADLINE_S)

    assert "cannot run" in outcome.error


def test_so_is_one_that_does_not_know_isowsgi(tmp_path: Path) -> None:
    outcome = trial.run(order_for(tmp_path, "", python="/bin/false"), PROCESS, timeout_s=DEADLINE_S)

    assert outcome.error == "'/bin/false' does not run isowsgi: it ended with exit code 1"
    assert not outcome.has_died


def test_a_process_may_have_another_python(tmp_path: Path) -> None:
    other = other_python()
    if other is None:
        pytest.skip("needs another Python")
    order = order_for(tmp_path, "import sys\nassert 'isowsgi' not in str(sys.path[1:])", python=other, warmup="/tried/")

    outcome = trial.run(with_values(order, pythonpath=[str(tmp_path)]), PROCESS, timeout_s=DEADLINE_S)

    assert (outcome.error, outcome.loaded) == ("", True)
    assert outcome.python != interpreters.version_text()


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """No descriptor, no zombie, and no process that the app started."""
    code = f"import subprocess\nchild = subprocess.Popen(['sleep', '600'])\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))"
    order = order_for(tmp_path, code)
    trial.run(order, PROCESS, timeout_s=DEADLINE_S)
    before = os.listdir("/proc/self/fd")
    children_before = children_of(os.getpid())  # of other tests, such as multiprocessing's resource tracker

    for isolation in (BEST, PROCESS):
        assert trial.run(order, isolation, timeout_s=DEADLINE_S).loaded
        left = int((tmp_path / "pid").read_text())
        eventually(partial(_has_ended, left), "the app's child is gone")

    assert os.listdir("/proc/self/fd") == before
    assert children_of(os.getpid()) == children_before


@EACH_HOME
def test_an_app_sees_that_it_is_only_tried_and_its_daemons_end_with_the_trial(tmp_path: Path, isolation: str, copies: int) -> None:
    """A daemon has left the trial's process group, and has no parent any more."""
    pid = tmp_path / "pid"
    code = f"""
        import os, subprocess, time
        assert os.environ["ISOWSGI_TRIAL"]
        subprocess.Popen(["sh", "-c", "setsid sh -c 'echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600' &"])
        while not os.path.exists({str(pid)!r}):
            time.sleep(0.01)
    """

    outcome = trial.run(order_for(tmp_path, code), isolation, copies=copies, timeout_s=DEADLINE_S)

    assert outcome.error == ""
    eventually(lambda: not is_running(int(pid.read_text())), "the daemon is gone")


def test_another_python_is_not_told_where_the_askers_has_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked there for its own, so `isowsgi check` said that a Python does not run isowsgi which a worker runs well."""
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    other = tmp_path / "python"
    other.symlink_to(os.path.realpath(sys.executable))
    order = order_for(tmp_path, "import os\nassert 'PYTHONHOME' not in os.environ", python=str(other))

    assert trial.run(with_values(order, site=[str(ROOT)]), PROCESS, timeout_s=DEADLINE_S).error == ""


def test_a_venv_leaves_an_app_its_main_module(tmp_path: Path) -> None:
    """What reads it, as pickle and inspect.stack do, failed in a trial only, so a sound app had no isolation."""
    folder = tmp_path / "venv"
    (folder / "lib").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text("home = /nowhere\n")
    order = order_for(tmp_path, "import inspect, sys\nassert sys.modules['__main__']\ninspect.stack(0)", venv=str(folder))

    assert trial.run(with_values(order, site=[str(ROOT)]), PROCESS, timeout_s=DEADLINE_S).error == ""


@EACH_HOME
@pytest.mark.skipif(interpreters.VERSION >= (3, 14), reason="raises in a main thread too, from Python 3.14 on")
def test_an_app_gets_an_event_loop_when_it_is_loaded_as_in_a_main_thread(tmp_path: Path, isolation: str, copies: int) -> None:
    code = """
        import asyncio, threading
        async def answer():
            return 5
        assert asyncio.get_event_loop().run_until_complete(answer()) == asyncio.run(answer())
        assert threading.current_thread() is threading.main_thread()
        def application(environ, start_response):
            assert threading.current_thread() is not threading.main_thread()
            start_response("200 OK", [])
            return []
        tried = application
    """
    order = with_member(order_for(tmp_path, code, warmup="/tried/"), call="tried")

    assert trial.run(order, isolation, copies=copies, timeout_s=DEADLINE_S).error == ""


@pytest.mark.skipif(interpreters.VERSION < (3, 15), reason="imports are lazy from Python 3.15 on")
@pytest.mark.parametrize("by", ["config", "environment"])
def test_lazy_imports_are_resolved(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an app seems to load where its first request fails."""
    changes = {"lazy_imports": "all"} if by == "config" else {}
    if by == "environment":
        monkeypatch.setenv("PYTHON_LAZY_IMPORTS", "all")
    path = copy_extension("_xxtestfuzz", tmp_path)
    (tmp_path / "inner.py").write_text("import _xxtestfuzz")

    outcome = trial.run(order_for(tmp_path, "import inner", **changes), BEST, timeout_s=DEADLINE_S)

    assert [(name, file) for name, file, _ in outcome.refused] == [("_xxtestfuzz", str(path))]


@pytest.mark.skipif(interpreters.VERSION < (3, 15), reason="imports are lazy from Python 3.15 on")
def test_a_lazy_import_that_exits_does_no_harm_unless_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("raise SystemExit(1)")

    outcome = trial.run(order_for(tmp_path, "import ends", lazy_imports="all"), BEST, timeout_s=DEADLINE_S)

    assert (outcome.loaded, outcome.error) == (True, "")


def test_a_trial_dies_with_its_parent(tmp_path: Path) -> None:
    """Also while the app holds the GIL for ever."""
    order_for(tmp_path, f"import os, re\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\nre.match('(a*)*b', 'a' * 60)")
    code = f"""
from pathlib import Path
from isowsgi.isolation import trial
from tests.orders import order_for
folder = Path({str(tmp_path)!r})
order = order_for(folder, (folder / "tried.py").read_text())
trial.run(order, "process", timeout_s=600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    pid = int(str(eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the app is being loaded")))
    parent.send_signal(signal.SIGKILL)
    parent.wait()

    eventually(lambda: not is_running(pid), "the trial is gone")


def _has_ended(pid: int) -> bool:
    return not is_running(pid)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped, by whoever, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_trial_without_descriptors_leaves_none_open(tmp_path: Path) -> None:
    order = order_for(tmp_path, "")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = sorted(os.listdir("/proc/self/fd"))
    highest = os.dup(0)
    os.close(highest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 3, limits[1]))  # a pipe, and half of the next one
    try:
        with pytest.raises(OSError, match="Too many open files"):
            trial.run(order, PROCESS, timeout_s=DEADLINE_S)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert sorted(os.listdir("/proc/self/fd")) == before
