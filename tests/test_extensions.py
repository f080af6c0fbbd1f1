"""In an app's interpreter extension files are recorded, those that refuse too, and while the app boots none loads that nobody tried."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from isowsgi.inside import extensions
from isowsgi.inside.extensions import stamp_of
from isowsgi.shared import interpreters, loadfailures, messages
from isowsgi.shared.containment import MAX_ERROR_CHARS
from isowsgi.shared.messages import BootOrder
from tests.conftest import DEADLINE_S, ROOT
from tests.orders import copy_extension, order_for, with_values
from tests.test_environment import in_interpreter

INSTALL = """
from isowsgi.inside import extensions
sys.path.insert(0, folder)
record = extensions.install(allowed)
"""


def inside(code: str, folder: Path, allowed: Any = None) -> Any:
    lines = "\n".join(line[4:] for line in code.splitlines())
    return in_interpreter(INSTALL + lines, folder=str(folder), allowed=allowed)["told"]


def test_each_extension_file_is_recorded_but_for_the_standard_librarys(tmp_path: Path) -> None:
    path = copy_extension("xxlimited", tmp_path)

    told = inside("""
    import xxlimited, _ssl, _sqlite3
    tell(record.loaded)
    """, tmp_path)  # fmt: skip

    assert told == [[["xxlimited", str(path)]]]


def test_an_unknown_file_is_not_opened(tmp_path: Path) -> None:
    path = copy_extension("xxlimited", tmp_path)

    told = inside("""
    try:
        import xxlimited
    except extensions.UnknownExtension as exc:
        tell(exc.path)
    tell([record.unknown, record.loaded, "xxlimited" in open("/proc/self/maps").read()])
    """, tmp_path, {})  # fmt: skip

    assert told == [str(path), [str(path), [], False]]


def test_a_package_cannot_swallow_it(tmp_path: Path) -> None:
    """Neither a fallback in Python nor a bare except lets the boot go on."""
    path = copy_extension("xxlimited", tmp_path)

    told = inside("""
    try:
        import xxlimited
    except BaseException:
        pass
    try:
        record.check()
    except extensions.UnknownExtension as exc:
        tell(exc.path)
    """, tmp_path, {})  # fmt: skip

    assert told == [str(path)]


def test_a_file_that_was_tried_loads_as_long_as_it_is_the_same(tmp_path: Path) -> None:
    path = copy_extension("xxlimited", tmp_path)
    code = """
    try:
        import xxlimited
        tell("loaded")
    except extensions.UnknownExtension:
        tell("stopped")
    """
    stamp = stamp_of(str(path))
    assert stamp is not None

    assert inside(code, tmp_path, {str(path): stamp}) == ["loaded"]
    assert inside(code, tmp_path, {str(path): [stamp[0], stamp[1] + 1]}) == ["stopped"]


def test_the_guard_ends_with_the_boot(tmp_path: Path) -> None:
    path = copy_extension("xxlimited", tmp_path)

    told = inside("""
    record.end_guard(lambda *facts: tell(facts))
    import xxlimited
    tell(record.loaded)
    """, tmp_path, {})  # fmt: skip

    assert told == [[["xxlimited", str(path)]]]


@pytest.mark.skipif(interpreters.best_isolation() != "own-gil", reason="needs an own GIL")
def test_a_refusal_in_a_request_is_told_once(tmp_path: Path) -> None:
    path = copy_extension("xxlimited_35", tmp_path)

    told = inside("""
    record.end_guard(lambda *facts: tell(facts))
    for attempt in range(2):
        try:
            import xxlimited_35
        except ImportError:
            pass
    tell(record.loaded)
    """, tmp_path)  # fmt: skip

    error = "ImportError: module xxlimited_35 does not support loading in subinterpreters"
    assert told == [["xxlimited_35", str(path), error], []]


@pytest.mark.skipif(interpreters.best_isolation() != "own-gil", reason="needs an own GIL")
def test_parts_of_the_standard_library_that_refuse_are_told(tmp_path: Path) -> None:
    """Some are built in, some are files. A request that imports one failed for ever, since nobody learnt of it."""
    told = inside("""
    record.end_guard(lambda *facts: tell(facts[0]))
    for name in ("faulthandler", "tracemalloc", "readline", "curses"):
        try:
            __import__(name)
        except ImportError:
            pass
    """, tmp_path)  # fmt: skip

    assert told == ["faulthandler", "_tracemalloc", "readline", "_curses"]


@pytest.mark.skipif(interpreters.best_isolation() != "own-gil", reason="needs an own GIL")
def test_what_the_standard_library_does_without_is_not_told(tmp_path: Path) -> None:
    """traceback wants _suggestions, warnings wants tracemalloc, cmd wants readline: each has code for when it is not there."""
    told = inside("""
    record.end_guard(lambda *facts: tell(facts))
    import cmd, rlcompleter, traceback, warnings
    warnings.warn("x", ResourceWarning, source=object())
    try:
        tell.nothing
    except AttributeError:
        traceback.format_exc()
    tell(record.refused)
    """, tmp_path)  # fmt: skip

    assert told == [[]]


@pytest.mark.skipif(interpreters.best_isolation() != "own-gil", reason="needs an own GIL")
def test_a_refused_module_is_lost_unless_its_package_is_there(tmp_path: Path) -> None:
    fallback = "try:\n    from whole import _xxtestfuzz\nexcept ImportError:\n    pass"
    for package, code in {"whole": fallback, "gone": "from gone import _xxtestfuzz"}.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(code)
        copy_extension("_xxtestfuzz", tmp_path / package)

    told = inside("""
    record.end_guard(lambda *facts: None)
    for name in ("whole", "gone"):
        try:
            __import__(name)
        except ImportError:
            pass
    tell([[name for name, _, _ in record.refused], record.lost()])
    """, tmp_path)  # fmt: skip

    assert told == [[["whole._xxtestfuzz", "gone._xxtestfuzz"], ["gone._xxtestfuzz"]]]


def test_a_module_whose_init_function_misses_in_the_main_interpreter_what_is_here_is_a_refusal() -> None:
    """cffi's modules under a shared GIL of 3.13.0, which passes that error on as it is."""
    record = extensions.Extensions(None)

    record.after("argon2._ffi", "/a.so", ModuleNotFoundError("No module named 'json'", name="json"))
    record.after("other._c", "/o.so", ModuleNotFoundError("No module named 'not_here'", name="not_here"))

    assert [(name, loadfailures.classify(error).kind) for name, _, error in record.refused] == [("argon2._ffi", loadfailures.MAIN_ONLY)]


def test_an_error_that_is_no_refusal_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_text("no library")

    told = inside("""
    record.end_guard(lambda *facts: tell(facts))
    try:
        import broken
    except ImportError:
        tell([record.loaded, record.refused])
    """, tmp_path)  # fmt: skip

    assert told == [[[], []]]


# Boots one instance in a process of its own and prints what became of it; the order comes on standard input.
BOOT = """
import json, os, select, sys
from isowsgi.shared import interpreters, messages
from isowsgi.instances.subinterpreter import InterpreterInstance
from isowsgi.instances.lifecycle import State
from isowsgi.shared.scoreboard import Scoreboard
board = Scoreboard()
order = messages.read_boot_order(json.load(sys.stdin))
order = order.replace(place=order.place.replace(first_row=board.allot(2, [0])))
sets = [select.epoll(), select.epoll()]
fds = {"returns": sets[0].fileno(), "lingering": sets[1].fileno(), "capacity": os.eventfd(0), "board": board.fd}
interpreters.preload()
instance = InterpreterInstance(order, fds, board)
instance.start()
while instance.state is State.BOOTING:
    select.select([instance], [], [])
    instance.read()
print(json.dumps([instance.state.value, instance.unknown_extension, instance.extensions, instance.error]), flush=True)
os._exit(0)
"""


def boot(order: BootOrder) -> Any:
    text = messages.encode(order).decode()
    done = subprocess.run(
        [sys.executable, "-c", BOOT], input=text, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    return json.loads(done.stdout)


def test_a_boot_that_meets_an_unknown_file_fails_and_says_which(tmp_path: Path) -> None:
    path = copy_extension("xxlimited", tmp_path)
    order = order_for(tmp_path, "try:\n    import xxlimited\nexcept BaseException:\n    pass")

    state, unknown, loaded, error = boot(with_values(order, extensions={}))

    assert (state, unknown, loaded) == ("failed", str(path), [])
    assert "UnknownExtension" in error


def test_a_boot_without_a_guard_says_what_it_loaded(tmp_path: Path) -> None:
    path = copy_extension("xxlimited", tmp_path)

    assert boot(order_for(tmp_path, "import xxlimited")) == ["serving", None, [["xxlimited", str(path)]], ""]


def test_more_extensions_than_one_packet_holds_all_arrive(tmp_path: Path) -> None:
    code = (
        "from importlib.machinery import ExtensionFileLoader\n"
        "cells = [cell.cell_contents for cell in ExtensionFileLoader.create_module.__closure__]\n"  # the record is out of reach otherwise
        "[record] = [each for each in cells if type(each).__name__ == 'Extensions']\n"
        "record.loaded += [(f'm{n}', '/p' * 50) for n in range(1001)]"
    )

    _, _, loaded, _ = boot(order_for(tmp_path, code))

    assert [name for name, _ in loaded] == [f"m{number}" for number in range(1001)]


def test_a_boot_that_fails_with_a_very_long_text_is_still_the_apps_failure(tmp_path: Path) -> None:
    """The report was too long for a packet, also without its traceback, and the instance was stuck."""
    state, _, _, error = boot(order_for(tmp_path, "raise ValueError('x' * 300_000)"))

    assert state == "failed"
    assert error.startswith("ValueError: xxx")
    assert len(error) <= MAX_ERROR_CHARS
