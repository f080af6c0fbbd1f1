"""What has grown between two censuses of an app, over all its instances, and which lines of its files make it grow."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from isowsgi.shared import regularfiles, wire
from isowsgi.shared.census import Census
from isowsgi.shared.controlmessages import InstanceMemory

# Largest file of source code that is read: the largest module of the standard library has a quarter of it.
_MOST_SOURCE_BYTES = 1024 * 1024

# Lines that are named for each container.
_MOST_LINES = 3

# Methods by which lists, dicts, sets and deques grow.
_GROWING = frozenset(("add", "append", "appendleft", "extend", "extendleft", "insert", "setdefault", "update"))


class Grown(NamedTuple):
    """How something has grown.

    Attributes:
        what: a type, a container or a line.
        more: how many objects, entries or blocks there are more.
        bytes: how much more memory they have.
        now: how many objects, entries or blocks there are.
        where: "file:line, ..." of what makes it grow, if that is known.
    """

    what: str
    more: int
    bytes: int
    now: int
    where: str = ""


class Growth:
    """Adds up what instances have told.

    Attributes:
        objects: all of them, at the end.
        cpu_s: what the censuses took.
        is_cut: whether some instance had more than it told.
    """

    def __init__(self) -> None:
        self._sums: tuple[dict[str, list[int]], ...] = ({}, {}, {})
        self._files: dict[str, str] = {}
        self.objects = 0
        self.cpu_s = 0.0
        self.is_cut = False

    def add(self, told: InstanceMemory) -> tuple[float, str]:
        """Add an instance's; return the seconds between its censuses, and what it says of tracing.

        Raises:
            MessageError: what it told is malformed; nothing of it was added.
        """
        before, after = (wire.read(wire.decode(text.encode("utf-8", "surrogatepass")), Census) for text in (told.before, told.after))
        types, holders, lines = self._sums
        counted = {name: (number, size) for name, number, size in before.types}
        for name, number, size in after.types:
            had = counted.pop(name, (0, 0))
            _add(types, name, number - had[0], size - had[1], number)
        held = {name: (length, size) for name, _, _, length, size in before.holders}
        for name, file, _, length, size in after.holders:
            had = held.get(name, (0, 0))
            self._files[name] = file
            _add(holders, name, length - had[0], size - had[1], length)
        for file, line, number, size in after.lines:
            _add(lines, f"{file}:{line}", number, size, number)
        self.objects += sum(number for _, number, _ in after.types)
        self.cpu_s += before.took_s + after.took_s
        self.is_cut = self.is_cut or before.is_cut or after.is_cut
        return after.at - before.at, after.traced

    def types(self, most: int) -> list[Grown]:
        return _largest(self._sums[0], most)

    def holders(self, most: int) -> list[Grown]:
        return [each._replace(where=growing_lines(self._files[each.what], each.what)) for each in _largest(self._sums[1], most)]

    def lines(self, most: int) -> list[Grown]:
        return _largest(self._sums[2], most)


def _add(sums: dict[str, list[int]], name: str, count: int, size: int, now: int) -> None:
    sums[name] = [a + b for a, b in zip(sums.get(name, (0, 0, 0)), (count, size, now), strict=True)]


def _largest(sums: dict[str, list[int]], most: int) -> list[Grown]:
    grown = [Grown(name, numbers[0], numbers[1], numbers[2]) for name, numbers in sums.items() if numbers[0] > 0 or numbers[1] > 0]
    return sorted(grown, key=lambda each: (-max(each.bytes, 0), -each.more, each.what))[:most]


def growing_lines(file: str, name: str) -> str:
    """Return "file:line, ..." of the lines that put something into a container of a module, or else that use it; "": none is found.

    Args:
        file: as the app told it; nothing but line numbers is taken from it.
        name: "shop.models.CACHE", "shop.models.app.cache" or "shop.models.app.extensions['cache']"; the last attribute is looked for.
    """
    if not file.endswith(".py"):
        return ""
    try:
        tree = ast.parse(regularfiles.read(file, _MOST_SOURCE_BYTES))
    except (OSError, regularfiles.NotRegular, SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    attribute = name.partition("[")[0].rpartition(".")[2]
    nodes = list(ast.walk(tree))
    found = _distinct(_growing(nodes, attribute)) or _distinct(
        each.lineno for each in nodes if isinstance(each, ast.expr) and _is_named(each, attribute)
    )
    return f"{file}:{', '.join(map(str, found))}" if found else ""


def _growing(nodes: Iterable[ast.AST], name: str) -> Iterator[int]:
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _GROWING:
            if _is_named(node.func.value, name):
                yield node.lineno
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            if _is_named(node.value, name):
                yield node.lineno
        elif isinstance(node, ast.AugAssign):
            if _is_named(node.target, name):
                yield node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:  # it has a cache
            yield node.lineno


def _is_named(node: ast.AST, name: str) -> bool:
    return (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)


def _distinct(lines: Iterable[int]) -> list[int]:
    return sorted({*lines})[:_MOST_LINES]
