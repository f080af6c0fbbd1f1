"""Which tests run side by side: a schedule for pytest-xdist that ends with the tests marked `alone`, one by one, with no other beside them.

The order is the same without xdist. Nobody holds a lock while others wait: a process that has no more work ends, and the last one that is
left runs what needs the machine for itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

try:
    from xdist.scheduler import LoadScopeScheduling
except ImportError:  # the tests run without it too, one after the other
    LoadScopeScheduling = object

ALONE = "alone"

# Most tests wait for a server rather than compute: on 2 cores, 4 at a time ended sooner than 2 or 3, and no sooner than 6 did.
TESTS_PER_CORE = 2


def default_jobs() -> int:
    """How many tests run at a time unless it is said (`-n auto`)."""
    return TESTS_PER_CORE * len(os.sched_getaffinity(0))


def group_of(item: pytest.Item) -> str:
    """Name the tests that stay together, in one process and one after the other.

    Tests that share a fixture of their module, a server mostly, are a group, and so are the quick tests of a unit. All others of real
    servers go where there is room.
    """
    if item.get_closest_marker(ALONE):
        return ALONE
    module: str = item.nodeid.split("::")[0]
    return module if shares_a_fixture(item) or "/functional/" not in module else str(item.nodeid)


def shares_a_fixture(item: pytest.Item) -> bool:
    definitions = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()
    return any(definition[-1].scope in ("class", "module") for definition in definitions)


def put_in_order(items: list[pytest.Item]) -> None:
    """Sort tests: large groups come first so that the end is no waiting for one process, and what must be alone comes last.

    Tests that share a server, then those that share something else, then the units, and then servers of one test each, which fill the gaps.
    """

    def place(item: pytest.Item) -> tuple[bool, bool, bool]:
        shares = shares_a_fixture(item)
        return item.get_closest_marker(ALONE) is not None, not shares, ("/functional/" in item.nodeid) is not shares

    items.sort(key=place)  # a stable sort: a file's tests keep their order


def write_groups(path: Path, items: Iterable[pytest.Item]) -> None:
    """Tell the schedule, which lives in another process than the tests, their groups."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps({item.nodeid: group_of(item) for item in items}))
    draft.replace(path)  # each process writes the same


class AloneLast(LoadScopeScheduling):  # type: ignore[misc] # xdist is not annotated
    """Deal out groups of tests in the order of `put_in_order`; the group `alone` goes to the last process once all others have ended."""

    def __init__(self, config: pytest.Config, log: object, groups: Path) -> None:
        super().__init__(config, log)
        self._groups_path = groups
        self._groups: dict[str, str] = {}

    def schedule(self) -> None:
        if not self._groups:
            self._groups = json.loads(self._groups_path.read_text())
            self.config.option.loadscopereorder = False  # the order is right already
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return self._groups[nodeid]

    def _assign_work_unit(self, node: object) -> None:
        if not self._is_waiting_for_others(node):
            super()._assign_work_unit(node)

    def _reschedule(self, node: Any) -> None:
        # A process runs its last test only once it knows the next, or that there is none: one that is out of work is sent home at once.
        if not self._is_waiting_for_others(node):
            super()._reschedule(node)
        elif node is not self._last_node() and not node.shutting_down:
            node.shutdown()

    def remove_node(self, node: object) -> str | None:
        crashed: str | None = super().remove_node(node)
        for other in self.nodes:
            self._reschedule(other)
        return crashed

    def _is_waiting_for_others(self, node: object) -> bool:
        return list(self.workqueue) == [ALONE] and (len(self.nodes) > 1 or node is not self._last_node())

    def _last_node(self) -> object:
        return next((node for node in self.nodes if not node.shutting_down), None)
