"""Extension modules that share state between interpreters are found by what they do, not by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isowsgi.isolation import sharing, trial
from isowsgi.isolation.sharing import HARMLESS, HELD, SAME_OBJECT, SINGLE_PHASE, Sharing
from isowsgi.shared import interpreters
from tests.conftest import DEADLINE_S
from tests.orders import copy_extension, order_for


def told(*objects: tuple[str, str, int], held: tuple[str, ...] = (), is_single_phase: bool = False) -> dict[str, Any]:
    """Return what one copy tells of one module; its file is not loaded here, so nothing is held in this interpreter."""
    module = {"name": "p._c", "path": "/none.so", "is_single_phase": is_single_phase, "objects": objects, "held": held}
    return {"modules": [module], "lost": []}


def ways(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return [found.what for found in sharing.compare(first, second)]


def test_objects_at_the_same_address_in_two_copies_are_shared() -> None:
    first, second = told(("adapters", "dict", 1), ("Error", "class", 2)), told(("adapters", "dict", 1), ("Error", "class", 3))

    assert ways(first, second) == [f"{SAME_OBJECT} dict adapters"]
    assert ways(first, told(("adapters", "dict", 4))) == []


def test_registries_are_named_before_classes() -> None:
    objects = told(("Error", "class", 2), ("adapters", "dict", 1))

    assert ways(objects, objects) == [f"{SAME_OBJECT} dict adapters and 1 more"]


def test_what_c_variables_of_either_copy_hold_counts() -> None:
    assert ways(told(held=("class Decimal",)), told(held=("class UUID",))) == [f"{HELD}: class Decimal and 1 more"]


def test_a_single_phase_module_counts_even_if_nothing_is_seen() -> None:
    assert ways(told(), told(is_single_phase=True)) == [SINGLE_PHASE]


def test_only_what_was_looked_at_in_a_package_is_harmless() -> None:
    known = HARMLESS[0]
    fine = Sharing(f"{known.package}._c", "/x.so", known.ways[0])
    other = Sharing(f"{known.package}._c", "/x.so", f"{SAME_OBJECT} dict cache")
    unknown = Sharing("p._c", "/x.so", SINGLE_PHASE)

    assert sharing.harmful([fine, other, unknown]) == [other, unknown]


def test_what_is_for_terminals_is_not_missed() -> None:
    """tornado.log wants curses for colours; a worker has no terminal."""
    assert not sharing.is_missed("_curses", ["_curses"])
    assert sharing.is_missed("faulthandler", ["faulthandler"])
    assert not sharing.is_missed("yaml._yaml", [])
    assert sharing.is_missed("yaml._yaml", ["yaml._yaml"])


def test_a_packages_name_is_no_prefix_of_anothers() -> None:
    assert sharing.has_fallback("yaml._yaml")
    assert not sharing.has_fallback("yamlike._c")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("xxlimited", []),  # multi-phase, all of its state in the module
        ("xxlimited_35", [SAME_OBJECT, HELD]),  # multi-phase, but its classes are C variables, as before PEP 573
        ("_testsinglephase", [SAME_OBJECT, HELD, SINGLE_PHASE]),
        ("_testbuffer", [HELD, SINGLE_PHASE]),
    ],
)
def test_a_trial_finds_what_two_copies_share(tmp_path: Path, name: str, expected: list[str]) -> None:
    try:
        copy_extension(name, tmp_path)
    except ValueError:
        pytest.skip(f"this Python comes without {name}")

    outcome = trial.run(order_for(tmp_path, f"import {name}"), "shared-gil", copies=2, timeout_s=DEADLINE_S)

    assert outcome.error == ""
    assert [way for found in outcome.shared for way in (SAME_OBJECT, HELD, SINGLE_PHASE) if found.what.startswith(way)] == expected


@pytest.mark.skipif(interpreters.best_isolation() != "own-gil", reason="needs an own GIL")
def test_with_an_own_gil_nothing_is_looked_for(tmp_path: Path) -> None:
    """A module that takes one says by itself that it shares nothing."""
    copy_extension("xxlimited", tmp_path)

    assert trial.run(order_for(tmp_path, "import xxlimited"), "own-gil", timeout_s=DEADLINE_S).shared == ()
