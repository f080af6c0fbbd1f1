"""What profiles of several instances say together: one tree of calls, and what can be made of it. Values only, no I/O.

What an instance tells is checked here: the app is in there, and could have written it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from isowsgi.cli.answers import plain
from isowsgi.shared import wire
from isowsgi.shared.calltree import CallTree
from isowsgi.shared.wire import MessageError

# Deepest stack that is taken: some more than an instance looks at.
_MOST_DEPTH = 300

# Longest name of a function or file; an instance tells no longer one.
_MOST_CHARS = 300

# Where libraries lie, and what of their path is shown.
_LIBRARY = re.compile(r".*/(?:site-packages|dist-packages|lib(?:64)?/python3\.\d+t?)/(.*)")

SPEEDSCOPE_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


class Frame(NamedTuple):
    """A line that is executed; a request has its line for a function, and no file."""

    function: str
    file: str
    line: int

    @property
    def is_request(self) -> bool:
        return not self.file

    @property
    def is_apps(self) -> bool:
        """Whether the line is the app's own, and no library's."""
        return bool(self.file) and not self.file.startswith("<") and _LIBRARY.match(self.file) is None

    def place(self, folder: str = "") -> str:
        """Return file and line, as short as they can still be found.

        Args:
            folder: that need not be named.
        """
        if not self.file:
            return ""
        library = _LIBRARY.match(self.file)
        file = library[1] if library else self.file.removeprefix(folder.rstrip("/") + "/") if folder else self.file
        return f"{file}:{self.line}"

    def text(self, folder: str = "") -> str:
        return f"{self.function} ({self.place(folder)})" if self.line else self.function


@dataclass(slots=True)
class Call:
    """A place in the tree: time that was spent there, and the calls from it."""

    self_us: int = 0
    calls: dict[Frame, Call] = field(default_factory=dict)

    def total_us(self) -> int:
        return sum(call.self_us for _, call in walk(self))


class Line(NamedTuple):
    """How long a line took, in all of the calls."""

    frame: Frame
    self_us: int
    total_us: int


class Malformed(Exception):
    """What an instance told is no profile."""


def add(root: Call, text: str) -> CallTree:
    """Add what an instance told to a tree; return it.

    Raises:
        Malformed: it is no profile; nothing of it was added.
    """
    try:
        tree = wire.read(wire.decode(text.encode("utf-8", "surrogatepass")), CallTree)
    except MessageError as exc:
        raise Malformed(str(exc)) from None
    depths: list[int] = []
    for number, (parent, frame, time_us) in enumerate(tree.nodes):
        depth = depths[parent] + 1 if 0 <= parent < number else 0
        if not (-1 <= parent < number and 0 <= frame < len(tree.frames) and time_us >= 0 and depth < _MOST_DEPTH):
            raise Malformed(f"call {number} cannot be: {parent}, {frame}, {time_us}")
        depths.append(depth)
    # Made fit to be printed once for all formats: `cat shop.txt` obeys the escape sequences in a function's name.
    frames = [Frame(plain(function[:_MOST_CHARS]), plain(file[-_MOST_CHARS:]), line) for function, file, line in tree.frames]
    calls: list[Call] = []
    for parent, frame, time_us in tree.nodes:
        above = calls[parent] if parent >= 0 else root
        call = above.calls.setdefault(frames[frame], Call())
        call.self_us += time_us
        calls.append(call)
    return tree


def walk(root: Call) -> Iterator[tuple[tuple[Frame, ...], Call]]:
    """Yield each call with its path from the root, the root first."""
    waiting: list[tuple[tuple[Frame, ...], Call]] = [((), root)]
    while waiting:
        path, call = waiting.pop()
        yield path, call
        waiting += [((*path, frame), each) for frame, each in reversed(call.calls.items())]


def lines(root: Call) -> list[Line]:
    """Return each line with the time in itself, and with what it called: that of a recursion once."""
    own: dict[Frame, int] = {}
    total: dict[Frame, int] = {}
    for path, call in walk(root):
        if call.self_us:
            own[path[-1]] = own.get(path[-1], 0) + call.self_us
            for frame in set(path):
                total[frame] = total.get(frame, 0) + call.self_us
    return [Line(frame, own.get(frame, 0), time_us) for frame, time_us in total.items()]


def collapsed(root: Call, folder: str) -> str:
    """Return a line for each stack, as flamegraph.pl and others read it; its number is microseconds."""
    found: dict[str, int] = {}
    for path, call in walk(root):
        if call.self_us:
            stack = ";".join(frame.text(folder).replace(";", ":").replace("\n", " ") for frame in path)
            found[stack] = found.get(stack, 0) + call.self_us
    return "".join(f"{stack} {time_us}\n" for stack, time_us in found.items())


def speedscope(root: Call, name: str, exporter: str) -> dict[str, Any]:
    """Return a profile as https://www.speedscope.app reads it."""
    numbers: dict[Frame, int] = {}
    samples, weights = [], []
    for path, call in walk(root):
        if call.self_us:
            samples.append([numbers.setdefault(frame, len(numbers)) for frame in path])
            weights.append(call.self_us)
    return {
        "$schema": SPEEDSCOPE_SCHEMA,
        "name": name,
        "exporter": exporter,
        "activeProfileIndex": 0,
        "shared": {
            "frames": [{"name": each.function, **({"file": each.file, "line": each.line} if each.file else {})} for each in numbers]
        },
        "profiles": [
            {
                "type": "sampled",
                "name": name,
                "unit": "microseconds",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        ],
    }


def nested(root: Call, name: str, folder: str) -> dict[str, Any]:
    """Return a tree as d3-flame-graph reads it: each value is of the calls below too."""
    top: dict[str, Any] = {"name": name, "value": root.self_us, "children": []}
    above: list[dict[str, Any]] = []  # the nodes that lead to the last one, it included
    for path, call in walk(root):
        if not path:
            continue
        frame = path[-1]
        kind = "request" if frame.is_request else "app" if frame.is_apps else "library"
        node: dict[str, Any] = {"name": frame.text(folder), "value": 0, "kind": kind, "children": []}
        del above[len(path) - 1 :]
        (above[-1] if above else top)["children"].append(node)
        above.append(node)
        if call.self_us:
            for each in (top, *above):
                each["value"] += call.self_us
    return top
