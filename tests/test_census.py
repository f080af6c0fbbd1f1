"""`isowsgi memory` from the inside: objects are counted by type and by container, and nothing is left running afterwards."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from isowsgi.cli.growth import Growth as Sums
from isowsgi.cli.growth import growing_lines
from isowsgi.inside.census import Holders
from isowsgi.shared import wire
from isowsgi.shared.census import Census
from isowsgi.shared.controlmessages import InstanceMemory
from isowsgi.shared.wire import MessageError
from tests.conftest import ROOT

# In a process of its own: the one of the tests has a million objects.
COUNTED = """
from isowsgi.inside.census import Counting

class Kept:
    def __init__(self, text):
        self.text = text

class Text(str):
    def __getitem__(self, key):
        raise SystemExit

Odd = type("Odd", (), {"__qualname__": Text("Odd"), "__module__": "builtins"})
odd = Odd()

def counted():
    counting = Counting()
    while not counting.look():
        pass
    return counting.types

texts = counted()["str"]
kept = [Kept(f"{number:0500}") for number in range(1000)]
types = counted()
assert types["Odd"][0] == 1, "a name is no code of the app's"
print(types["__main__.Kept"][0], types["str"][0] - texts[0], types["str"][1] - texts[1])
"""


def child(script: Path, text: str) -> str:
    script.write_text(text)
    ran = subprocess.run([sys.executable, str(script)], env={"PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True)
    return ran.stdout.strip()


def test_objects_are_counted_by_type_also_those_that_the_collector_does_not_know(tmp_path: Path) -> None:
    number, texts, size = map(float, child(tmp_path / "counted.py", COUNTED).split())

    assert number == 1000
    assert texts == pytest.approx(1000, rel=0.1)
    assert size == pytest.approx(1000 * 550, rel=0.1)


class Proxy:
    """As werkzeug's: what it is asked for, `__dict__` and `__class__` too, is answered by code."""

    asked: list[str] = []

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override] # that is what it is about
        self.asked.append("__dict__")
        return {}

    def __getattribute__(self, name: str) -> Any:
        if name != "asked":
            Proxy.asked.append(name)
        return object.__getattribute__(self, name)

    def __len__(self) -> int:
        self.asked.append("__len__")
        return 0


class Store:
    items: list[int] = list(range(100))

    def __init__(self) -> None:
        self.entries = dict.fromkeys(range(100), "x" * 1000)
        self.registry = {"carts": list(range(100)), "names": "x"}


def test_the_containers_of_modules_their_classes_and_objects_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no code of the app's runs for that."""
    module: Any = ModuleType("shopping")
    Store.__module__ = "shopping"
    module.Store, module.store, module.proxy, module.few = Store, Store(), Proxy(), [1]
    Proxy.asked.clear()
    monkeypatch.setitem(sys.modules, "shopping", module)
    holders = Holders()
    while not holders.look():
        pass
    found = {name: (length, size) for name, _, _, length, size in holders.found.values() if name.startswith("shopping")}

    assert set(found) == {"shopping.Store.items", "shopping.store.entries", "shopping.store.registry['carts']"}
    assert found["shopping.store.entries"][0] == 100
    assert found["shopping.store.entries"][1] == pytest.approx(100 * 1050, rel=0.15)
    assert Proxy.asked == []


def test_a_large_entry_among_small_ones_is_not_taken_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("mixed")
    module.KEPT = [b"x" * 2**20, *(f"{number:0200}" for number in range(10_000))]
    monkeypatch.setitem(sys.modules, "mixed", module)
    holders = Holders()
    while not holders.look():
        pass
    (size,) = (size for name, _, _, _, size in holders.found.values() if name == "mixed.KEPT")

    assert 2_000_000 < size < 5_000_000


TRACED = """
import os, time, tracemalloc
from isowsgi.inside.growth import Growth
told = []
growth = Growth(lambda ask, text: told.append(text), "process")

def take(trace_s, ask=1):
    told.clear()
    while not told or told[-1] is None:
        growth.look(ask, trace_s, 100.0)
    return told[-1]

other = Growth(lambda ask, text: told.append(text), "own-gil")
while not told or told[-1] is None:
    other.look(1, 60.0, 100.0)
assert not tracemalloc.is_tracing() and not other.is_tracing(101.0), "an interpreter is never traced"

take(60.0)
assert tracemalloc.is_tracing()
pid = os.fork()
if pid == 0:
    os._exit(tracemalloc.is_tracing())
assert os.waitpid(pid, 0)[1] == 0, "a child that the app forks goes on"
kept = ["x" * 5000 + str(number) for number in range(100)]
print(take(0.0))
assert not tracemalloc.is_tracing()

take(60.0, 2)
assert growth.is_tracing(159.0) and tracemalloc.is_tracing()
assert not growth.is_tracing(161.0) and not tracemalloc.is_tracing(), "the command has gone"
take(60.0, 3)
growth.drop(2)
assert tracemalloc.is_tracing()
growth.drop(3)
assert not tracemalloc.is_tracing()

tracemalloc.start()
take(60.0, 4)
assert "the app uses tracemalloc itself" in take(0.0, 4)
growth.drop(4)
assert tracemalloc.is_tracing()
"""


def test_a_process_names_the_lines_that_allocate_and_stops_tracing_by_itself(tmp_path: Path) -> None:
    script = tmp_path / "traced.py"
    found = wire.read(wire.decode(child(script, TRACED).encode()), Census)
    file, line, number, size = found.lines[0]

    assert (file, TRACED.splitlines()[line - 1][:4]) == (str(script), "kept")
    assert 100 <= number <= 201
    assert size == pytest.approx(100 * 5050, rel=0.1)
    assert found.traced == "whole"


def instance(before: str, after: str) -> InstanceMemory:
    return InstanceMemory(tag="/ #1", generation=1, isolation="process", before=before, after=after, problem="")


def text_of(**facts: Any) -> str:
    empty = {"at": 0.0, "took_s": 0.1, "is_cut": False, "types": [], "holders": [], "lines": [], "traced": ""}
    return wire.encode({**empty, **facts}).decode()


def test_what_has_grown_in_all_instances_is_added_up_and_the_largest_comes_first() -> None:
    growth = Sums()
    before = text_of(types=[("a", 10, 1000), ("b", 5, 500), ("gone", 1, 1)], holders=[("m.X", "/no.py", 1, 3, 300)])
    after = text_of(at=2.0, types=[("a", 11, 1100), ("b", 15, 1500), ("new", 1, 10)], holders=[("m.X", "/no.py", 1, 4, 400)])
    assert growth.add(instance(before, after)) == (2.0, "")
    growth.add(instance(before, after))

    assert [each[:4] for each in growth.types(2)] == [("b", 20, 2000, 30), ("a", 2, 200, 22)]
    assert growth.holders(9) == [("m.X", 2, 200, 8, "")]


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", text_of(types=[["a", "b", 1]]), text_of(types=3), text_of(at="now")])
def test_what_is_malformed_is_refused_and_adds_nothing(text: str) -> None:
    growth = Sums()
    with pytest.raises(MessageError):
        growth.add(instance(text_of(types=[("a", 1, 1)]), text))

    assert growth.types(9) == []


def test_the_lines_that_put_something_into_a_container_are_named(tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    file.write_text(
        textwrap.dedent("""\
            CACHE, SEEN, OTHER = {}, [], []
            def view(key):
                if key in CACHE: return
                CACHE[key] = 1
                app.SEEN.append(key)
                return OTHER
            @lru_cache
            def found(key): ...
            """)
    )

    assert growing_lines(str(file), "shop.CACHE") == f"{file}:4"
    assert growing_lines(str(file), "shop.app.SEEN") == f"{file}:5"
    assert growing_lines(str(file), "shop.app.SEEN['a.b']") == f"{file}:5"
    assert growing_lines(str(file), "shop.OTHER") == f"{file}:1, 6"
    assert growing_lines(str(file), "shop.found") == f"{file}:8"
    for other in (str(tmp_path), "/dev/zero.py", str(tmp_path / "no.py"), "\0.py", ""):
        assert growing_lines(other, "shop.CACHE") == ""
    file.write_text("(" * 100_000)
    assert growing_lines(str(file), "shop.CACHE") == ""
