"""Interpreters are made, run and ended; and which kind a release gets is said in one place.

What may crash the process runs in a child process.
"""

import os
import queue
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time

import pytest

from isowsgi.shared import interpreters
from isowsgi.shared.interpreters import OWN_GIL, SHARED_GIL
from tests.conftest import DEADLINE_S, ROOT

# Explicit own-gil is allowed where CPython has it, with a warning on some releases; see own_gil_error and own_gil_warning.
ISOLATIONS = [SHARED_GIL] if interpreters.own_gil_error() else [SHARED_GIL, OWN_GIL]


def in_child(code: str, *arguments: str) -> str:
    """Run code in a process of its own and return what it printed; a crash or a traceback fails the test.

    `keep(source, isolation)` there makes an interpreter, runs the source and ends it, all on one thread, as keepers do.
    """
    prelude = """
        import os, sys, threading
        from isowsgi.shared import interpreters

        def keep(source, isolation=None, destroy=True):
            results = []
            def life():
                handle = interpreters.create(isolation or sys.argv[1])
                results.append(interpreters.run(handle, source))
                if destroy:
                    interpreters.destroy(handle)
            thread = threading.Thread(target=life)
            thread.start()
            thread.join()
            return results[0]

        interpreters.preload()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_interpreters_come_and_go(isolation: str) -> None:
    """And every one starts afresh: the mark of the one before is gone."""
    source = "import sys, threading, json; assert not hasattr(sys, 'mark'); sys.mark = 1"

    assert in_child(f"for _ in range(8): assert keep({source!r}) is None\nprint('done')", isolation) == "done\n"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_interpreters_live_side_by_side(isolation: str) -> None:
    code = """
        source = "import json, datetime, time; json.loads('[1]'); time.sleep(0.01)"
        keepers = [threading.Thread(target=keep, args=(source,)) for _ in range(4)]
        for keeper in keepers:
            keeper.start()
        for keeper in keepers:
            keeper.join()
        print("done")
    """

    assert in_child(code, isolation) == "done\n"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_threads_may_be_started_inside_and_daemons_too(isolation: str) -> None:
    """Error reporters and schedulers start daemon threads; they are ended before the interpreter is."""
    source = """
import threading
done = threading.Event()
def work():
    done.wait()
thread = threading.Thread(target=work, daemon=True)
thread.start()
done.set()
thread.join()
"""

    assert in_child(f"print(keep({source!r}))", isolation) == "None\n"


def test_a_decimal_is_compared_with_a_fraction_as_the_page_says() -> None:
    """docs/explanation/isolation.md: before 3.13 the C part of `decimal` keeps the first `numbers.Rational` for all."""
    source = "from decimal import Decimal; from fractions import Fraction; assert Decimal(1) == 1 == 1.0 and Decimal(1) < Fraction(3, 2)"
    # 3.12.1 crashes in its own end after that; a worker leaves by os._exit, too.
    told = f"keep({source!r}) is None, decimal.Decimal(1) < fractions.Fraction(3, 2)"
    code = f"import decimal, fractions; print({told}, flush=True); os._exit(0)"

    assert in_child(code, interpreters.SHARED_GIL) == f"{interpreters.VERSION >= (3, 13)} True\n"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_failure_comes_back_as_text(isolation: str) -> None:
    """It is all that the log can say about an interpreter whose own log was not set up yet."""
    output = in_child("print(keep('def f():\\n    1 / 0\\nf()'))", isolation)

    assert "ZeroDivisionError" in output
    assert "division by zero" in output
    assert interpreters.VERSION < (3, 13) or "in f" in output  # earlier releases tell no more than the exception


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_source_that_exits_does_not_end_the_process(isolation: str) -> None:
    assert "SystemExit" in in_child("print(keep('raise SystemExit(3)'))", isolation)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_exit_functions_run_at_the_end(isolation: str) -> None:
    source = "import atexit, os; atexit.register(os.write, 1, b'bye')"

    assert in_child(f"keep({source!r})", isolation) == "bye"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_an_end_that_does_not_come_keeps_nobody_from_beginning_or_ending(isolation: str) -> None:
    """Interpreters begin and end one at a time. One `__del__` that never returned, and no mount could be replaced any more."""
    stays = """
        import os, sys, time
        class Stays:
            def __del__(self, write=os.write, sleep=time.sleep):
                write({go}, b"1")
                sleep(3600)
        sys.stays = Stays()
        """
    code = f"""
        interpreters._END_LIMIT_S = 0.1
        come, go = os.pipe()
        stays = {textwrap.dedent(stays)!r}.replace("{{go}}", str(go))
        for _ in range(2):
            threading.Thread(target=keep, args=[stays], daemon=True).start()
            os.read(come, 1)
        for _ in range(2):
            assert keep("pass") is None
        os.write(1, b"done")
        os._exit(0)
        """
    assert in_child(code, isolation) == "done"


def test_an_end_that_runs_is_waited_for_longer_than_one_that_waits() -> None:
    """A large heap that was freed on a busy machine passed for a `__del__` that does not return, and two at once crash 3.12."""
    lifetimes = interpreters._Lifetimes()
    limit_s, busy_s = interpreters._END_LIMIT_S, interpreters._BUSY_END_LIMIT_S
    runs: queue.SimpleQueue[bool] = queue.SimpleQueue()
    ran: queue.SimpleQueue[float] = queue.SimpleQueue()

    def end() -> None:
        with lifetimes.end():
            ran.put(time.monotonic())
            while runs.get():
                until = time.thread_time() + 2 * interpreters._RUNS_S
                while time.thread_time() < until:
                    pass
                ran.put(0.0)

    def after(seconds: float, runs_until_then: bool = False) -> bool:
        if runs_until_then:
            runs.put(True)
            ran.get()
        return lifetimes._takes_too_long(began + seconds)

    assert not lifetimes._takes_too_long(time.monotonic()), "nobody ends"
    thread = threading.Thread(target=end)
    thread.start()
    began = ran.get()

    assert not after(limit_s - 1)
    assert not after(limit_s + 1, runs_until_then=True)
    assert not after(2 * limit_s)
    assert after(2 * limit_s + 2)
    assert not after(busy_s - 1, runs_until_then=True)
    assert after(busy_s + 1, runs_until_then=True)
    runs.put(False)
    thread.join()
    assert not after(busy_s + 1)


@pytest.mark.skipif(interpreters.VERSION < (3, 13), reason="CPython does not refuse it there; see forks.refuse")
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_fork_is_refused_inside_but_programs_can_be_started(isolation: str) -> None:
    """A forked child dies on every release while interpreters exist; `subprocess` is a fork and an exec at once, and safe."""
    source = """
import os, subprocess
try:
    os.fork()
except RuntimeError as exc:
    os.write(1, b"refused\\n")
subprocess.run(["true"], check=True)
"""

    assert in_child(f"print(keep({source!r}))", isolation) == "refused\nNone\n"


def releases(*versions: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, version.split("."))) for version in versions]


@pytest.mark.parametrize("version", releases("3.11.7", "3.12.1", "3.12.13"))
def test_no_app_gets_a_gil_of_its_own_where_half_of_the_library_would_be_missing(
    version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreters, "VERSION", version)

    assert interpreters.best_isolation() == SHARED_GIL
    assert interpreters.own_gil_error() == (
        f"needs Python 3.13 or newer, gunicorn runs on Python {'.'.join(map(str, version))}; use 'shared-gil' or 'auto'"
    )


@pytest.mark.parametrize("version", releases("3.13.0", "3.13.7", "3.13.15", "3.14.0"))
def test_where_an_own_gil_is_unsound_it_is_only_given_to_who_asks_for_it_and_with_a_warning(
    version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreters, "VERSION", version)

    assert interpreters.best_isolation() == SHARED_GIL
    assert interpreters.own_gil_error() is None
    assert ".".join(map(str, version)) in (interpreters.own_gil_warning() or "")


@pytest.mark.parametrize("version", releases("3.13.16", "3.13.20", "3.14.1", "3.14.10", "3.15.0", "3.16.0"))
def test_every_release_with_the_fixes_gives_an_own_gil(version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "VERSION", version)

    assert interpreters.best_isolation() == OWN_GIL
    assert interpreters.own_gil_warning() is None


def test_this_python_can_host_interpreters() -> None:
    assert interpreters.unusable_reason() is None


def test_another_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Implementation:
        name = "pypy"

    monkeypatch.setattr(sys, "implementation", Implementation)

    assert interpreters.unusable_reason() == "isowsgi needs CPython, this is pypy"


def test_the_free_threaded_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": 1}.get)

    assert "free-threaded" in (interpreters.unusable_reason() or "")


def test_a_build_without_the_module_says_where_to_get_one_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some distributions leave it out of their 3.11 and 3.12."""
    monkeypatch.setattr(interpreters, "_MODULE_NAME", "_no_such_module")

    assert "was built without the module _no_such_module; use Python 3.13 or newer" in (interpreters.unusable_reason() or "")


def test_preload_takes_a_python_built_without_some_of_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "_PRELOADED", ("no_such_module", "csv"))

    interpreters.preload()

    assert "csv" in sys.modules


@pytest.mark.parametrize(
    ("version", "isolation", "is_safe"),
    [
        ((3, 11, 7), SHARED_GIL, True),
        ((3, 13, 15), OWN_GIL, False),
        ((3, 13, 15), SHARED_GIL, True),
        ((3, 13, 16), OWN_GIL, True),
        ((3, 14, 7), OWN_GIL, False),
        ((3, 14, 8), OWN_GIL, True),
        ((3, 15, 0), OWN_GIL, True),
    ],
)
def test_stacks_are_looked_at_only_where_that_cannot_crash(
    version: tuple[int, int, int], isolation: str, is_safe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreters, "VERSION", version)

    assert interpreters.can_see_stacks(isolation) == is_safe


@pytest.mark.parametrize(
    ("version", "isolation", "keeps"),
    [((3, 12, 1), SHARED_GIL, False), ((3, 13, 18), SHARED_GIL, False), ((3, 13, 18), OWN_GIL, True), ((3, 14, 1), OWN_GIL, False)],
)
def test_only_an_own_gil_of_3_13_leaves_memory_behind(
    version: tuple[int, int, int], isolation: str, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreters, "VERSION", version)

    assert interpreters.keeps_memory(isolation) == keeps


def test_the_end_of_a_neighbour_breaks_nothing_of_the_standard_library() -> None:
    """On 3.11 and 3.12 it broke `datetime.strptime`, and on 3.11 zoneinfo, in all others. `make neighbours` is the long form."""
    command = [sys.executable, "-m", "tests.neighbours", "--together"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=4 * DEADLINE_S, check=False)

    assert (done.returncode, done.stdout.splitlines()[:-1]) == (0, [])


def test_where_libc_cannot_give_memory_back_an_interpreter_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """musl has no malloc_trim."""
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    interpreters._give_back_memory()
    monkeypatch.undo()
    interpreters._give_back_memory()
